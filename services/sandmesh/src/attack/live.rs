//! An execution that is followed while it runs: attacks that stop at a stage, so that the host can look.

use anyhow::{Context as _, bail};
use sandmesh_proto::{
    executor::{OutputChunk, StdinChunk},
    session::{
        CancelExecutionRequest, ExecuteResponse, Execution, SendInputRequest, execute_response::Event,
        send_input_request::Input,
    },
};
use tonic::Streaming;

use super::{
    arena::{Outcome, Sessions, timed},
    judge::contains,
};

/// How much of each stream is kept.
const KEPT: usize = 4 << 20;

/// A running execution.
#[derive(Debug)]
pub(super) struct Live {
    sessions: Sessions,
    stream: Streaming<ExecuteResponse>,
    outcome: Outcome,
    ended: bool,
    id: String,
    sent: u64,
}

impl Live {
    pub(super) fn new(sessions: Sessions, stream: Streaming<ExecuteResponse>) -> Self {
        let outcome = Outcome::default();
        Self { sessions, stream, outcome, ended: false, id: String::new(), sent: 0 }
    }

    /// Reads until it says that it is at this stage, which it then waits at.
    pub(super) async fn stage(&mut self, name: &str) -> anyhow::Result<()> {
        let wanted = format!("{{\"stage\": \"{name}\"}}");
        while !contains(&self.outcome.stdout, wanted.as_bytes()) {
            if !self.next().await? {
                let complaint = self.outcome.complaint();
                bail!("the attack ended before stage `{name}`: {}: {complaint}", self.outcome.ending());
            }
        }
        Ok(())
    }

    /// Lets it go on after a stage.
    pub(super) async fn go_on(&mut self) -> anyhow::Result<()> {
        let chunk = StdinChunk { offset: self.sent, data: b"\n".to_vec().into() };
        self.sent += 1;
        let request = SendInputRequest { execution_id: self.id.clone(), input: Some(Input::Stdin(chunk)) };
        self.sessions.send_input(timed(request)).await.context("cannot send input to the attack")?;
        Ok(())
    }

    /// Cancels it; gives its record.
    pub(super) async fn cancel(&mut self) -> anyhow::Result<Execution> {
        let request = CancelExecutionRequest { execution_id: self.id.clone() };
        let answer = self.sessions.cancel_execution(timed(request)).await.context("cannot cancel")?;
        answer.into_inner().execution.context("the server gave no execution")
    }

    /// Follows it to its end.
    pub(super) async fn end(mut self) -> anyhow::Result<Outcome> {
        while self.next().await? {}
        Ok(self.outcome)
    }

    /// Takes the next event; false after the last.
    async fn next(&mut self) -> anyhow::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let message = self.stream.message().await.context("the stream of the execution broke")?;
        match message.and_then(|response| response.event) {
            Some(Event::Accepted(accepted)) => self.id = accepted.execution_id,
            Some(Event::Stdout(chunk)) => keep(&mut self.outcome.stdout, &chunk),
            Some(Event::Stderr(chunk)) => keep(&mut self.outcome.stderr, &chunk),
            Some(Event::Result(execution)) => {
                self.outcome.result = execution;
                self.ended = true;
                return Ok(false);
            }
            Some(Event::Started(_)) => {}
            None => bail!("the stream of the execution ended without a result"),
        }
        Ok(true)
    }
}

fn keep(kept: &mut Vec<u8>, chunk: &OutputChunk) {
    let room = KEPT.saturating_sub(kept.len()).min(chunk.data.len());
    kept.extend_from_slice(chunk.data.get(..room).unwrap_or_default());
}
