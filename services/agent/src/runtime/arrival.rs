//! Hears of new files in a directory, instead of looking again and again.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify;
use tokio::io::{Interest, unix::AsyncFd};

/// Hears of files that come into a directory.
#[derive(Debug)]
pub(in crate::runtime) struct Arrivals(AsyncFd<OwnedFd>);

impl Arrivals {
    /// Hears of what comes into `dir` from now on.
    pub(in crate::runtime) fn into_dir(dir: &Path) -> io::Result<Self> {
        let notify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&notify, dir, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
        Ok(Self(watch(notify)?))
    }

    /// Waits for the next, or for several at once. Cancel safe.
    pub(in crate::runtime) async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 1024];
            let heard = ready.try_io(|notify| {
                let mut events = inotify::Reader::new(notify.get_ref(), &mut buffer);
                events.next().map(|_| ()).map_err(io::Error::from)
            });
            if let Ok(heard) = heard {
                return heard;
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "unsound only for types whose descriptor may change, which an `OwnedFd`'s does not"
)]
fn watch(notify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(notify, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_new_file_is_heard_of_also_when_it_came_before_the_question() {
        let dir = tempfile::tempdir().unwrap();
        let arrivals = Arrivals::into_dir(dir.path()).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), arrivals.next()).await.is_err());
        std::fs::write(dir.path().join("a"), "").unwrap();
        arrivals.next().await.unwrap();
    }
}
