//! Counts what this process recorded, for metrics. In memory: a counter that begins anew is what those who
//! read counters expect of a process that does.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    lifecycle::{Cause, ExecutionState},
    values::Language,
};

/// Of what kind an end is: state, language and cause, in the words that are shown. None of them has many.
pub(crate) type Kind = (&'static str, &'static str, &'static str);

/// What was recorded.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ended: Mutex<BTreeMap<Kind, u64>>,
    retries: AtomicU64,
    recoveries: AtomicU64,
    warm_starts: AtomicU64,
    cold_starts: AtomicU64,
}

impl Tally {
    /// An execution ended.
    pub(super) fn ended(
        &self,
        state: Option<ExecutionState>,
        language: Option<Language>,
        cause: Option<Cause>,
    ) {
        let kind = (
            state.map_or("", ExecutionState::as_str),
            language.map_or("", Language::as_str),
            cause.map_or("", Cause::as_str),
        );
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// An execution is started again.
    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A session gets another sandbox.
    pub(crate) fn recovered(&self) {
        self.recoveries.fetch_add(1, Ordering::Relaxed);
    }

    /// A session got a sandbox, which was warm or was made for it.
    pub(super) fn started(&self, was_warm: bool) {
        let starts = if was_warm { &self.warm_starts } else { &self.cold_starts };
        starts.fetch_add(1, Ordering::Relaxed);
    }

    /// How many sandboxes of sessions were warm, and how many were made for them.
    pub(crate) fn warm_and_cold_starts(&self) -> (u64, u64) {
        (self.warm_starts.load(Ordering::Relaxed), self.cold_starts.load(Ordering::Relaxed))
    }

    /// How many executions ended, by kind.
    pub(crate) fn endings(&self) -> BTreeMap<Kind, u64> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many executions were started again, and how many sessions got another sandbox.
    pub(crate) fn retries_and_recoveries(&self) -> (u64, u64) {
        (self.retries.load(Ordering::Relaxed), self.recoveries.load(Ordering::Relaxed))
    }
}
