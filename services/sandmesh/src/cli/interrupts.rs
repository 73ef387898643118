//! Ctrl-C, counted: the first asks for an orderly end, the second for an end at once.

use std::{future::Future, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;

/// SIGINT and SIGTERM, from the moment this exists.
#[derive(Debug)]
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    count: u32,
}

impl Interrupts {
    /// Takes the signals over from their default action.
    pub(super) fn listen() -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::broken(format!("cannot listen for signals: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            count: 0,
        })
    }

    /// Waits for the next one. Cancel safe.
    pub(super) async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.count += 1;
    }

    /// Whether there was one.
    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    /// Whether the user has lost patience.
    pub(super) fn urgent(&self) -> bool {
        self.count > 1
    }

    /// Finishes `work` across the first interrupt; the second one drops it.
    pub(super) async fn shield<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                value = &mut work => return Ok(value),
                () = self.recv() => {}
            }
            if self.urgent() {
                return Err(Failure::Interrupted);
            }
        }
    }
}
