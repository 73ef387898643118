//! The baselines: what starting a process costs, bare or in a jail.

use std::{ffi::CString, os::unix::ffi::OsStrExt as _, path::Path};

use crate::{
    kernel::{self, Spent},
    settings::Settings,
};

/// What is around the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jail {
    /// Nothing.
    None,
    /// A jail with the namespaces that an execution has, written as a person would write it.
    Bubblewrap,
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// `sh -c :`
    Shell,
    /// `python3 -c pass`
    Python,
    /// `node -e 0`
    Node,
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

/// Starts a process, waits for it and tells what both took together. Blocks.
///
/// # Errors
/// When it cannot be started or does not exit with 0.
pub(crate) fn run(argv: &[CString]) -> anyhow::Result<Spent> {
    let (status, spent) = kernel::run(argv)?;
    anyhow::ensure!(status.success(), "`{argv:?}` ended with {status}");
    Ok(spent)
}

/// The command line of a baseline.
///
/// # Errors
/// When a path holds a NUL.
pub(crate) fn argv(program: Program, jail: Jail, settings: &Settings) -> anyhow::Result<Vec<CString>> {
    let jail: &[&str] = if jail == Jail::Bubblewrap { &BUBBLEWRAP } else { &[] };
    let (path, flag, code): (&Path, _, _) = match program {
        Program::Shell => (Path::new("/bin/sh"), "-c", ":"),
        Program::Python => (&settings.python, "-c", "pass"),
        Program::Node => (&settings.node, "-e", "0"),
    };
    let words = jail.iter().map(|word| word.as_bytes());
    let words = words.chain([path.as_os_str().as_bytes(), flag.as_bytes(), code.as_bytes()]);
    Ok(words.map(CString::new).collect::<Result<_, _>>()?)
}
