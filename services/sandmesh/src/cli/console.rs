//! The live output: bytes to the standard output and the standard error as they arrive.
//!
//! A thread of its own writes, so that a reader that stalls does not keep the program from answering
//! Ctrl-C, and a program that ends does not wait for it.

use std::{
    io::{self, Write},
    thread,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::failure::Failure;

/// Pieces in flight between the network and the terminal; a piece is at most 64 KiB.
const PIECES: usize = 16;

/// One of the two streams of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
}

/// Writes pieces in order.
#[derive(Debug)]
pub(super) struct Console {
    pieces: mpsc::Sender<(Stream, Bytes)>,
    outcome: oneshot::Receiver<io::Result<()>>,
}

impl Console {
    /// Starts the thread that writes.
    pub(super) fn open() -> Result<Self, Failure> {
        let (pieces, receiver) = mpsc::channel(PIECES);
        let (sender, outcome) = oneshot::channel();
        let writer = move || {
            // Nobody waits for the outcome when the program ends early.
            let _ = sender.send(write_all(receiver));
        };
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(writer)
            .map_err(|error| Failure::broken(format!("cannot start a thread: {error}")))?;
        Ok(Self { pieces, outcome })
    }

    /// Hands over a piece; waits while the reader is slow. Cancel safe: the piece is sent or it is not.
    pub(super) async fn write(&mut self, stream: Stream, data: Bytes) -> Result<(), Failure> {
        if self.pieces.send((stream, data)).await.is_ok() {
            return Ok(());
        }
        match (&mut self.outcome).await {
            Ok(Err(error)) => Err(Failure::output(&error)),
            _ => Err(Failure::broken("the thread that writes has ended")),
        }
    }

    /// Waits until everything is written.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        drop(self.pieces);
        match self.outcome.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::output(&error)),
            Err(_) => Err(Failure::broken("the thread that writes has ended")),
        }
    }
}

fn write_all(mut pieces: mpsc::Receiver<(Stream, Bytes)>) -> io::Result<()> {
    while let Some((stream, data)) = pieces.blocking_recv() {
        match stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&data)?;
                out.flush()?;
            }
            // Without a standard error there is nobody to tell.
            Stream::Stderr => drop(io::stderr().write_all(&data)),
        }
    }
    Ok(())
}
