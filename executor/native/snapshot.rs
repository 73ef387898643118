//! Has a warm interpreter go on in other processes, which are made of a snapshot of its memory.
//!
//! The *template*, of which a snapshot is taken, does all that an interpreter does before its first order. Then it
//! tells where it [stands](Stand) and waits, and the executor writes its memory to a file (`src/snapshot/take.rs`). A
//! *loader*, which is this program too, maps that file in a process of its own (`src/snapshot/restore.rs`), and
//! [goes on](go_on) where the template waits. What the kernel knows of a process besides its memory is set right there:
//! the descriptors are those that the loader was started with, signals do what they did in the template, and nothing
//! of the loader is left.
//!
//! Where the registers are is known of one kind of processor so far. Elsewhere a template does not wait, and there is
//! no snapshot.

#[cfg(target_arch = "x86_64")]
use super::birth;
use super::sys::{self, Actions, Errno, Fd};

/// Where a template waits: its stack, its thread's memory, the end of its data, and where a loader is to put its
/// [`Handover`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) stack: usize,
    pub(crate) thread: usize,
    pub(crate) end_of_data: usize,
    pub(crate) handover: usize,
}

impl Stand {
    pub(crate) const BYTES: usize = size_of::<Self>();

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (slot, word) in
            bytes.chunks_exact_mut(8).zip([self.stack, self.thread, self.end_of_data, self.handover])
        {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// `None` for bytes that say something else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let word = |index: usize| bytes[index * 8..].first_chunk().map(|word| usize::from_ne_bytes(*word));
        Some(Self { stack: word(0)?, thread: word(1)?, end_of_data: word(2)?, handover: word(3)? })
    }
}

/// The most areas of memory that a loader may have.
pub(crate) const MOST_AREAS: usize = 128;

/// More words than the kernel tells any program when it starts.
pub(crate) const AUXILIARY_WORDS: usize = 64;

/// The longest message, with its NUL.
pub(crate) const MESSAGE_BYTES: usize = 512;

/// What a loader leaves to whoever goes on in its process.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Handover {
    /// What of the loader is still in memory: beginnings and bytes, up to the first of none.
    pub(crate) areas: [[usize; 2]; MOST_AREAS],
    /// See [`sys::set_layout`].
    pub(crate) layout: [u64; 13],
    /// What the kernel told the program when it started, which the layout points to.
    pub(crate) auxiliary: [u64; AUXILIARY_WORDS],
    /// What the interpreter is to be told, with a NUL at the end; empty for nothing.
    pub(crate) message: [u8; MESSAGE_BYTES],
}

/// What of a process is not in its memory.
#[derive(Debug)]
pub(crate) struct Template {
    handover: Handover,
    actions: Actions,
    name: [u8; 16],
}

impl Template {
    pub(crate) const fn new() -> Self {
        let handover = Handover {
            areas: [[0; 2]; MOST_AREAS],
            layout: [0; 13],
            auxiliary: [0; AUXILIARY_WORDS],
            message: [0; MESSAGE_BYTES],
        };
        Self { handover, actions: [[0; 4]; 64], name: [0; 16] }
    }

    /// Tells where it stands, and waits for its end; returns in each process that goes on from here, and on a processor
    /// that it does not know.
    ///
    /// # Safety
    /// The process has one thread and no descriptor above the standard ones; this stays where it is. The sequences are
    /// those of its C library.
    pub(crate) unsafe fn wait(&mut self, control: Fd, sequences: (isize, u32)) {
        if !cfg!(target_arch = "x86_64") {
            return;
        }
        let noted = sys::signal_actions(&mut self.actions).and_then(|()| sys::name(&mut self.name));
        let Ok(end_of_data) = noted.and_then(|()| sys::end_of_data()) else { sys::exit(1) };
        let handover = &raw mut self.handover as usize;
        let mut stand = Stand { stack: 0, thread: sys::thread_pointer(), end_of_data, handover };
        // SAFETY: what is on the stack stays there, as the call returns only in processes that have it, too.
        unsafe { pause(&raw mut stand, control) };
        // The loader has changed it meanwhile, in a way that the compiler does not see.
        core::hint::black_box(&raw mut self.handover);
        sys::register_sequences(sequences);
        // SAFETY: a loader came here, which has handed over.
        if unsafe { self.take_over() }.is_err() {
            sys::exit(1);
        }
    }

    /// What the loader wants the interpreter to be told.
    pub(crate) fn message(&self) -> &[u8] {
        // See `wait`.
        let message = core::hint::black_box(&self.handover.message);
        message.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Makes the process what the template was.
    ///
    /// # Safety
    /// It is that of a loader, which has nothing left to do.
    unsafe fn take_over(&self) -> Result<(), Errno> {
        const FIRST_OWN: Fd = 3;
        let handover = &raw const self.handover;
        // SAFETY: ours, and nobody changes it any more; read anew, see `wait`.
        let Handover { areas, layout, .. } = unsafe { &*core::hint::black_box(handover) };
        for [begin, bytes] in areas.iter().take_while(|[_, bytes]| *bytes > 0) {
            sys::unmap(*begin, *bytes)?;
        }
        // SAFETY: the loader has mapped all of that.
        unsafe { sys::set_layout(layout)? };
        sys::set_name(&self.name)?;
        sys::forget_thread()?;
        sys::forget_signal_stack()?;
        // SAFETY: the handlers are here.
        unsafe { sys::set_signal_actions(&self.actions)? };
        sys::close_from(FIRST_OWN)
    }
}

/// Tells, and never returns.
extern "C" fn tell(stand: *const Stand, control: Fd) -> ! {
    // SAFETY: `pause` was given it.
    let _ = sys::write(control, &unsafe { *stand }.encode());
    let mut nothing = [0; 1];
    // The settings may be there already; the end is when there will be nothing more.
    while let Ok(1..) = sys::read(control, &mut nothing) {}
    sys::exit(0)
}

/// Notes in the stand where the stack is, and tells. What has to survive is on the stack, as [`birth::resume`] takes
/// it.
///
/// # Safety
/// The stand is there.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn pause(stand: *mut Stand, control: Fd) {
    core::arch::naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15", "sub rsp, 8",
        "mov [rdi + {stack}], rsp",
        "call {tell}",
        "ud2",
        stack = const core::mem::offset_of!(Stand, stack),
        tell = sym tell,
    )
}

/// Goes on where a template waits: takes its thread's memory and its stack, and returns from its [`pause`].
///
/// # Safety
/// Its memory is that of this process, too.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn go_on(stack: usize, thread: usize) -> ! {
    core::arch::naked_asm!(
        "mov rbx, rdi",
        // arch_prctl: ARCH_SET_FS
        "mov edi, 0x1002",
        "mov eax, 158",
        "syscall",
        "mov rdi, rbx",
        "jmp {resume}",
        resume = sym birth::resume,
    )
}

/// There are no templates here.
#[cfg(not(target_arch = "x86_64"))]
unsafe extern "C" fn pause(_: *mut Stand, _: Fd) {}

/// See above.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe extern "C" fn go_on(_: usize, _: usize) -> ! {
    sys::exit(1)
}
