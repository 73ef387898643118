//! A process named so that it cannot be confused with a later one: its pid and its start time.

use std::{fs, io, path::Path, str::FromStr as _};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A pid with the start time of its process in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pid: i32,
    start_ticks: u64,
}

impl ProcessId {
    /// This process.
    pub(crate) fn own() -> anyhow::Result<Self> {
        Self::of(Pid::this().as_raw())
    }

    /// A process that runs.
    pub(crate) fn of(pid: i32) -> anyhow::Result<Self> {
        let start_ticks =
            start_ticks(pid).with_context(|| format!("cannot read when process {pid} started"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Writes it as "pid start", for [`ProcessId::load`].
    pub(crate) fn store(self, path: &Path) -> anyhow::Result<()> {
        let text = format!("{} {}\n", self.pid, self.start_ticks);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads one; `None` if there is no file or it holds something else.
    pub(crate) fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, start) = text.trim().split_once(' ')?;
        let pid = i32::from_str(pid).ok().filter(|pid| *pid > 1)?;
        Some(Self { pid, start_ticks: start.parse().ok()? })
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Sends it a signal if it still runs.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive() {
            // One that ended in between is what is wanted.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// The start time of a process that is not a zombie: field 22 of `/proc/PID/stat`.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the fields after it start with the state.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_process_is_recognised_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, own) = (dir.path().join("pid"), ProcessId::own().unwrap());
        own.store(&path).unwrap();
        assert_eq!(ProcessId::load(&path).unwrap(), Some(own));
        assert!(own.is_alive());
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_alive() {
        let own = ProcessId::own().unwrap();
        assert!(!ProcessId { start_ticks: own.start_ticks + 1, ..own }.is_alive());
    }

    #[test]
    fn missing_or_foreign_file_names_no_process() {
        assert_eq!(ProcessId::load(Path::new("/nonexistent/pid")).unwrap(), None);
        for text in ["", "1 5", "-1 5", "x y", "77"] {
            assert_eq!(ProcessId::parse(text), None, "{text:?}");
        }
    }
}
