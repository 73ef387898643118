//! The input of an execution on its way to the executor.
//!
//! What the executor has not said that it took is kept here, and sent again on the next stream. The executor
//! drops what it took before, so that all of it arrives once. Its senders hear of it when it was taken.

use sandmesh_proto::executor::{ExecuteRequest, InputTaken, execute_request::Frame};
use tokio::sync::mpsc;

use crate::{
    drivers::{Input, Taken, end_of, forget_data},
    error::Error,
};

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    told: Told,
    /// How far the input is taken once all of `kept` is.
    next: InputTaken,
    kept: Vec<Kept>,
}

/// What the executor told on this stream.
#[derive(Debug, Default, Clone, Copy)]
enum Told {
    /// Nothing yet.
    #[default]
    Nothing,
    /// How far input was taken.
    Taken(InputTaken),
    /// Everything but that: it is older than this.
    Everything,
}

#[derive(Debug)]
struct Kept {
    input: Input,
    /// It was sent before by another, whose frame is on its way.
    is_repeat: bool,
    /// How many signals were taken when this one was.
    signals: u64,
}

impl Kept {
    fn is_in(&self, taken: &InputTaken) -> bool {
        match &self.input.frame {
            Frame::Stdin(chunk) => end_of(chunk) <= taken.stdin_offset,
            Frame::CloseStdin(_) => taken.stdin_closed,
            Frame::Signal(signal) if signal.sequence == 0 => self.signals <= taken.signals,
            Frame::Signal(signal) => signal.sequence <= taken.signal_sequence,
            Frame::Start(_) | Frame::Attach(_) => true,
        }
    }
}

impl Inputs {
    /// Whether it is known where the input goes on.
    pub(super) fn may_pass(&self) -> bool {
        !matches!(self.told, Told::Nothing)
    }

    /// How far the standard input is taken or on its way.
    pub(super) fn reach(&self) -> u64 {
        self.next.stdin_offset
    }

    /// A new stream begins.
    pub(super) fn start_over(&mut self) {
        self.told = Told::Nothing;
        let unsure = |frame: &Frame| matches!(frame, Frame::Signal(signal) if signal.sequence == 0);
        for kept in self.kept.extract_if(.., |kept| unsure(&kept.input.frame)) {
            let problem = "it is not known whether the signal was delivered; give signals a `sequence` to send them again safely";
            answer(kept.input, Err(Error::Unavailable(problem.to_owned())));
        }
    }

    /// The executor told something else before it told how far input was taken.
    pub(super) fn told_something_else(&mut self) {
        if matches!(self.told, Told::Nothing) {
            self.told = Told::Everything;
            self.kept.drain(..).for_each(|kept| answer(kept.input, Err(too_old())));
        }
    }

    /// The executor took input so far.
    pub(super) fn taken(&mut self, taken: InputTaken, frames: &mpsc::Sender<ExecuteRequest>) {
        let is_first = matches!(self.told, Told::Nothing);
        self.told = Told::Taken(taken);
        if is_first {
            self.next = taken;
            for kept in std::mem::take(&mut self.kept) {
                self.pass(kept.input, frames);
            }
            return;
        }
        self.next = further(self.next, taken);
        self.settle(&taken);
    }

    /// Passes input on, after checking that it follows what went before: the executor would end the stream
    /// otherwise, and could not tell whom it was from.
    pub(super) fn pass(&mut self, mut input: Input, frames: &mpsc::Sender<ExecuteRequest>) {
        let Told::Taken(taken) = self.told else { return answer(input, Err(too_old())) };
        // Nobody waits for it, and what it repeats is on its way.
        self.kept.retain(|kept| !kept.is_repeat || !kept.input.reply.is_closed());
        let is_repeat = match self.next_after(&mut input.frame) {
            Ok(is_news) => !is_news,
            Err(refusal) => return answer(input, Err(refusal)),
        };
        match &mut input.frame {
            // It waits for what is on its way, and needs neither its bytes nor its room.
            Frame::Stdin(chunk) if is_repeat => {
                forget_data(chunk);
                input.room = None;
            }
            Frame::CloseStdin(_) if is_repeat => input.room = None,
            // Signals are taken at once: one keeps its place until then, which bounds how many wait.
            _ if is_repeat => {}
            // A stream that broke is noticed by who reads it; then this is sent again.
            frame => drop(frames.try_send(ExecuteRequest { frame: Some(frame.clone()) })),
        }
        self.kept.push(Kept { input, is_repeat, signals: self.next.signals });
        self.settle(&taken);
    }

    /// Answers to the senders of what was taken.
    fn settle(&mut self, taken: &InputTaken) {
        for kept in self.kept.extract_if(.., |kept| kept.is_in(taken)) {
            answer(kept.input, Ok(*taken));
        }
    }

    /// Goes on after a frame, and cuts off what went before; false when there is nothing new in it.
    fn next_after(&mut self, frame: &mut Frame) -> Result<bool, Error> {
        let next = &mut self.next;
        match frame {
            Frame::Stdin(chunk) => {
                let Some(known) = next.stdin_offset.checked_sub(chunk.offset) else {
                    let (at, offset) = (next.stdin_offset, chunk.offset);
                    let problem = format!("the standard input goes on at byte {at}, not at byte {offset}");
                    return Err(Error::field("stdin.offset", "value_error", problem));
                };
                let end = end_of(chunk);
                if end <= next.stdin_offset {
                    return Ok(false);
                }
                if next.stdin_closed {
                    let problem = "the standard input was closed before";
                    return Err(Error::field("stdin.data", "value_error", problem));
                }
                chunk.data = chunk.data.slice(usize::try_from(known).unwrap_or(0)..);
                chunk.offset = std::mem::replace(&mut next.stdin_offset, end);
                Ok(true)
            }
            Frame::CloseStdin(close) => {
                if let Some(length) = close.offset.filter(|length| *length != next.stdin_offset) {
                    let sent = next.stdin_offset;
                    let problem = format!("the standard input has {sent} bytes so far, not {length}");
                    return Err(Error::field("close_stdin.offset", "value_error", problem));
                }
                Ok(!std::mem::replace(&mut next.stdin_closed, true))
            }
            Frame::Signal(signal) => {
                if signal.sequence != 0 && signal.sequence <= next.signal_sequence {
                    return Ok(false);
                }
                next.signal_sequence = next.signal_sequence.max(signal.sequence);
                next.signals += 1;
                Ok(true)
            }
            Frame::Start(_) | Frame::Attach(_) => Ok(false),
        }
    }
}

/// The further of two in everything.
fn further(one: InputTaken, other: InputTaken) -> InputTaken {
    InputTaken {
        stdin_offset: one.stdin_offset.max(other.stdin_offset),
        stdin_closed: one.stdin_closed || other.stdin_closed,
        signal_sequence: one.signal_sequence.max(other.signal_sequence),
        signals: one.signals.max(other.signals),
    }
}

fn answer(input: Input, taken: Taken) {
    // The sender may have gone away.
    let _ = input.reply.send(taken);
}

fn too_old() -> Error {
    let problem = "the sandbox is of an older version, which does not tell what it took; use a new session";
    Error::field("input", "value_error", problem)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sandmesh_proto::executor::{SignalRequest, StdinChunk, StdinClose};
    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    struct Bench {
        inputs: Inputs,
        sender: mpsc::Sender<ExecuteRequest>,
        sent: mpsc::Receiver<ExecuteRequest>,
        waiting: Vec<oneshot::Receiver<Taken>>,
    }

    impl Bench {
        fn told(taken: InputTaken) -> Self {
            let (sender, sent) = mpsc::channel(16);
            let mut bench = Self { inputs: Inputs::default(), sender, sent, waiting: Vec::new() };
            bench.taken(taken);
            bench
        }

        fn taken(&mut self, taken: InputTaken) {
            self.inputs.taken(taken, &self.sender);
        }

        fn pass(&mut self, frame: Frame) -> oneshot::Receiver<Taken> {
            let (reply, answer) = oneshot::channel();
            self.inputs.pass(Input { frame, reply, room: None }, &self.sender);
            answer
        }

        fn sent(&mut self) -> Vec<Frame> {
            std::iter::from_fn(|| self.sent.try_recv().ok()?.frame).collect()
        }
    }

    fn at(stdin_offset: u64) -> InputTaken {
        InputTaken { stdin_offset, ..InputTaken::default() }
    }

    fn chunk(offset: u64, data: &'static str) -> Frame {
        Frame::Stdin(StdinChunk { offset, data: data.into() })
    }

    fn close(offset: Option<u64>) -> Frame {
        Frame::CloseStdin(StdinClose { offset })
    }

    fn signal(sequence: u64) -> Frame {
        Frame::Signal(SignalRequest { signal: 10, sequence })
    }

    fn field(answer: &mut oneshot::Receiver<Taken>) -> String {
        match answer.try_recv().unwrap() {
            Err(Error::Invalid(violations)) => violations[0].field.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sender_hears_of_input_when_it_was_taken_and_not_before() {
        let mut bench = Bench::told(at(0));
        let (mut first, mut again) = (bench.pass(chunk(0, "abc")), bench.pass(chunk(1, "bc")));
        let mut second = bench.pass(chunk(1, "bcd"));
        assert_eq!(bench.sent(), [chunk(0, "abc"), chunk(3, "d")]);
        bench.taken(at(2));
        assert!(first.try_recv().is_err() && again.try_recv().is_err());
        bench.taken(at(3));
        assert_eq!(first.try_recv().unwrap().unwrap(), at(3));
        assert_eq!(again.try_recv().unwrap().unwrap(), at(3));
        assert!(second.try_recv().is_err());
        bench.taken(at(4));
        assert_eq!(second.try_recv().unwrap().unwrap(), at(4));
        assert_eq!(bench.pass(chunk(0, "abcd")).try_recv().unwrap().unwrap(), at(4), "known, and not sent");
        assert!(bench.sent().is_empty() && bench.inputs.kept.is_empty());
    }

    #[test]
    fn repeats_that_wait_hold_no_bytes() {
        let mut bench = Bench::told(at(0));
        let _answers = [(0, "abc"), (0, "abc"), (1, "bc")].map(|(at, data)| bench.pass(chunk(at, data)));
        let bytes = |kept: &Kept| match &kept.input.frame {
            Frame::Stdin(chunk) => chunk.data.len(),
            _ => 0,
        };
        assert_eq!(bench.inputs.kept.iter().map(bytes).sum::<usize>(), 3);
        bench.sent();
        bench.inputs.start_over();
        bench.taken(at(1));
        assert_eq!(bench.sent(), [chunk(1, "bc")], "nor are they sent");
        bench.taken(at(3));
        assert!(bench.inputs.kept.is_empty());
    }

    #[test]
    fn signals_that_are_repeated_keep_their_place() {
        let mut bench = Bench::told(at(0));
        let places = Arc::new(Semaphore::new(2));
        for _ in 0..2 {
            let (reply, answer) = oneshot::channel();
            let room = Arc::clone(&places).try_acquire_owned().ok();
            bench.inputs.pass(Input { frame: signal(1), reply, room }, &bench.sender);
            bench.waiting.push(answer);
        }
        assert_eq!(places.available_permits(), 0);
        bench.taken(InputTaken { signal_sequence: 1, ..at(0) });
        assert_eq!(places.available_permits(), 2);
    }

    #[test]
    fn next_stream_brings_what_was_not_taken_and_nothing_else() {
        let mut bench = Bench::told(at(7));
        let frames = [chunk(7, "abc"), chunk(10, "def"), signal(4), close(Some(13))];
        let mut answers = frames.map(|frame| bench.pass(frame));
        bench.sent();
        bench.inputs.start_over();
        assert!(!bench.inputs.may_pass());
        bench.taken(at(11));
        assert_eq!(bench.sent(), [chunk(11, "ef"), signal(4), close(Some(13))]);
        assert!(answers[0].try_recv().unwrap().is_ok() && answers[1].try_recv().is_err());
        bench.inputs.start_over();
        bench.taken(InputTaken { stdin_offset: 13, stdin_closed: true, signal_sequence: 4, signals: 1 });
        assert!(bench.sent().is_empty() && bench.inputs.kept.is_empty());
    }

    #[test]
    fn gap_wrong_length_and_input_after_the_end_are_refused_by_field() {
        let mut bench = Bench::told(at(3));
        assert_eq!(field(&mut bench.pass(chunk(4, "e"))), "stdin.offset");
        for length in [2, 4] {
            assert_eq!(field(&mut bench.pass(close(Some(length)))), "close_stdin.offset");
        }
        let _closed = bench.pass(close(Some(3)));
        let _again = bench.pass(close(None));
        assert_eq!(field(&mut bench.pass(chunk(3, "d"))), "stdin.data");
        assert_eq!(bench.pass(chunk(1, "bc")).try_recv().unwrap().unwrap(), at(3), "a repeat is none");
        assert_eq!(bench.sent(), [close(Some(3))]);
    }

    #[test]
    fn signal_without_a_sequence_is_not_sent_twice_by_itself() {
        let mut bench = Bench::told(InputTaken { signals: 5, ..at(0) });
        let (mut one, mut other) = (bench.pass(signal(0)), bench.pass(signal(0)));
        assert_eq!(bench.sent().len(), 2);
        bench.taken(InputTaken { signals: 6, ..at(0) });
        assert!(one.try_recv().unwrap().is_ok() && other.try_recv().is_err());
        bench.inputs.start_over();
        assert!(matches!(other.try_recv().unwrap(), Err(Error::Unavailable(_))));
        bench.taken(InputTaken { signals: 6, ..at(0) });
        assert!(bench.sent().is_empty());
    }

    #[test]
    fn executor_that_does_not_tell_is_found_out() {
        let mut bench = Bench::told(at(0));
        let mut answer = bench.pass(chunk(0, "abc"));
        bench.inputs.start_over();
        bench.inputs.told_something_else();
        assert_eq!(field(&mut answer), "input");
        assert_eq!(field(&mut bench.pass(signal(1))), "input");
    }
}
