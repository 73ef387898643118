//! The calls that set right what the kernel knows of a process besides its memory.

use core::arch::asm;

use super::{Errno, arg, call, check, number, plain, prctl};

/// What the kernel does on each signal, from 1 on: its `struct sigaction`.
pub(crate) type Actions = [[usize; 4]; 64];

/// Reads what is done on each signal.
pub(crate) fn signal_actions(actions: &mut Actions) -> Result<(), Errno> {
    for (signal, action) in (1..).zip(actions) {
        let args = [signal, 0, action.as_mut_ptr() as usize, size_of::<u64>(), 0, 0];
        // SAFETY: there is nothing to set, and what is read into is as large as it is to be.
        check(unsafe { call(number::SIGACTION, args) })?;
    }
    Ok(())
}

/// Has that done on each signal, but for those whose action is fixed.
///
/// # Safety
/// The handlers are those of this program.
pub(crate) unsafe fn set_signal_actions(actions: &Actions) -> Result<(), Errno> {
    const SIGKILL_AND_SIGSTOP: [usize; 2] = [9, 19];
    for (signal, action) in (1..).zip(actions) {
        if !SIGKILL_AND_SIGSTOP.contains(&signal) {
            let args = [signal, action.as_ptr() as usize, 0, size_of::<u64>(), 0, 0];
            // SAFETY: by the caller's word, and there is nothing to read into.
            check(unsafe { call(number::SIGACTION, args) })?;
        }
    }
    Ok(())
}

/// Has handlers of signals run on the stack that is in use.
pub(crate) fn forget_signal_stack() -> Result<(), Errno> {
    const SS_DISABLE: u64 = 2;
    // stack_t: where it is, flags, its size.
    let none = [0, SS_DISABLE, 0];
    // SAFETY: a `stack_t` to set, and nothing to read into.
    check(unsafe { call(number::SIGALTSTACK, [none.as_ptr() as usize, 0, 0, 0, 0, 0]) }).map(drop)
}

/// Has the kernel do nothing for the C library at the end of this thread, as for one that did not ask for it.
pub(crate) fn forget_thread() -> Result<(), Errno> {
    const ROBUST_LIST_BYTES: usize = 24;
    plain(number::SET_TID_ADDRESS, [0; 6])?;
    plain(number::SET_ROBUST_LIST, [0, ROBUST_LIST_BYTES, 0, 0, 0, 0]).map(drop)
}

/// Where the memory ends that is moved by `brk`.
pub(crate) fn end_of_data() -> Result<usize, Errno> {
    plain(number::BRK, [0; 6])
}

/// Tells the kernel where things are in this memory: the words of `struct prctl_mm_map`, see `PR_SET_MM_MAP` in
/// <https://man7.org/linux/man-pages/man2/PR_SET_MM.2const.html>.
///
/// # Safety
/// They are there.
pub(crate) unsafe fn set_layout(words: &[u64; 13]) -> Result<(), Errno> {
    const PR_SET_MM: i32 = 35;
    const PR_SET_MM_MAP: usize = 14;
    let args = [arg(PR_SET_MM), PR_SET_MM_MAP, words.as_ptr() as usize, size_of_val(words), 0, 0];
    // SAFETY: by the caller's word.
    check(unsafe { call(number::PRCTL, args) }).map(drop)
}

/// The name of this process, with a NUL.
pub(crate) fn name(name: &mut [u8; 16]) -> Result<(), Errno> {
    const PR_GET_NAME: i32 = 16;
    prctl(PR_GET_NAME, name.as_mut_ptr() as usize, 0).map(drop)
}

/// See [`name`].
pub(crate) fn set_name(name: &[u8; 16]) -> Result<(), Errno> {
    const PR_SET_NAME: i32 = 15;
    prctl(PR_SET_NAME, name.as_ptr() as usize, 0).map(drop)
}

/// Registers the restartable sequences of a C library for this thread, which has none: so many bytes, that
/// far from the thread's pointer. Without them the library would go on believing what they said last.
pub(crate) fn register_sequences((offset, bytes): (isize, u32)) {
    /// What the kernel expects before each abort handler; the same in every C library.
    const SIGNATURE: usize = if cfg!(target_arch = "x86_64") { 0x5305_3053 } else { 0xd428_bc00 };
    /// The least that can be registered; libraries tell how much of it has a meaning.
    const LEAST: usize = 32;
    if bytes > 0 {
        let area = thread_pointer().wrapping_add_signed(offset);
        // A refusal leaves things as they were.
        let _ = plain(number::RSEQ, [area, (bytes as usize).max(LEAST), 0, SIGNATURE, 0, 0]);
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: every C library of this processor has there what it points to.
    unsafe { asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, nomem, preserves_flags)) };
    pointer
}
