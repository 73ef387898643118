//! The calls that are about memory and what is mapped there.

use super::{Errno, Fd, arg, call, check, fd, number, plain};

const READ_WRITE: usize = 3;

/// Anonymous memory, or none; it is there until the process ends.
pub(crate) fn map(bytes: usize) -> Result<usize, Errno> {
    const PRIVATE_ANONYMOUS_NORESERVE: usize = 0x2 | 0x20 | 0x4000;
    plain(number::MMAP, [0, bytes, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, arg(-1), 0])
}

/// Memory that children made from here on have in common with this process.
pub(crate) fn map_shared(bytes: usize) -> Result<usize, Errno> {
    const SHARED_ANONYMOUS: usize = 0x1 | 0x20;
    plain(number::MMAP, [0, bytes, READ_WRITE, SHARED_ANONYMOUS, arg(-1), 0])
}

/// Has nothing there any more, as what [`map_shared`] gave.
pub(crate) fn unmap(begin: usize, bytes: usize) -> Result<(), Errno> {
    plain(number::MUNMAP, [begin, bytes, 0, 0, 0, 0]).map(drop)
}

/// Maps a part of a file in the place of what is there, as memory that this process alone changes.
///
/// # Safety
/// Nobody notices, as it is the same.
pub(crate) unsafe fn map_in_place(file: Fd, offset: usize, begin: usize, bytes: usize) -> Result<(), Errno> {
    const PRIVATE_FIXED: usize = 0x2 | 0x10;
    // SAFETY: by the caller's word.
    check(unsafe { call(number::MMAP, [begin, bytes, READ_WRITE, PRIVATE_FIXED, arg(file), offset]) })
        .map(drop)
}

/// A file in memory that nothing names, and that nobody executes; closed on exec.
pub(crate) fn memory_file(name: &core::ffi::CStr) -> Result<Fd, Errno> {
    const CLOEXEC_AND_SEALS: usize = 0x1 | 0x2;
    const NO_EXECUTION: usize = 0x8;
    const EINVAL: Errno = 22;
    // SAFETY: the name ends with a NUL.
    let create =
        |flags| check(unsafe { call(number::MEMFD_CREATE, [name.as_ptr() as usize, flags, 0, 0, 0, 0]) });
    match create(CLOEXEC_AND_SEALS | NO_EXECUTION) {
        // Before Linux 6.3.
        Err(EINVAL) => create(CLOEXEC_AND_SEALS),
        answer => answer,
    }
    .map(fd)
}

/// Writes memory of this process to a file.
pub(crate) fn write_memory(file: Fd, offset: usize, begin: usize, bytes: usize) -> Result<(), Errno> {
    const ENOSPC: Errno = 28;
    let mut done = 0;
    while done < bytes {
        let args = [arg(file), begin + done, bytes - done, offset + done, 0, 0];
        // SAFETY: the kernel only reads there, and says so if there is nothing.
        match check(unsafe { call(number::PWRITE64, args) })? {
            0 => return Err(ENOSPC),
            count => done += count,
        }
    }
    Ok(())
}

/// Has a file in memory stay as it is, for everybody and for good.
pub(crate) fn seal(file: Fd) -> Result<(), Errno> {
    const F_ADD_SEALS: usize = 1033;
    const SEAL_SHRINK_GROW_WRITE: usize = 0x1 | 0x2 | 0x4 | 0x8;
    plain(number::FCNTL, [arg(file), F_ADD_SEALS, SEAL_SHRINK_GROW_WRITE, 0, 0, 0]).map(drop)
}

const POPULATE_WRITE: usize = 23;

/// Gives this process pages of its own, with what is there.
pub(crate) fn copy_pages(begin: usize, bytes: usize) -> Result<(), Errno> {
    plain(number::MADVISE, [begin, bytes, POPULATE_WRITE, 0, 0, 0]).map(drop)
}

/// Whether the kernel knows [`copy_pages`], as Linux 5.14 does.
pub(crate) fn can_copy_pages() -> Result<(), Errno> {
    copy_pages(0, 0)
}

/// Tells that pages are read one after the other.
pub(crate) fn advise_sequential(begin: usize, bytes: usize) -> Result<(), Errno> {
    const SEQUENTIAL: usize = 2;
    plain(number::MADVISE, [begin, bytes, SEQUENTIAL, 0, 0, 0]).map(drop)
}

/// Reads the word that is there in a file.
pub(crate) fn read_word(file: Fd, offset: usize) -> Result<u64, Errno> {
    const EIO: Errno = 5;
    let mut word = 0_u64;
    let args = [arg(file), core::ptr::from_mut(&mut word) as usize, size_of::<u64>(), offset, 0, 0];
    // SAFETY: the word is writable.
    match check(unsafe { call(number::PREAD64, args) })? {
        count if count == size_of::<u64>() => Ok(word),
        _ => Err(EIO),
    }
}
