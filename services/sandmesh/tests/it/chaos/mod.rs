//! Chaos: the parts of a mesh are killed at random while clients use it. Afterwards every execution that was
//! accepted must have ended once, whole or with a reason, and nothing may be left over.
//!
//! A short campaign is a test; a long one is `just chaos`.

mod client;
mod evidence;
mod job;
mod killer;
mod log;
mod mesh;
mod report;
mod verdict;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use sandmesh_mesh::database::testing::Kind;
use serde_json::json;
use tokio::{sync::Notify, task::JoinSet};

use crate::harness::engine;

pub(crate) use self::report::Report;
use self::{
    client::{Client, Slot},
    evidence::Evidence,
    killer::Killer,
    log::{Log, Shared},
    mesh::Mesh,
    verdict::Verdict,
};

/// How long clients may take to end what they have begun, once nothing is killed any more.
const LAST_ORDERS: Duration = Duration::from_secs(240);

/// How long the mesh works undisturbed at first.
const PEACE: Duration = Duration::from_secs(1);

/// The pause between two kills where sandboxes are containers, which take longer to make.
pub(crate) const CONTAINER_PAUSE: Duration = Duration::from_millis(700);

/// The mesh that is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    /// One process of each kind, with a database in a file and objects in a directory.
    One,
    /// The same with containers for sandboxes, on an engine of this kind that keeps them when it dies, which it does.
    InContainers(engine::Kind),
    /// Two of every process and two nodes, with a database server and a bucket, which die, too.
    Two(Kind),
}

/// A campaign.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Campaign {
    /// The mesh that is attacked.
    pub(crate) parts: Parts,
    /// How often something is killed, at most.
    pub(crate) kills: u32,
    /// For how long, at most.
    pub(crate) at_most: Duration,
    /// Which random choices are made; when they take effect is up to the machine.
    pub(crate) seed: u64,
    /// How many clients work at once.
    pub(crate) clients: u64,
    /// How many sessions they share.
    pub(crate) sessions: u64,
    /// The pause between two kills, on average.
    pub(crate) pause: Duration,
    /// Whether every execution gets a jail and an interpreter of its own.
    pub(crate) fresh: bool,
}

impl Campaign {
    /// Runs it on a mesh of its own.
    pub(crate) async fn run(self) -> Report {
        let interpreters = if self.fresh { "fresh" } else { "warm" };
        // A session whose executor is killed ends, so that each execution has one end to be checked.
        let settings = [
            ("SANDMESH_AGENT__ISOLATION__INTERPRETERS", interpreters),
            ("SANDMESH_SESSION__MAX_RECOVERIES", "0"),
        ];
        let mut mesh = Mesh::start(self.parts, &settings).await;
        mesh.set_pool(json!({"min": 2, "max": 4})).await;
        let began = Instant::now();
        let shared = Arc::new(Shared::default());
        let cuts: Vec<Arc<Notify>> = (0..self.clients).map(|_| Arc::default()).collect();
        let mut clients = self.clients(&mesh, &shared, &cuts);
        let mut evidence = Evidence::new(&mesh.server().nodes());
        tokio::time::sleep(PEACE).await;
        let mut killer = Killer {
            rng: StdRng::seed_from_u64(self.seed),
            clients: cuts,
            shared: Arc::clone(&shared),
            evidence: &mut evidence,
            kills: BTreeMap::new(),
            away: BTreeMap::new(),
            engine_killed: None,
            mesh: &mut mesh,
        };
        killer.rage(self.kills, self.at_most, self.pause).await;
        let kills = killer.kills;
        mesh.server().ready().await;
        shared.stop();
        let all = async { while clients.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_ORDERS, all).await.is_err() {
            shared.violation(format!("{} clients do not come to an end", clients.len()));
        }
        evidence.look();
        let mut log = std::mem::take(&mut *shared.log());
        log.explain(mesh.server());
        let mut verdict = Verdict::of(mesh.server(), &log, &evidence.runs()).await;
        verdict.check_sandboxes(&mut mesh).await;
        verdict.clean_up(&mut mesh, &log).await;
        self.report(began.elapsed(), kills, log, verdict)
    }

    fn clients(self, mesh: &Mesh, shared: &Arc<Shared>, cuts: &[Arc<Notify>]) -> JoinSet<()> {
        let slots: Vec<Arc<Slot>> = (0..self.sessions).map(|_| Arc::default()).collect();
        let mut clients = JoinSet::new();
        let doors = mesh.doors();
        let places = slots.iter().cycle().zip(doors.iter().cycle());
        for (cut, (number, (slot, (api, port)))) in cuts.iter().zip((1_u64..).zip(places)) {
            let client = Client {
                name: format!("c{number}"),
                api: api.clone(),
                address: format!("http://127.0.0.1:{port}"),
                slot: Arc::clone(slot),
                rng: StdRng::seed_from_u64(self.seed ^ number << 32),
                cut: Arc::clone(cut),
                shared: Arc::clone(shared),
            };
            clients.spawn(client.work());
        }
        clients
    }

    fn report(self, took: Duration, kills: BTreeMap<String, u32>, log: Log, verdict: Verdict) -> Report {
        Report {
            seed: self.seed,
            took,
            kills,
            sessions: log.sessions.len(),
            sessions_warm: verdict.warm,
            sessions_bereft: log.bereft.len(),
            accepted: log.accepted.len(),
            listed: verdict.listed,
            terminal: verdict.terminal,
            refused: log.refused,
            ends: verdict.ends,
            watched: log.accepted.iter().filter(|accepted| accepted.seen.is_some()).count(),
            seen_beyond: verdict.seen_beyond,
            retries: log.retries,
            violations: [log.violations, verdict.violations].concat(),
            leftovers: verdict.leftovers,
            forgotten: verdict.forgotten,
        }
    }
}

/// A short campaign, always with the same choices.
#[cfg(test)]
async fn short(parts: Parts, kills: u32, fresh: bool) {
    let pause =
        if matches!(parts, Parts::InContainers(_)) { CONTAINER_PAUSE } else { Duration::from_millis(120) };
    let at_most = Duration::from_secs(120);
    let campaign =
        Campaign { parts, kills, at_most, seed: 20_261_122, clients: 6, sessions: 3, pause, fresh };
    let report = campaign.run().await;
    println!("{report}");
    assert!(report.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whatever_is_killed_nothing_accepted_is_lost_doubled_or_left_over() {
    short(Parts::One, 24, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whatever_is_killed_nothing_accepted_is_lost_doubled_or_left_over_with_fresh_interpreters() {
    short(Parts::One, 24, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_of_two_of_everything_nothing_accepted_is_lost_doubled_or_left_over() {
    short(Parts::Two(Kind::MariaDb), 80, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_around_containers_of_docker_nothing_accepted_is_lost_doubled_or_left_over() {
    short(Parts::InContainers(engine::Kind::Docker), 20, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_around_containers_of_containerd_nothing_accepted_is_lost_doubled_or_left_over() {
    short(Parts::InContainers(engine::Kind::Containerd), 20, false).await;
}
