//! What clients and the killer have seen: the evidence that the verdict is given on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::job::Job;
use crate::{
    harness::Server,
    streams_watch::{End, Seen},
};

/// An execution that was accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) id: String,
    pub(super) session: String,
    pub(super) job: Job,
    /// What its watcher saw; `None` where there was none.
    pub(super) seen: Option<Seen>,
    /// How its client was told that it ended.
    pub(super) told: End,
    /// From its request to the word of its end.
    pub(super) time: (Instant, Instant),
}

/// All that was seen.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) accepted: Vec<Accepted>,
    /// How many were refused, because their session had ended.
    pub(super) refused: u64,
    pub(super) sessions: BTreeSet<String>,
    /// Sessions of which an executor was killed, and whether that was at the second node. There may be one at
    /// each for a while: where the answer of the first was lost, the session is created at the other.
    pub(super) bereft: BTreeSet<(String, bool)>,
    /// When the session role was killed.
    pub(super) session_role_killed: Vec<Instant>,
    /// How often something was tried again, by what it was.
    pub(super) retries: BTreeMap<&'static str, u64>,
    /// Promises that were broken.
    pub(super) violations: Vec<String>,
}

impl Log {
    /// Adds to each broken promise what the server logged about its request.
    pub(super) fn explain(&mut self, server: &Server) {
        for violation in &mut self.violations {
            let Some(id) = violation.split('"').find(|word| word.starts_with("req_")) else { continue };
            let logs = server.processes.iter().map(|process| fs::read_to_string(&process.launch.log));
            let told: Vec<String> = logs
                .flat_map(|log| {
                    let log = log.unwrap_or_default();
                    log.lines().filter(|line| line.contains(id)).map(str::to_owned).collect::<Vec<_>>()
                })
                .collect();
            *violation = format!("{violation}\n{}", told.join("\n"));
        }
    }
}

/// The log, and the word to stop, for all clients.
#[derive(Debug, Default)]
pub(super) struct Shared {
    log: Mutex<Log>,
    stop: AtomicBool,
}

impl Shared {
    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn violation(&self, what: String) {
        self.log().violations.push(what);
    }

    pub(super) fn retry(&self, what: &'static str) {
        *self.log().retries.entry(what).or_default() += 1;
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
