//! `sandmesh-executor parent`: the warm parent of everything that is executed: shells, commands, and
//! interpreters that start afresh.
//!
//! It is the first process of a jail and waits for orders (see [`native`](crate::native)); a forked
//! child reads what it is to become from its request and executes it.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{self, File},
    io,
    mem::ManuallyDrop,
    os::fd::{FromRawFd as _, RawFd},
    path::Path,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    sys::signal::{SigHandler, Signal, signal},
    unistd::{chdir, execve},
};
use serde::{Deserialize, Serialize};

use crate::native::{
    parent::{Fork, Parent, tell},
    sys,
    wire::{REQUEST_FD, RESULT_FD, START_FD, STARTING, Stage},
};

/// Where the executor puts its end of the socket.
const CONTROL: RawFd = 0;

/// The largest description of a program, far above what the limits of a request allow.
const MAX_SPEC_BYTES: u32 = 64 << 20;

/// What to run and how.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The program and its arguments. A name without a slash is looked up in the `PATH` of `env`.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where to start.
    pub(crate) workdir: String,
    /// Files to write first, for interpreters that want their code in one.
    pub(crate) files: Vec<(String, String)>,
    /// Give the process the result descriptor.
    pub(crate) has_result: bool,
    /// Leave the process the rest of the request.
    pub(crate) has_request: bool,
}

impl Spec {
    /// What precedes the rest of a request: its length and itself.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let spec = serde_json::to_vec(self).unwrap_or_default();
        let length = u32::try_from(spec.len()).unwrap_or(u32::MAX).to_le_bytes();
        [&length, spec.as_slice()].concat()
    }

    /// Reads what [`encode`](Self::encode) wrote, and no further.
    pub(crate) fn read(from: &mut impl io::Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_SPEC_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; length as usize];
        from.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Serves orders; returns only in a child that could not become its program.
#[expect(unsafe_code, reason = "forks")]
pub(crate) fn run() -> ExitCode {
    extern "C" fn nothing() {}
    extern "C" fn fork() -> i32 {
        // SAFETY: this process has one thread, so the child may do anything.
        unsafe { libc::fork() }
    }
    let fork = Fork { before: nothing, fork, in_child: nothing, in_parent: nothing, sequences: (0, 0) };
    let mut parent = Box::new(Parent::new(CONTROL));
    // SAFETY: one thread, and the box is not moved out of.
    let nest = unsafe { parent.next(&fork) };
    nest.enter(parent.settings());
    let Err(failed) = become_program();
    // An order that is withdrawn has no request; nobody waits for an answer then.
    tell(START_FD, failed.stage, failed.errno as i32);
    ExitCode::from(127)
}

/// A step that failed.
#[derive(Debug)]
struct Failed {
    stage: Stage,
    errno: Errno,
}

fn become_program() -> Result<Infallible, Failed> {
    let at = |stage| move |errno| Failed { stage, errno };
    let io_at = |stage| {
        move |err: io::Error| {
            let errno = err.raw_os_error().map_or(Errno::EPROTO, Errno::from_raw);
            Failed { stage, errno }
        }
    };
    let spec = Spec::read(&mut &*request()).map_err(io_at(Stage::Request))?;
    chdir(spec.workdir.as_str()).map_err(at(Stage::Workdir))?;
    for (path, content) in &spec.files {
        write_file(Path::new(path), content).map_err(io_at(Stage::Files))?;
    }
    keep_asked(&spec);
    let env =
        c_strings(spec.env.iter().map(|(name, value)| format!("{name}={value}"))).map_err(at(Stage::Exec))?;
    let argv = c_strings(spec.argv.iter().cloned()).map_err(at(Stage::Exec))?;
    default_signals().map_err(at(Stage::Descriptors))?;
    let _ = sys::write(START_FD, &[STARTING]);
    exec(&argv, &env, &spec).map_err(at(Stage::Exec))
}

#[expect(unsafe_code, reason = "a descriptor by its number")]
fn request() -> ManuallyDrop<File> {
    // SAFETY: open by the word of `Nest::enter`, used here only and not closed by this.
    ManuallyDrop::new(unsafe { File::from_raw_fd(REQUEST_FD) })
}

/// Closes what the program is not to have.
fn keep_asked(spec: &Spec) {
    for (number, asked) in [(RESULT_FD, spec.has_result), (REQUEST_FD, spec.has_request)] {
        if !asked {
            let _ = nix::unistd::close(number);
        }
    }
}

/// A new program expects that a broken pipe kills; the standard library of this one does not.
#[expect(unsafe_code, reason = "signal dispositions")]
fn default_signals() -> nix::Result<()> {
    // SAFETY: the default disposition installs no handler.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
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

fn write_file(path: &Path, content: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_is_read_up_to_its_end_and_no_further() {
        let spec = Spec { argv: vec!["a".into()], has_request: true, ..Spec::default() };
        let bytes = [spec.encode(), b"rest".to_vec()].concat();
        let mut left = bytes.as_slice();
        assert_eq!(Spec::read(&mut left).unwrap(), spec);
        assert_eq!(left, b"rest");
    }

    #[test]
    fn withdrawn_order_is_an_error() {
        assert!(Spec::read(&mut &b""[..]).is_err());
        assert!(Spec::read(&mut &[9, 0, 0, 0, b'{'][..]).is_err());
    }
}
