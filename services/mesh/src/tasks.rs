//! Background tasks: named, tracked, and told when to stop.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span};

/// The tasks of one node. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task. It must end soon after [`Tasks::token`] is cancelled; one that panics is logged and
    /// does not take the others along.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.run(name, tracing::info_span!("task", name), task);
    }

    /// As [`Tasks::spawn`], for a task that goes on long after the call that starts it: its span is a root,
    /// as the span of that call would otherwise stay open with it.
    pub fn spawn_detached(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.run(name, tracing::info_span!(parent: None, "task", name), task);
    }

    fn run(&self, name: &'static str, span: Span, task: impl Future<Output = ()> + Send + 'static) {
        // What wraps it moves it, and some tasks are large.
        let task = AssertUnwindSafe(Box::pin(task).instrument(span));
        self.tracker.spawn(async move {
            if task.catch_unwind().await.is_err() {
                tracing::error!(task = name, "task panicked");
            }
        });
    }

    /// Cancelled when the node shuts down.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Cancels the token and waits for the tasks, for `grace` at most. Returns how many had not ended.
    pub async fn shut_down(&self, grace: Duration) -> usize {
        self.token.cancel();
        self.tracker.close();
        match tokio::time::timeout(grace, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        }
    }
}
