//! The first process of a container: it reaps what nobody waits for and passes on signals.
//!
//! An executor that finds itself to be the first process of its pid namespace forks: the child is the
//! executor, and the parent stays behind as this. It holds nothing, runs nothing and takes no input.

use std::process::ExitCode;

use anyhow::Context as _;
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

/// The agent's word to end, which is passed on.
const END: Signal = Signal::SIGINT;

/// An engine's word to end, as when it is started anew: nobody ended the session. So what runs is not told that
/// it was, but is lost with its executor.
const LOSE: Signal = Signal::SIGTERM;

/// Who this process is after [`split`].
#[derive(Debug)]
pub(crate) enum Role {
    /// The executor.
    Executor,
    /// What is left of the first process, after the executor ended: it ends in the same way.
    Over(ExitCode),
}

/// Forks if this is the first process of its pid namespace. Must be called before any thread is started. In
/// the parent it returns when the executor has ended.
#[expect(unsafe_code, reason = "forks")]
pub(crate) fn split() -> anyhow::Result<Role> {
    if std::process::id() != 1 {
        return Ok(Role::Executor);
    }
    let mut signals = SigSet::empty();
    [END, LOSE, Signal::SIGCHLD].into_iter().for_each(|signal| signals.add(signal));
    // Before the fork, so that none is missed.
    signals.thread_block().context("cannot block signals")?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            signals.thread_unblock().context("cannot unblock signals")?;
            Ok(Role::Executor)
        }
        ForkResult::Parent { child } => Ok(Role::Over(attend(child, &signals))),
    }
}

/// Reaps and passes on until the executor has ended. With this process the kernel ends all others.
fn attend(executor: Pid, signals: &SigSet) -> ExitCode {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(executor) {
                    return code;
                }
            }
            Ok(LOSE) => drop(kill(executor, Signal::SIGKILL)),
            Ok(signal) => drop(kill(executor, signal)),
            // A signal of the kernel's own, after which it waits again.
            Err(_) => {}
        }
    }
}

/// Reaps everything that ended; tells how the executor did if it is among them.
fn reap(executor: Pid) -> Option<ExitCode> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return found,
            Ok(status) if status.pid() == Some(executor) => found = code(status).or(found),
            Ok(_) => {}
            Err(Errno::EINTR) => {}
            Err(_) => return Some(ExitCode::FAILURE),
        }
    }
}

/// As a shell tells it: a signal is 128 and its number. `None` if it did not end.
fn code(status: WaitStatus) -> Option<ExitCode> {
    let code = match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => return None,
    };
    Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_a_shell_does() {
        let pid = Pid::from_raw(7);
        assert_eq!(code(WaitStatus::Exited(pid, 3)), Some(ExitCode::from(3)));
        assert_eq!(code(WaitStatus::Signaled(pid, Signal::SIGKILL, false)), Some(ExitCode::from(137)));
        assert_eq!(code(WaitStatus::Stopped(pid, Signal::SIGSTOP)), None);
    }
}
