//! Turns at warming up. To start an interpreter takes several times what it takes to make a sandbox (less where it is
//! made of a snapshot), so of the sandboxes that a node makes at once only a few warm up, once the machine has time for
//! it, and the others are there the sooner. Who is asked to run something does not wait for its turn.

use std::{
    fs::{self, File, OpenOptions},
    io,
    num::NonZero,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::OnceLock,
    thread::available_parallelism,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

/// How soon it is looked again whether it is one's turn, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// For how long a busy machine is waited for: it may always be.
const BUSY: Duration = Duration::from_secs(1);

/// Nobody waits for longer: something else is wrong then.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file whose lock one of those holds that share it.
#[derive(Debug)]
pub(crate) struct Turns(File);

/// It is one's turn, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Turns);

impl Turns {
    /// Those who were given the same file take turns.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(Self)
    }

    /// Waits for one's turn, and not forever. Cancelled by dropping it.
    pub(crate) async fn wait(self) -> Turn {
        let began = Instant::now();
        let mut pause = PAUSES.0;
        while !self.has_come(began.elapsed()) {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        Turn(self)
    }

    fn has_come(&self, waited: Duration) -> bool {
        let may = waited >= BUSY || !is_busy(1);
        waited >= PATIENCE || (may && flock(&self.0, FlockOperation::NonBlockingLockExclusive).is_ok())
    }
}

/// Whether the machine has more than so many times its processors to do, besides this.
pub(crate) fn is_busy(times: usize) -> bool {
    let Ok(text) = fs::read_to_string("/proc/loadavg") else { return false };
    runnable(&text).is_some_and(|runnable| runnable > times * processors())
}

/// How many processors the machine has. Not how many are for this process: what is compared with it is of the
/// machine, too.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| {
        let counted = fs::read_to_string("/proc/stat").ok().and_then(|text| count_processors(&text));
        counted.or_else(|| available_parallelism().ok()).map_or(1, NonZero::get)
    })
}

/// As `/proc/stat` has it: a line for each, after the one for all of them.
fn count_processors(text: &str) -> Option<NonZero<usize>> {
    NonZero::new(text.lines().take_while(|line| line.starts_with("cpu")).count().saturating_sub(1))
}

/// How many threads of the machine run or could, as `/proc/loadavg` tells: the fourth word, before the slash.
fn runnable(text: &str) -> Option<usize> {
    text.split_whitespace().nth(3)?.split('/').next()?.parse().ok()
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Not only closed: a child that is being started may still hold a copy of the descriptor.
        let _ = flock(&self.0.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_could_run_is_told_by_the_kernel() {
        assert_eq!(runnable("4.57 5.46 6.11 3/412 8100\n"), Some(3));
        assert_eq!(runnable(""), None);
        assert!(runnable(&fs::read_to_string("/proc/loadavg").unwrap()).is_some_and(|runnable| runnable > 0));
    }

    #[test]
    fn how_many_processors_there_are_is_told_by_the_kernel() {
        assert_eq!(count_processors("cpu  1 2\ncpu0 1 1\ncpu1 0 1\nintr 5\ncpu2 0\n"), NonZero::new(2));
        assert_eq!(count_processors(""), None);
        assert!(processors() >= available_parallelism().unwrap().get());
    }

    #[tokio::test]
    async fn one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Turns::open(&dir.path().join("turn")).unwrap();
        let first = open().wait().await;
        let mut second = Box::pin(open().wait());
        let soon = BUSY + Duration::from_millis(200);
        assert!(tokio::time::timeout(soon, &mut second).await.is_err(), "it is the first one's turn");
        drop(first);
        let second = second.await;
        let mut third = Box::pin(open().wait());
        assert!(tokio::time::timeout(soon, &mut third).await.is_err(), "it is the second one's turn");
        drop(second);
        third.await;
    }
}
