//! Images: whether one is there, and having it pulled once, whoever waits for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::{
    models::CreateImageInfo,
    query_parameters::{CreateImageOptions, ListImagesOptions},
};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
};
use tokio::{
    sync::watch,
    time::{Instant, interval, interval_at},
};

use super::client::Client;
use crate::{
    config::Pull,
    error::ImageProblem,
    runtime::container::{
        engine::{Refusal, Trouble, absent},
        reference::with_tag,
    },
};

/// How often it is told how far a pull is: to those who wait, and in the log.
const TOLD_EVERY: Duration = Duration::from_secs(1);
const LOGGED_EVERY: Duration = Duration::from_secs(5);
/// How long a list of the images counts as fresh: the node tells of it every few seconds.
const FRESH: Duration = Duration::from_secs(10);

type Outcome = Shared<BoxFuture<'static, Result<String, ImageProblem>>>;

/// A pull, for whoever waits for it.
#[derive(Debug, Clone)]
struct Pulling {
    outcome: Outcome,
    /// How far it is, in words.
    progress: watch::Receiver<String>,
}

/// The images of the engine.
#[derive(Debug)]
pub(super) struct Images {
    engine: Arc<Client>,
    pull: Pull,
    timeout: Duration,
    /// By image: one that is being pulled.
    pulls: Mutex<HashMap<String, Pulling>>,
    listed: Mutex<Option<(Instant, Vec<String>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No change in here is left half done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    /// Those of an engine.
    pub(super) fn of(engine: Arc<Client>, pull: Pull, timeout: Duration) -> Self {
        Self { engine, pull, timeout, pulls: Mutex::default(), listed: Mutex::default() }
    }

    /// The names of those that are there.
    pub(super) async fn list(&self) -> Result<Vec<String>, Trouble> {
        let known = lock(&self.listed).clone();
        if let Some((at, names)) = known
            && at.elapsed() < FRESH
        {
            return Ok(names);
        }
        let found = self.engine.client().await?.list_images(None::<ListImagesOptions>).await;
        let found = found.map_err(|error| self.engine.trouble(error))?;
        let mut names: Vec<String> = found.into_iter().flat_map(|image| image.repo_tags).collect();
        names.retain(|name| name != "<none>:<none>");
        names.sort();
        *lock(&self.listed) = Some((Instant::now(), names.clone()));
        Ok(names)
    }

    /// The id of an image; `None` where it is not there.
    pub(super) async fn id(&self, image: &str) -> Result<Option<String>, Trouble> {
        let found = self.engine.client().await?.inspect_image(image).await;
        let found = absent(found.map_err(|error| self.engine.trouble(error)))?;
        Ok(found.and_then(|found| found.id))
    }

    /// The id of an image, which is pulled if it is not there. Several callers share a pull, and each is told how far
    /// it is.
    pub(super) async fn have(
        self: &Arc<Self>,
        image: &str,
        progress: &watch::Sender<String>,
    ) -> Result<String, ImageProblem> {
        if let Some(id) = self.id(image).await.map_err(|trouble| of_trouble(&trouble))? {
            return Ok(id);
        }
        if self.pull == Pull::Never {
            return Err(absent_image());
        }
        let pulling = self.begin_pull(image);
        let (mut outcome, mut told) = (pulling.outcome, pulling.progress);
        progress.send_replace(told.borrow_and_update().clone());
        loop {
            tokio::select! {
                pulled = &mut outcome => {
                    progress.send_replace(String::new());
                    return pulled;
                }
                Ok(()) = told.changed() => {
                    progress.send_replace(told.borrow_and_update().clone());
                }
            }
        }
    }

    fn begin_pull(self: &Arc<Self>, image: &str) -> Pulling {
        let mut pulls = lock(&self.pulls);
        if let Some(running) = pulls.get(image) {
            return running.clone();
        }
        let (images, name) = (Arc::clone(self), image.to_owned());
        let (tell, progress) = watch::channel(format!("pulling image {image}"));
        let pull = async move {
            let pulled = images.pull(&name, &tell).await;
            lock(&images.pulls).remove(&name);
            lock(&images.listed).take();
            pulled
        };
        let pulling = Pulling { outcome: pull.boxed().shared(), progress };
        pulls.insert(image.to_owned(), pulling.clone());
        pulling
    }

    async fn pull(&self, image: &str, tell: &watch::Sender<String>) -> Result<String, ImageProblem> {
        let began = Instant::now();
        tracing::info!(image, "pulling an image");
        let pulled = tokio::time::timeout(self.timeout, self.follow_pull(image, tell)).await;
        let pulled = pulled.unwrap_or(Err(ImageProblem::TimedOut(self.timeout)));
        let seconds = began.elapsed().as_secs_f64();
        match &pulled {
            Ok(()) => tracing::info!(image, seconds, "image pulled"),
            Err(problem) => tracing::warn!(image, seconds, %problem, "image not pulled"),
        }
        pulled?;
        let id = self.id(image).await.map_err(|trouble| of_trouble(&trouble))?;
        id.ok_or_else(absent_image)
    }

    async fn follow_pull(&self, image: &str, tell: &watch::Sender<String>) -> Result<(), ImageProblem> {
        let client = self.engine.client().await.map_err(|trouble| of_trouble(&trouble))?;
        // The engine answers when it has spoken with the registry, which may take as long as it may take.
        let client = client.clone().with_timeout(self.timeout);
        let options = CreateImageOptions { from_image: Some(with_tag(image)), ..Default::default() };
        let mut steps = client.create_image(Some(options), None, None);
        let (mut progress, mut tell_now) = (Progress::default(), interval(TOLD_EVERY));
        let mut log_now = interval_at(Instant::now() + LOGGED_EVERY, LOGGED_EVERY);
        loop {
            tokio::select! {
                step = steps.next() => match step {
                    Some(step) => progress.note(&step.map_err(|error| of_trouble(&self.engine.trouble(error)))?),
                    None => return Ok(()),
                },
                _ = tell_now.tick() => {
                    tell.send_replace(format!("pulling image {image}{}", progress.told()));
                }
                _ = log_now.tick() => tracing::info!(image, "pulling an image{}", progress.told()),
            }
        }
    }
}

fn absent_image() -> ImageProblem {
    let fix = "and `agent.docker.pull` is `never`: pull it there, or allow it to be pulled";
    ImageProblem::Absent(fix.to_owned())
}

/// How far a pull is.
#[derive(Debug, Default)]
struct Progress {
    /// By layer: bytes that are there, and bytes in all.
    layers: HashMap<String, (i64, i64)>,
    /// What is there is being unpacked.
    unpacking: bool,
}

impl Progress {
    fn note(&mut self, step: &CreateImageInfo) {
        let detail = step.progress_detail.as_ref();
        let counted = detail.and_then(|detail| detail.current.zip(detail.total));
        // The same layer is counted once more while it is unpacked.
        let is_download = step.status.as_deref() == Some("Downloading");
        self.unpacking = step.status.as_deref() == Some("Extracting");
        if let (Some(layer), Some(counted), true) = (&step.id, counted, is_download) {
            self.layers.insert(layer.clone(), counted);
        }
    }

    /// In words that go on after others; none while nothing is known.
    fn told(&self) -> String {
        let (there, all) = self.layers.values().fold((0, 0), |(there, all), (a, b)| (there + a, all + b));
        let unpacking = if self.unpacking { ", unpacking" } else { "" };
        if all == 0 {
            return unpacking.to_owned();
        }
        format!(", {} of {} MiB{unpacking}", there >> 20, all >> 20)
    }
}

/// What a trouble while pulling means. The engine hands on what registries and the network say, in words.
fn of_trouble(trouble: &Trouble) -> ImageProblem {
    let Trouble::Refused { kind, message, .. } = trouble else {
        return ImageProblem::Engine(trouble.to_string());
    };
    let says = |words: &[&str]| words.iter().any(|word| message.to_lowercase().contains(word));
    let told = message.clone();
    match kind {
        _ if says(&["no space left"]) => ImageProblem::NoSpace(told),
        _ if says(&[
            "denied",
            "unauthorized",
            "authentication required",
            "no basic auth",
            "toomanyrequests",
        ]) =>
        {
            ImageProblem::Denied(told)
        }
        _ if says(&["manifest unknown", "name unknown", "not found"]) && !says(&["no such host"]) => {
            ImageProblem::NotFound(told)
        }
        _ if says(&[
            "dial tcp",
            "no such host",
            "connection refused",
            "timeout",
            "unreachable",
            "tls:",
            "eof",
        ]) =>
        {
            ImageProblem::Unreachable(told)
        }
        Refusal::NotFound => ImageProblem::NotFound(told),
        _ => ImageProblem::Engine(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::docker::client::refused;

    fn problem(status: u16, message: &str) -> ImageProblem {
        of_trouble(&refused(status, message))
    }

    #[test]
    fn what_an_engine_says_is_told_by_its_kind() {
        assert!(matches!(
            problem(404, "manifest for python:9 not found: manifest unknown: manifest unknown"),
            ImageProblem::NotFound(_)
        ));
        assert!(matches!(
            problem(404, "pull access denied for x, repository does not exist or may require 'docker login'"),
            ImageProblem::Denied(_)
        ));
        for message in [
            "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
            "Get \"https://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
            "Get \"https://registry-1.docker.io/v2/\": net/http: TLS handshake timeout",
        ] {
            assert!(matches!(problem(500, message), ImageProblem::Unreachable(_)), "{message}");
        }
        assert!(matches!(problem(500, "write /x: no space left on device"), ImageProblem::NoSpace(_)));
        assert!(matches!(problem(500, "what now"), ImageProblem::Engine(_)));
    }

    #[test]
    fn progress_adds_up_the_layers() {
        let step = |id: &str, status: &str, current: i64, total: i64| CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(bollard::models::ProgressDetail {
                current: Some(current),
                total: Some(total),
            }),
            ..Default::default()
        };
        let mut progress = Progress::default();
        assert_eq!(progress.told(), "");
        for step in [
            step("a", "Downloading", 1 << 20, 4 << 20),
            step("b", "Downloading", 2 << 20, 2 << 20),
            step("a", "Downloading", 3 << 20, 4 << 20),
        ] {
            progress.note(&step);
        }
        assert_eq!(progress.told(), ", 5 of 6 MiB");
        progress.note(&step("b", "Extracting", 0, 2 << 20));
        assert_eq!(progress.told(), ", 5 of 6 MiB, unpacking");
    }
}
