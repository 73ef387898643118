//! What this process knows of an execution that it drives: for those who follow it or wait for its end, so
//! that they need neither the database nor a stream of their own from the executor.
//!
//! The driver writes, and nobody waits for a reader. What is here of its output will be recorded, whatever
//! becomes of the executor; its end is here once it is durable, and not before.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use sandmesh_proto::executor::{ExecutionStarted, InputTaken};
use tokio::sync::watch;

use crate::{spool::Spool, store::execution::Model};

/// One execution, as its driver knows it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) stdout: Spool,
    pub(crate) stderr: Spool,
    known: Mutex<Known>,
    bell: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Known {
    started: Option<(ExecutionStarted, DateTime<Utc>)>,
    input: Option<InputTaken>,
    phase: Phase,
}

/// How far it is.
#[derive(Debug, Clone, Default)]
pub(crate) enum Phase {
    /// It is driven.
    #[default]
    Driven,
    /// It ended; this is its record.
    Ended(Arc<Model>),
    /// Its driver is gone without an end: the record tells more.
    Left,
}

impl Live {
    /// Nothing is known yet. Of each stream, `inline` bytes are kept in memory and `most` in all.
    pub(crate) fn new(directory: &Path, inline: u64, most: u64) -> Self {
        let spool = || Spool::new(directory, inline, most);
        Self { stdout: spool(), stderr: spool(), known: Mutex::default(), bell: watch::Sender::default() }
    }

    /// Its process exists, since `at`.
    pub(crate) fn start(&self, started: ExecutionStarted, at: DateTime<Utc>) {
        self.known().started = Some((started, at));
        self.ring();
    }

    /// It is to be started again. Its output goes on after what is here.
    pub(crate) fn restart(&self) {
        let mut known = self.known();
        (known.started, known.input) = (None, None);
    }

    /// What was told of its start.
    pub(crate) fn started(&self) -> Option<ExecutionStarted> {
        self.known().started.map(|(started, _)| started)
    }

    /// When its process started.
    pub(crate) fn started_at(&self) -> Option<DateTime<Utc>> {
        self.known().started.map(|(_, at)| at)
    }

    /// Its input was taken so far.
    pub(crate) fn take_input(&self, taken: InputTaken) {
        let mut known = self.known();
        // Where it did not start yet, that will ring.
        let rings = known.started.is_some() && known.input != Some(taken);
        known.input = Some(taken);
        drop(known);
        if rings {
            self.ring();
        }
    }

    /// How far its input was taken.
    pub(crate) fn input(&self) -> Option<InputTaken> {
        self.known().input
    }

    /// Its end is durable.
    pub(crate) fn end(&self, row: Model) {
        self.known().phase = Phase::Ended(Arc::new(row));
        self.ring();
    }

    /// Nobody drives it any more.
    pub(crate) fn leave(&self) {
        let mut known = self.known();
        if matches!(known.phase, Phase::Driven) {
            known.phase = Phase::Left;
        }
        drop(known);
        self.ring();
    }

    /// How far it is.
    pub(crate) fn phase(&self) -> Phase {
        self.known().phase.clone()
    }

    /// Waits for its end; `None` when nobody drives it any more.
    pub(crate) async fn ended(&self) -> Option<Arc<Model>> {
        let mut bell = self.watch();
        loop {
            bell.mark_unchanged();
            match self.phase() {
                Phase::Ended(row) => return Some(row),
                Phase::Left => return None,
                Phase::Driven => {}
            }
            // The bell hangs in `self`: it cannot be taken down meanwhile.
            let _ = bell.changed().await;
        }
    }

    /// Wakes everybody who watches.
    pub(crate) fn ring(&self) {
        self.bell.send_replace(());
    }

    /// Hears of every change from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
