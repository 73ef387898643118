//! The executions that this process drives: one driver for each, never two.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sandmesh_mesh::CancellationToken;
use sandmesh_proto::executor::execute_request::Frame;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Error;

/// How many inputs may wait for a driver.
const INPUTS: usize = 16;

/// Why a driver is to bring its execution to an end. The later wins over the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// It is not.
    No,
    /// Somebody cancelled it.
    Cancel,
    /// Its session ended, and its sandbox will be removed.
    SessionEnded,
    /// Its session failed: its sandbox is not there.
    SandboxLost,
}

/// Input for a running execution, and where to tell whether it went on its way.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) frame: Frame,
    pub(crate) reply: oneshot::Sender<Result<(), Error>>,
}

/// Talks to a driver.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    session_id: Arc<str>,
    stop: watch::Sender<Stop>,
    input: mpsc::Sender<Input>,
    finishing: CancellationToken,
    done: CancellationToken,
}

impl Handle {
    /// Tells the driver to end its execution.
    pub(crate) fn stop(&self, stop: Stop) {
        self.stop.send_if_modified(|current| {
            let later = stop > *current;
            *current = stop.max(*current);
            later
        });
    }

    /// Hands input to the driver and tells how it went; `None` when the driver has ended.
    pub(crate) async fn send(&self, frame: Frame) -> Option<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        self.input.send(Input { frame, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Whether the driver knows how its execution ended, and is storing it.
    pub(crate) fn is_finishing(&self) -> bool {
        self.finishing.is_cancelled()
    }

    /// Waits until the driver has ended.
    pub(crate) async fn done(&self) {
        self.done.cancelled().await;
    }
}

/// The drivers of this process, by execution.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drivers(Arc<Mutex<HashMap<String, Handle>>>);

/// What a driver holds while it drives.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) execution_id: String,
    pub(crate) stop: watch::Receiver<Stop>,
    pub(crate) input: mpsc::Receiver<Input>,
    finishing: CancellationToken,
    done: CancellationToken,
    drivers: Drivers,
}

impl Drivers {
    /// Registers the driver of an execution; `None` when it has one.
    pub(crate) fn register(&self, execution_id: &str, session_id: &str) -> Option<Registration> {
        let mut drivers = self.lock();
        if drivers.contains_key(execution_id) {
            return None;
        }
        let (stop, stop_receiver) = watch::channel(Stop::No);
        let (input, input_receiver) = mpsc::channel(INPUTS);
        let (finishing, done) = (CancellationToken::new(), CancellationToken::new());
        let handle = Handle {
            session_id: session_id.into(),
            stop,
            input,
            finishing: finishing.clone(),
            done: done.clone(),
        };
        drivers.insert(execution_id.to_owned(), handle);
        Some(Registration {
            execution_id: execution_id.to_owned(),
            stop: stop_receiver,
            input: input_receiver,
            finishing,
            done,
            drivers: self.clone(),
        })
    }

    /// The driver of an execution.
    pub(crate) fn get(&self, execution_id: &str) -> Option<Handle> {
        self.lock().get(execution_id).cloned()
    }

    /// The drivers of a session.
    pub(crate) fn of_session(&self, session_id: &str) -> Vec<Handle> {
        self.lock().values().filter(|handle| &*handle.session_id == session_id).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// Tells that how the execution ended is known, and being stored.
    pub(crate) fn finish(&self) {
        self.finishing.cancel();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.drivers.lock().remove(&self.execution_id);
        self.done.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_has_one_driver_at_a_time() {
        let drivers = Drivers::default();
        let first = drivers.register("e", "s").unwrap();
        assert!(drivers.register("e", "s").is_none());
        drop(first);
        assert!(drivers.register("e", "s").is_some());
    }

    #[test]
    fn a_weaker_stop_does_not_take_back_a_stronger() {
        let drivers = Drivers::default();
        let registration = drivers.register("e", "s").unwrap();
        let handle = drivers.get("e").unwrap();
        handle.stop(Stop::SessionEnded);
        handle.stop(Stop::Cancel);
        assert_eq!(*registration.stop.borrow(), Stop::SessionEnded);
    }
}
