//! The baselines: what starting a process costs, bare or in a jail.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What is around the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jail {
    /// Nothing.
    None,
    /// A jail with the namespaces that an execution has, written as a person would write it.
    Bubblewrap,
}

const BUBBLEWRAP: [&str; 15] = [
    "/usr/bin/bwrap",
    "--unshare-all",
    "--die-with-parent",
    "--new-session",
    "--cap-drop",
    "ALL",
    "--ro-bind",
    "/",
    "/",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
];

/// Starts a process, waits for it and tells how long both took together.
///
/// # Errors
/// When it cannot be started or does not exit with 0.
pub(crate) fn run(jail: Jail, argv: &[String]) -> anyhow::Result<Duration> {
    let jail: &[&str] = if jail == Jail::Bubblewrap { &BUBBLEWRAP } else { &[] };
    let argv: Vec<&str> = jail.iter().copied().chain(argv.iter().map(String::as_str)).collect();
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    own_session(&mut command);
    let began = Instant::now();
    let status = command.status()?;
    anyhow::ensure!(status.success(), "`{}` ended with {status}", argv.join(" "));
    Ok(began.elapsed())
}

/// Gives the process a kernel session of its own, as each execution has.
#[expect(unsafe_code, reason = "the standard library cannot start a process in a new session")]
fn own_session(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe, and
    // touches no memory.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}
