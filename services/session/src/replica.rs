//! This process among others of its role that share a database server: its name, how long it may count its
//! sessions as its own, and how it reaches the others.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use sandmesh_mesh::{Link, LinkError, Mesh};
use tokio::time::Instant;

/// How long sessions stay those of a process that does not say that it lives.
pub(crate) const TERM: Duration = Duration::from_secs(9);

/// How often it says so, and looks for sessions of those that did not.
pub(crate) const EVERY: Duration = Duration::from_secs(3);

/// How many others are connected; with more, all are connected anew.
const MOST: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: String,
    /// Where others reach it; empty where they cannot.
    pub(crate) endpoint: String,
    mesh: Mesh,
    held: Mutex<Held>,
    others: Mutex<HashMap<String, Link>>,
}

/// For how long it held its sessions, and holds them.
#[derive(Debug, Clone, Copy)]
struct Held {
    since: Instant,
    until: Instant,
}

impl Held {
    /// Held from when it was asked for, which was before the database noted it.
    fn renewed(self, asked: Instant) -> Self {
        Self { since: if asked > self.until { asked } else { self.since }, until: asked + TERM }
    }
}

impl Replica {
    /// The process on this data directory, which no other has. After a restart it has the same name, and so
    /// the same sessions.
    ///
    /// # Errors
    /// When the directory cannot be read and written.
    pub(crate) fn on(mesh: &Mesh, advertise: &str) -> anyhow::Result<Self> {
        let id = name(mesh)?;
        let endpoint = match advertise {
            "" => mesh.dialable(),
            address => address.to_owned(),
        };
        let now = Instant::now();
        let (held, others) = (Mutex::new(Held { since: now, until: now + TERM }), Mutex::default());
        Ok(Self { id, endpoint, mesh: mesh.clone(), held, others })
    }

    /// The database noted that it lives.
    pub(crate) fn renewed(&self, asked: Instant) {
        let mut held = self.held();
        *held = held.renewed(asked);
    }

    /// Nobody else can have its sessions yet.
    pub(crate) fn holds(&self) -> bool {
        Instant::now() < self.held().until
    }

    /// It may take over what is left of others. When the database was away, nobody could say that it lives:
    /// each has the time for that before.
    pub(crate) fn may_take_over(&self) -> bool {
        self.holds() && self.held().since.elapsed() >= TERM
    }

    /// A link to another process.
    ///
    /// # Errors
    /// When its address is none.
    pub(crate) fn link(&self, endpoint: &str) -> Result<Link, LinkError> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = others.get(endpoint) {
            return Ok(link.clone());
        }
        if others.len() >= MOST {
            others.clear();
        }
        let link = self.mesh.dial(endpoint)?;
        Ok(others.entry(endpoint.to_owned()).or_insert(link).clone())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of the process on this data directory.
///
/// # Errors
/// When the directory cannot be read and written.
pub(crate) fn name(mesh: &Mesh) -> anyhow::Result<String> {
    let path = mesh.data_dir().join("session.replica");
    name_in(&path).with_context(|| format!("cannot use `{}`", path.display()))
}

/// The name that is in a file, or a new one.
fn name_in(path: &Path) -> std::io::Result<String> {
    match fs::read_to_string(path) {
        Ok(name) if name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) => return Ok(name),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let name = format!("{:032x}", rand::random::<u128>());
    // Whole or not at all: half a name would be that of nobody.
    let new = path.with_extension("new");
    fs::write(&new, &name)?;
    fs::rename(&new, path)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_without_a_gap_counts_as_one() {
        let start = Instant::now();
        let held = Held { since: start, until: start + TERM };
        let on = held.renewed(start + EVERY);
        assert_eq!((on.since, on.until), (start, start + EVERY + TERM));
        let late = start + TERM + Duration::from_millis(1);
        let anew = held.renewed(late);
        assert_eq!((anew.since, anew.until), (late, late + TERM));
    }

    #[test]
    fn process_on_the_same_directory_has_the_same_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("session.replica");
        let first = name_in(&path).unwrap();
        assert_eq!(name_in(&path).unwrap(), first);
        fs::write(&path, "half").unwrap();
        let other = name_in(&path).unwrap();
        assert!(other.len() == 32 && other != first, "{other}");
    }
}
