//! The life of the user's process between fork and exec, and the few raw descriptors of the init.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    os::fd::{FromRawFd as _, RawFd},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigHandler, SigSet, Signal, signal},
        stat::{Mode, umask},
    },
    unistd::{chdir, execve, setsid},
};

use super::{REQUEST_FD, RESULT_FD, Spec};
use crate::isolation::seccomp;

/// The init's own numbers of what it hands to the child.
const STREAMS: RawFd = 3;
const RESULT: RawFd = 6;
const REQUEST: RawFd = 7;

/// The steps of the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Workdir = 1,
    Descriptors,
    Limits,
    Filter,
    Exec,
}

impl Stage {
    fn from_byte(byte: u8) -> Self {
        [Self::Workdir, Self::Descriptors, Self::Limits, Self::Filter]
            .into_iter()
            .find(|stage| *stage as u8 == byte)
            .unwrap_or(Self::Exec)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Workdir => "enter_workdir",
            Self::Descriptors => "pass_descriptors",
            Self::Limits => "set_rlimits",
            Self::Filter => "install_seccomp",
            Self::Exec => "exec",
        }
    }

    pub(super) fn message(self, spec: &Spec) -> String {
        match self {
            Self::Workdir => format!("cannot enter {}", spec.workdir),
            Self::Exec => format!("cannot execute `{}`", spec.argv.first().map_or("", String::as_str)),
            Self::Descriptors | Self::Limits | Self::Filter => "cannot prepare the process".to_owned(),
        }
    }
}

/// A step that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) stage: Stage,
    pub(super) errno: Errno,
}

impl Failed {
    fn encode(&self) -> [u8; 5] {
        let [a, b, c, d] = (self.errno as i32).to_le_bytes();
        [self.stage as u8, a, b, c, d]
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let [stage, errno @ ..]: [u8; 5] = bytes.try_into().ok()?;
        Some(Self { stage: Stage::from_byte(stage), errno: Errno::from_raw(i32::from_le_bytes(errno)) })
    }
}

/// Turns this process, the forked child, into the user's. Returns only what failed.
pub(super) fn become_user_process(spec: &Spec, filter: &[u8], failure: RawFd) -> Failed {
    let Err(failed) = try_become(spec, filter, failure);
    failed
}

fn try_become(spec: &Spec, filter: &[u8], failure: RawFd) -> Result<Infallible, Failed> {
    let at = |stage| move |errno| Failed { stage, errno };
    // It may have been asked for by an option of bubblewrap too; a session of the process's own
    // keeps it off any terminal and makes signals to its group its own business.
    let _ = setsid();
    umask(Mode::from_bits_truncate(0o022));
    arrange_descriptors(spec, failure).map_err(at(Stage::Descriptors))?;
    chdir(spec.workdir.as_str()).map_err(at(Stage::Workdir))?;
    reset_signals().map_err(at(Stage::Descriptors))?;
    if let Some(rlimits) = &spec.rlimits {
        rlimits.apply().map_err(at(Stage::Limits))?;
    }
    let env =
        c_strings(spec.env.iter().map(|(name, value)| format!("{name}={value}"))).map_err(at(Stage::Exec))?;
    let argv = c_strings(spec.argv.iter().cloned()).map_err(at(Stage::Exec))?;
    if !filter.is_empty() {
        seccomp::install(filter).map_err(|_| Failed { stage: Stage::Filter, errno: Errno::last() })?;
    }
    exec(&argv, &env, spec).map_err(at(Stage::Exec))
}

/// 0-2 the streams, 3 the result, 4 the request (where asked for), and nothing else but `failure`,
/// which a successful exec closes.
#[expect(unsafe_code, reason = "descriptors by number")]
fn arrange_descriptors(spec: &Spec, failure: RawFd) -> nix::Result<()> {
    // SAFETY: plain descriptor calls on numbers that are this process's to arrange: after fork it
    // uses none of them but these.
    unsafe {
        for (stream, target) in (STREAMS..).zip(0..=2) {
            Errno::result(libc::dup2(stream, target))?;
        }
        (STREAMS..=STREAMS + 2).for_each(close);
        if spec.has_result {
            Errno::result(libc::dup2(RESULT, RESULT_FD))?;
        }
        if spec.has_request {
            Errno::result(libc::dup2(REQUEST, REQUEST_FD))?;
        }
        Errno::result(libc::syscall(libc::SYS_close_range, REQUEST_FD + 1, failure - 1, 0))?;
        Errno::result(libc::syscall(libc::SYS_close_range, failure + 1, libc::c_int::MAX, 0))?;
    }
    Ok(())
}

/// As a new program expects them: nothing blocked, and a broken pipe kills.
#[expect(unsafe_code, reason = "signal dispositions")]
fn reset_signals() -> nix::Result<()> {
    // SAFETY: the default disposition installs no handler.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    SigSet::empty().thread_set_mask()
}

/// Executes the program, looked up in the user's own `PATH` if its name has no slash.
fn exec(argv: &[CString], env: &[CString], spec: &Spec) -> nix::Result<Infallible> {
    let name = spec.argv.first().ok_or(Errno::EINVAL)?;
    if name.contains('/') {
        return execve(&argv[0], argv, env);
    }
    let path = spec.env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value);
    let mut failure = Errno::ENOENT;
    for dir in path.split(':').filter(|dir| !dir.is_empty()) {
        let program = CString::new(format!("{dir}/{name}")).map_err(|_| Errno::EINVAL)?;
        match execve(&program, argv, env) {
            // Not this one; what could not be executed is better news than what is not there.
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => failure = Errno::EACCES,
            other => return other,
        }
    }
    Err(failure)
}

fn c_strings(words: impl Iterator<Item = String>) -> nix::Result<Vec<CString>> {
    words.map(|word| CString::new(word).map_err(|_| Errno::EINVAL)).collect()
}

/// Tells the init what failed and ends.
pub(super) fn exit_with(failed: &Failed, failure: RawFd) -> ! {
    use std::io::Write as _;
    let _ = raw(failure).write_all(&failed.encode());
    std::process::exit(127)
}

/// The init's end of the result.
pub(super) fn result_pipe() -> File {
    raw(RESULT)
}

/// Reads from a descriptor; `None` on an error.
pub(super) fn read(fd: RawFd, buffer: &mut [u8]) -> Option<usize> {
    use std::io::Read as _;
    let mut file = std::mem::ManuallyDrop::new(raw(fd));
    file.read(buffer).ok()
}

#[expect(unsafe_code, reason = "a descriptor by its number")]
fn raw(fd: RawFd) -> File {
    // SAFETY: the number is one of those this program is started with, and each is taken once (or
    // kept from being closed by the caller).
    unsafe { File::from_raw_fd(fd) }
}

/// Closes a descriptor by its number; one that is not open does not matter.
#[expect(unsafe_code, reason = "a descriptor by its number")]
pub(super) fn close(fd: RawFd) {
    // SAFETY: no owner of this number is used afterwards.
    unsafe { libc::close(fd) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_survives_its_encoding() {
        for stage in [Stage::Workdir, Stage::Descriptors, Stage::Limits, Stage::Filter, Stage::Exec] {
            let failed = Failed { stage, errno: Errno::E2BIG };
            assert_eq!(Failed::decode(&failed.encode()), Some(failed));
        }
        assert_eq!(Failed::decode(&[]), None);
    }
}
