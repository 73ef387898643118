//! Input for executions: piece by piece, or on one stream with what is followed.

use std::{
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, FuturesUnordered},
};
use sandmesh_mesh::CancellationToken;
use sandmesh_proto::{
    executor::{InputTaken, execute_request::Frame},
    session::{self as pb, interact_execution_request::Frame as Interaction, send_input_request::Input},
};
use tokio::sync::oneshot;
use tonic::Streaming;

use super::{Followed, Offsets, Service};
use crate::{
    drivers::{Answer, Handle},
    error::Error,
    lifecycle::ExecutionState,
    live,
    store::execution::Model,
};

/// The most bytes of one piece of input.
const MAX_INPUT: usize = 1 << 20;

/// How long a client may take to say what it wants to follow.
const FIRST_FRAME: Duration = Duration::from_secs(30);

impl Service {
    /// Sends input to a running execution; tells how far input was taken once this was.
    pub(crate) async fn send_input(
        self: &Arc<Self>,
        request: pb::SendInputRequest,
    ) -> Result<InputTaken, Error> {
        let frame = input_frame(request.input)?;
        let row = self.execution_row(&request.execution_id).await?;
        if row.state != ExecutionState::Running {
            return Err(Error::ExecutionNotRunning { id: row.id, state: row.state.as_str() });
        }
        check_is_open(&row, &frame)?;
        let driver = self.driver_of(&row).ok_or_else(|| unsure(&row.id))?;
        let taken = match driver.offer(frame).await {
            Some(answer) => answer.await,
            None => None,
        };
        taken.unwrap_or_else(|| match driver.live().phase() {
            live::Phase::Ended(row) => {
                Err(Error::ExecutionNotRunning { id: row.id.clone(), state: row.state.as_str() })
            }
            live::Phase::Driven | live::Phase::Left => Err(unsure(&row.id)),
        })
    }

    /// Follows an execution, and sends it the input that comes on the same stream.
    pub(crate) async fn interact(
        self: &Arc<Self>,
        mut frames: Streaming<pb::InteractExecutionRequest>,
    ) -> Result<impl Stream<Item = Result<Followed, Error>> + Send + use<>, Error> {
        let attach = first_frame(&mut frames).await?;
        let at = Offsets { stdout: attach.stdout_offset, stderr: attach.stderr_offset };
        let row = self.execution_row(&attach.execution_id).await?;
        let events = Box::pin(self.followed(&row.id, at, true).await?);
        let (refuse, refused) = oneshot::channel();
        // When the client goes away, its input does not stay.
        let client = CancellationToken::new();
        let until_gone = client.clone().drop_guard();
        let feeder = Feeder { service: Arc::clone(self), row };
        self.spawn("take input", async move {
            if let Some(Err(error)) = client.run_until_cancelled(Box::pin(feeder.feed(frames))).await {
                // Nobody may be listening any more.
                let _ = refuse.send(error);
            }
        });
        let state = (events, Some(refused), until_gone);
        Ok(stream::try_unfold(state, |(mut events, mut refused, until_gone)| async move {
            tokio::select! {
                biased;
                error = refusal(&mut refused) => Err(error),
                event = events.try_next() => Ok(event?.map(|event| (event, (events, refused, until_gone)))),
            }
        }))
    }

    /// The driver of an execution that has not ended. It has one already, unless that crashed and the sweep
    /// did not come by yet.
    fn driver_of(self: &Arc<Self>, row: &Model) -> Option<Handle> {
        self.drivers.get(&row.id).or_else(|| {
            self.spawn_driver(&row.id, &row.session_id);
            self.drivers.get(&row.id)
        })
    }
}

/// Waits until input is refused.
async fn refusal(refused: &mut Option<oneshot::Receiver<Error>>) -> Error {
    if let Some(receiver) = refused
        && let Ok(error) = receiver.await
    {
        return error;
    }
    // What ended in good order refuses nothing.
    *refused = None;
    pending().await
}

async fn first_frame(
    frames: &mut Streaming<pb::InteractExecutionRequest>,
) -> Result<pb::AttachExecutionRequest, Error> {
    let first = tokio::time::timeout(FIRST_FRAME, frames.message()).await;
    match first.ok().and_then(Result::ok).flatten().and_then(|request| request.frame) {
        Some(Interaction::Attach(attach)) => Ok(attach),
        _ => Err(Error::field("frame", "value_error", "the first frame must be `attach`")),
    }
}

/// Takes the input of one client.
#[derive(Debug)]
struct Feeder {
    service: Arc<Service>,
    row: Model,
}

impl Feeder {
    /// Takes all of it, up to the end of the execution; an error where some of it is refused.
    async fn feed(self, mut frames: Streaming<pb::InteractExecutionRequest>) -> Result<(), Error> {
        let mut answers = FuturesUnordered::new();
        while let Some(message) = self.unless_over(frames.message(), &mut answers).await? {
            // An error means that the client is gone.
            let Ok(Some(request)) = message else { break };
            let Some(offered) = self.unless_over(self.offer(request), &mut answers).await? else {
                return Ok(());
            };
            match offered? {
                Some(answer) => answers.push(answer),
                None => return self.without_driver().await,
            }
        }
        while let Some(answer) = answers.next().await {
            match answer {
                Some(taken) => drop(taken?),
                None => return self.without_driver().await,
            }
        }
        Ok(())
    }

    /// Waits for something, and hears meanwhile what became of what was sent: there may be no place for more
    /// before that. `None` when the execution has ended, an error where some of its input is refused.
    async fn unless_over<T>(
        &self,
        event: impl Future<Output = T>,
        answers: &mut FuturesUnordered<Answer>,
    ) -> Result<Option<T>, Error> {
        let mut event = pin!(event);
        loop {
            tokio::select! {
                Some(answer) = answers.next() => match answer {
                    Some(taken) => drop(taken?),
                    None => return self.without_driver().await.map(|()| None),
                },
                event = &mut event => return Ok(Some(event)),
            }
        }
    }

    async fn offer(&self, request: pb::InteractExecutionRequest) -> Result<Option<Answer>, Error> {
        let frame = input_frame(match request.frame {
            Some(Interaction::Stdin(chunk)) => Some(Input::Stdin(chunk)),
            Some(Interaction::CloseStdin(close)) => Some(Input::CloseStdin(close)),
            Some(Interaction::Signal(signal)) => Some(Input::Signal(signal)),
            Some(Interaction::Attach(_)) => {
                let problem = "`attach` is only legal as the first frame";
                return Err(Error::field("frame", "value_error", problem));
            }
            None => None,
        })?;
        check_is_open(&self.row, &frame)?;
        match self.service.drivers.get(&self.row.id) {
            Some(driver) => Ok(driver.offer(frame).await),
            None => Ok(None),
        }
    }

    /// What it means that nobody drives the execution: it has ended, or what was sent may be lost.
    async fn without_driver(&self) -> Result<(), Error> {
        let row = self.service.execution_row(&self.row.id).await?;
        if row.state.is_final() { Ok(()) } else { Err(unsure(&row.id)) }
    }
}

fn unsure(id: &str) -> Error {
    Error::Unavailable(format!("it is not known whether execution `{id}` took its input; send it again"))
}

fn check_is_open(row: &Model, frame: &Frame) -> Result<(), Error> {
    if row.keep_stdin_open || matches!(frame, Frame::Signal(_)) {
        return Ok(());
    }
    let problem = format!("standard input of execution `{}` is closed: it was not kept open", row.id);
    Err(Error::field("input", "value_error", problem))
}

fn input_frame(input: Option<Input>) -> Result<Frame, Error> {
    match input {
        Some(Input::Stdin(chunk)) if chunk.data.len() > MAX_INPUT => {
            Err(Error::field("stdin.data", "too_long", "`stdin.data` must be at most 1 MiB long"))
        }
        Some(Input::Stdin(chunk)) => Ok(Frame::Stdin(chunk)),
        Some(Input::CloseStdin(close)) => Ok(Frame::CloseStdin(close)),
        Some(Input::Signal(signal)) if !(1..=31).contains(&signal.signal) => {
            let kind = if signal.signal < 1 { "greater_than_equal" } else { "less_than_equal" };
            Err(Error::field("signal.signal", kind, "`signal.signal` must be from 1 to 31"))
        }
        Some(Input::Signal(signal)) => Ok(Frame::Signal(signal)),
        None => Err(Error::field("input", "missing", "`input` is required")),
    }
}
