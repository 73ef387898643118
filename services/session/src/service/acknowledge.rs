//! Executors are told that ends are recorded, so that they may forget them: a little later, and of what ends soon
//! after each other in one sandbox all at once. What they do not hear is left for later.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sandmesh_mesh::Link;
use sandmesh_proto::executor::{self, executor_service_client::ExecutorServiceClient};
use tonic::{Code, Status};

use super::Service;
use crate::{
    peers::{Backoff, call},
    store::session::Model,
};

/// How long the first of several waits for others.
const TOGETHER: Duration = Duration::from_millis(20);

/// How long an executor may take to forget executions.
pub(super) const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(1);

/// How often an executor is told, before it is left for later.
const ATTEMPTS: usize = 3;

pub(super) type Executor = ExecutorServiceClient<Link>;

/// The executions whose ends are recorded and soon told, by the endpoint of their executor.
#[derive(Debug, Default)]
pub(crate) struct Recorded(Mutex<HashMap<String, Vec<String>>>);

impl Recorded {
    /// Adds an execution. True for the first of several.
    fn add(&self, endpoint: &str, execution_id: &str) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = waiting.entry(endpoint.to_owned()).or_default();
        ids.push(execution_id.to_owned());
        ids.len() == 1
    }

    fn take(&self, endpoint: &str) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(endpoint).unwrap_or_default()
    }
}

impl Service {
    /// Has an executor forget an execution whose end is recorded, in a while. Where this process ends before, the
    /// next one finds out.
    pub(super) fn acknowledge_soon(self: &Arc<Self>, session: &Model, execution_id: &str) {
        if !self.recorded.add(&session.endpoint, execution_id) {
            return;
        }
        let (service, session_id, endpoint) =
            (Arc::clone(self), session.id.clone(), session.endpoint.clone());
        let token = self.tasks.token();
        self.tasks.spawn_detached("acknowledge executions", async move {
            let work = async {
                tokio::time::sleep(TOGETHER).await;
                let ids = service.recorded.take(&endpoint);
                // Where it is not connected any more, it is gone with all that it kept.
                if let Some(executor) = service.peers.known(&endpoint) {
                    service.acknowledge(&session_id, executor, &ids).await;
                }
            };
            token.run_until_cancelled(work).await;
        });
    }

    /// Has an executor forget executions whose ends are recorded: now, or later when it does not answer.
    pub(super) async fn acknowledge(&self, session_id: &str, mut executor: Executor, ids: &[String]) {
        let mut backoff = Backoff::new(self.config.retry_max.0);
        for _ in 0..ATTEMPTS {
            let Err(status) = tell(&mut executor, ids).await else { return };
            tracing::debug!(session.id = session_id, code = ?status.code(), "not acknowledged yet");
            tokio::time::sleep(backoff.pause()).await;
        }
        self.leftovers.add([session_id.to_owned()]);
    }
}

async fn tell(executor: &mut Executor, ids: &[String]) -> Result<(), Status> {
    if ids.len() > 1 {
        let request = executor::AcknowledgeExecutionsRequest { execution_ids: ids.to_vec() };
        match call(ACKNOWLEDGE_LIMIT, executor.acknowledge_executions(request)).await {
            // An older executor.
            Err(status) if status.code() == Code::Unimplemented => {}
            answer => return answer.map(drop),
        }
    }
    let mut told = Ok(());
    for id in ids {
        let request = executor::AcknowledgeExecutionRequest { execution_id: id.clone() };
        match call(ACKNOWLEDGE_LIMIT, executor.acknowledge_execution(request)).await {
            // It still runs, and the others may not.
            Err(status) if status.code() == Code::FailedPrecondition => told = Err(status),
            Err(status) if status.code() != Code::NotFound => return Err(status),
            Ok(_) | Err(_) => {}
        }
    }
    told
}
