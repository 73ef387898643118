//! System calls, made without a C library: this code runs in processes that were forked behind the
//! back of one.
//!
//! Every function is the call of its name (see section 2 of the manual). Answers are the kernel's:
//! an error is its positive number.

mod image;
mod memory;

use core::{
    arch::asm,
    sync::atomic::{AtomicI32, Ordering},
};

pub(crate) use image::{
    Actions, end_of_data, forget_signal_stack, forget_thread, name, register_sequences, set_layout, set_name,
    set_signal_actions, signal_actions, thread_pointer,
};
pub(crate) use memory::{
    advise_sequential, can_copy_pages, copy_pages, map, map_in_place, map_shared, memory_file, read_word,
    seal, unmap, write_memory,
};

/// A descriptor.
pub(crate) type Fd = i32;

/// The number of an error.
pub(crate) type Errno = i32;

/// Numbers that differ between the processors.
#[cfg(target_arch = "x86_64")]
pub(super) mod number {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const MMAP: usize = 9;
    pub(super) const SIGACTION: usize = 13;
    pub(super) const SIGPROCMASK: usize = 14;
    pub(super) const RECVMSG: usize = 47;
    pub(in super::super) const EXIT_GROUP: usize = 231;
    pub(super) const WAIT4: usize = 61;
    pub(super) const KILL: usize = 62;
    pub(super) const FCNTL: usize = 72;
    pub(super) const UMASK: usize = 95;
    pub(super) const GETRUSAGE: usize = 98;
    pub(in super::super) const CLONE: usize = 56;
    pub(super) const SET_TID_ADDRESS: usize = 218;
    pub(super) const SETSID: usize = 112;
    pub(super) const CAPSET: usize = 126;
    pub(in super::super) const PRCTL: usize = 157;
    pub(in super::super) const FUTEX: usize = 202;
    pub(super) const MOUNT: usize = 165;
    pub(super) const OPENAT: usize = 257;
    pub(super) const PPOLL: usize = 271;
    pub(super) const SIGNALFD4: usize = 289;
    pub(super) const DUP3: usize = 292;
    pub(super) const PRLIMIT64: usize = 302;
    pub(super) const STATX: usize = 332;
    pub(super) const RSEQ: usize = 334;
    pub(super) const MUNMAP: usize = 11;
    pub(super) const BRK: usize = 12;
    pub(super) const PREAD64: usize = 17;
    pub(super) const PWRITE64: usize = 18;
    pub(super) const MADVISE: usize = 28;
    pub(super) const SIGALTSTACK: usize = 131;
    pub(super) const SET_ROBUST_LIST: usize = 273;
    pub(super) const PIPE2: usize = 293;
    pub(super) const MEMFD_CREATE: usize = 319;
}

#[cfg(target_arch = "aarch64")]
pub(super) mod number {
    pub(super) const DUP3: usize = 24;
    pub(super) const FCNTL: usize = 25;
    pub(super) const MOUNT: usize = 40;
    pub(super) const OPENAT: usize = 56;
    pub(super) const CLOSE: usize = 57;
    pub(super) const READ: usize = 63;
    pub(super) const WRITE: usize = 64;
    pub(super) const PPOLL: usize = 73;
    pub(super) const SIGNALFD4: usize = 74;
    pub(super) const CAPSET: usize = 91;
    pub(in super::super) const FUTEX: usize = 98;
    pub(in super::super) const EXIT_GROUP: usize = 94;
    pub(super) const KILL: usize = 129;
    pub(super) const SIGACTION: usize = 134;
    pub(super) const SIGPROCMASK: usize = 135;
    pub(in super::super) const CLONE: usize = 220;
    pub(super) const SET_TID_ADDRESS: usize = 96;
    pub(super) const SETSID: usize = 157;
    pub(super) const GETRUSAGE: usize = 165;
    pub(super) const UMASK: usize = 166;
    pub(in super::super) const PRCTL: usize = 167;
    pub(super) const RECVMSG: usize = 212;
    pub(super) const MMAP: usize = 222;
    pub(super) const WAIT4: usize = 260;
    pub(super) const PRLIMIT64: usize = 261;
    pub(super) const STATX: usize = 291;
    pub(super) const RSEQ: usize = 293;
    pub(super) const PIPE2: usize = 59;
    pub(super) const PREAD64: usize = 67;
    pub(super) const PWRITE64: usize = 68;
    pub(super) const SIGALTSTACK: usize = 132;
    pub(super) const SET_ROBUST_LIST: usize = 99;
    pub(super) const BRK: usize = 214;
    pub(super) const MUNMAP: usize = 215;
    pub(super) const MADVISE: usize = 233;
    pub(super) const MEMFD_CREATE: usize = 279;
}

pub(super) const CLOSE_RANGE: usize = 436;

/// Six arguments are enough for every call.
///
/// # Safety
/// What the arguments mean is up to the number: pointers must be valid for what the kernel does there.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let answer: isize;
    // SAFETY: the kernel's calling convention; rcx and r11 are the only registers it destroys.
    unsafe {
        asm!("syscall", inlateout("rax") number.cast_signed() => answer, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

/// See above.
///
/// # Safety
/// See above.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let answer: isize;
    // SAFETY: the kernel's calling convention, which keeps all other registers.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") args[0].cast_signed() => answer, in("x1") args[1],
            in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5], options(nostack));
    }
    answer
}

pub(crate) fn check(answer: isize) -> Result<usize, Errno> {
    usize::try_from(answer).map_err(|_| i32::try_from(-answer).unwrap_or(i32::MAX))
}

/// Calls that take numbers only.
fn plain(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: no argument is a pointer; descriptors are closed by number by whoever owns them.
    check(unsafe { call(number, args) })
}

/// A descriptor or signed number as the kernel takes it.
fn arg(value: i32) -> usize {
    value as isize as usize
}

fn fd(number: usize) -> Fd {
    Fd::try_from(number).unwrap_or(Fd::MAX)
}

/// Reads once; an interruption is not an answer.
pub(crate) fn read(from: Fd, buffer: &mut [u8]) -> Result<usize, Errno> {
    const EINTR: Errno = 4;
    loop {
        // SAFETY: the buffer is writable for its length.
        let args = [arg(from), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
        match check(unsafe { call(number::READ, args) }) {
            Err(EINTR) => {}
            answer => return answer,
        }
    }
}

/// Writes once.
pub(crate) fn write(to: Fd, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the bytes are readable for their length.
    check(unsafe { call(number::WRITE, [arg(to), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) })
}

pub(crate) fn close(which: Fd) {
    let _ = plain(number::CLOSE, [arg(which), 0, 0, 0, 0, 0]);
}

/// Closes every descriptor from this one on.
pub(crate) fn close_from(first: Fd) -> Result<(), Errno> {
    plain(CLOSE_RANGE, [arg(first), u32::MAX as usize, 0, 0, 0, 0]).map(drop)
}

/// Whether the new descriptor is closed on exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnExec {
    Keep,
    Close,
}

pub(crate) fn dup_to(from: Fd, to: Fd, on_exec: OnExec) -> Result<(), Errno> {
    const O_CLOEXEC: usize = 0o2_000_000;
    let flags = if on_exec == OnExec::Close { O_CLOEXEC } else { 0 };
    plain(number::DUP3, [arg(from), arg(to), flags, 0, 0, 0]).map(drop)
}

/// A copy of a descriptor with the lowest free number.
pub(crate) fn dup(from: Fd) -> Result<Fd, Errno> {
    dup_above(from, -1)
}

/// The same with a number above this one.
pub(crate) fn dup_above(from: Fd, last: Fd) -> Result<Fd, Errno> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    plain(number::FCNTL, [arg(from), F_DUPFD_CLOEXEC, arg(last + 1), 0, 0, 0]).map(fd)
}

/// Opens for reading, never following a last link, never waiting.
pub(crate) fn open_to_read(path: &core::ffi::CStr) -> Result<Fd, Errno> {
    open(path, 0)
}

/// The same for writing.
pub(crate) fn open_to_write(path: &core::ffi::CStr) -> Result<Fd, Errno> {
    const O_WRONLY: usize = 1;
    open(path, O_WRONLY)
}

fn open(path: &core::ffi::CStr, access: usize) -> Result<Fd, Errno> {
    const AT_FDCWD: i32 = -100;
    // O_NONBLOCK, O_CLOEXEC, and O_NOFOLLOW, which has a number of its own on each processor.
    const NOFOLLOW: usize = if cfg!(target_arch = "aarch64") { 0o100_000 } else { 0o400_000 };
    let flags = access | 0o4_000 | 0o2_000_000 | NOFOLLOW;
    // SAFETY: the path ends with a NUL.
    check(unsafe { call(number::OPENAT, [arg(AT_FDCWD), path.as_ptr() as usize, flags, 0, 0, 0]) }).map(fd)
}

/// The two ends of a pipe, to read and to write; closed on exec.
pub(crate) fn pipe() -> Result<[Fd; 2], Errno> {
    const O_CLOEXEC: usize = 0o2_000_000;
    let mut ends = [-1; 2];
    // SAFETY: two numbers to write to.
    check(unsafe { call(number::PIPE2, [ends.as_mut_ptr() as usize, O_CLOEXEC, 0, 0, 0, 0]) })?;
    Ok(ends)
}

/// Whether an open descriptor is that of a regular file.
pub(crate) fn is_regular_file(which: Fd) -> bool {
    const AT_EMPTY_PATH: usize = 0x1000;
    const STATX_TYPE: usize = 1;
    const MODE_AT: usize = 28;
    let mut answer = [0_u8; 256];
    let args =
        [arg(which), c"".as_ptr() as usize, AT_EMPTY_PATH, STATX_TYPE, answer.as_mut_ptr() as usize, 0];
    // SAFETY: the path is a string and the answer has the 256 bytes of `struct statx`.
    let answered = check(unsafe { call(number::STATX, args) });
    let mode = u16::from_ne_bytes([answer[MODE_AT], answer[MODE_AT + 1]]);
    answered.is_ok() && mode & 0o170_000 == 0o100_000
}

/// Receives one message with its descriptors (each closed on exec). Gives the count of bytes and of
/// descriptors; no bytes means that the sender is gone. Descriptors that did not all arrive count as
/// none, and are closed.
pub(crate) fn receive(from: Fd, bytes: &mut [u8], fds: &mut [Fd; 16]) -> Result<(usize, usize), Errno> {
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    const HEADER: usize = 16;
    /// `struct msghdr` of 64 bit Linux.
    #[repr(C)]
    struct Message {
        name: usize,
        name_len: usize,
        parts: usize,
        part_count: usize,
        control: usize,
        control_len: usize,
        flags: usize,
    }
    let part = [bytes.as_mut_ptr() as usize, bytes.len()];
    let mut control = [0_u64; (HEADER + 16 * 4) / 8];
    let mut message = Message {
        name: 0,
        name_len: 0,
        parts: part.as_ptr() as usize,
        part_count: 1,
        control: control.as_mut_ptr() as usize,
        control_len: size_of_val(&control),
        flags: 0,
    };
    let args = [arg(from), core::ptr::from_mut(&mut message) as usize, MSG_CMSG_CLOEXEC, 0, 0, 0];
    // SAFETY: the message describes the buffers above, all alive and writable.
    let count = check(unsafe { call(number::RECVMSG, args) })?;
    let length = usize::try_from(control[0]).unwrap_or(0);
    let carried = if message.control_len < HEADER { 0 } else { length.saturating_sub(HEADER) / 4 };
    for (index, slot) in fds.iter_mut().enumerate().take(carried) {
        let pair = control[HEADER / 8 + index / 2].to_ne_bytes();
        let at = index % 2 * 4;
        *slot = Fd::from_ne_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]]);
    }
    const MSG_CTRUNC: usize = 8;
    let carried = carried.min(fds.len());
    if message.flags & MSG_CTRUNC != 0 {
        fds[..carried].iter().for_each(|fd| close(*fd));
        return Ok((count, 0));
    }
    Ok((count, carried))
}

/// Waits while the word has this value.
pub(crate) fn wait_while(word: &AtomicI32, value: i32) {
    const FUTEX_WAIT: usize = 0;
    while word.load(Ordering::Acquire) == value {
        let args = [word.as_ptr() as usize, FUTEX_WAIT, arg(value), 0, 0, 0];
        // SAFETY: the word is alive, and there is no time-out. Any answer leads to another look.
        let _ = unsafe { call(number::FUTEX, args) };
    }
}

/// Gives the word a value and wakes whoever waits for that.
pub(crate) fn set_and_wake(word: &AtomicI32, value: i32) {
    const FUTEX_WAKE: usize = 1;
    word.store(value, Ordering::Release);
    // SAFETY: the word is alive.
    let _ = unsafe { call(number::FUTEX, [word.as_ptr() as usize, FUTEX_WAKE, 1, 0, 0, 0]) };
}

/// Has the kernel clear this word, and wake who waits for that, when this process leaves its memory and
/// another shares it.
pub(crate) fn clear_when_left(word: &'static AtomicI32) {
    // It cannot fail.
    let _ = plain(number::SET_TID_ADDRESS, [word.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = plain(number::EXIT_GROUP, [arg(code), 0, 0, 0, 0, 0]);
    }
}

/// Whether to wait for a child that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Wait,
    Look,
}

/// Reaps one child: its id (zero if none has ended yet) and its status.
pub(crate) fn wait(patience: Patience) -> Result<(i32, i32), Errno> {
    const WNOHANG: usize = 1;
    const ALL: usize = 0x4000_0000;
    let mut status = 0_i32;
    let options = ALL | if patience == Patience::Look { WNOHANG } else { 0 };
    let args = [arg(-1), core::ptr::from_mut(&mut status) as usize, options, 0, 0, 0];
    // SAFETY: the status is writable.
    let pid = check(unsafe { call(number::WAIT4, args) })?;
    Ok((fd(pid), status))
}

pub(crate) fn kill(pid: i32, signal: i32) {
    let _ = plain(number::KILL, [arg(pid), arg(signal), 0, 0, 0, 0]);
}

pub(crate) fn new_session() {
    let _ = plain(number::SETSID, [0; 6]);
}

pub(crate) fn set_umask(mask: usize) {
    let _ = plain(number::UMASK, [mask, 0, 0, 0, 0, 0]);
}

pub(crate) fn prctl(option: i32, first: usize, second: usize) -> Result<usize, Errno> {
    plain(number::PRCTL, [arg(option), first, second, 0, 0, 0])
}

/// Installs a filter for system calls on this process, for good.
pub(crate) fn filter(program: &[u8]) -> Result<(), Errno> {
    const PR_SET_SECCOMP: i32 = 22;
    const SECCOMP_MODE_FILTER: usize = 2;
    // struct sock_fprog: the count of instructions of 8 bytes, padded, and where they are.
    let described = [program.len() / 8, program.as_ptr() as usize];
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described.as_ptr() as usize).map(drop)
}

/// Gives up every capability of this process.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0_u32; 6];
    let args = [header.as_ptr() as usize, none.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: the header and the three sets of two words that version 3 has.
    check(unsafe { call(number::CAPSET, args) }).map(drop)
}

/// Sets soft and hard limit of a resource, never above the hard one that is there.
pub(crate) fn limit(resource: usize, value: u64) -> Result<(), Errno> {
    let mut now = [0_u64; 2];
    // SAFETY: a `struct rlimit64` to read into, and nothing to set.
    check(unsafe { call(number::PRLIMIT64, [0, resource, 0, now.as_mut_ptr() as usize, 0, 0]) })?;
    let wanted = [value.min(now[1]); 2];
    // SAFETY: a `struct rlimit64` to set, and nothing to read into.
    check(unsafe { call(number::PRLIMIT64, [0, resource, wanted.as_ptr() as usize, 0, 0, 0]) }).map(drop)
}

/// Mounts a file system that needs no device.
pub(crate) fn mount(
    kind: &core::ffi::CStr,
    on: &core::ffi::CStr,
    flags: usize,
    options: &[u8],
) -> Result<(), Errno> {
    let data = if options.is_empty() { 0 } else { options.as_ptr() as usize };
    let name = kind.as_ptr() as usize;
    // SAFETY: strings that end with a NUL; so do the options, by the word of whoever made them.
    check(unsafe { call(number::MOUNT, [name, on.as_ptr() as usize, name, flags, data, 0]) }).map(drop)
}

/// Blocks every signal, or none.
pub(crate) fn block_signals(all: bool) -> Result<(), Errno> {
    const SIG_SETMASK: usize = 2;
    let mask = if all { u64::MAX } else { 0 };
    let args = [SIG_SETMASK, core::ptr::from_ref(&mask) as usize, 0, size_of_val(&mask), 0, 0];
    // SAFETY: the mask is readable, and the former one is not asked for.
    check(unsafe { call(number::SIGPROCMASK, args) }).map(drop)
}

/// What a signal does without a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    Default = 0,
    Ignore = 1,
}

pub(crate) fn dispose(signal: i32, disposition: Disposition) -> Result<(), Errno> {
    // handler, flags, restorer, mask
    let action = [disposition as usize, 0, 0, 0];
    let args = [arg(signal), action.as_ptr() as usize, 0, size_of::<u64>(), 0, 0];
    // SAFETY: the kernel's `struct sigaction`, without a handler.
    check(unsafe { call(number::SIGACTION, args) }).map(drop)
}

/// A descriptor that can be read when a child has ended.
pub(crate) fn child_signals() -> Result<Fd, Errno> {
    const SIGCHLD_BIT: u64 = 1 << (17 - 1);
    const NONBLOCK_CLOEXEC: usize = 0o2_004_000;
    let mask = SIGCHLD_BIT;
    let args = [arg(-1), core::ptr::from_ref(&mask) as usize, size_of_val(&mask), NONBLOCK_CLOEXEC, 0, 0];
    // SAFETY: the mask is readable.
    check(unsafe { call(number::SIGNALFD4, args) }).map(fd)
}

/// Which of two descriptors can be read (or are at their end); waits for one if asked to.
pub(crate) fn poll(first: Fd, second: Option<Fd>, patience: Patience) -> Result<[bool; 2], Errno> {
    const POLLIN: i16 = 1;
    #[repr(C)]
    struct Polled {
        fd: Fd,
        events: i16,
        found: i16,
    }
    // A negative descriptor is not looked at.
    let mut both = [first, second.unwrap_or(-1)].map(|fd| Polled { fd, events: POLLIN, found: 0 });
    let none = [0_u64; 2];
    let time = if patience == Patience::Look { none.as_ptr() as usize } else { 0 };
    let args = [both.as_mut_ptr() as usize, both.len(), time, 0, 0, 0];
    // SAFETY: two `struct pollfd`, a `struct timespec` or none, and no mask.
    check(unsafe { call(number::PPOLL, args) })?;
    Ok([both[0].found != 0, both[1].found != 0])
}

/// What the reaped children used: microseconds of CPU, peak KiB, blocks read, blocks written.
pub(crate) fn usage_of_children() -> [u64; 4] {
    const RUSAGE_CHILDREN: i32 = -1;
    // user (s, us), system (s, us), peak, then six words, blocks in, blocks out, five words.
    let mut usage = [0_u64; 18];
    let args = [arg(RUSAGE_CHILDREN), usage.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: a `struct rusage` has 18 words.
    let _ = check(unsafe { call(number::GETRUSAGE, args) });
    let micros = |at: usize| usage[at].saturating_mul(1_000_000).saturating_add(usage[at + 1]);
    [micros(0).saturating_add(micros(2)), usage[4], usage[11], usage[12]]
}
