//! Telling the scheduler that this node is here, at the start and every few seconds after.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use sandmesh_mesh::{CancellationToken, Link};
use sandmesh_proto::{
    agent::Node,
    scheduler::{RegisterNodeRequest, scheduler_service_client::SchedulerServiceClient},
};
use tonic::{Request, Status};

use crate::{grpc, service::Service};

/// How soon a report that failed is made again, at first.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// How long one report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// One scheduler, and where it dials this agent; empty when there is no scheduler but the one in this process.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    pub(crate) link: Link,
    pub(crate) endpoint: String,
}

/// Reports until `stopped`, and then once more, that no sandbox is to be placed here.
pub(crate) async fn report(
    service: Arc<Service>,
    scheduler: Scheduler,
    every: Duration,
    stopped: CancellationToken,
) {
    let mut retry = FIRST_RETRY;
    // What was logged last; only changes are told.
    let mut reached = None;
    loop {
        let pause = match register(&service, &scheduler).await {
            Ok(asked) => {
                if reached.replace(true) != Some(true) {
                    tracing::info!(node.id = service.identity().node_id, ?scheduler.link, "registered at the scheduler");
                }
                retry = FIRST_RETRY;
                asked.unwrap_or(every).min(every)
            }
            Err(error) => {
                retry = (retry * 2).min(every);
                // At the start of the mesh the scheduler may be a moment behind.
                if (reached == Some(true) || retry == every) && reached.replace(false) != Some(false) {
                    tracing::warn!(?scheduler.link, code = %error.code(), error = error.message(), "scheduler not reached");
                }
                retry
            }
        };
        tokio::select! {
            () = stopped.cancelled() => break,
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
    // Without an answer the scheduler finds out by itself, when the reports stay away.
    let _ = register(&service, &scheduler).await;
}

/// Reports once; returns how soon the scheduler wants the next one.
async fn register(service: &Service, scheduler: &Scheduler) -> Result<Option<Duration>, Status> {
    let node = Node { endpoint: scheduler.endpoint.clone(), ..grpc::node(service).await };
    let mut request = Request::new(RegisterNodeRequest { node: Some(node) });
    request.set_timeout(REPORT_TIMEOUT);
    let answer =
        SchedulerServiceClient::new(scheduler.link.clone()).register_node(request).await?.into_inner();
    let asked = Duration::from_millis(answer.heartbeat_interval_ms.into());
    Ok((!asked.is_zero()).then_some(asked))
}

/// Up to a fifth sooner, so that nodes that started together do not report together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.0))
}
