//! How many sandboxes are started and warmed up at once: as much as the machine can do, so that those that come
//! first are there first, and a sandbox that only has to be claimed does not wait for those that are made.

use std::{
    fs::DirBuilder,
    io,
    num::NonZero,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread::available_parallelism,
};

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many are started at once for each processor: each waits a little for what it starts.
const FOR_EACH: usize = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Starts {
    slots: Semaphore,
    /// Where the files are by which executors take turns at warming up.
    turns: PathBuf,
    /// How many of them there are: warming up is to leave half of the machine for other work.
    files: usize,
    next: AtomicUsize,
}

impl Starts {
    /// Those of the sandboxes below this data directory. Changes nothing on the machine.
    pub(super) fn new(data_dir: &Path) -> Self {
        let processors = available_parallelism().map_or(1, NonZero::get);
        Self {
            slots: Semaphore::new(processors * FOR_EACH),
            turns: data_dir.join("turns"),
            files: (processors / 2).max(1),
            next: AtomicUsize::new(0),
        }
    }

    /// Waits until one more may be started; until the answer is dropped it counts. Cancelled by dropping it.
    pub(super) async fn begin(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.slots.acquire().await.ok()
    }

    /// The file by which the next executor takes turns.
    ///
    /// # Errors
    /// When the directory of these files cannot be made.
    pub(super) fn turn(&self) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.turns)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.files;
        Ok(self.turns.join(number.to_string()))
    }
}
