//! Measures nodes and dependencies again and again, and puts what it finds on the board.
//!
//! That the scheduler or a role cannot be asked is a finding like any other: what was known of nodes stays
//! as it is then, and the role counts as not well.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sandmesh_mesh::{Link, Probe, Tasks};
use sandmesh_proto::{
    health::{DependencyHealth, NodeHealth},
    scheduler::{ListNodesRequest, NodeStatus, scheduler_service_client::SchedulerServiceClient},
};
use tokio::time::{sleep, timeout};

use crate::{
    Config,
    board::Board,
    condition::{Condition, Found, Thresholds, Track},
    convert::condition_pb,
    service::Health,
};

/// Measures; see the module.
#[derive(Debug)]
pub(crate) struct Watch {
    health: Arc<Health>,
    scheduler: Link,
    board: Arc<Board>,
    config: Config,
}

/// What is remembered of things by their names; of those that are not measured any more nothing.
#[derive(Debug, Default)]
struct Tracks(HashMap<String, Track>);

impl Tracks {
    /// Takes one measurement of each thing, and forgets the others.
    fn observe(&mut self, found: impl IntoIterator<Item = (String, Found)>, thresholds: Thresholds) {
        let before = std::mem::take(&mut self.0);
        for (name, found) in found {
            let track = before.get(&name).copied().unwrap_or_default();
            self.0.insert(name, track.observe(found, thresholds));
        }
    }

    fn condition(&self, name: &str) -> Condition {
        self.0.get(name).copied().unwrap_or_default().condition()
    }
}

impl Watch {
    /// Measures what `health` checks, and the nodes that `scheduler` knows.
    pub(crate) fn new(health: Arc<Health>, scheduler: Link, board: Arc<Board>, config: Config) -> Self {
        Self { health, scheduler, board, config }
    }

    /// Spawns both.
    pub(crate) fn start(self: Arc<Self>, tasks: &Tasks) {
        let (nodes, dependencies) = (Arc::clone(&self), self);
        let (stop_nodes, stop_dependencies) = (tasks.token(), tasks.token());
        tasks.spawn("node health", async move {
            let _ = stop_nodes.run_until_cancelled(nodes.measure_nodes()).await;
        });
        tasks.spawn("dependency health", async move {
            let _ = stop_dependencies.run_until_cancelled(dependencies.measure_dependencies()).await;
        });
    }

    async fn measure_nodes(&self) {
        let mut tracks = Tracks::default();
        loop {
            let mut client = SchedulerServiceClient::new(self.scheduler.clone());
            let asked = timeout(self.config.probe_timeout.0, client.list_nodes(ListNodesRequest {})).await;
            if let Ok(Ok(answer)) = asked {
                self.board.nodes(nodes(answer.into_inner().nodes, &mut tracks, self.config.thresholds()));
            }
            sleep(self.config.sandbox_probe_interval.0).await;
        }
    }

    async fn measure_dependencies(&self) {
        let mut tracks = Tracks::default();
        loop {
            let probes = self.health.check().await.probes;
            let thresholds = self.config.thresholds();
            self.board.dependencies(dependencies(probes, &mut tracks, thresholds, self.config.slow_after.0));
            sleep(self.config.dependency_probe_interval.0).await;
        }
    }
}

fn nodes(statuses: Vec<NodeStatus>, tracks: &mut Tracks, thresholds: Thresholds) -> Vec<NodeHealth> {
    let id = |status: &NodeStatus| status.node.clone().unwrap_or_default().node_id;
    let found = |status: &NodeStatus| if status.healthy { Found::Good } else { Found::Bad };
    tracks.observe(statuses.iter().map(|status| (id(status), found(status))), thresholds);
    statuses.into_iter().map(|status| node(status, tracks)).collect()
}

fn node(status: NodeStatus, tracks: &Tracks) -> NodeHealth {
    let node = status.node.unwrap_or_default();
    let reason = match (status.lost, status.healthy) {
        (true, _) => "it is lost: it has not reported for too long",
        (false, false) => "it has not reported for a while",
        (false, true) => "",
    };
    NodeHealth {
        condition: condition_pb(tracks.condition(&node.node_id)).into(),
        reason: reason.to_owned(),
        last_seen_at: status.last_seen_at,
        capacity: node.capacity,
        allocated: node.allocated,
        sandboxes: node.sandboxes,
        max_sandboxes: node.max_sandboxes,
        draining: node.draining,
        node_id: node.node_id,
    }
}

fn dependencies(
    probes: Vec<Probe>,
    tracks: &mut Tracks,
    thresholds: Thresholds,
    slow_after: Duration,
) -> Vec<DependencyHealth> {
    let slow = u64::try_from(slow_after.as_micros()).unwrap_or(u64::MAX);
    let found = |probe: &Probe| match probe {
        probe if !probe.healthy => Found::Bad,
        probe if probe.latency_us > slow => Found::Slow,
        _ => Found::Good,
    };
    tracks.observe(probes.iter().map(|probe| (probe.name.clone(), found(probe))), thresholds);
    let health = |probe: Probe| DependencyHealth {
        condition: condition_pb(tracks.condition(&probe.name)).into(),
        probe: Some(probe),
    };
    probes.into_iter().map(health).collect()
}

#[cfg(test)]
mod tests {
    use sandmesh_proto::{agent::Node, health};

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { degraded_after: 1, unhealthy_after: 2, healthy_after: 1 };

    #[test]
    fn a_node_that_is_silent_is_degraded_then_unhealthy_and_forgotten_when_it_is_not_listed() {
        let mut tracks = Tracks::default();
        let status = |healthy, lost| NodeStatus {
            node: Some(Node { node_id: "a".into(), draining: true, ..Node::default() }),
            healthy,
            lost,
            ..NodeStatus::default()
        };
        for (healthy, lost, expected, reason) in [
            (true, false, health::Condition::Healthy, ""),
            (false, false, health::Condition::Degraded, "it has not reported for a while"),
            (false, true, health::Condition::Unhealthy, "it is lost: it has not reported for too long"),
        ] {
            let found = nodes(vec![status(healthy, lost)], &mut tracks, THRESHOLDS);
            assert_eq!((found[0].condition(), found[0].reason.as_str()), (expected, reason));
            assert!(found[0].draining, "a node that drains is not ill for that");
        }
        assert!(nodes(vec![], &mut tracks, THRESHOLDS).is_empty());
        assert!(tracks.0.is_empty());
    }

    #[test]
    fn a_dependency_that_answers_late_is_degraded() {
        let mut tracks = Tracks::default();
        let probe = |latency_us| Probe { name: "x".into(), healthy: true, latency_us, ..Probe::default() };
        let limit = Duration::from_millis(1);
        let found = dependencies(vec![probe(1001)], &mut tracks, THRESHOLDS, limit);
        assert_eq!(found[0].condition(), health::Condition::Degraded);
        let found = dependencies(vec![probe(1000)], &mut tracks, THRESHOLDS, limit);
        assert_eq!(found[0].condition(), health::Condition::Healthy);
    }
}
