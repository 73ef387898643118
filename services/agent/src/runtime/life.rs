//! One process of this machine, held by a descriptor so that it cannot be mistaken for a later process
//! with its id.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
};

/// Which process: an id is used again after its process ended, an id with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime) struct Mark {
    pub(in crate::runtime) pid: i32,
    /// In clock ticks since the machine started, as in `/proc/PID/stat`.
    pub(in crate::runtime) start_time: u64,
}

/// A process that is watched.
#[derive(Debug)]
pub(in crate::runtime) struct Process {
    pidfd: AsyncFd<OwnedFd>,
    /// There when this agent started it; it then is reaped here.
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Watches a child that was just started.
    pub(in crate::runtime) fn of_child(child: Child) -> io::Result<Self> {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the process ended at once"))?;
        Ok(Self { pidfd: watch(pid)?, child: Mutex::new(Some(child)) })
    }

    /// Watches a process that an agent before this one started; `None` when it has ended.
    pub(in crate::runtime) fn adopt(mark: Mark) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(mark.pid) else { return Ok(None) };
        let pidfd = match watch(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // Read after the descriptor was opened: if it is the right process now, the descriptor is its.
        let same = start_time(mark.pid) == Some(mark.start_time);
        Ok(same.then_some(Self { pidfd, child: Mutex::new(None) }))
    }

    /// Sends it a signal. One that has ended already is left alone.
    pub(in crate::runtime) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until it has ended, and reaps it. `None` when its status is for another process to know.
    /// Cancel safe.
    pub(in crate::runtime) async fn ended(&self) -> Option<ExitStatus> {
        if self.pidfd.readable().await.is_err() {
            // Only when the program itself is ending: nothing is known about the process.
            std::future::pending::<()>().await;
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }
}

#[expect(
    deprecated,
    reason = "unsound only for types whose descriptor may change, which an `OwnedFd`'s does not"
)]
fn watch(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd_open(pid, PidfdFlags::NONBLOCK)?, Interest::READABLE)
}

/// When a process started, or `None` when there is none with this id that still runs.
pub(in crate::runtime) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, also parentheses and spaces.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let runs = !matches!(*fields.first()?, "Z" | "X");
    runs.then(|| fields.get(19)?.parse().ok()).flatten()
}

/// How a process ended, for a person.
pub(in crate::runtime) fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "executor ended".to_owned() };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("executor exited with status {code}"),
        (None, Some(signal)) => format!("executor was killed by signal {signal}"),
        (None, None) => "executor ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::process::Command;

    use super::*;

    fn sleeper() -> (Mark, Child) {
        let child = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        (Mark { pid, start_time: start_time(pid).unwrap() }, child)
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_seen_at_once_with_its_status() {
        let process = Process::of_child(sleeper().1).unwrap();
        let asked = Instant::now();
        process.signal(Signal::TERM);
        let status = process.ended().await.unwrap();
        assert!(asked.elapsed() < Duration::from_millis(100));
        assert_eq!(describe(Some(status)), "executor was killed by signal 15");
        assert_eq!(process.ended().await, Some(status), "asked again, it says the same");
    }

    #[tokio::test]
    async fn the_end_of_an_adopted_process_is_seen() {
        let (mark, mut child) = sleeper();
        let process = Process::adopt(mark).unwrap().unwrap();
        child.kill().await.unwrap();
        assert_eq!(process.ended().await, None);
        assert!(Process::adopt(mark).unwrap().is_none());
    }

    #[tokio::test]
    async fn another_process_with_the_same_id_is_not_adopted() {
        let (mark, _child) = sleeper();
        assert!(Process::adopt(Mark { start_time: mark.start_time + 1, ..mark }).unwrap().is_none());
    }
}
