//! Takes what one caller sends to an execution after its first frame: standard input and signals.
//!
//! Standard input waits here until the process reads it. A signal does not wait behind it: the process may
//! need one because it does not read.

use std::{collections::VecDeque, sync::Arc};

use sandmesh_proto::executor::{ExecuteRequest, StdinChunk, execute_request::Frame as Input};
use tokio::sync::oneshot;
use tonic::Streaming;

use crate::{execution::Execution, status::Error};

/// The largest piece of standard input in one frame.
const MAX_STDIN_CHUNK: usize = 1 << 20;

/// How much standard input of one caller may wait; with more, the caller is not read.
const MAX_WAITING: usize = 2 << 20;

/// The least that a waiting frame counts.
const FRAME_COST: usize = 64;

/// Takes the caller's further frames until it sends no more or the execution has ended. Tells when one is
/// refused.
pub(crate) async fn feed(
    execution: Arc<Execution>,
    mut input: Streaming<ExecuteRequest>,
    refuse: oneshot::Sender<Error>,
) {
    let mut inbox = Inbox::default();
    let taken = tokio::select! {
        taken = inbox.take_all(&execution, &mut input) => taken,
        () = execution.ended() => Ok(()),
    };
    if let Err(error) = taken {
        let _ = refuse.send(error);
    }
}

/// Standard input that waits for the process.
#[derive(Debug, Default)]
struct Inbox {
    waiting: VecDeque<Piece>,
    cost: usize,
}

#[derive(Debug)]
enum Piece {
    Chunk(StdinChunk),
    Close(Option<u64>),
}

impl Piece {
    fn cost(&self) -> usize {
        match self {
            Self::Chunk(chunk) => FRAME_COST + chunk.data.len(),
            Self::Close(_) => FRAME_COST,
        }
    }

    /// Cancel safe: what was written is dropped when it is written again.
    async fn write(&self, execution: &Execution) -> Result<(), Error> {
        match self {
            Self::Chunk(chunk) => execution.stdin.write(chunk.offset, chunk.data.clone()).await,
            Self::Close(length) => execution.stdin.close(*length).await,
        }
    }
}

impl Inbox {
    async fn take_all(
        &mut self,
        execution: &Execution,
        input: &mut Streaming<ExecuteRequest>,
    ) -> Result<(), Error> {
        let mut more = true;
        while more || !self.waiting.is_empty() {
            tokio::select! {
                // In this order: a signal overtakes only what the process does not read.
                biased;
                written = first(&self.waiting, execution), if !self.waiting.is_empty() => {
                    written?;
                    self.cost -= self.waiting.pop_front().map_or(0, |piece| piece.cost());
                }
                message = input.message(), if more && self.cost < MAX_WAITING => match message {
                    Ok(Some(request)) => self.take(request.frame, execution).await?,
                    Ok(None) => more = false,
                    // The caller is gone. What waits is not told as taken: whoever goes on for it sends it
                    // again, and must not have to share the input with what is left of this one.
                    Err(_) => return Ok(()),
                },
            }
        }
        Ok(())
    }

    async fn take(&mut self, frame: Option<Input>, execution: &Execution) -> Result<(), Error> {
        let piece = match frame {
            Some(Input::Stdin(chunk)) if chunk.data.len() > MAX_STDIN_CHUNK => {
                let problem = format!("{} is more than {MAX_STDIN_CHUNK}", chunk.data.len());
                return Err(Error::invalid("stdin.data", problem));
            }
            Some(Input::Stdin(chunk)) => Piece::Chunk(chunk),
            Some(Input::CloseStdin(close)) => Piece::Close(close.offset),
            Some(Input::Signal(signal)) => {
                let number = u8::try_from(signal.signal).ok().filter(|number| (1..=31).contains(number));
                let number = number.ok_or_else(|| Error::invalid("signal.signal", "must be 1 to 31"))?;
                execution.signal(number, signal.sequence).await;
                return Ok(());
            }
            Some(Input::Start(_) | Input::Attach(_)) => {
                return Err(Error::invalid("frame", "start and attach are only legal as the first frame"));
            }
            None => return Err(Error::invalid("frame", "must be set")),
        };
        self.cost += piece.cost();
        self.waiting.push_back(piece);
        Ok(())
    }
}

async fn first(waiting: &VecDeque<Piece>, execution: &Execution) -> Result<(), Error> {
    match waiting.front() {
        Some(piece) => piece.write(execution).await,
        None => Ok(()),
    }
}
