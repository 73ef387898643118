//! The layers of packages on this node's disk: `layers/KEY/` with the files and a manifest, each put there
//! whole by a rename, and kept by size and age.
//!
//! It knows which sandbox has which, and never removes one of those. How a layer is made is not known here.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};

use crate::{
    packages::{Layer, LayerKey},
    sandbox::SandboxId,
};

const MANIFEST: &str = "manifest.json";
/// More than any manifest has.
const MANIFEST_MAX: u64 = 8 << 20;
/// Of what is being made, and of what is being removed: neither is a layer.
const UNFINISHED: [&str; 2] = ["new-", "gone-"];
/// One that was used so lately is kept: whoever asked for it may be about to use it.
const FRESH: Duration = Duration::from_secs(60);

/// So many sets of packages are told to the scheduler.
const TOLD: usize = 1024;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// What all layers together may take of the disk.
    pub(crate) bytes: u64,
    /// How long one is kept that nobody uses.
    pub(crate) unused: Duration,
}

/// The layers of this node.
#[derive(Debug)]
pub(crate) struct Layers {
    root: PathBuf,
    keep: Keep,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    layers: HashMap<LayerKey, Entry>,
    /// Which sandbox has, or had: what it runs may still see one of before.
    held: HashMap<SandboxId, BTreeSet<LayerKey>>,
    /// For names that are not used twice.
    number: u64,
}

/// A layer, and when it was used last.
#[derive(Debug, Clone)]
struct Entry {
    layer: Arc<Layer>,
    last_used: DateTime<Utc>,
}

impl Layers {
    /// Those below `data_dir`. Reads and changes nothing yet.
    pub(crate) fn new(data_dir: &Path, keep: Keep) -> Self {
        Self { root: root(data_dir), keep, inside: Mutex::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the layers of an agent before this one, and removes what is half made.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub(crate) fn load(&self) -> io::Result<()> {
        make_root(&self.root)?;
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            match name.parse::<LayerKey>() {
                Ok(key) => self.load_one(&path, key),
                Err(_) if UNFINISHED.iter().any(|start| name.starts_with(start)) => removed(&path),
                Err(_) => tracing::warn!(path = %path.display(), "left alone among the layers of packages"),
            }
        }
        Ok(())
    }

    fn load_one(&self, dir: &Path, key: LayerKey) {
        match read(dir) {
            Ok((layer, last_used)) if layer.key == key => {
                self.inside().layers.insert(key, Entry { layer: Arc::new(layer), last_used });
            }
            Ok(_) => tracing::warn!(layer.key = %key, "a layer says that it is another; it is not used"),
            Err(error) => {
                tracing::warn!(layer.key = %key, %error, "a layer without a manifest is removed");
                removed(dir);
            }
        }
    }

    /// A layer that is there.
    pub(crate) fn get(&self, key: &LayerKey) -> Option<Arc<Layer>> {
        self.inside().layers.get(key).map(|entry| Arc::clone(&entry.layer))
    }

    /// What the scheduler knows the layers by; where they are too many for a report, those used last.
    pub(crate) fn fingerprints(&self) -> Vec<String> {
        let inside = self.inside();
        let known = inside.layers.values().filter(|entry| !entry.layer.fingerprint.is_empty());
        let mut known: Vec<_> = known.map(|entry| (entry.last_used, &entry.layer.fingerprint)).collect();
        known.sort_unstable_by(|a, b| b.cmp(a));
        let mut seen = BTreeSet::new();
        let newest = known.into_iter().filter(|(_, fingerprint)| seen.insert(*fingerprint));
        let mut told: Vec<String> = newest.take(TOLD).map(|(_, fingerprint)| fingerprint.clone()).collect();
        // So that a report is like the one before where nothing came or went.
        told.sort_unstable();
        told
    }

    /// Notes that a sandbox has a layer, or is to have it: from now on it is not removed. Answers with it when
    /// it is there.
    pub(crate) fn hold(&self, id: &SandboxId, key: &LayerKey, now: DateTime<Utc>) -> Option<Arc<Layer>> {
        let mut inside = self.inside();
        inside.held.entry(id.clone()).or_default().insert(key.clone());
        let entry = inside.layers.get_mut(key)?;
        entry.last_used = now;
        // Only for the next agent: it may think that it was used before.
        let _ = touch(&self.root.join(key.to_string()), now);
        Some(Arc::clone(&entry.layer))
    }

    /// A sandbox did not get a layer after all.
    pub(crate) fn unhold(&self, id: &SandboxId, key: &LayerKey) {
        let mut inside = self.inside();
        if let Some(keys) = inside.held.get_mut(id) {
            keys.remove(key);
        }
        inside.held.retain(|_, keys| !keys.is_empty());
    }

    /// A sandbox is gone.
    pub(crate) fn release(&self, id: &SandboxId, now: DateTime<Utc>) {
        let mut inside = self.inside();
        for key in inside.held.remove(id).unwrap_or_default() {
            if let Some(entry) = inside.layers.get_mut(&key) {
                entry.last_used = now;
                let _ = touch(&self.root.join(key.to_string()), now);
            }
        }
    }

    /// A directory of its own to make a layer in; it is to be given to [`finish`](Self::finish) or
    /// [`discard`](Self::discard).
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn begin(&self, key: &LayerKey) -> io::Result<PathBuf> {
        let number = self.number();
        let dir = self.root.join(format!("new-{key}-{number}"));
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(dir)
    }

    /// Puts a layer in its place, whose files are in `files` of `dir`.
    ///
    /// # Errors
    /// When it cannot be put there.
    pub(crate) fn finish(&self, dir: &Path, layer: Layer) -> io::Result<Arc<Layer>> {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(MANIFEST))?;
        file.write_all(&serde_json::to_vec(&layer)?)?;
        file.sync_all()?;
        // Executors, which are not root, look for the files in it.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        let last_used = layer.installed_at;
        let layer = Arc::new(layer);
        let mut inside = self.inside();
        fs::rename(dir, self.root.join(layer.key.to_string()))?;
        inside.layers.insert(layer.key.clone(), Entry { layer: Arc::clone(&layer), last_used });
        Ok(layer)
    }

    /// Removes what did not become a layer.
    pub(crate) fn discard(&self, dir: &Path) {
        removed(dir);
    }

    /// Removes the layers that are not to be kept. Returns how many.
    pub(crate) fn evict(&self, now: DateTime<Utc>) -> usize {
        let gone = self.take_surplus(now);
        gone.iter().for_each(|dir| removed(dir));
        gone.len()
    }

    /// Puts the layers aside that are not to be kept: from then on nobody gets them.
    fn take_surplus(&self, now: DateTime<Utc>) -> Vec<PathBuf> {
        let mut inside = self.inside();
        let used: BTreeSet<&LayerKey> = inside.held.values().flatten().collect();
        let candidates = inside.layers.values().map(|entry| Candidate {
            key: entry.layer.key.clone(),
            bytes: entry.layer.bytes,
            last_used: entry.last_used,
            in_use: used.contains(&entry.layer.key),
        });
        let surplus = surplus(candidates.collect(), self.keep, now);
        let mut gone = Vec::new();
        for key in surplus {
            inside.number += 1;
            let aside = self.root.join(format!("gone-{key}-{}", inside.number));
            match fs::rename(self.root.join(key.to_string()), &aside) {
                Ok(()) => gone.push(aside),
                Err(error) => tracing::warn!(layer.key = %key, %error, "a layer cannot be removed"),
            }
            inside.layers.remove(&key);
        }
        gone
    }

    fn number(&self) -> u64 {
        let mut inside = self.inside();
        inside.number += 1;
        inside.number
    }
}

/// Where layers are below a data directory.
pub(crate) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("layers")
}

/// Makes the directory of layers, which executors may look into.
pub(crate) fn make_root(root: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(root)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))
}

fn read(dir: &Path) -> io::Result<(Layer, DateTime<Utc>)> {
    let file = File::open(dir.join(MANIFEST))?;
    let last_used = DateTime::<Utc>::from(file.metadata()?.modified()?);
    let mut text = Vec::new();
    file.take(MANIFEST_MAX).read_to_end(&mut text)?;
    Ok((serde_json::from_slice(&text)?, last_used))
}

/// When a layer was used last is when its manifest was touched last.
fn touch(dir: &Path, now: DateTime<Utc>) -> io::Result<()> {
    OpenOptions::new().write(true).open(dir.join(MANIFEST))?.set_modified(now.into())
}

/// Everything in a layer is ours and nobody else writes there, so that no link leads the removal astray.
fn removed(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::warn!(path = %dir.display(), %error, "cannot be removed; the next start tries again");
    }
}

/// A layer, as far as it matters for keeping it.
#[derive(Debug, Clone)]
struct Candidate {
    key: LayerKey,
    bytes: u64,
    last_used: DateTime<Utc>,
    in_use: bool,
}

/// Which layers are not to be kept: those that nobody used for too long, and of the others those that were
/// not used for longest, until the rest fits. Never one in use, nor one that was used just now.
fn surplus(mut all: Vec<Candidate>, keep: Keep, now: DateTime<Utc>) -> Vec<LayerKey> {
    all.sort_by_key(|candidate| candidate.last_used);
    let mut total: u64 = all.iter().map(|candidate| candidate.bytes).sum();
    let mut surplus = Vec::new();
    for candidate in all {
        let age = (now - candidate.last_used).to_std().unwrap_or_default();
        if candidate.in_use || age < FRESH {
            continue;
        }
        if age >= keep.unused || total > keep.bytes {
            total -= candidate.bytes;
            surplus.push(candidate.key);
        }
    }
    surplus
}

#[cfg(test)]
mod tests;
