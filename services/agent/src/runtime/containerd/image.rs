//! Images: which are there, what they say of themselves, and the snapshot that a container of one begins with.
//!
//! They are brought by others: this agent asks no registry.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    api::containerd::services::{
        content::v1::ReadContentRequest,
        images::v1::{GetImageRequest, ListImagesRequest},
        snapshots::v1::StatSnapshotRequest,
    },
    client::{Client, TITLE},
    name::{familiar, whole},
};
use crate::{
    error::ImageProblem,
    runtime::container::engine::{Refusal, Trouble, absent},
};

/// The largest document of an image that is read.
const LARGEST: usize = 4 << 20;
/// How many images are remembered.
const MOST_IMAGES: usize = 256;
/// How deep an index of images may be in others.
const DEEPEST: usize = 3;
/// Where programs are looked for where an image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// The digest of what it says of itself, as other engines know it.
    pub(super) id: String,
    /// The snapshot with all of its layers; empty for none.
    pub(super) chain: String,
    /// What its containers have in their environment.
    pub(super) env: Vec<String>,
}

impl Image {
    /// One without any file.
    pub(super) fn empty() -> Self {
        Self { id: String::new(), chain: String::new(), env: vec![PATH.to_owned()] }
    }

    fn of(id: &str, config: ImageConfig) -> Self {
        let mut env = config.config.unwrap_or_default().env.unwrap_or_default();
        if !env.iter().any(|pair| pair.starts_with("PATH=")) {
            env.push(PATH.to_owned());
        }
        Self { id: id.to_owned(), chain: chain(&config.rootfs.diff_ids), env }
    }
}

/// What is read of the documents of an image: an index of several, or one.
#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Entry>,
    config: Option<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct ImageConfig {
    config: Option<Process>,
    rootfs: Rootfs,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(rename = "Env")]
    env: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Rootfs {
    diff_ids: Vec<String>,
}

/// The images of a namespace.
#[derive(Debug)]
pub(super) struct Images {
    client: Arc<Client>,
    snapshotter: String,
    /// How to bring an image here.
    advice: String,
    /// By the digest of what a name stands for: an image never changes.
    known: Mutex<HashMap<String, Image>>,
}

impl Images {
    /// Those of a namespace, which `advice` says how to bring there.
    pub(super) fn of(client: Arc<Client>, snapshotter: &str, advice: String) -> Self {
        Self { client, snapshotter: snapshotter.to_owned(), advice, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Image>> {
        // No change in here is left half done by a panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of those that are there, as templates have them.
    pub(super) async fn list(&self) -> Result<Vec<String>, Trouble> {
        let mut images = self.client.images();
        let found = self.client.answer(images.list(ListImagesRequest::default())).await?.images;
        let mut names: Vec<String> = found.iter().map(|image| familiar(&image.name).to_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// An image; `None` where it is not there.
    pub(super) async fn find(&self, image: &str) -> Result<Option<Image>, Trouble> {
        let mut images = self.client.images();
        let get = images.get(GetImageRequest { name: whole(image) });
        let found = absent(self.client.answer(get).await)?;
        let Some(target) = found.and_then(|found| found.image?.target) else { return Ok(None) };
        if let Some(known) = self.known().get(&target.digest) {
            return Ok(Some(known.clone()));
        }
        let image = self.read(&target.digest).await?;
        let mut known = self.known();
        if known.len() >= MOST_IMAGES {
            known.clear();
        }
        known.insert(target.digest, image.clone());
        Ok(Some(image))
    }

    /// An image that is there and can be used.
    pub(super) async fn have(&self, image: &str) -> Result<Image, ImageProblem> {
        let of_trouble = |trouble: Trouble| ImageProblem::Engine(trouble.to_string());
        let found = self.find(image).await.map_err(of_trouble)?;
        let found = found.ok_or_else(|| {
            let advice = &self.advice;
            ImageProblem::Absent(format!("and none is pulled with this runtime: {advice}"))
        })?;
        if !self.is_unpacked(&found).await.map_err(of_trouble)? {
            let Self { snapshotter, advice, .. } = self;
            return Err(ImageProblem::Absent(format!(
                "or not unpacked by snapshotter `{snapshotter}`: {advice}"
            )));
        }
        Ok(found)
    }

    /// The image of an id.
    pub(super) async fn by_id(&self, id: &str) -> Result<Image, Trouble> {
        if id.is_empty() {
            return Ok(Image::empty());
        }
        let known = self.known().values().find(|image| image.id == id).cloned();
        match known {
            Some(image) => Ok(image),
            None => Ok(Image::of(id, self.document(id).await?)),
        }
    }

    async fn is_unpacked(&self, image: &Image) -> Result<bool, Trouble> {
        if image.chain.is_empty() {
            return Ok(true);
        }
        let mut snapshots = self.client.snapshots();
        let request = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: image.chain.clone() };
        Ok(absent(self.client.answer(snapshots.stat(request)).await)?.is_some())
    }

    async fn read(&self, digest: &str) -> Result<Image, Trouble> {
        let mut digest = digest.to_owned();
        for _ in 0..DEEPEST {
            let manifest: Manifest = self.document(&digest).await?;
            if let Some(config) = manifest.config {
                return Ok(Image::of(&config.digest, self.document(&config.digest).await?));
            }
            let fit = for_this_machine(manifest.manifests, std::env::consts::ARCH);
            digest = fit.ok_or_else(|| unreadable("the image is not for this processor".to_owned()))?;
        }
        Err(unreadable("the image is no image but an index of indexes".to_owned()))
    }

    /// A document of an image.
    async fn document<T: DeserializeOwned>(&self, digest: &str) -> Result<T, Trouble> {
        let mut content = self.client.content();
        let request = ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
        let mut parts = self.client.answer(content.read(request)).await?;
        let mut text = Vec::new();
        while let Some(part) = parts.message().await.map_err(|status| self.client.trouble(&status))? {
            text.extend_from_slice(&part.data);
            if text.len() > LARGEST {
                return Err(unreadable(format!("document {digest} of an image is too large")));
            }
        }
        serde_json::from_slice(&text)
            .map_err(|error| unreadable(format!("document {digest} of an image is not readable: {error}")))
    }
}

fn unreadable(message: String) -> Trouble {
    Trouble::Refused { engine: TITLE, kind: Refusal::Other, message }
}

/// The one of several images that is for Linux on this processor, in the words of Rust.
fn for_this_machine(images: Vec<Entry>, processor: &str) -> Option<String> {
    let architecture = match processor {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |image: &Entry| match &image.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == architecture,
        None => true,
    };
    images.into_iter().find(fits).map(|image| image.digest)
}

/// The name of the snapshot with these layers, the lowest first.
fn chain(layers: &[String]) -> String {
    let onto = |below: String, layer: &String| match below.as_str() {
        "" => layer.clone(),
        _ => {
            let digest = Sha256::digest(format!("{below} {layer}"));
            let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256:{digits}")
        }
    };
    layers.iter().fold(String::new(), onto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_of_layers_is_named_as_the_image_specification_says() {
        let layers = ["sha256:a", "sha256:b"].map(str::to_owned);
        assert_eq!(chain(&[]), "");
        assert_eq!(chain(&layers[..1]), "sha256:a");
        // echo -n "sha256:a sha256:b" | sha256sum
        let both = "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8";
        assert_eq!(chain(&layers), both);
    }

    #[test]
    fn of_several_images_the_one_for_this_processor_is_taken() {
        let index = r#"{"manifests": [
            {"digest": "w", "platform": {"os": "windows", "architecture": "amd64"}},
            {"digest": "arm", "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {"digest": "intel", "platform": {"os": "linux", "architecture": "amd64"}}]}"#;
        let images = || serde_json::from_str::<Manifest>(index).unwrap().manifests;
        assert_eq!(for_this_machine(images(), "x86_64").as_deref(), Some("intel"));
        assert_eq!(for_this_machine(images(), "aarch64").as_deref(), Some("arm"));
        assert_eq!(for_this_machine(images(), "riscv64"), None);
    }

    #[test]
    fn an_image_that_names_no_path_gets_the_usual_one() {
        let image = |text: &str| Image::of("sha256:0", serde_json::from_str(text).unwrap());
        let bare = image(r#"{"rootfs": {"type": "layers", "diff_ids": ["sha256:a"]}}"#);
        assert_eq!((bare.chain.as_str(), bare.env), ("sha256:a", vec![PATH.to_owned()]));
        let own = image(r#"{"config": {"Env": ["A=1", "PATH=/opt"]}, "rootfs": {"diff_ids": []}}"#);
        assert_eq!(own.env, ["A=1", "PATH=/opt"]);
        assert_eq!(image(r#"{"config": {"Env": null}, "rootfs": {"diff_ids": []}}"#).env.len(), 1);
    }
}
