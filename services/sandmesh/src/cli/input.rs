//! The standard input of this program, on its way to an execution.
//!
//! Input that is there at once goes with the request; a pipe that goes on is read by a thread and sent
//! while the execution runs. Without a pipe or a file nothing is read: `sandmesh exec` in a script must
//! not wait for a terminal.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    pin::pin,
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use sandmesh_proto::{
    executor::{StdinChunk, StdinClose},
    session::{CancelExecutionRequest, ExecutionSpec, SendInputRequest, send_input_request::Input},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout_at,
};
use tonic::{Code, Status};

use super::{
    backoff::Backoff,
    client::{Client, timed},
    failure::{Failure, is_transient, reason},
    output,
};

/// The largest piece of input that is sent at once.
const PIECE_BYTES: usize = 64 << 10;
/// The most that travels with the request.
const INLINE_BYTES: usize = 512 << 10;
/// How long a pipe may take to end and still travel with the request.
const INLINE_WAIT: Duration = Duration::from_millis(30);

/// Input that goes on while the execution runs.
#[derive(Debug)]
pub(super) struct Reader {
    /// What was read while waiting for the end.
    buffered: BytesMut,
    /// What comes next; closed at the end of the input.
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

/// Whether the standard input is a pipe, a socket or a file.
pub(super) fn is_piped() -> bool {
    let kind = io::stdin().as_fd().try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    kind.is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_socket() || kind.is_file()
    })
}

/// Puts the standard input into the request; gives back the rest when there is more to come.
pub(super) async fn attach(spec: &mut ExecutionSpec) -> Result<Option<Reader>, Failure> {
    let mut pieces = pieces_of(|| Ok(io::stdin()))?;
    let mut buffered = BytesMut::new();
    let deadline = tokio::time::Instant::now() + INLINE_WAIT;
    while buffered.len() <= INLINE_BYTES {
        match timeout_at(deadline, pieces.recv()).await {
            Ok(Some(Ok(piece))) => buffered.extend_from_slice(&piece),
            Ok(Some(Err(error))) => return Err(unreadable(&error)),
            Ok(None) => {
                spec.stdin = buffered.freeze();
                return Ok(None);
            }
            Err(_) => break,
        }
    }
    spec.keep_stdin_open = true;
    Ok(Some(Reader { buffered, pieces }))
}

/// What is read, piece by piece. By a thread, and not a task: a read of a pipe cannot be stopped, and the
/// program must be able to end without waiting for it.
pub(super) fn pieces_of<R: Read>(
    open: impl FnOnce() -> io::Result<R> + Send + 'static,
) -> Result<mpsc::Receiver<io::Result<Bytes>>, Failure> {
    let (sender, pieces) = mpsc::channel(4);
    let reader = move || {
        let mut source = match open() {
            Ok(source) => source,
            Err(error) => return drop(sender.blocking_send(Err(error))),
        };
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let piece = match source.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("read input".to_owned())
        .spawn(reader)
        .map_err(|error| Failure::broken(format!("cannot start a thread: {error}")))?;
    Ok(pieces)
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::broken(format!("cannot read the standard input: {error}"))
}

impl Reader {
    /// Sends the input to the execution once it runs, piece by piece, and then its end. It stops without
    /// an error when the execution does not want it any more; when it cannot go on, the execution is
    /// cancelled, because it would wait for the rest.
    pub(super) async fn forward(
        mut self,
        client: &Client,
        started: oneshot::Receiver<String>,
    ) -> Result<(), Failure> {
        let Ok(execution_id) = started.await else { return Ok(()) };
        let outcome = self.send_all(client, &execution_id).await;
        if outcome.is_err() {
            // The first failure is the one to report.
            let _ = client.sessions().cancel_execution(timed(CancelExecutionRequest { execution_id })).await;
        }
        outcome
    }

    async fn send_all(&mut self, client: &Client, execution_id: &str) -> Result<(), Failure> {
        let mut offset = 0;
        while let Some(data) = self.next().await? {
            let length = data.len() as u64;
            if !send(client, execution_id, Input::Stdin(StdinChunk { offset, data })).await? {
                return Ok(());
            }
            offset += length;
        }
        send(client, execution_id, Input::CloseStdin(StdinClose { offset: Some(offset) })).await.map(|_| ())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if !self.buffered.is_empty() {
            let length = self.buffered.len().min(PIECE_BYTES);
            return Ok(Some(self.buffered.split_to(length).freeze()));
        }
        self.pieces.recv().await.transpose().map_err(|error| unreadable(&error))
    }
}

/// Sends one piece, again if need be: its offset keeps it from arriving twice. False when the execution
/// takes no more input.
async fn send(client: &Client, execution_id: &str, input: Input) -> Result<bool, Failure> {
    let mut backoff = Backoff::default();
    loop {
        let request = SendInputRequest { execution_id: execution_id.to_owned(), input: Some(input.clone()) };
        let mut sessions = client.sessions();
        let status = match pin!(sessions.send_input(timed(request))).await {
            Ok(_) => return Ok(true),
            Err(status) => status,
        };
        if has_ended(&status) {
            return Ok(false);
        }
        if !is_transient(&status) {
            return Err(status.into());
        }
        // A program that reads slowly is no reason to give up; a server that is gone is.
        if status.code() == Code::DeadlineExceeded {
            backoff.reset();
        }
        match backoff.next() {
            Some(delay) => tokio::time::sleep(delay).await,
            None => {
                output::note("warning: the rest of the standard input could not be sent");
                return Ok(false);
            }
        }
    }
}

fn has_ended(status: &Status) -> bool {
    matches!(
        reason(status).as_deref(),
        Some("EXECUTION_NOT_RUNNING" | "EXECUTION_ENDED" | "EXECUTION_NOT_FOUND")
    )
}
