//! Who takes the memory of a warm interpreter apart: not the process that ends, whose caller waits for that.
//!
//! The kernel tells how a process ended when it has given back its memory, which for a copy of a warm
//! interpreter takes as long as running a small function. So another process of the nest, the keeper, shares
//! that memory: the user's process ends at once, the init tells of it, and the keeper is the last to leave
//! and does the work. It goes, too, when the user's process executes another program, whose memory it does
//! not share.
//!
//! A forked interpreter has one from the start. A program that is executed loses it, and makes its own when it
//! is warm, as [`NAME`] tells the init.
//!
//! It has no more rights than the user's code, which can do with it what it likes: kill it, or make it run
//! something. Then it is a process of the user like others.

use core::{
    arch::asm,
    ffi::CStr,
    sync::atomic::{AtomicI32, Ordering},
};

use super::sys::{self, CLOSE_RANGE, Errno, number};

/// A `struct timespec`: seconds and nanoseconds.
type Span = [i64; 2];

/// The number of one that was there from the start: the first process that the user's process makes. The init has
/// one, the user's process two.
pub(super) const FIRST: &[u8] = b"3";

/// The name of its process.
pub(super) const NAME: &CStr = c"keeper";

/// Cleared by the kernel when the user's process leaves its memory.
static IS_USED: AtomicI32 = AtomicI32::new(0);

/// How long it waits for the init to end it, which it does as soon as it has told of the end. Nobody does
/// where another program is executed.
static PATIENCE: Span = [0, 5_000_000];

/// Makes the keeper of this process, which this thread is the first of. Signals are blocked meanwhile, as it has no
/// stack of its own for their handlers, and stay so in it.
pub(crate) fn employ() -> Result<(), Errno> {
    IS_USED.store(1, Ordering::Release);
    sys::clear_when_left(&IS_USED);
    keep_memory_while(&IS_USED, &PATIENCE)
}

/// `PR_SET_NAME`
const SET_NAME: i32 = 15;

/// Makes a process that shares this memory, and nothing else, until the word is zero and so many nanoseconds
/// longer, and then ends. It uses no stack, so that it needs none, and is a child of this process's own parent.
fn keep_memory_while(word: &'static AtomicI32, longer: &'static Span) -> Result<(), Errno> {
    const CLONE_VM: usize = 0x100;
    const CLONE_PARENT: usize = 0x8000;
    const SIGCHLD: usize = 17;
    let flags = CLONE_VM | CLONE_PARENT | SIGCHLD;
    // SAFETY: the new process stays within that function, which touches no memory but the word; to this one it
    // is one system call.
    sys::check(unsafe { clone_keeper(flags, word.as_ptr(), longer) }).map(drop)
}

/// See [`keep_memory_while`].
///
/// # Safety
/// The flags let the new process have nothing but its memory in common with this one.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_keeper(flags: usize, word: *mut i32, longer: &'static Span) -> isize {
    let answer: isize;
    // SAFETY: by the caller's word; what the new process does, it does in registers.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 4f",
            "mov edi, {set_name}",
            "mov rsi, r15",
            "mov eax, {prctl}",
            "syscall",
            // Descriptors from the first to the last.
            "xor edi, edi",
            "mov esi, -1",
            "xor edx, edx",
            "mov eax, {close_range}",
            "syscall",
            "2:",
            "mov edx, dword ptr [r12]",
            "xor r10d, r10d",
            "test edx, edx",
            "cmovz r10, r13",
            "mov r14d, edx",
            "mov rdi, r12",
            "xor esi, esi",
            "mov eax, {futex}",
            "syscall",
            "test r14d, r14d",
            "jnz 2b",
            "3:",
            "xor edi, edi",
            "mov eax, {exit_group}",
            "syscall",
            "jmp 3b",
            "4:",
            set_name = const SET_NAME,
            prctl = const number::PRCTL,
            close_range = const CLOSE_RANGE,
            futex = const number::FUTEX,
            exit_group = const number::EXIT_GROUP,
            inlateout("rax") number::CLONE => answer,
            in("rdi") flags, in("rsi") 0, in("rdx") 0, in("r10") 0, in("r8") 0,
            in("r12") word, in("r13") longer, out("r14") _, in("r15") NAME.as_ptr(),
            lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
    answer
}

/// See above.
///
/// # Safety
/// See above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_keeper(flags: usize, word: *mut i32, longer: &'static Span) -> isize {
    let answer: isize;
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 4f",
            "mov x0, {set_name}",
            "mov x1, x23",
            "mov x8, {prctl}",
            "svc 0",
            "mov x0, 0",
            "mov w1, -1",
            "mov x2, 0",
            "mov x8, {close_range}",
            "svc 0",
            "2:",
            "ldr w22, [x20]",
            "cmp w22, 0",
            "csel x3, x21, xzr, eq",
            "mov x0, x20",
            "mov x1, 0",
            "mov w2, w22",
            "mov x8, {futex}",
            "svc 0",
            "cbnz w22, 2b",
            "3:",
            "mov x0, 0",
            "mov x8, {exit_group}",
            "svc 0",
            "b 3b",
            "4:",
            set_name = const SET_NAME,
            prctl = const number::PRCTL,
            close_range = const CLOSE_RANGE,
            futex = const number::FUTEX,
            exit_group = const number::EXIT_GROUP,
            in("x8") number::CLONE,
            inlateout("x0") flags => answer,
            in("x1") 0, in("x2") 0, in("x3") 0, in("x4") 0,
            in("x20") word, in("x21") longer, out("x22") _, in("x23") NAME.as_ptr(),
            options(nostack),
        );
    }
    answer
}
