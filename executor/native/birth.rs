//! How a parent makes a nest without copying itself twice.
//!
//! The init of a nest is cloned into the parent's own memory, onto a stack of its own; only the user's
//! process, which the init forks, is a copy. (A fork of a warm Python costs about half a millisecond
//! here, and the init needs nothing of it.) The parent waits until that fork is done, so the fork
//! copies it in the middle of [`spawn`]; in the copy, [`resume`] makes that call return zero.

use core::{
    arch::naked_asm,
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicI32, Ordering},
};

use super::{
    nest::Nest,
    sys::{self, Errno},
    wire::{Settings, Stage},
};

/// What an init's stack takes; only what is touched is memory.
const STACK_BYTES: usize = 64 << 10;

/// The most nests that one parent can have at a time.
const MOST: usize = 1024 + 64;

/// A nest that is being made, and the memory of its init. It lies at the end of the init's stack.
#[repr(C, align(16))]
#[derive(Debug)]
pub(crate) struct Birth {
    /// See [`FREE`]; the kernel clears it when the init ends.
    state: AtomicI32,
    /// The stack pointer of [`spawn`] in the parent.
    context: usize,
    settings: *const Settings,
    fork: extern "C" fn() -> i32,
    nest: Nest,
}

/// No init uses this.
const FREE: i32 = 0;
/// An init is about to fork, and the parent waits.
const FORKING: i32 = 1;
/// An init uses this.
const USED: i32 = 2;

/// The memory of all inits of a parent.
#[derive(Debug)]
pub(crate) struct Births {
    /// Where each stack begins.
    stacks: [usize; MOST],
    made: usize,
}

impl Births {
    pub(crate) const fn new() -> Self {
        Self { stacks: [0; MOST], made: 0 }
    }

    /// A place that no init uses.
    fn take(&mut self) -> Result<*mut Birth, Errno> {
        const EAGAIN: Errno = 11;
        for stack in &self.stacks[..self.made] {
            let birth = at(*stack);
            // SAFETY: made before, and only its state is looked at.
            if unsafe { (*birth).state.load(Ordering::Acquire) } == FREE {
                return Ok(birth);
            }
        }
        let next = self.stacks.get_mut(self.made).ok_or(EAGAIN)?;
        *next = sys::map(STACK_BYTES)?;
        self.made += 1;
        Ok(at(*next))
    }
}

/// The birth at the end of a stack.
fn at(stack: usize) -> *mut Birth {
    ptr::with_exposed_provenance_mut(stack + STACK_BYTES - size_of::<Birth>())
}

/// Who goes on after [`begin`].
#[derive(Debug)]
pub(crate) enum Side {
    Parent,
    /// The copy, which is to become the user's process of this nest.
    User(&'static mut Nest),
}

/// Makes a nest; its init forks with the `fork` of the C library.
///
/// # Safety
/// The process has one thread, all signals are blocked, and the settings stay where they are.
pub(crate) unsafe fn begin(
    births: &mut Births,
    settings: *const Settings,
    fork: extern "C" fn() -> i32,
    nest: Nest,
) -> Result<Side, Errno> {
    const CLONE_VM: u64 = 0x100;
    const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
    const SIGCHLD: u64 = 17;
    let birth = births.take()?;
    let content = Birth { state: AtomicI32::new(FORKING), context: 0, settings, fork, nest };
    // SAFETY: the place is ours and nobody else uses it.
    unsafe { birth.write(content) };
    // SAFETY: by the caller's word.
    let namespaces = unsafe { (*settings).namespaces };
    let flags = namespaces | CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD;
    // SAFETY: the place is alive; this makes no reference to what another process changes.
    let state = unsafe { (&raw const (*birth).state).cast() };
    // SAFETY: the child runs on its own stack, which ends where the birth begins, and this thread waits
    // while the two share anything that changes.
    let made = unsafe { spawn(flags, birth.cast(), birth, state) };
    match sys::check(made) {
        // SAFETY: in the copy, where nobody else uses it.
        Ok(0) => Ok(Side::User(unsafe { &mut (*birth).nest })),
        Ok(_) => Ok(Side::Parent),
        Err(errno) => {
            // SAFETY: as above.
            unsafe { (*birth).state.store(FREE, Ordering::Release) };
            Err(errno)
        }
    }
}

/// The init, on its own stack. In the fork it resumes where the parent waits.
extern "C" fn init(birth: *mut Birth) -> ! {
    // SAFETY: the parent made it for this process and does not touch it.
    let birth = unsafe { &mut *birth };
    // SAFETY: by the word of whoever called `begin`.
    let settings = unsafe { &*birth.settings };
    birth.nest.settle(settings);
    match (birth.fork)() {
        0 => {
            // SAFETY: this is the copy, and what waits in the parent waits here for nobody.
            unsafe { resume(birth.context) }
        }
        main if main > 0 => {
            sys::set_and_wake(&birth.state, USED);
            birth.nest.attend(settings, main)
        }
        _ => {
            const EAGAIN: Errno = 11;
            birth.nest.give_up(Stage::Fork, EAGAIN)
        }
    }
}

/// The parent, until the fork is done or the init is gone.
extern "C" fn wait(birth: *mut Birth) {
    // SAFETY: the state is what both may touch.
    sys::wait_while(unsafe { &(*birth).state }, FORKING);
}

/// Clones the init, and waits (by the older call: container engines refuse the newer one); gives its id or an error, and zero in the copy that the init forks.
///
/// What has to survive the call is on the stack, and in the copy the stack is as it was at the call:
/// the parent is still in here when it is copied.
///
/// # Safety
/// As for [`begin`].
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn spawn(
    flags: u64,
    stack: *mut core::ffi::c_void,
    birth: *mut Birth,
    state: *const i32,
) -> isize {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15", "sub rsp, 8",
        "mov rbx, rdx",
        "mov [rdx + {context}], rsp",
        // clone: flags, stack, parent_tid (not asked for), child_tid, tls (not asked for)
        "mov r10, rcx",
        "xor r8d, r8d",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "xor ebp, ebp",
        "mov rdi, rbx",
        "call {init}",
        "ud2",
        "2:",
        "js 3f",
        "mov r12, rax",
        "mov rdi, rbx",
        "call {wait}",
        "mov rax, r12",
        "3:",
        "add rsp, 8", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        context = const offset_of!(Birth, context),
        init = sym init,
        wait = sym wait,
    )
}

/// Returns zero from the [`spawn`] whose stack pointer this is, or from another call that left the same on its stack.
///
/// # Safety
/// That call has not returned in this process.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn resume(context: usize) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "xor eax, eax",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// See above.
///
/// # Safety
/// See above.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn spawn(
    flags: u64,
    stack: *mut core::ffi::c_void,
    birth: *mut Birth,
    state: *const i32,
) -> isize {
    naked_asm!(
        "stp x29, x30, [sp, #-160]!",
        "stp x19, x20, [sp, #16]", "stp x21, x22, [sp, #32]", "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]", "stp x27, x28, [sp, #80]",
        "stp d8, d9, [sp, #96]", "stp d10, d11, [sp, #112]", "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x19, x2",
        "mov x9, sp",
        "str x9, [x2, #{context}]",
        // clone: flags, stack, parent_tid and tls (not asked for), child_tid
        "mov x4, x3",
        "mov x3, #0",
        "mov x8, #220",
        "svc #0",
        "cbnz x0, 2f",
        "mov x29, #0",
        "mov x30, #0",
        "mov x0, x19",
        "bl {init}",
        "brk #1",
        "2:",
        "tbnz x0, #63, 3f",
        "mov x20, x0",
        "mov x0, x19",
        "bl {wait}",
        "mov x0, x20",
        "3:",
        "ldp x19, x20, [sp, #16]", "ldp x21, x22, [sp, #32]", "ldp x23, x24, [sp, #48]",
        "ldp x25, x26, [sp, #64]", "ldp x27, x28, [sp, #80]",
        "ldp d8, d9, [sp, #96]", "ldp d10, d11, [sp, #112]", "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "ldp x29, x30, [sp], #160",
        "ret",
        context = const offset_of!(Birth, context),
        init = sym init,
        wait = sym wait,
    )
}

/// See above.
///
/// # Safety
/// See above.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn resume(context: usize) -> ! {
    naked_asm!(
        "mov sp, x0",
        "mov x0, #0",
        "ldp x19, x20, [sp, #16]",
        "ldp x21, x22, [sp, #32]",
        "ldp x23, x24, [sp, #48]",
        "ldp x25, x26, [sp, #64]",
        "ldp x27, x28, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "ldp x29, x30, [sp], #160",
        "ret",
    )
}
