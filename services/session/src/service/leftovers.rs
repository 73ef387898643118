//! What executors keep of executions whose end is recorded: they are told to forget it, until they do.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use sandmesh_proto::executor::{self, ExecutionSummary};
use tonic::{Code, Status};

use super::{
    Service,
    acknowledge::{ACKNOWLEDGE_LIMIT, Executor},
};
use crate::{error::Error, lifecycle::SessionState, peers::call};

/// How many executors are asked at once what they keep.
const EXECUTORS_AT_ONCE: usize = 8;

/// How long an executor may take to answer that.
const LIST_LIMIT: Duration = Duration::from_secs(5);

/// How many sweeps pass between two attempts at what is left.
const SWEEPS: u32 = 4;

/// The sessions whose executors may keep what is recorded: every one that runs when the service starts,
/// then those that did not take an acknowledgement, or did not get one.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Mutex<HashSet<String>>);

impl Leftovers {
    pub(super) fn add(&self, sessions: impl IntoIterator<Item = String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(sessions);
    }

    fn take(&self) -> HashSet<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Service {
    /// Has executors forget what is recorded, until the service stops.
    pub(crate) async fn acknowledge_leftovers(self: Arc<Self>) {
        let mut known = false;
        let token = self.tasks.token();
        loop {
            if !known {
                known = self.note_running().await;
            }
            if token.run_until_cancelled(self.acknowledge_all()).await.is_none()
                || !self.pause(self.config.sweep_interval.0 * SWEEPS).await
            {
                return;
            }
        }
    }

    /// A former process may have died between a record and its acknowledgement. False: to be tried again.
    async fn note_running(&self) -> bool {
        match self.store.running_sessions().await {
            Ok(sessions) => self.leftovers.add(sessions),
            Err(error) => {
                tracing::error!(error = format!("{error:#?}"), "sessions not read");
                return false;
            }
        }
        true
    }

    async fn acknowledge_all(&self) {
        let sessions = stream::iter(self.leftovers.take());
        let work = sessions.for_each_concurrent(EXECUTORS_AT_ONCE, |id| async move {
            if let Err(error) = self.acknowledge_in(&id).await {
                tracing::debug!(session.id = id, %error, "leftovers not acknowledged yet");
                self.leftovers.add([id]);
            }
        });
        work.await;
    }

    /// Asks the executor of a session what it keeps, and has it forget what is recorded.
    async fn acknowledge_in(&self, id: &str) -> Result<(), Error> {
        let session = self.store.session(id).await?;
        let Some(session) = session.filter(|session| session.state == SessionState::Running) else {
            return Ok(());
        };
        let mut executor = self.peers.control(&session.endpoint)?;
        let list = executor.list_executions(executor::ListExecutionsRequest {});
        let kept = call(LIST_LIMIT, list).await.map_err(unavailable)?.executions;
        let (mut recorded, mut failed) = (Vec::new(), None);
        for kept in kept {
            match self.is_to_be_forgotten(&mut executor, &kept).await {
                Ok(true) => recorded.push(kept.execution_id),
                Ok(false) => {}
                Err(error) => failed = Some(error),
            }
        }
        if !recorded.is_empty() {
            self.acknowledge(&session.id, executor, &recorded).await;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether the end of what an executor keeps is recorded. What runs all the same is cancelled.
    async fn is_to_be_forgotten(
        &self,
        executor: &mut Executor,
        kept: &ExecutionSummary,
    ) -> Result<bool, Error> {
        let row = self.store.execution(&kept.execution_id).await?;
        if !row.is_some_and(|row| row.state.is_final()) {
            return Ok(false);
        }
        if !kept.ended {
            // It was said to be lost, and was not.
            let request = executor::CancelExecutionRequest { execution_id: kept.execution_id.clone() };
            match call(ACKNOWLEDGE_LIMIT, executor.cancel_execution(request)).await {
                Err(status) if status.code() != Code::NotFound => return Err(unavailable(status)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(true)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of a mapping")]
fn unavailable(status: Status) -> Error {
    Error::Unavailable(status.message().to_owned())
}
