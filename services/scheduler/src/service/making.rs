//! How many sandboxes are being made for sessions: pools stand back for them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A count of what is being made.
#[derive(Debug, Default)]
pub(super) struct Making(AtomicUsize);

/// One is being made, until this is dropped.
#[derive(Debug)]
pub(super) struct One<'a>(&'a Making);

impl Making {
    /// One more.
    pub(super) fn begin(&self) -> One<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(self)
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
