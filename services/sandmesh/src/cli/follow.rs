//! Follows one execution to its end: output as it comes, across broken connections and Ctrl-C.
//!
//! Every chunk says where in its stream it starts, so after a break the stream is opened again at the
//! first byte that did not arrive, and nothing is shown twice.

use std::{
    future::{Future, pending},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use sandmesh_proto::{
    executor::OutputChunk,
    session::{
        AttachExecutionRequest, CancelExecutionRequest, ExecuteRequest, Execution, attach_execution_response,
        execute_response,
    },
};
use tokio::{sync::oneshot, time::Instant};
use tonic::Status;

use super::{
    backoff::Backoff,
    client::{Client, timed},
    console::{Console, Stream},
    failure::{Failure, is_transient, reason},
    interrupts::Interrupts,
    output,
    transcript::Transcript,
};

/// How long a cancelled execution may take to say so.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// A stream that held this long was a good one: its break starts a new series of attempts.
const LASTING: Duration = Duration::from_secs(30);

/// What a followed execution tells.
enum Event {
    Accepted(String),
    Started,
    Output(Stream, OutputChunk),
    Result(Box<Execution>),
}

type Events = BoxStream<'static, Result<Event, Status>>;

/// Follows one execution.
pub(super) struct Follower<'a> {
    watch: Watch<'a>,
    transcript: Transcript,
    console: Option<Console>,
    started: Option<oneshot::Sender<String>>,
    backoff: Backoff,
}

/// An execution that ended, and what it wrote.
#[derive(Debug)]
pub(super) struct Followed {
    /// The result.
    pub(super) execution: Execution,
    /// What arrived of its output.
    pub(super) transcript: Transcript,
}

impl<'a> Follower<'a> {
    /// Shows the output on `console`, or keeps it where there is none. `started` gets the id of the
    /// execution as soon as it takes input.
    pub(super) fn new(
        client: &'a Client,
        interrupts: &'a mut Interrupts,
        console: Option<Console>,
        started: oneshot::Sender<String>,
    ) -> Self {
        let transcript = if console.is_some() { Transcript::of_the_end() } else { Transcript::of_all() };
        let watch = Watch { client, interrupts, execution_id: None, give_up_at: None };
        Self { watch, transcript, console, started: Some(started), backoff: Backoff::default() }
    }

    /// Starts the execution and follows it. The request must carry a `request_id`: it is sent again when
    /// the connection breaks before the server has accepted it.
    pub(super) async fn follow(mut self, request: &ExecuteRequest) -> Result<Followed, Failure> {
        let outcome = self.run(request).await;
        if matches!(outcome, Err(Failure::BrokenPipe)) {
            // Nobody wants the output any more; an error of the cancellation changes nothing.
            let _ = self.watch.cancel().await;
        }
        let execution = outcome?;
        if let Some(console) = self.console {
            self.watch.attend(console.finish()).await??;
        }
        Ok(Followed { execution, transcript: self.transcript })
    }

    async fn run(&mut self, request: &ExecuteRequest) -> Result<Execution, Failure> {
        // That the server cannot be reached at all is said at once; only what was open is opened again.
        let opening = execute(self.watch.client, request);
        let mut events = self.watch.attend(opening).await??;
        loop {
            let opened_at = Instant::now();
            if let Some(execution) = self.drain(&mut events).await? {
                return Ok(execution);
            }
            if opened_at.elapsed() > LASTING {
                self.backoff.reset();
            }
            events = self.reopen(request).await?;
        }
    }

    /// Takes events until the result; `None` when the stream broke before.
    async fn drain(&mut self, events: &mut Events) -> Result<Option<Execution>, Failure> {
        loop {
            match self.watch.attend(events.next()).await? {
                Some(Ok(Event::Accepted(id))) => self.watch.execution_id = Some(id),
                Some(Ok(Event::Started)) => self.tell_started(),
                Some(Ok(Event::Output(stream, chunk))) => self.show(stream, chunk).await?,
                Some(Ok(Event::Result(execution))) => return Ok(Some(*execution)),
                Some(Err(status)) if !is_transient(&status) => return Err(status.into()),
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }

    fn tell_started(&mut self) {
        if let Some(id) = &self.watch.execution_id
            && let Some(started) = self.started.take()
        {
            // Without input to send, nobody waits for it.
            let _ = started.send(id.clone());
        }
    }

    async fn show(&mut self, stream: Stream, chunk: OutputChunk) -> Result<(), Failure> {
        let fresh = self.transcript.accept(stream, chunk);
        if fresh.is_empty() {
            return Ok(());
        }
        self.backoff.reset();
        match &mut self.console {
            Some(console) => self.watch.attend(console.write(stream, fresh)).await?,
            None => Ok(()),
        }
    }

    /// Opens the stream again where it broke.
    async fn reopen(&mut self, request: &ExecuteRequest) -> Result<Events, Failure> {
        loop {
            let Some(delay) = self.backoff.next() else {
                return Err(self.watch.lost());
            };
            if self.backoff.attempts() == 2 {
                output::note("warning: the connection to the server broke; trying again");
            }
            self.watch.attend(tokio::time::sleep(delay)).await?;
            let client = self.watch.client;
            let attempt = match self.watch.execution_id.clone() {
                Some(id) => self.watch.attend(attach(client, self.transcript.cursor(id))).await?,
                None => self.watch.attend(execute(client, request)).await?,
            };
            match attempt {
                Ok(events) => return Ok(events),
                Err(status) if is_transient(&status) => {}
                Err(status) => return Err(status.into()),
            }
        }
    }
}

/// Answers Ctrl-C while something else is waited for.
struct Watch<'a> {
    client: &'a Client,
    interrupts: &'a mut Interrupts,
    execution_id: Option<String>,
    give_up_at: Option<Instant>,
}

impl Watch<'_> {
    /// Waits for `work`. The first Ctrl-C cancels the execution and goes on to its result, the second
    /// one gives up.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                value = &mut work => return Ok(value),
                () = self.interrupts.recv() => {}
                () = reached(self.give_up_at) => return Err(Failure::Interrupted),
            }
            if self.interrupts.urgent() || self.execution_id.is_none() {
                return Err(Failure::Interrupted);
            }
            self.give_up_at = Some(Instant::now() + CANCEL_GRACE);
            self.cancel().await?;
        }
    }

    async fn cancel(&mut self) -> Result<(), Failure> {
        let Some(execution_id) = self.execution_id.clone() else {
            return Ok(());
        };
        let mut sessions = self.client.sessions();
        let cancel = sessions.cancel_execution(timed(CancelExecutionRequest { execution_id }));
        match self.interrupts.shield(cancel).await? {
            Ok(_) => Ok(()),
            Err(status) if reason(&status).as_deref() == Some("EXECUTION_ENDED") => Ok(()),
            Err(status) => Err(status.into()),
        }
    }

    fn lost(&self) -> Failure {
        let hint = self
            .execution_id
            .as_ref()
            .map(|id| format!("the execution goes on without us; its result: `sandmesh execution get {id}`"));
        Failure::Broken("lost the connection to the server".to_owned(), hint)
    }
}

async fn reached(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => pending().await,
    }
}

async fn execute(client: &Client, request: &ExecuteRequest) -> Result<Events, Status> {
    let stream = client.sessions().execute(request.clone()).await?.into_inner();
    Ok(stream.filter_map(async |item| item.map(|item| item.event.map(Event::from)).transpose()).boxed())
}

async fn attach(client: &Client, request: AttachExecutionRequest) -> Result<Events, Status> {
    let stream = client.sessions().attach_execution(request).await?.into_inner();
    Ok(stream.filter_map(async |item| item.map(|item| item.event.map(Event::from)).transpose()).boxed())
}

impl From<execute_response::Event> for Event {
    fn from(event: execute_response::Event) -> Self {
        use execute_response::Event as Wire;
        match event {
            Wire::Accepted(accepted) => Self::Accepted(accepted.execution_id),
            Wire::Started(_) => Self::Started,
            Wire::Stdout(chunk) => Self::Output(Stream::Stdout, chunk),
            Wire::Stderr(chunk) => Self::Output(Stream::Stderr, chunk),
            Wire::Result(execution) => Self::Result(Box::new(execution)),
        }
    }
}

impl From<attach_execution_response::Event> for Event {
    fn from(event: attach_execution_response::Event) -> Self {
        use attach_execution_response::Event as Wire;
        match event {
            Wire::Started(_) => Self::Started,
            Wire::Stdout(chunk) => Self::Output(Stream::Stdout, chunk),
            Wire::Stderr(chunk) => Self::Output(Stream::Stderr, chunk),
            Wire::Result(execution) => Self::Result(Box::new(execution)),
        }
    }
}
