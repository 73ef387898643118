//! Who kills: at each step one victim at random, with a `kill -9`, and the start of what was killed before.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use rustix::process::Signal;
use sandmesh_mesh::database::testing::OwnServer;
use serde_json::Value;
use tokio::sync::Notify;

use super::{evidence::Evidence, log::Shared, mesh::Mesh};
use crate::harness::{
    Bucket, TestEngine,
    process::{children_of, signal},
};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    /// A client's connection.
    Client,
    /// A process of the mesh of this kind, one of two where there are two.
    Process(&'static str),
    /// The database server.
    Database,
    /// The server of the bucket.
    Bucket,
    /// Every process of the mesh at once.
    Mesh,
    /// The engine that makes containers.
    Engine,
    /// The first process of a container.
    Container,
    /// The executor of a sandbox.
    Executor,
    /// A process of the jail in a sandbox: bubblewrap, or what it started first.
    Jail,
}

impl Victim {
    /// The name in the table.
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client connection",
            Self::Process("gateway") => "gateway",
            Self::Process("session") => "session role",
            Self::Process("agent") => "agent",
            Self::Process("control") => "scheduler and template roles",
            Self::Process("watch") => "health-probe and state-sync roles",
            Self::Process(other) => other,
            Self::Database => "database server",
            Self::Bucket => "object store",
            Self::Mesh => "every process of the mesh",
            Self::Engine => "engine of containers",
            Self::Container => "container",
            Self::Executor => "executor",
            Self::Jail => "jail parent",
        }
    }
}

/// How often each is killed, of what there is.
const SHARES: [(Victim, u32); 13] = [
    (Victim::Client, 25),
    (Victim::Process("gateway"), 15),
    (Victim::Process("session"), 15),
    (Victim::Executor, 13),
    (Victim::Jail, 15),
    (Victim::Process("agent"), 8),
    (Victim::Process("control"), 5),
    (Victim::Process("watch"), 4),
    (Victim::Database, 3),
    (Victim::Bucket, 4),
    (Victim::Mesh, 5),
    (Victim::Engine, 15),
    (Victim::Container, 13),
];

/// The longest that a killed process stays away.
const AWAY_MS: u64 = 400;

/// How long one of two may stay away: others take over what it had, or do not.
const LONG_AWAY_MS: std::ops::Range<u64> = 2_000..20_000;

/// How many of a hundred do.
const LONG_AWAY: u32 = 15;

/// How long the database, the bucket or the engine stays away.
const STORE_AWAY_MS: std::ops::Range<u64> = 100..6_000;

/// For so long after the engine was killed may an agent end by itself: one that starts without an engine does, and
/// whoever supervises it starts it again.
const WITHOUT_ENGINE: Duration = Duration::from_secs(30);

/// How long that one waits.
const PAUSE_OF_SUPERVISOR: Duration = Duration::from_millis(500);

/// How long that may go on once nothing is killed any more.
const SETTLES: Duration = Duration::from_secs(60);

/// The exit code of a session role whose sessions another took over.
const SUPERSEDED: i32 = 75;

/// Kills, and starts again.
pub(super) struct Killer<'a> {
    pub(super) mesh: &'a mut Mesh,
    pub(super) rng: StdRng,
    pub(super) clients: Vec<Arc<Notify>>,
    pub(super) shared: Arc<Shared>,
    pub(super) evidence: &'a mut Evidence,
    pub(super) kills: BTreeMap<String, u32>,
    /// When what was killed is started again, by its name.
    pub(super) away: BTreeMap<String, Instant>,
    /// When the engine of containers was killed last.
    pub(super) engine_killed: Option<Instant>,
}

impl Killer<'_> {
    /// Kills so often and for so long at most, with pauses of `pause` on average, and leaves everything
    /// running.
    pub(super) async fn rage(&mut self, kills: u32, at_most: Duration, pause: Duration) {
        let (mut done, end) = (0, Instant::now() + at_most);
        while done < kills && Instant::now() < end {
            tokio::time::sleep(pause.mul_f64(self.rng.random_range(0.1..1.9))).await;
            self.evidence.look();
            self.start_again(Instant::now());
            let victim = self.choose();
            if self.kill(victim) {
                *self.kills.entry(victim.name().to_owned()).or_default() += 1;
                done += 1;
            }
        }
        self.start_again(Instant::now() + Duration::from_secs(3600));
        self.settle().await;
    }

    /// Starts who ends for want of an engine, until all are well.
    async fn settle(&mut self) {
        let (api, began) = (self.mesh.server().api.clone(), Instant::now());
        while self.mesh.engine().is_some() && began.elapsed() < SETTLES {
            self.start_again(Instant::now());
            let health = api.try_get("/health/detailed").await;
            if health.is_some_and(|health| health.body["status"] == "healthy") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn choose(&mut self) -> Victim {
        let all: u32 = SHARES.iter().map(|(_, share)| share).sum();
        let mut at = self.rng.random_range(0..all);
        for (victim, share) in SHARES {
            match at.checked_sub(share) {
                Some(rest) => at = rest,
                None => return victim,
            }
        }
        Victim::Client
    }

    /// False when there is none of that kind now.
    fn kill(&mut self, victim: Victim) -> bool {
        match victim {
            Victim::Client => self.cut(),
            Victim::Process(kind) => self.kill_process(kind),
            Victim::Database | Victim::Bucket | Victim::Engine => self.kill_store(victim),
            Victim::Mesh => self.kill_mesh(),
            Victim::Executor => self.kill_executor(),
            Victim::Container => self.kill_container(),
            Victim::Jail => self.kill_jail(),
        }
    }

    fn cut(&mut self) -> bool {
        let client = self.clients.choose(&mut self.rng);
        client.inspect(|client| client.notify_waiters()).is_some()
    }

    fn kill_process(&mut self, kind: &'static str) -> bool {
        let names = self.mesh.server().processes.iter().map(|process| process.launch.name.clone());
        let of_kind: Vec<String> = names.filter(|name| name.trim_end_matches("-2") == kind).collect();
        let long = of_kind.len() > 1 && self.rng.random_range(0..100) < LONG_AWAY;
        let Some(name) = of_kind.choose(&mut self.rng).filter(|name| !self.away.contains_key(*name)) else {
            return false;
        };
        let back = if long { LONG_AWAY_MS } else { 0..AWAY_MS };
        let name = name.clone();
        self.kill_named(name, back);
        true
    }

    fn kill_named(&mut self, name: String, back: std::ops::Range<u64>) {
        let back = Duration::from_millis(self.rng.random_range(back));
        self.mesh.server().process(&name).kill();
        if name.starts_with("session") {
            self.shared.log().session_role_killed.push(Instant::now());
        }
        self.away.insert(name, Instant::now() + back);
    }

    /// As if the machine of a mesh that has one had been switched off, but for its sandboxes.
    fn kill_mesh(&mut self) -> bool {
        let processes = &self.mesh.server().processes;
        let names: Vec<String> = processes.iter().map(|process| process.launch.name.clone()).collect();
        let are_there = names.iter().all(|name| !self.away.contains_key(name) && !name.ends_with("-2"));
        if are_there {
            names.into_iter().for_each(|name| self.kill_named(name, 0..AWAY_MS));
        }
        are_there
    }

    fn kill_store(&mut self, victim: Victim) -> bool {
        if self.away.contains_key(victim.name()) {
            return false;
        }
        let there = match victim {
            Victim::Database => self.mesh.database().map(OwnServer::kill),
            Victim::Engine => self.mesh.engine().map(TestEngine::kill),
            _ => self.mesh.bucket().map(Bucket::stop),
        };
        if there.is_none() {
            return false;
        }
        if victim == Victim::Engine {
            self.engine_killed = Some(Instant::now());
        }
        let back = Duration::from_millis(self.rng.random_range(STORE_AWAY_MS));
        self.away.insert(victim.name().to_owned(), Instant::now() + back);
        true
    }

    /// Starts what has been away long enough. Nothing ends but by being killed, or because another took over
    /// what it had.
    fn start_again(&mut self, now: Instant) {
        self.start_stores_again(now);
        for process in &mut self.mesh.server().processes {
            let name = process.launch.name.clone();
            let Some(status) = process.exited() else { continue };
            match self.away.get(&name) {
                Some(back) if *back > now => continue,
                Some(_) => {}
                None if name.starts_with("session") && status.code() == Some(SUPERSEDED) => {
                    self.shared.log().session_role_killed.push(Instant::now());
                    *self.kills.entry("  ended by itself, as it was superseded".to_owned()).or_default() += 1;
                }
                None if name == "agent"
                    && self.engine_killed.is_some_and(|at| at.elapsed() < WITHOUT_ENGINE) =>
                {
                    *self.kills.entry("  ended by itself, without an engine".to_owned()).or_default() += 1;
                    self.away.insert(name, now + PAUSE_OF_SUPERVISOR);
                    continue;
                }
                None => {
                    let log = process.log_tail(3);
                    self.shared.violation(format!("{name} ended by itself with {status}\n{log}"));
                }
            }
            self.away.remove(&name);
            *process = process.launch.spawn();
        }
    }

    fn start_stores_again(&mut self, now: Instant) {
        for victim in [Victim::Database, Victim::Bucket, Victim::Engine] {
            if self.away.get(victim.name()).is_none_or(|back| *back > now) {
                continue;
            }
            self.away.remove(victim.name());
            tokio::task::block_in_place(|| match victim {
                Victim::Database => self.mesh.database().map(OwnServer::start_again),
                Victim::Engine => self.mesh.engine().map(TestEngine::start_again),
                _ => self.mesh.bucket().map(Bucket::start_again),
            });
        }
    }

    fn kill_executor(&mut self) -> bool {
        let executors = self.executors();
        self.kill_in_sandbox(&executors)
    }

    fn kill_container(&mut self) -> bool {
        let containers = self.containers();
        self.kill_in_sandbox(&containers)
    }

    /// Kills one of these, without which its sandbox, whose directory is beside it, is dead.
    fn kill_in_sandbox(&mut self, all: &[(i32, PathBuf)]) -> bool {
        let Some((pid, dir)) = all.choose(&mut self.rng) else { return false };
        let bereft = self.session_of(dir);
        self.evidence.look();
        signal(*pid, Signal::KILL);
        self.shared.log().bereft.extend(bereft);
        true
    }

    fn kill_jail(&mut self) -> bool {
        let executors: Vec<i32> = self.executors().into_iter().map(|(pid, _)| pid).collect();
        let outer = children_of(&executors);
        let inner = children_of(&outer);
        let all = [outer, inner].concat();
        all.choose(&mut self.rng).inspect(|pid| signal(**pid, Signal::KILL)).is_some()
    }

    /// The executors, with the directories of their sandboxes.
    fn executors(&mut self) -> Vec<(i32, PathBuf)> {
        let containers = self.containers();
        let inside = containers.iter().flat_map(|(first, dir)| {
            let children = children_of(&[*first]).into_iter();
            children.filter(|pid| words_of(*pid).contains("sandmesh-executor")).map(|pid| (pid, dir.clone()))
        });
        let dir = |pid: i32| {
            words_of(pid).split('\0').skip_while(|word| *word != "--dir").nth(1).map(PathBuf::from)
        };
        let outside = self.mesh.server().executors();
        outside.into_iter().filter_map(|pid| Some((pid, dir(pid)?))).chain(inside).collect()
    }

    /// The first processes of containers, by the records beside their sandboxes, with the directories of these.
    fn containers(&mut self) -> Vec<(i32, PathBuf)> {
        let entries = fs::read_dir(self.mesh.server().data_dir().join("sandboxes")).into_iter().flatten();
        let dirs = entries.flatten().map(|entry| entry.path());
        let first = |dir: PathBuf| {
            let record = record_of(&dir)?;
            record["container"]["id"].as_str()?;
            let pid = i32::try_from(record["process"]["pid"].as_i64()?).ok()?;
            words_of(pid).contains("sandmesh-executor").then_some((pid, dir))
        };
        dirs.filter_map(first).collect()
    }

    /// The session that a sandbox belongs to, by the record beside it, and whether that is at the second node.
    fn session_of(&mut self, dir: &Path) -> Option<(String, bool)> {
        let record = record_of(dir)?;
        let nodes = self.mesh.server().nodes();
        let second = nodes.get(1).is_some_and(|(data_dir, _)| dir.starts_with(data_dir));
        Some((record["spec"]["session_id"].as_str()?.to_owned(), second))
    }
}

fn record_of(dir: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(dir.join("sandbox.json")).ok()?).ok()
}

/// The command line of a process.
fn words_of(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).into_owned()
}
