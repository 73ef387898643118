//! Which machine has which name, in a file.
//!
//! A name is the machine's that registered under it first, until its certificate is over or it is removed. What was
//! signed for the name before that is of no use any more, whoever has it. Several schedulers need not tell each
//! other: a certificate says which machine it is of.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use sandmesh_mesh::tls::{Shown, write_secret};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Longer than any certificate lives.
const LONGEST: TimeDelta = TimeDelta::days(370);

/// See the module.
#[derive(Debug)]
pub(crate) struct Members {
    path: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// By the id of the node.
    members: BTreeMap<String, Member>,
    /// When a node was removed, by its id.
    removed: BTreeMap<String, DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    machine: String,
    expires_at: DateTime<Utc>,
}

impl Kept {
    fn is_banned(&self, node_id: &str, shown: &Shown) -> bool {
        self.removed.get(node_id).is_some_and(|removed_at| shown.issued_at <= *removed_at)
    }
}

impl Members {
    /// What is in the file.
    ///
    /// # Errors
    /// When it cannot be read: then nobody could tell who was removed.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let kept = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                anyhow::anyhow!(
                    "`{}` is damaged ({error}): without it, nodes that were removed may come back",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Kept::default(),
            Err(error) => anyhow::bail!("`{}` cannot be read: {error}", path.display()),
        };
        Ok(Self { path: path.to_owned(), kept: Mutex::new(kept) })
    }

    /// Whether a machine may join under a name: nobody has it.
    ///
    /// # Errors
    /// `NodeExists`.
    pub(crate) fn check_free(&self, node_id: &str, now: DateTime<Utc>) -> Result<(), Error> {
        match self.kept().members.get(node_id).is_some_and(|member| now < member.expires_at) {
            true => Err(Error::NodeExists(node_id.to_owned())),
            false => Ok(()),
        }
    }

    /// A machine shows a certificate and takes a name, or has it.
    ///
    /// # Errors
    /// `NodeRemoved`, `NodeExists` (the name is another machine's), `Notes`.
    pub(crate) fn enter(&self, node_id: &str, shown: &Shown, now: DateTime<Utc>) -> Result<(), Error> {
        let member = Member { machine: shown.machine.clone(), expires_at: shown.expires_at };
        {
            // What nearly every report finds: nothing changes by it.
            let kept = self.kept();
            if kept.members.get(node_id) == Some(&member) && !kept.is_banned(node_id, shown) {
                return Ok(());
            }
        }
        self.change(now, |kept| {
            if kept.is_banned(node_id, shown) {
                return Err(Error::NodeRemoved(node_id.to_owned()));
            }
            match kept.members.get_mut(node_id) {
                Some(known) if known.machine != member.machine => Err(Error::NodeExists(node_id.to_owned())),
                Some(known) => {
                    known.expires_at = known.expires_at.max(member.expires_at);
                    Ok(())
                }
                None => {
                    kept.members.insert(node_id.to_owned(), member);
                    Ok(())
                }
            }
        })
    }

    /// A node is none any more, nor what was signed for its name. Whether it was one.
    ///
    /// # Errors
    /// `Notes`.
    pub(crate) fn remove(&self, node_id: &str, now: DateTime<Utc>) -> Result<bool, Error> {
        self.change(now, |kept| {
            kept.removed.insert(node_id.to_owned(), now);
            Ok(kept.members.remove(node_id).is_some())
        })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is kept, in the file first. What is over is forgotten.
    fn change<T>(
        &self,
        now: DateTime<Utc>,
        change: impl FnOnce(&mut Kept) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut kept = self.kept();
        let mut next = kept.clone();
        next.members.retain(|_, member| now < member.expires_at);
        next.removed.retain(|_, removed_at| now - *removed_at < LONGEST);
        let answer = change(&mut next)?;
        if next != *kept {
            self.write(&next).map_err(Error::Notes)?;
            *kept = next;
        }
        Ok(answer)
    }

    fn write(&self, kept: &Kept) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(kept).map_err(|error| error.to_string())?;
        write_secret(&self.path, &text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hours)
    }

    fn shown(machine: &str, issued: i64, expires: i64) -> Shown {
        Shown { machine: machine.to_owned(), issued_at: at(issued), expires_at: at(expires) }
    }

    fn members(dir: &tempfile::TempDir) -> Members {
        Members::load(&dir.path().join("members")).unwrap()
    }

    #[test]
    fn a_name_is_of_who_came_first_until_its_certificate_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let members = members(&dir);
        members.enter("one", &shown("a", 0, 10), at(0)).unwrap();
        members.enter("one", &shown("a", 0, 10), at(1)).unwrap();
        assert!(matches!(members.enter("one", &shown("b", 1, 20), at(9)), Err(Error::NodeExists(_))));
        assert!(matches!(members.check_free("one", at(9)), Err(Error::NodeExists(_))));
        members.check_free("one", at(10)).unwrap();
        members.enter("one", &shown("b", 1, 20), at(10)).unwrap();
    }

    #[test]
    fn a_machine_may_show_its_last_certificate_or_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let members = members(&dir);
        members.enter("one", &shown("a", 0, 10), at(0)).unwrap();
        members.enter("one", &shown("a", 5, 15), at(6)).unwrap();
        members.enter("one", &shown("a", 0, 10), at(7)).unwrap();
        assert!(members.check_free("one", at(14)).is_err(), "it has the name for as long as the later one");
    }

    #[test]
    fn one_that_was_removed_does_not_come_back_with_any_certificate_of_before_also_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let before = members(&dir);
        before.enter("one", &shown("a", 5, 15), at(5)).unwrap();
        assert!(before.remove("one", at(6)).unwrap());
        assert!(!before.remove("one", at(6)).unwrap());
        let after = members(&dir);
        for old in [shown("a", 0, 10), shown("a", 5, 15), shown("never seen", 6, 16)] {
            assert!(matches!(after.enter("one", &old, at(7)), Err(Error::NodeRemoved(_))), "{old:?}");
        }
        after.enter("two", &shown("b", 0, 10), at(7)).expect("others are not concerned");
        after.enter("one", &shown("c", 7, 30), at(7)).expect("who joined after that may have the name");
    }
}
