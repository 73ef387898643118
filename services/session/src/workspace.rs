//! A workspace as it is saved, and what must be read of the one in a sandbox to save it again.
//!
//! Pure values: how the tree is listed and where its content goes, others know. Content is kept by its
//! checksum, so what was the same before costs nothing to keep, and an old version stays as long as an
//! execution has it as its artifact.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};

/// How many entries are saved of a workspace. Each file is an object and a way to the sandbox: an execution that
/// makes very many must not take minutes to end.
pub(crate) const MOST_ENTRIES: usize = 10_000;

/// A path below a workspace. User code may give a file any name, also one that is no text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(crate) struct EntryPath(Vec<u8>);

/// What is not written as it is, so that every name is text and can be told from every other.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

impl EntryPath {
    /// As text, if it is text.
    pub(crate) fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is `top`, or below it. Everything is below the empty path.
    pub(crate) fn is_below(&self, top: &str) -> bool {
        match self.0.strip_prefix(top.as_bytes()) {
            Some(rest) => top.is_empty() || matches!(rest.first(), None | Some(b'/')),
            None => false,
        }
    }
}

impl From<&[u8]> for EntryPath {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<String> for EntryPath {
    fn from(text: String) -> Self {
        Self(percent_decode_str(&text).collect())
    }
}

impl From<EntryPath> for String {
    fn from(path: EntryPath) -> Self {
        percent_encode(&path.0, ESCAPED).to_string()
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    /// Seconds since 1970, and nanoseconds.
    pub(crate) modified_at: (i64, i32),
    /// Changes whenever its content may have.
    pub(crate) version: u64,
    /// Of its content, as hex digits; unset: it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checksum: Option<String>,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<EntryPath>,
}

/// A workspace as it is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) entries: BTreeMap<EntryPath, Entry>,
    /// Bytes of all content that was ever kept for the session.
    pub(crate) kept_bytes: u64,
    /// There is more than is saved.
    #[serde(default)]
    pub(crate) incomplete: bool,
}

/// How the workspace in a sandbox was found.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) entries: BTreeMap<EntryPath, Entry>,
    /// Not everything was seen.
    pub(crate) incomplete: bool,
}

/// How much of a workspace may be kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// The size of all files together; zero: not limited. Sparse files count as what they seem.
    pub(crate) workspace: u64,
    /// Content of the session in all, old versions included.
    pub(crate) session: u64,
}

/// When a file is taken to be the one that is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Same {
    /// When nobody can have changed it since.
    Version,
    /// When its size and time are the same: it was just restored from what is saved.
    SizeAndTime,
}

impl Saved {
    /// What is to be saved of a workspace that was found like that, with the checksums that are known, and
    /// the files whose content must be read.
    pub(crate) fn next(&self, observed: Observed, same: Same, room: Room) -> (Self, Vec<EntryPath>) {
        let mut next =
            Self { kept_bytes: self.kept_bytes, incomplete: observed.incomplete, ..Self::default() };
        let (mut unread, mut size, mut kept) = (Vec::new(), 0_u64, self.kept_bytes);
        for (path, mut entry) in observed.entries {
            if next.entries.len() == MOST_ENTRIES {
                next.incomplete = true;
                break;
            }
            if entry.kind == Kind::File {
                size = size.saturating_add(entry.size);
                entry.checksum = self.entries.get(&path).and_then(|old| old.checksum_for(&entry, same));
                if entry.checksum.is_none() {
                    kept = kept.saturating_add(entry.size);
                    let fits = (room.workspace == 0 || size <= room.workspace) && kept <= room.session;
                    if fits {
                        unread.push(path.clone());
                    } else {
                        kept -= entry.size;
                        next.incomplete = true;
                    }
                }
            }
            next.entries.insert(path, entry);
        }
        if observed.incomplete {
            // What was not seen may be there still.
            for (path, entry) in self.entries.iter().take(MOST_ENTRIES - next.entries.len()) {
                next.entries.entry(path.clone()).or_insert_with(|| entry.clone());
            }
        }
        (next, unread)
    }

    /// Notes the content of a file.
    pub(crate) fn keep(&mut self, path: &EntryPath, checksum: String, size: u64) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.checksum = Some(checksum);
            entry.size = size;
            self.kept_bytes = self.kept_bytes.saturating_add(size);
        }
    }
}

impl Entry {
    fn checksum_for(&self, now: &Self, same: Same) -> Option<String> {
        let is_same = self.kind == Kind::File
            && self.size == now.size
            && match same {
                Same::Version => self.version == now.version,
                Same::SizeAndTime => self.modified_at == now.modified_at,
            };
        self.checksum.clone().filter(|_| is_same)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: Room = Room { workspace: 0, session: u64::MAX };

    fn file(size: u64, version: u64) -> Entry {
        let modified_at = (i64::try_from(version).unwrap(), 0);
        Entry { kind: Kind::File, size, mode: 0o644, modified_at, version, checksum: None, target: None }
    }

    fn observed(files: &[(&str, Entry)]) -> Observed {
        let entries = files.iter().map(|(path, entry)| (EntryPath::from(path.as_bytes()), entry.clone()));
        Observed { entries: entries.collect(), incomplete: false }
    }

    /// Saves it, as far as the content goes.
    fn save(saved: &Saved, observed: Observed, room: Room) -> (Saved, Vec<String>) {
        let (mut next, unread) = saved.next(observed, Same::Version, room);
        for path in &unread {
            let size = next.entries[path].size;
            next.keep(path, format!("sum of {}", next.entries[path].version), size);
        }
        (next, unread.iter().map(|path| path.text().unwrap().to_owned()).collect())
    }

    #[test]
    fn only_what_changed_is_read() {
        let (first, read) = save(&Saved::default(), observed(&[("a", file(1, 1)), ("b", file(1, 2))]), ROOM);
        assert_eq!(read, ["a", "b"]);
        let (second, read) =
            save(&first, observed(&[("a", file(1, 1)), ("b", file(1, 3)), ("c", file(5, 4))]), ROOM);
        assert_eq!(read, ["b", "c"]);
        assert_eq!(second.kept_bytes, 8);
        let (third, read) = save(&second, observed(&[("a", file(1, 1))]), ROOM);
        assert_eq!((read.len(), third.entries.len(), third.kept_bytes), (0, 1, 8));
    }

    #[test]
    fn what_was_restored_is_known_by_its_time() {
        let (saved, _) = save(&Saved::default(), observed(&[("a", file(1, 1))]), ROOM);
        let restored = Entry { version: 99, ..file(1, 1) };
        let (next, unread) = saved.next(observed(&[("a", restored.clone())]), Same::SizeAndTime, ROOM);
        assert!(unread.is_empty() && next.entries.values().all(|entry| entry.checksum.is_some()));
        assert_eq!(saved.next(observed(&[("a", restored)]), Same::Version, ROOM).1.len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_listed_and_not_kept() {
        let room = Room { workspace: 10, session: 12 };
        let (saved, read) = save(
            &Saved::default(),
            observed(&[("a", file(6, 1)), ("b", file(6, 2)), ("c", file(0, 3))]),
            room,
        );
        assert_eq!((read.len(), saved.incomplete, saved.entries.len()), (1, true, 3), "{read:?}");
        let (saved, read) = save(&saved, observed(&[("a", file(6, 4))]), room);
        assert_eq!((read.len(), saved.kept_bytes), (1, 12));
        let (_, read) = save(&saved, observed(&[("a", file(6, 5))]), room);
        assert_eq!(read.len(), 0);
    }

    #[test]
    fn of_very_many_the_first_are_saved_and_that_there_are_more_is_told() {
        let names: Vec<_> = (0..=MOST_ENTRIES).map(|number| format!("{number:06}")).collect();
        let all: Vec<_> = names.iter().map(|name| (&**name, file(0, 1))).collect();
        let (saved, read) = save(&Saved::default(), observed(&all), ROOM);
        assert_eq!((saved.entries.len(), read.len(), saved.incomplete), (MOST_ENTRIES, MOST_ENTRIES, true));
        let (saved, _) = save(&Saved::default(), observed(&all[1..]), ROOM);
        assert_eq!((saved.entries.len(), saved.incomplete), (MOST_ENTRIES, false));
    }

    #[test]
    fn what_was_not_seen_is_not_forgotten() {
        let (saved, _) =
            save(&Saved::default(), observed(&[("a", file(1, 1)), ("shut/b", file(1, 2))]), ROOM);
        let part = Observed { incomplete: true, ..observed(&[("a", file(1, 1))]) };
        assert_eq!(saved.next(part, Same::Version, ROOM).0.entries.len(), 2);
    }

    #[test]
    fn a_prefix_ends_where_a_component_does() {
        let path = |text: &str| EntryPath::from(text.as_bytes());
        for (inside, top) in [("a", "a"), ("a/b", "a"), ("a/b/c", "a/b"), ("a", "")] {
            assert!(path(inside).is_below(top), "{inside} {top}");
        }
        for (outside, top) in [("ab", "a"), ("ab/c", "a"), ("a", "a/b"), ("A", "a")] {
            assert!(!path(outside).is_below(top), "{outside} {top}");
        }
    }

    proptest! {
        #[test]
        fn every_path_survives_being_saved(paths in proptest::collection::btree_set(proptest::collection::vec(1u8.., 1..20), 0..20)) {
            let entries: BTreeMap<_, _> = paths.iter().map(|path| (EntryPath::from(&path[..]), file(1, 1))).collect();
            let saved = Saved { entries, ..Saved::default() };
            let text = serde_json::to_string(&saved).unwrap();
            prop_assert_eq!(serde_json::from_str::<Saved>(&text).unwrap(), saved);
        }

        #[test]
        fn saving_again_what_did_not_change_reads_nothing(files in proptest::collection::btree_map("[a-c]/[a-c]", (0u64..50, 0u64..9), 0..9), incomplete: bool) {
            let observe = || Observed {
                entries: files.iter().map(|(path, (size, version))| (EntryPath::from(path.as_bytes()), file(*size, *version))).collect(),
                incomplete,
            };
            let (first, _) = save(&Saved::default(), observe(), ROOM);
            let (second, read) = save(&first, observe(), ROOM);
            prop_assert_eq!(read.len(), 0);
            prop_assert_eq!(second, first);
        }
    }
}
