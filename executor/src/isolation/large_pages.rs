//! A copy of the Python interpreter that lies in large pages of memory.
//!
//! A child of a warm Python gets its program by a fault for every sixteen pages, and at its end gives back each
//! page of it by itself. Where a file system keeps a file in pages of 2 MiB, one fault gets as much. Linux does
//! that for what is read by way of a mapping that asks for it (`MADV_HUGEPAGE`) and is not in memory yet, as the
//! programs of a system are, in whatever pages they were read. So a node has a copy of its own, which the jails
//! of its sandboxes show in the place of the original. Besides, the interpreter has to be mapped as it lies in its
//! file, which `merge_program` of the runner does.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _},
    num::NonZeroUsize,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap},
};
use rustix::fs::{StatVfsMountFlags, statvfs};

use super::{house::make_public_dir, interpreters::Interpreters};
use crate::{cli::CopyOptions, snapshot};

/// A large page.
const LARGE: u64 = 2 << 20;

/// Makes the copy, where that is of use, and a snapshot. One process at a time does.
pub(crate) fn run(options: &CopyOptions) -> anyhow::Result<()> {
    make_public_dir(&options.into)?;
    let dir = File::open(&options.into).context("cannot open the directory")?;
    dir.lock().context("cannot lock the directory")?;
    let interpreters = Interpreters::find(&options.isolation)?;
    let made = interpreters.python.map_or(Ok(()), |python| make(&options.into, &python));
    // Whatever became of the copy.
    snapshot::make(options).and(made)
}

/// The copy of this program, and the place where a jail has to show it; `None` if there is no copy of the program as
/// it is now.
pub(crate) fn find(copies: &Path, program: &Path) -> Option<(PathBuf, PathBuf)> {
    let (place, copy) = places(copies, program).ok().flatten()?;
    (copy.is_file() && may_be_executed(&copy).ok()?).then_some((copy, place))
}

/// Makes the copy of this program, in the place of former ones. There is none afterwards if there are no large pages
/// for files of this directory, or the program is not one that can have them.
fn make(copies: &Path, program: &Path) -> anyhow::Result<()> {
    let Some((place, copy)) = places(copies, program).context("cannot look at Python")? else {
        return Ok(());
    };
    if copy.is_file() {
        // It may have left the memory since it was made. Where it is in small pages and in use it stays so.
        return is_in_large_pages(&copy).map(drop).context("cannot read the copy");
    }
    if !is_suitable(&place).context("cannot read Python")? {
        return Ok(());
    }
    remove_all(copies).context("cannot remove what was there before")?;
    if !may_be_executed(copies).context("cannot look at the mount")? {
        return Ok(());
    }
    let unfinished = copy.with_extension("unfinished");
    let is_of_use = write(&place, &unfinished)
        .and_then(|()| Ok(is_in_large_pages(&unfinished)? && can_be_executed(&unfinished)));
    match is_of_use {
        // Whoever looks sees all of it or nothing.
        Ok(true) => fs::rename(unfinished, copy).context("cannot name the copy"),
        not_so => {
            // It may not even be there.
            let _ = fs::remove_file(unfinished);
            not_so.map(drop).context("cannot copy Python")
        }
    }
}

/// Where the program is, and where its copy would be; `None` if it is not in a directory that each jail shows. A program
/// that was replaced has a copy of another name.
fn places(copies: &Path, program: &Path) -> io::Result<Option<(PathBuf, PathBuf)>> {
    let place = program.canonicalize()?;
    if !place.starts_with("/usr") {
        return Ok(None);
    }
    let found = place.metadata()?;
    let name = place.file_name().unwrap_or_default().display();
    let (device, inode, length) = (found.dev(), found.ino(), found.len());
    let (seconds, nanoseconds) = (found.ctime(), found.ctime_nsec());
    let copy = copies.join(format!("{name}-{device:x}-{inode:x}-{length}-{seconds}.{nanoseconds}"));
    Ok(Some((place, copy)))
}

/// Whether it is linked for one address, and so can lie in memory as in its file, and large enough.
fn is_suitable(program: &Path) -> io::Result<bool> {
    /// Of an ELF file: where its type is, and that of such a program.
    const TYPE: std::ops::Range<usize> = 16..18;
    const ET_EXEC: u16 = 2;
    let mut file = File::open(program)?;
    let mut head = [0; TYPE.end];
    file.read_exact(&mut head)?;
    Ok(file.metadata()?.len() >= LARGE && head[TYPE] == ET_EXEC.to_ne_bytes())
}

/// Sandboxes look for a copy anew for each jail, and jails go on with what they have.
fn remove_all(copies: &Path) -> io::Result<()> {
    for entry in fs::read_dir(copies)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && !snapshot::is_one(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether it is on a mount that lets programs be executed: where a jail shows it, it is as it is there.
fn may_be_executed(path: &Path) -> io::Result<bool> {
    Ok(!statvfs(path)?.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// Whether nothing else is against it.
fn can_be_executed(python: &Path) -> bool {
    let mut command = Command::new(python);
    command.args(["-I", "-S", "-c", ""]).env_clear();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn write(program: &Path, copy: &Path) -> io::Result<()> {
    fs::copy(program, copy)?;
    fs::set_permissions(copy, Permissions::from_mode(0o755))?;
    // What is not on the disk cannot be forgotten.
    File::open(copy)?.sync_all()
}

/// Reads a file into large pages, also where it is in small ones: those are forgotten if nobody uses them.
fn is_in_large_pages(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let length = file.metadata()?.len() / LARGE * LARGE;
    let Some(length) = usize::try_from(length).ok().and_then(NonZeroUsize::new) else { return Ok(false) };
    if is_read_into_large_pages(&file, length)? {
        return Ok(true);
    }
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    is_read_into_large_pages(&file, length)
}

/// Reads so much of a file by way of a mapping; true if the kernel used large pages.
#[expect(unsafe_code, reason = "a mapping that nobody else knows")]
fn is_read_into_large_pages(file: &File, length: NonZeroUsize) -> io::Result<bool> {
    let flags = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
    // SAFETY: a new mapping, which is only read, and gone before this returns. Nobody else writes to the file.
    unsafe {
        let start = mmap(None, length, flags, MapFlags::MAP_PRIVATE, file.as_fd(), 0)?;
        let advised = madvise(start, length.get(), MmapAdvise::MADV_HUGEPAGE);
        if advised.is_ok() {
            for page in (0..length.get()).step_by(4096) {
                start.cast::<u8>().byte_add(page).read_volatile();
            }
        }
        let is_large = advised.is_ok() && has_large_pages(start.addr().get());
        munmap(start, length.get())?;
        Ok(is_large)
    }
}

/// Whether a part of the mapping that begins there is mapped by large pages.
fn has_large_pages(start: usize) -> bool {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mapping = maps.split_once(&format!("\n{start:x}-")).map_or("", |(_, rest)| rest);
    let mapped = mapping.lines().find_map(|line| line.strip_prefix("FilePmdMapped:"));
    mapped.is_some_and(|size| size.trim() != "0 kB")
}
