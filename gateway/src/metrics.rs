//! What the gateway counts, and the text that Prometheus reads.
//!
//! A label has few values: the routes of the contract, the methods of the protocol, codes, states. No id
//! ever is one. What other roles know is asked of them when the text is made; a role that does not answer
//! in time is missing in it and told by `sandmesh_role_up`.

use std::time::{Duration, Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use http::Method;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
    process_collector::ProcessCollector,
};
use sandmesh_proto::{
    scheduler::{NodeStatus, Pool, ProfileStatus},
    session::{ExecutionCount, GetStatisticsResponse},
};

use crate::app::{App, is_grpc};

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// What a route is called that is not one of the contract.
const OTHER: &str = "other";

/// The counters of this process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    latency: HistogramVec,
}

impl Metrics {
    /// Nothing is counted yet.
    ///
    /// # Errors
    /// When two metrics have one name, which is a broken build.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("sandmesh_requests_total", "Requests that were answered, or whose answer began."),
            &["protocol", "method", "route", "code"],
        )?;
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "sandmesh_request_seconds",
                "Time from a request to the beginning of its answer.",
            )
            .buckets(BUCKETS.to_vec()),
            &["protocol", "route"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(latency.clone()))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self { registry, requests, latency })
    }

    fn observe(&self, protocol: &str, (method, route): (&str, &str), code: &str, took: Duration) {
        self.requests.with_label_values(&[protocol, method, route, code]).inc();
        self.latency.with_label_values(&[protocol, route]).observe(took.as_secs_f64());
    }

    /// Everything as text, with what was learned for it.
    ///
    /// # Errors
    /// When a metric cannot be written, which is a broken build.
    pub(crate) fn text(&self, learned: &Learned) -> anyhow::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.extend(learned.0.gather());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// What was learned from other roles for one text.
#[derive(Debug, Default)]
pub(crate) struct Learned(Registry);

impl Learned {
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> anyhow::Result<GaugeVec> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> anyhow::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn gauge(&self, name: &str, help: &str, value: f64) -> anyhow::Result<()> {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        Ok(self.0.register(Box::new(gauge))?)
    }

    /// Which roles answered.
    pub(crate) fn roles(&self, roles: &[(&str, bool)]) -> anyhow::Result<()> {
        let up = self.gauges("sandmesh_role_up", "1 when the role answered for this text.", &["role"])?;
        for (role, answered) in roles {
            up.with_label_values(&[role]).set(f64::from(u8::from(*answered)));
        }
        Ok(())
    }

    /// Sessions and executions.
    pub(crate) fn statistics(&self, told: GetStatisticsResponse) -> anyhow::Result<()> {
        let sessions = self.gauges("sandmesh_sessions", "Sessions that are kept, by state.", &["state"])?;
        for counted in told.sessions {
            let state = counted.state().as_str_name().trim_start_matches("STATE_").to_lowercase();
            sessions.with_label_values(&[&state]).set(counted.count as f64);
        }
        let active =
            self.gauges("sandmesh_executions_active", "Executions that have not ended.", &["state"])?;
        for counted in told.active_executions {
            active.with_label_values(&[&counted.state]).set(counted.count as f64);
        }
        let labels = ["state", "language", "cause"];
        let help = "Executions that ended since the session role started.";
        let ended = self.counters("sandmesh_executions_total", help, &labels)?;
        for ExecutionCount { state, language, cause, count } in told.ended_executions {
            ended.with_label_values(&[&state, &language, &cause]).inc_by(count);
        }
        let help = "Sandboxes that sessions got since the session role started.";
        let starts = self.counters("sandmesh_session_starts_total", help, &["start"])?;
        for (start, count) in [("warm", told.warm_starts), ("cold", told.cold_starts)] {
            starts.with_label_values(&[start]).inc_by(count);
        }
        let none: [&str; 0] = [];
        let help = "Sessions that got another sandbox since the session role started.";
        let recoveries = self.counters("sandmesh_session_recoveries_total", help, &none)?;
        recoveries.with_label_values(&none).inc_by(told.recoveries);
        let help = "Executions that were started again since the session role started.";
        let retries = self.counters("sandmesh_execution_retries_total", help, &none)?;
        retries.with_label_values(&none).inc_by(told.retries);
        Ok(())
    }

    /// The pools, added up.
    pub(crate) fn pools(&self, pools: &[Pool]) -> anyhow::Result<()> {
        let help =
            "Sandboxes of templates that have a pool, by all profiles; `target` is how many are to be warm.";
        let sandboxes = self.gauges("sandmesh_pool_sandboxes", help, &["state"])?;
        let sum = |own: fn(&Pool) -> u32, of_profile: fn(&ProfileStatus) -> u32| {
            let profiles = pools.iter().flat_map(|pool| &pool.profiles).map(of_profile);
            pools.iter().map(own).chain(profiles).map(f64::from).sum()
        };
        for (state, count) in [
            ("target", sum(|pool| pool.target, |profile| profile.target)),
            ("warm", sum(|pool| pool.warm, |profile| profile.warm)),
            ("starting", sum(|pool| pool.starting, |profile| profile.starting)),
            ("claimed", sum(|pool| pool.claimed, |profile| profile.claimed)),
            ("cold", sum(|pool| pool.cold, |profile| profile.cold)),
        ] {
            sandboxes.with_label_values(&[state]).set(count);
        }
        let is_failing = |pool: &&Pool| {
            !pool.last_error.is_empty() || pool.profiles.iter().any(|profile| !profile.last_error.is_empty())
        };
        let failing = pools.iter().filter(is_failing).count();
        let help = "Pools for which none could be made last, with the template's limits or a profile's.";
        self.gauge("sandmesh_pools_failing", help, failing as f64)
    }

    /// The nodes, added up.
    pub(crate) fn nodes(&self, nodes: &[NodeStatus]) -> anyhow::Result<()> {
        let states = self.gauges("sandmesh_nodes", "Nodes by state.", &["state"])?;
        for state in ["healthy", "draining", "silent", "lost"] {
            let count = nodes.iter().filter(|node| node_state(node) == state).count();
            states.with_label_values(&[state]).set(count as f64);
        }
        let sum = |part: fn(&NodeStatus) -> u64| nodes.iter().map(part).sum::<u64>() as f64;
        let node = |status: &NodeStatus| status.node.clone().unwrap_or_default();
        self.gauge("sandmesh_sandboxes", "Sandboxes of all nodes.", sum(|n| sandboxes(n).0))?;
        self.gauge("sandmesh_sandboxes_limit", "Sandboxes that all nodes take.", sum(|n| sandboxes(n).1))?;
        let memory =
            self.gauges("sandmesh_nodes_memory_bytes", "Memory of all nodes for sandboxes.", &["kind"])?;
        for status in nodes {
            let node = node(status);
            let of = |resources: Option<_>| {
                let resources: sandmesh_proto::executor::Resources = resources.unwrap_or_default();
                resources.memory_bytes as f64
            };
            memory.with_label_values(&["capacity"]).add(of(node.capacity));
            memory.with_label_values(&["allocated"]).add(of(node.allocated));
        }
        Ok(())
    }
}

fn sandboxes(status: &NodeStatus) -> (u64, u64) {
    status.node.as_ref().map_or((0, 0), |node| (node.sandboxes.into(), node.max_sandboxes.into()))
}

fn node_state(status: &NodeStatus) -> &'static str {
    match status {
        status if status.lost => "lost",
        status if !status.healthy => "silent",
        status if status.node.as_ref().is_some_and(|node| node.draining) => "draining",
        _ => "healthy",
    }
}

/// The route that a request took, told by the router inside to who counts outside.
#[derive(Debug, Clone)]
struct Route(MatchedPath);

/// Notes which route a REST request took.
pub(crate) async fn note_route(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(Route(route));
    }
    response
}

/// Counts every request and how long its answer took to begin.
pub(crate) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let asked = Instant::now();
    let grpc = is_grpc(request.headers());
    let (method, path) = (method(request.method()), request.uri().path().to_owned());
    let response = next.run(request).await;
    let took = asked.elapsed();
    if grpc {
        let route = if sandmesh_proto::is_method(&path) { path.as_str() } else { OTHER };
        app.metrics().observe("grpc", (method, route), grpc_code(&response), took);
    } else {
        let route = response.extensions().get::<Route>().map(|route| route.0.clone());
        let route = route.as_ref().map_or(OTHER, |route| route.as_str());
        app.metrics().observe("rest", (method, route), response.status().as_str(), took);
    }
    response
}

/// The method, if it is one that the contract has: a client may send any word.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The gRPC code of an answer that is an error from its beginning. One that fails later began well.
fn grpc_code(response: &Response) -> &'static str {
    const CODES: [&str; 17] =
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];
    let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok());
    code.and_then(|code| CODES.into_iter().find(|known| *known == code)).unwrap_or("0")
}

#[cfg(test)]
mod tests {
    use sandmesh_proto::{
        agent::Node,
        executor::Resources,
        session::{SessionCount, session},
    };

    use super::*;

    fn node(healthy: bool, lost: bool, draining: bool) -> NodeStatus {
        let capacity = Some(Resources { memory_bytes: 100, ..Resources::default() });
        let allocated = Some(Resources { memory_bytes: 30, ..Resources::default() });
        let node = Node { sandboxes: 2, max_sandboxes: 10, draining, capacity, allocated, ..Node::default() };
        NodeStatus { node: Some(node), healthy, lost, ..NodeStatus::default() }
    }

    #[test]
    fn sessions_and_executions_are_told_by_their_kinds() {
        let learned = Learned::default();
        let session = SessionCount { state: session::State::Running.into(), count: 3 };
        let count = |state: &str, count| ExecutionCount { state: state.into(), count, ..Default::default() };
        let crashed = ExecutionCount {
            language: "python".into(),
            cause: "executor_lost".into(),
            ..count("crashed", 4)
        };
        let told = GetStatisticsResponse {
            sessions: vec![session],
            active_executions: vec![count("pending", 2)],
            ended_executions: vec![crashed],
            recoveries: 5,
            retries: 6,
            warm_starts: 7,
            cold_starts: 8,
        };
        learned.statistics(told).unwrap();
        let text = String::from_utf8(Metrics::new().unwrap().text(&learned).unwrap()).unwrap();
        for line in [
            "sandmesh_sessions{state=\"running\"} 3",
            "sandmesh_executions_active{state=\"pending\"} 2",
            "sandmesh_executions_total{cause=\"executor_lost\",language=\"python\",state=\"crashed\"} 4",
            "sandmesh_session_recoveries_total 5",
            "sandmesh_execution_retries_total 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn pools_are_added_up_with_their_profiles() {
        let profile = ProfileStatus {
            target: 3,
            warm: 2,
            last_error: "no room".to_owned(),
            ..ProfileStatus::default()
        };
        let pool = |profiles| Pool { target: 5, warm: 4, cold: 1, profiles, ..Pool::default() };
        let learned = Learned::default();
        learned.pools(&[pool(vec![profile.clone(), profile]), pool(Vec::new())]).unwrap();
        let text = String::from_utf8(Metrics::new().unwrap().text(&learned).unwrap()).unwrap();
        for line in [
            "sandmesh_pool_sandboxes{state=\"target\"} 16",
            "sandmesh_pool_sandboxes{state=\"warm\"} 12",
            "sandmesh_pool_sandboxes{state=\"cold\"} 2",
            "sandmesh_pools_failing 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn nodes_are_added_up_and_none_is_named() {
        let learned = Learned::default();
        learned
            .nodes(&[node(true, false, false), node(true, false, true), node(false, true, false)])
            .unwrap();
        learned.roles(&[("session", true), ("scheduler", false)]).unwrap();
        let text = String::from_utf8(Metrics::new().unwrap().text(&learned).unwrap()).unwrap();
        for line in [
            "sandmesh_nodes{state=\"healthy\"} 1",
            "sandmesh_nodes{state=\"draining\"} 1",
            "sandmesh_nodes{state=\"lost\"} 1",
            "sandmesh_nodes{state=\"silent\"} 0",
            "sandmesh_sandboxes 6",
            "sandmesh_sandboxes_limit 30",
            "sandmesh_nodes_memory_bytes{kind=\"capacity\"} 300",
            "sandmesh_nodes_memory_bytes{kind=\"allocated\"} 90",
            "sandmesh_role_up{role=\"scheduler\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }
}
