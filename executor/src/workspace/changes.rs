//! What was made or changed while an execution ran.
//!
//! The kernel notes the time of every change of a file (`ctime`), and user code cannot set it. So what is
//! younger than the start of an execution is what changed since, with nothing to be remembered in between.

use std::sync::Arc;

use rustix::{
    fs::Stat,
    time::{ClockId, clock_gettime},
};
use sandmesh_proto::executor::{self as pb, entry::Kind};

use super::{
    beneath::{RelPath, Root},
    walk::Walk,
};

/// How many files are told.
const MOST_TOLD: usize = 1000;

/// How many entries are looked at; where there are more, everything may have changed.
const MOST_LOOKED_AT: usize = 200_000;

/// How many are looked at without another thread, which takes longer than looking at a few.
const FEW: usize = 200;

/// A time on the clock that the kernel takes the times of files from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since((i64, i64));

impl Since {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self((now.tv_sec, now.tv_nsec))
    }

    fn is_before(self, stat: &Stat) -> bool {
        self.0 <= (stat.st_ctime, stat.st_ctime_nsec.cast_signed())
    }
}

/// What was made or changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The files.
    pub(crate) files: Vec<pb::Entry>,
    /// There are more.
    pub(crate) incomplete: bool,
    /// Something is different: also where a file was deleted or moved.
    pub(crate) any: bool,
}

/// Looks through the workspace.
pub(super) async fn look(root: Arc<Root>, since: Since) -> Changes {
    let mut changes = Changes { any: root.changed_since(since), ..Changes::default() };
    let mut walk = Walk::below(root, RelPath::root(), MOST_LOOKED_AT);
    if changes.take_from(&mut walk, since) {
        return changes;
    }
    let rest = tokio::task::spawn_blocking(move || {
        while !changes.take_from(&mut walk, since) {}
        changes
    });
    rest.await.unwrap_or_else(|_| Changes { any: true, incomplete: true, files: Vec::new() })
}

impl Root {
    fn changed_since(&self, since: Since) -> bool {
        self.own_stat().is_ok_and(|stat| since.is_before(&stat))
    }
}

impl Changes {
    /// Looks at a few more entries; true when that was the last of them.
    fn take_from(&mut self, walk: &mut Walk, since: Since) -> bool {
        let found = walk.next(FEW);
        let is_last = found.len() < FEW;
        for (entry, stat) in found {
            if !since.is_before(&stat) {
                continue;
            }
            self.any = true;
            if entry.kind() != Kind::File || is_compiled(&entry.path) {
                continue;
            }
            if self.files.len() == MOST_TOLD {
                self.incomplete = true;
            } else {
                self.files.push(entry);
            }
        }
        if is_last && walk.is_incomplete() {
            (self.any, self.incomplete) = (true, true);
        }
        is_last
    }
}

/// What Python keeps of modules that it compiled is nothing that anybody made.
fn is_compiled(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|part| part == b"__pycache__")
}
