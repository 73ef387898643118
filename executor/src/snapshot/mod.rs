//! Snapshots of a warm Python: a new sandbox has one without starting it and without warming it up.
//!
//! To do both takes longer than all else that a sandbox needs, and each interpreter has the same in memory then. So a
//! node does it once, in a jail like those of sandboxes, in which no user ever is, and has the memory of that
//! [template](crate::native::snapshot) written to a file ([`take`]). In the jail of a sandbox a loader maps this file
//! privately and goes on where the template waits ([`restore`]): what a sandbox does not write to, all of them have in
//! common.
//!
//! A snapshot is of one start of the machine, one build of this program and one Python, which are in its name, and was
//! tried before it got that name. What else it needs, the libraries, the loader compares with what it was; where
//! anything is different it starts Python as ever.

mod maps;
pub(crate) mod restore;
pub(crate) mod take;

use std::{
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    cli::CopyOptions,
    isolation::{interpreters::Interpreters, large_pages},
};

/// The bytes of a page of memory, as in every place where there are snapshots.
const PAGE: usize = 4096;

/// The largest description of a snapshot.
const MOST_BYTES: u64 = 4 << 20;

const ENDING: &str = "snapshot";
const UNFINISHED: &str = "unfinished";

/// What is in the file before the memory: where things are to be.
#[derive(Debug, Serialize, Deserialize)]
struct Snapshot {
    /// Where the template waits: its stack pointer, and the memory of its thread.
    stack_pointer: usize,
    thread: usize,
    /// Where a loader leaves its [`Handover`](crate::native::snapshot::Handover).
    handover: usize,
    areas: Vec<Area>,
    /// The part of the stack that is in use: where it begins and ends, and where it is in the memory of the file.
    stack: (usize, usize, u64),
    /// What the kernel shows to each process, by name: where it begins and ends.
    kernel: Vec<(String, usize, usize)>,
    /// The pages of which a process is to have its own from the start, as beginnings and ends.
    own: Vec<(usize, usize)>,
    /// See [`set_layout`](crate::native::sys::set_layout): all but what is said of the next two.
    layout: [u64; 11],
    auxiliary: Vec<u64>,
    program: PathBuf,
    /// The length of the memory in the file.
    bytes: u64,
}

/// Memory that is mapped alike.
#[derive(Debug, Serialize, Deserialize)]
struct Area {
    begin: usize,
    end: usize,
    /// As in `/proc/self/maps`: `r-xp`.
    access: String,
    content: Content,
}

impl Area {
    /// Whether it is memory that was written to before it was closed to writing. A process has pages of its own there.
    fn is_filled_first(&self) -> bool {
        matches!(self.content, Content::Memory(_)) && self.access.starts_with("r--")
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Content {
    Nothing,
    /// What each child has anew, as zeros: the C library keeps random numbers in such memory. The flag is that the
    /// kernel may take it away at any time, too.
    Wiped(bool),
    /// The memory of the snapshot from there on.
    Memory(u64),
    /// This file from there on, which has to be the one that it was.
    File(PathBuf, u64, Stamp),
}

/// What tells one file from another.
#[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        let modified = (file.mtime(), file.mtime_nsec());
        Self { device: file.dev(), inode: file.ino(), length: file.len(), modified }
    }
}

impl Snapshot {
    /// Reads the description, and where the memory begins in the file.
    fn read(file: &File) -> anyhow::Result<(Self, u64)> {
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= MOST_BYTES, "it does not begin like one");
        let mut text = vec![0; usize::try_from(length)?];
        file.read_exact_at(&mut text, 8)?;
        let (snapshot, begins): (Self, _) = (serde_json::from_slice(&text)?, Self::memory_begins(length));
        ensure!(begins.checked_add(snapshot.bytes) == Some(file.metadata()?.len()), "it is not whole");
        Ok((snapshot, begins))
    }

    /// Writes the description, padded, after which the memory is to be written.
    fn write(&self, file: &mut File) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self)?;
        let length = text.len() as u64;
        let padding = Self::memory_begins(length) - 8 - length;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(&text)?;
        file.write_all(&vec![0; usize::try_from(padding)?])?;
        Ok(())
    }

    fn memory_begins(length: u64) -> u64 {
        (8 + length).next_multiple_of(PAGE as u64)
    }
}

/// The snapshot of this Python, as this program takes it and jails show it now; `None` if there is none.
pub(crate) fn find(copies: &Path, python: &Path, program: &Path) -> Option<File> {
    File::open(copies.join(name(copies, python, program).ok()?)).ok()
}

/// Takes a snapshot, in the place of former ones, whatever they are of: so what sandboxes have in common changes with
/// each start of a node.
pub(crate) fn make(options: &CopyOptions) -> anyhow::Result<()> {
    remove_former(&options.into).context("cannot remove former snapshots")?;
    let Some(python) = Interpreters::find(&options.isolation)?.python else { return Ok(()) };
    if !options.snapshots || !cfg!(target_arch = "x86_64") || !options.isolation.jail.is_on() {
        return Ok(());
    }
    let name = name(&options.into, &python, &std::env::current_exe()?).context("cannot look at Python")?;
    let snapshot = options.into.join(name);
    let unfinished = snapshot.with_extension(UNFINISHED);
    let taken = have_taken(options, &unfinished);
    // Whoever looks sees all of it or nothing.
    let made = taken.and_then(|()| Ok(fs::rename(&unfinished, &snapshot)?));
    if made.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&unfinished);
    }
    made.context("cannot take a snapshot of Python")
}

/// Whether the file is a snapshot, finished or not.
pub(crate) fn is_one(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == ENDING || ending == UNFINISHED)
}

/// Sandboxes look for a snapshot anew for each Python.
fn remove_former(copies: &Path) -> io::Result<()> {
    for entry in fs::read_dir(copies)? {
        let path = entry?.path();
        if is_one(&path) {
            fs::remove_file(path)?;
        }
    }
    remove_dir(&template_dir(copies))
}

/// The directory of the template, in that of copies.
fn template_dir(copies: &Path) -> PathBuf {
    copies.join("template")
}

/// Takes it in a process of its own, as who builds a sandbox gives up the right to remove it.
fn have_taken(options: &CopyOptions, snapshot: &Path) -> anyhow::Result<()> {
    let mut open = OpenOptions::new();
    let file = open.read(true).write(true).create(true).truncate(true).mode(0o644).open(snapshot)?;
    let mut command = Command::new(std::env::current_exe()?);
    // The same flags: they are those of `copy`.
    command.arg("template").args(std::env::args_os().skip(2));
    let output = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::piped()).output();
    remove_dir(&template_dir(&options.into))?;
    let output = output?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// The name of the snapshot of this Python, which changes with all that it depends on.
fn name(copies: &Path, python: &Path, program: &Path) -> io::Result<String> {
    let shown = large_pages::find(copies, python).map_or_else(|| python.to_owned(), |(copy, _)| copy);
    let [shown, program] = [shown.metadata()?, program.metadata()?].map(|file| Stamp::of(&file));
    let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
    let mut hasher = DefaultHasher::new();
    (python, shown, program, boot).hash(&mut hasher);
    Ok(format!("python-{:016x}.{ENDING}", hasher.finish()))
}
