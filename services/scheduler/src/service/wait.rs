//! Waiting for room: a creation for which there is none waits a little, in a queue that is bounded and fair, and
//! is then told when to come back.

use std::sync::Arc;

use sandmesh_proto::agent::{Sandbox, SandboxSpec};
use tokio::time::{Instant, timeout_at};

use super::{Answer, PAUSES, Service};
use crate::{
    Error,
    placement::{Refusal, Refusals, Wanted},
    queue::{Line, Queue},
    registry::Registry,
};

/// The label of a session that says whose it is.
const TENANT: &str = "tenant";

/// Those who wait for room.
pub(super) type Waiters = Queue<Waiter, Reserved>;

/// What one waits for.
#[derive(Debug)]
pub(super) struct Waiter {
    id: String,
    spec: SandboxSpec,
    wanted: Wanted,
    /// Nodes that will never take it.
    avoid: Vec<String>,
}

/// Room on a node that is kept for one; given back when it is dropped before it is used.
#[derive(Debug)]
pub(super) struct Reserved {
    registry: Arc<Registry>,
    id: String,
    /// `None` once it is used.
    node_id: Option<String>,
}

impl Reserved {
    /// The node. From now on it is not given back by itself: the sandbox may be there.
    fn take(mut self) -> String {
        self.node_id.take().unwrap_or_default()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(node_id) = &self.node_id {
            self.registry.unbind(&self.id, node_id);
        }
    }
}

impl Service {
    /// Whether others wait already, so that whoever comes now is to wait behind them.
    pub(super) fn others_wait(&self) -> bool {
        self.waiters.len() > 0
    }

    /// Waits for room and creates a sandbox there. `full` is what to say when it does not come in time.
    ///
    /// # Errors
    /// `NoCapacity` when as many wait as may, or it took too long; otherwise as [`Service::create`].
    pub(super) async fn create_when_there_is_room(
        &self,
        id: &str,
        spec: &SandboxSpec,
        wanted: &Wanted,
        full: Error,
    ) -> Result<Sandbox, Error> {
        let deadline = Instant::now() + self.config.queue.max_wait.0;
        let tenant = spec.labels.get(TENANT).cloned().unwrap_or_default();
        let line = Line { tenant, template_id: spec.template_id.clone() };
        let (mut never, mut pause): (Vec<Refusal>, _) = (Vec::new(), PAUSES.0);
        loop {
            let avoid = never.iter().map(|refusal| refusal.node_id.clone()).collect();
            let waiter = Waiter { id: id.to_owned(), spec: spec.clone(), wanted: wanted.clone(), avoid };
            let Some(mut place) = self.waiters.join(line.clone(), waiter) else {
                return Err(full.behind(self.waiters.len()));
            };
            // There may have been room since it was looked.
            self.registry.room().notify_one();
            let Ok(Some(reserved)) = timeout_at(deadline, place.granted()).await else {
                return Err(full.behind(place.leave()));
            };
            let node_id = reserved.take();
            let refusal = match self.create_on(&node_id, id, spec).await? {
                Answer::Created(sandbox) => return Ok(*sandbox),
                Answer::Refused(refusal) | Answer::NoImage(refusal) => refusal,
                Answer::Absent(error) => {
                    self.registry.unbind(id, &node_id);
                    return Err(error);
                }
            };
            // It was not what it looked like: one that will never take it is not asked again.
            if !refusal.may_change {
                never.push(refusal);
                if !self.registry.could_run(wanted, &never) {
                    return Err(Error::NoSuitableNode { id: id.to_owned(), refusals: Refusals::of(never) });
                }
            }
            tokio::time::sleep_until((Instant::now() + pause).min(deadline)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Gives room to those who wait for it whenever there may be some, until the scheduler stops.
    pub(crate) async fn serve_queue(self: Arc<Self>) {
        let stopped = self.mesh.tasks().token();
        while stopped.run_until_cancelled(self.registry.room().notified()).await.is_some() {
            // Where there is none for one, there is none for others that want the same.
            let mut in_vain: Vec<(Wanted, Vec<String>)> = Vec::new();
            self.waiters.serve(|waiter| {
                let Waiter { id, spec, wanted, avoid } = waiter;
                if in_vain.iter().any(|(other, avoided)| other == wanted && avoided == avoid) {
                    return None;
                }
                let Some(node_id) = self.registry.reserve(id, spec, (wanted, avoid)) else {
                    in_vain.push((wanted.clone(), avoid.clone()));
                    return None;
                };
                let (registry, id) = (Arc::clone(&self.registry), waiter.id.clone());
                Some(Reserved { registry, id, node_id: Some(node_id) })
            });
        }
    }
}
