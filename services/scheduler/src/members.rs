//! Which machine has which name: the keys of the nodes that joined, in a file.
//!
//! A name is the machine's that registered under it first, until its certificate is over or it is removed. One that
//! was removed does not come back with what it has.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::Error;

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
    /// Keys that are not taken any more, and until when that matters.
    removed: BTreeMap<String, DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    key: String,
    /// What it may still show that has been given another: it may not have heard of that.
    before: Option<String>,
    expires_at: DateTime<Utc>,
}

impl Member {
    fn has(&self, key: &str) -> bool {
        self.key == key || self.before.as_deref() == Some(key)
    }
}

impl Members {
    /// What is in the file.
    ///
    /// # Errors
    /// When it cannot be read: then nobody could tell who was removed.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let kept = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| anyhow::anyhow!("`{}` is damaged: {error}", path.display()))?,
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

    /// A machine shows a key and takes a name, or has it.
    ///
    /// # Errors
    /// `NodeRemoved`, `NodeExists` (the name is another machine's), `Notes`.
    pub(crate) fn enter(
        &self,
        node_id: &str,
        (key, expires_at): (&str, DateTime<Utc>),
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        // What nearly every report finds: nothing changes by it.
        let is_settled =
            |member: &Member| member.key == key && member.before.is_none() && now < member.expires_at;
        if self.kept().members.get(node_id).is_some_and(is_settled) {
            return Ok(());
        }
        self.change(now, |kept| {
            if kept.removed.contains_key(key) {
                return Err(Error::NodeRemoved(node_id.to_owned()));
            }
            match kept.members.get_mut(node_id) {
                Some(member) if !member.has(key) => return Err(Error::NodeExists(node_id.to_owned())),
                Some(member) if member.key == key => member.before = None,
                Some(_) => {}
                None => {
                    let member = Member { key: key.to_owned(), before: None, expires_at };
                    kept.members.insert(node_id.to_owned(), member);
                }
            }
            Ok(())
        })
    }

    /// A member that shows a key gets another.
    ///
    /// # Errors
    /// As [`Members::enter`].
    pub(crate) fn renew(
        &self,
        node_id: &str,
        shown: &str,
        (next, expires_at): (&str, DateTime<Utc>),
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        self.enter(node_id, (shown, expires_at), now)?;
        self.change(now, |kept| {
            let member = Member { key: next.to_owned(), before: Some(shown.to_owned()), expires_at };
            kept.members.insert(node_id.to_owned(), member);
            Ok(())
        })
    }

    /// A node is none any more. Whether it was one.
    ///
    /// # Errors
    /// `Notes`.
    pub(crate) fn remove(&self, node_id: &str, now: DateTime<Utc>) -> Result<bool, Error> {
        self.change(now, |kept| {
            let Some(member) = kept.members.remove(node_id) else { return Ok(false) };
            let keys = [Some(member.key), member.before];
            kept.removed.extend(keys.into_iter().flatten().map(|key| (key, member.expires_at)));
            Ok(true)
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
        next.removed.retain(|_, until| now < *until);
        let answer = change(&mut next)?;
        if next != *kept {
            self.write(&next).map_err(|error| Error::Notes(self.path.display().to_string(), error))?;
            *kept = next;
        }
        Ok(answer)
    }

    /// Whole or not at all.
    fn write(&self, kept: &Kept) -> Result<(), String> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec_pretty(kept).map_err(|error| error.to_string())?;
        fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hours)
    }

    fn members(dir: &tempfile::TempDir) -> Members {
        Members::load(&dir.path().join("members")).unwrap()
    }

    #[test]
    fn a_name_is_of_who_came_first_until_its_certificate_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let members = members(&dir);
        members.enter("one", ("a", at(10)), at(0)).unwrap();
        members.enter("one", ("a", at(10)), at(1)).unwrap();
        assert!(matches!(members.enter("one", ("b", at(20)), at(9)), Err(Error::NodeExists(_))));
        assert!(matches!(members.check_free("one", at(9)), Err(Error::NodeExists(_))));
        members.check_free("one", at(10)).unwrap();
        members.enter("one", ("b", at(20)), at(10)).unwrap();
    }

    #[test]
    fn a_renewed_key_and_the_one_before_it_are_the_members() {
        let dir = tempfile::tempdir().unwrap();
        let members = members(&dir);
        members.enter("one", ("a", at(10)), at(0)).unwrap();
        members.renew("one", "a", ("b", at(15)), at(5)).unwrap();
        members.enter("one", ("a", at(10)), at(6)).expect("it may not have heard of the next");
        members.renew("one", "a", ("c", at(16)), at(6)).expect("and asks again");
        members.enter("one", ("c", at(16)), at(7)).unwrap();
        assert!(members.enter("one", ("a", at(10)), at(7)).is_err(), "what is before the one in use is over");
        assert!(members.enter("one", ("b", at(15)), at(7)).is_err());
    }

    #[test]
    fn one_that_was_removed_does_not_come_back_also_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let before = members(&dir);
        before.enter("one", ("a", at(10)), at(0)).unwrap();
        before.renew("one", "a", ("b", at(15)), at(5)).unwrap();
        assert!(before.remove("one", at(6)).unwrap());
        assert!(!before.remove("one", at(6)).unwrap());
        let after = members(&dir);
        for (key, name) in [("a", "one"), ("b", "one"), ("b", "two")] {
            assert!(matches!(after.enter(name, (key, at(15)), at(7)), Err(Error::NodeRemoved(_))));
        }
        after.enter("one", ("c", at(30)), at(7)).expect("another machine may have the name");
    }
}
