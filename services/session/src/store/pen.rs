//! One pen for what is written most: statements that wait for it together go into one transaction.
//!
//! Alone, a statement is its own transaction. Those that come while it is written are written together, so a
//! commit and the pages that they share are paid for once. A task of its own has the pen, and not one of
//! those who wait: these may go away at any time, and what others wrote must not go with them.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use sandmesh_mesh::Tasks;
use sea_orm::{DbBackend, DbErr, RuntimeErr, Statement, StatementBuilder};
use tokio::sync::oneshot;

use super::{direct::Outcome, writer::Writer};

/// The most statements in one transaction: a long one makes those wait that come after it.
const TOGETHER: usize = 64;

/// The pen.
pub(super) struct Pen {
    tasks: Tasks,
    writer: Writer,
    desk: Arc<Desk>,
}

/// What is to be written.
#[derive(Default)]
struct Desk(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    /// Somebody has the pen, and takes what is here.
    is_written: bool,
}

/// A statement, and where to tell how it went.
type Job = (Statement, oneshot::Sender<Outcome>);

impl fmt::Debug for Pen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pen").finish_non_exhaustive()
    }
}

impl Pen {
    pub(super) fn new(tasks: Tasks, writer: Writer) -> Self {
        Self { tasks, writer, desk: Arc::default() }
    }

    /// Writes a statement; it is durable when this returns. Returns how many rows it changed. It is written
    /// also when the caller goes away.
    pub(super) async fn write(&self, statement: &impl StatementBuilder) -> Outcome {
        let began = Instant::now();
        let statement = DbBackend::Sqlite.build(statement);
        let (done, outcome) = oneshot::channel();
        if let Some(hand) = self.desk.put((statement, done)) {
            self.tasks.spawn_detached("write", hand.write_all(self.writer.clone()));
        }
        let outcome = outcome.await.unwrap_or_else(|_| Err(lost()));
        tracing::trace!(waited_us = began.elapsed().as_micros(), "written");
        outcome
    }
}

impl Desk {
    /// Adds a job. Returns the pen if nobody has it.
    fn put(self: &Arc<Self>, job: Job) -> Option<Hand> {
        let mut waiting = self.lock();
        waiting.jobs.push(job);
        let has_pen = std::mem::replace(&mut waiting.is_written, true);
        (!has_pen).then(|| Hand { desk: Arc::clone(self), is_done: false })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who has the pen, until nobody waits any more.
struct Hand {
    desk: Arc<Desk>,
    is_done: bool,
}

impl Hand {
    async fn write_all(mut self, writer: Writer) {
        loop {
            let jobs = self.take();
            if jobs.is_empty() {
                return;
            }
            write(&writer, jobs).await;
        }
    }

    /// Those who wait longest. Puts the pen down where there is none: the next one takes it up.
    fn take(&mut self) -> Vec<Job> {
        let mut waiting = self.desk.lock();
        self.is_done = waiting.jobs.is_empty();
        waiting.is_written = !self.is_done;
        let count = waiting.jobs.len().min(TOGETHER);
        waiting.jobs.drain(..count).collect()
    }
}

impl Drop for Hand {
    /// Stopped in the middle, it leaves the pen to the next; those who wait hear that it is lost.
    fn drop(&mut self) {
        if !self.is_done {
            let mut waiting = self.desk.lock();
            waiting.jobs.clear();
            waiting.is_written = false;
        }
    }
}

fn lost() -> DbErr {
    DbErr::Conn(RuntimeErr::Internal("the write was stopped halfway".to_owned()))
}

/// Writes jobs, and tells each how it went once that is durable.
async fn write(writer: &Writer, jobs: Vec<Job>) {
    let (statements, told): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
    let outcomes = writer.with_pen(|direct| direct.write(&statements)).await.unwrap_or_else(|error| {
        // Of the same kind for all: one that is a reason to try again is for each.
        told.iter().map(|_| Err(error.clone())).collect()
    });
    for (done, outcome) in told.into_iter().zip(outcomes) {
        // Nobody may be listening any more.
        let _ = done.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[tokio::test]
    async fn pen_that_was_dropped_is_taken_up_by_the_next_and_who_waited_is_told_to_try_again() {
        let desk = Arc::new(Desk::default());
        let job = || {
            let (done, outcome) = oneshot::channel();
            let statement = Statement::from_string(sea_orm::DbBackend::Sqlite, "SELECT 1");
            (desk.put((statement, done)), outcome)
        };
        let (hand, first) = job();
        let (none, second) = job();
        assert!(hand.is_some() && none.is_none());
        drop(hand);
        assert!(first.await.is_err() && second.await.is_err());
        assert!(job().0.is_some());
        assert!(matches!(Error::from(lost()), Error::Unavailable(_)));
    }
}
