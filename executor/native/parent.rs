//! The loop of a warm parent.

use super::{
    birth::{self, Births, Side},
    nest::{Nest, restrain_parent},
    sys::{self, Disposition, Fd},
    wire::{Fds, Report, START_FD, Settings, Stage},
};

const SIGCHLD: i32 = 17;

/// What a parent says once it is warm.
const READY: &[u8] = b"warm";

/// How the language of the parent forks: what it wants done before, in the child and in the parent,
/// and the fork of its C library, which sets right what a plain clone does not (the ids of threads).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fork {
    pub(crate) before: extern "C" fn(),
    pub(crate) fork: extern "C" fn() -> i32,
    pub(crate) in_child: extern "C" fn(),
    pub(crate) in_parent: extern "C" fn(),
    /// What the C library registered for restartable sequences: how far from the thread's pointer, and how
    /// many bytes; none for a library that has none.
    pub(crate) sequences: (isize, u32),
}

/// A warm parent.
#[derive(Debug)]
pub(crate) struct Parent {
    control: Fd,
    settings: Settings,
    births: Births,
    ready: bool,
}

impl Parent {
    /// One that takes its orders from this descriptor.
    pub(crate) const fn new(control: Fd) -> Self {
        Self { control, settings: Settings::new(), births: Births::new(), ready: false }
    }

    /// What the executor wants nests to be.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes a nest for every order, and returns in the user's process of each. In the parent itself it
    /// never returns: it ends the process when there will be no more orders.
    ///
    /// # Safety
    /// The process has one thread, and this stays where it is.
    pub(crate) unsafe fn next(&mut self, fork: &Fork) -> &'static mut Nest {
        if !self.ready && !self.prepare() {
            sys::exit(1);
        }
        self.ready = true;
        loop {
            let (mut bytes, mut fds) = ([0; super::wire::MAX_PATH], [-1; 16]);
            let (count, carried) = match sys::receive(self.control, &mut bytes, &mut fds) {
                Ok((0, _)) | Err(_) => sys::exit(0),
                Ok(received) => received,
            };
            if carried >= Fds::Doors as usize {
                let nest = Nest::new(fds, carried, &bytes[..count]);
                (fork.before)();
                // SAFETY: by the caller's word; signals are blocked since `prepare`.
                match unsafe { birth::begin(&mut self.births, &raw const self.settings, fork.fork, nest) } {
                    Ok(Side::User(nest)) => {
                        // The init that forked has none, so the kernel did not copy this.
                        sys::register_sequences(fork.sequences);
                        (fork.in_child)();
                        return nest;
                    }
                    Ok(Side::Parent) => {}
                    Err(errno) => tell(fds[Fds::Control as usize], Stage::Clone, errno),
                }
                // At once: the executor waits for the end of some of these. Only orders bring such numbers.
                let _ = sys::close_from(START_FD + 1);
                (fork.in_parent)();
            } else {
                let _ = sys::close_from(START_FD + 1);
            }
        }
    }

    /// Reads the settings, and makes this process what its children are to inherit.
    fn prepare(&mut self) -> bool {
        let mut none = [-1; 16];
        let Ok((count, _)) = sys::receive(self.control, &mut self.settings.bytes, &mut none) else {
            return false;
        };
        // So that no descriptor of an order has the number of one that a user's process is to have.
        const STDERR: Fd = 2;
        while let Ok(fd) = sys::dup(STDERR) {
            if fd > START_FD {
                sys::close(fd);
                break;
            }
        }
        // The inits share this memory, and nothing that user code can do may read it.
        const PR_SET_DUMPABLE: i32 = 4;
        if sys::prctl(PR_SET_DUMPABLE, 0, 0).is_err() {
            return false;
        }
        // Children are reaped by the kernel: what became of them, their reports say.
        let quiet = sys::block_signals(true).and_then(|()| sys::dispose(SIGCHLD, Disposition::Ignore));
        self.settings.understand(count)
            && quiet.is_ok()
            && restrain_parent(&self.settings).is_ok()
            && sys::write(self.control, READY) == Ok(READY.len())
    }
}

/// Reports a failure; nobody is left to tell if that fails.
pub(crate) fn tell(to: Fd, stage: Stage, errno: sys::Errno) {
    let _ = sys::write(to, &Report::Failed { stage, errno }.encode());
}
