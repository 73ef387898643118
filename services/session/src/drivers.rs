//! The executions that this process drives: one driver for each, never two.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::FutureExt;
use sandmesh_mesh::CancellationToken;
use sandmesh_proto::executor::{InputTaken, StdinChunk, execute_request::Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::{error::Error, live::Live};

/// How many inputs may wait for a driver.
const INPUTS: usize = 16;

/// How much standard input of an execution may be on its way; more waits with its senders.
const ROOM: usize = 1 << 20;

/// The least that a piece of standard input counts.
const LEAST: usize = 256;

/// How many signals may be on their way.
const SIGNALS: usize = 64;

/// The most inputs that are on their way at once.
pub(crate) const MOST_INPUTS: usize = ROOM / LEAST + SIGNALS;

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

/// What becomes of input: how far input was taken once this was, or why it is refused.
pub(crate) type Taken = Result<InputTaken, Error>;

/// Hears what becomes of input; `None` when its driver ended before that. It holds a place until it is
/// dropped, so whoever offers more has to drop those that are ready.
#[derive(Debug)]
pub(crate) struct Answer {
    taken: oneshot::Receiver<Taken>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Future for Answer {
    type Output = Option<Taken>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.taken.poll_unpin(context).map(Result::ok)
    }
}

/// Input for an execution, and where to tell what becomes of it.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) frame: Frame,
    pub(crate) reply: oneshot::Sender<Taken>,
    /// Its place among what is on its way.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// Talks to a driver.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    session_id: Arc<str>,
    live: Arc<Live>,
    stop: watch::Sender<Stop>,
    lost: watch::Sender<String>,
    input: mpsc::Sender<Input>,
    /// Room for standard input on its way. Signals have their own: they pass what is not read.
    room: Arc<Semaphore>,
    signals: Arc<Semaphore>,
    /// Places of those who wait for an answer, repeats among them, which take no room. They are given up
    /// with the answer: who sends all of it again after a break does not find them taken by who is gone.
    places: Arc<Semaphore>,
    reach: Arc<AtomicU64>,
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

    /// Tells the driver that a sandbox is lost, while its session is not.
    pub(crate) fn lose(&self, sandbox_id: &str) {
        self.lost.send_replace(sandbox_id.to_owned());
    }

    /// Hands input to the driver, once there is room for it; `None` when the driver has ended.
    pub(crate) async fn offer(&self, mut frame: Frame) -> Option<Answer> {
        let place = match &frame {
            Frame::Signal(_) => None,
            _ => Arc::clone(&self.places).acquire_owned().await.ok(),
        };
        let (room, cost) = match &mut frame {
            Frame::Signal(_) => (&self.signals, 1),
            // What is on its way already, from a stream that broke, takes no more of it.
            Frame::Stdin(chunk) if end_of(chunk) <= self.reach.load(Ordering::Relaxed) => {
                forget_data(chunk);
                (&self.room, 0)
            }
            Frame::Stdin(chunk) => (&self.room, chunk.data.len().clamp(LEAST, ROOM)),
            _ => (&self.room, LEAST),
        };
        let room = match u32::try_from(cost).unwrap_or(u32::MAX) {
            0 => None,
            cost => Arc::clone(room).acquire_many_owned(cost).await.ok(),
        };
        let (reply, taken) = oneshot::channel();
        self.input.send(Input { frame, reply, room }).await.ok()?;
        Some(Answer { taken, _place: place })
    }

    /// What the driver knows of its execution.
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
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
    pub(crate) session_id: Arc<str>,
    pub(crate) stop: watch::Receiver<Stop>,
    /// The sandbox that its session lost last; empty: none.
    pub(crate) lost: watch::Receiver<String>,
    pub(crate) input: mpsc::Receiver<Input>,
    pub(crate) live: Arc<Live>,
    reach: Arc<AtomicU64>,
    finishing: CancellationToken,
    done: CancellationToken,
    drivers: Drivers,
}

impl Drivers {
    /// Registers the driver of an execution; `None` when it has one.
    pub(crate) fn register(&self, execution_id: &str, session_id: &str, live: Live) -> Option<Registration> {
        let mut drivers = self.lock();
        if drivers.contains_key(execution_id) {
            return None;
        }
        let (stop, stop_receiver) = watch::channel(Stop::No);
        let (lost, lost_receiver) = watch::channel(String::new());
        let (input, input_receiver) = mpsc::channel(INPUTS);
        let (session_id, live) = (Arc::from(session_id), Arc::new(live));
        let reach = Arc::new(AtomicU64::new(0));
        let (finishing, done) = (CancellationToken::new(), CancellationToken::new());
        let handle = Handle {
            session_id: Arc::clone(&session_id),
            live: Arc::clone(&live),
            stop,
            lost,
            input,
            room: Arc::new(Semaphore::new(ROOM)),
            signals: Arc::new(Semaphore::new(SIGNALS)),
            places: Arc::new(Semaphore::new(MOST_INPUTS)),
            reach: Arc::clone(&reach),
            finishing: finishing.clone(),
            done: done.clone(),
        };
        drivers.insert(execution_id.to_owned(), handle);
        Some(Registration {
            execution_id: execution_id.to_owned(),
            session_id,
            stop: stop_receiver,
            lost: lost_receiver,
            input: input_receiver,
            live,
            reach,
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

/// Where a chunk ends.
pub(crate) fn end_of(chunk: &StdinChunk) -> u64 {
    chunk.offset.saturating_add(chunk.data.len() as u64)
}

/// Drops the bytes of a chunk that repeats what is on its way: it waits for where it ends.
pub(crate) fn forget_data(chunk: &mut StdinChunk) {
    chunk.offset = end_of(chunk);
    chunk.data = Bytes::new();
}

impl Registration {
    /// Tells how far the standard input is on its way.
    pub(crate) fn note_reach(&self, reach: u64) {
        self.reach.store(reach, Ordering::Relaxed);
    }

    /// Tells that how the execution ended is known, and being stored.
    pub(crate) fn finish(&self) {
        self.finishing.cancel();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.drivers.lock().remove(&self.execution_id);
        self.live.leave();
        self.done.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Live {
        Live::new(&std::env::temp_dir(), 16, 100)
    }

    #[test]
    fn an_execution_has_one_driver_at_a_time() {
        let drivers = Drivers::default();
        let first = drivers.register("e", "s", live()).unwrap();
        assert!(drivers.register("e", "s", live()).is_none());
        drop(first);
        assert!(drivers.register("e", "s", live()).is_some());
    }

    #[tokio::test]
    async fn repeated_input_holds_no_bytes_and_waits_with_its_sender_where_there_is_much_of_it() {
        let drivers = Drivers::default();
        let mut registration = drivers.register("e", "s", live()).unwrap();
        registration.note_reach(3);
        let handle = drivers.get("e").unwrap();
        let repeat = || handle.offer(Frame::Stdin(StdinChunk { offset: 0, data: "abc".into() }));
        let (mut answers, mut inputs) = (Vec::new(), Vec::new());
        for _ in 0..MOST_INPUTS {
            answers.push(repeat().await.unwrap());
            let input = registration.input.recv().await.unwrap();
            assert_eq!(input.frame, Frame::Stdin(StdinChunk { offset: 3, data: "".into() }));
            inputs.push(input);
        }
        assert!(repeat().now_or_never().is_none());
        // Its sender went away, or has its answer.
        answers.pop();
        assert!(repeat().now_or_never().is_some());
    }

    #[test]
    fn a_weaker_stop_does_not_take_back_a_stronger() {
        let drivers = Drivers::default();
        let registration = drivers.register("e", "s", live()).unwrap();
        let handle = drivers.get("e").unwrap();
        handle.stop(Stop::SessionEnded);
        handle.stop(Stop::Cancel);
        assert_eq!(*registration.stop.borrow(), Stop::SessionEnded);
    }
}
