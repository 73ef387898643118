//! Who kills: at each step one victim at random, with a `kill -9`, and the start of what was killed before.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
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
    Bucket,
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
            Self::Executor => "executor",
            Self::Jail => "jail parent",
        }
    }
}

/// How often each is killed, of what there is.
const SHARES: [(Victim, u32); 10] = [
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
];

/// The longest that a killed process stays away.
const AWAY_MS: u64 = 400;

/// How long one of two may stay away: others take over what it had, or do not.
const LONG_AWAY_MS: std::ops::Range<u64> = 2_000..20_000;

/// How many of a hundred do.
const LONG_AWAY: u32 = 15;

/// How long the database or the bucket stays away.
const STORE_AWAY_MS: std::ops::Range<u64> = 100..6_000;

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
            Victim::Database | Victim::Bucket => self.kill_store(victim),
            Victim::Executor => self.kill_executor(),
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
        let back = Duration::from_millis(self.rng.random_range(back));
        self.mesh.server().process(name).kill();
        self.away.insert(name.clone(), Instant::now() + back);
        if kind == "session" {
            self.shared.log().session_role_killed.push(Instant::now());
        }
        true
    }

    fn kill_store(&mut self, victim: Victim) -> bool {
        if self.away.contains_key(victim.name()) {
            return false;
        }
        let there = match victim {
            Victim::Database => self.mesh.database().map(OwnServer::kill),
            _ => self.mesh.bucket().map(Bucket::stop),
        };
        let back = Duration::from_millis(self.rng.random_range(STORE_AWAY_MS));
        self.away.insert(victim.name().to_owned(), Instant::now() + back);
        there.is_some()
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
        for victim in [Victim::Database, Victim::Bucket] {
            if self.away.get(victim.name()).is_none_or(|back| *back > now) {
                continue;
            }
            self.away.remove(victim.name());
            tokio::task::block_in_place(|| match victim {
                Victim::Database => self.mesh.database().map(OwnServer::start_again),
                _ => self.mesh.bucket().map(Bucket::start_again),
            });
        }
    }

    fn kill_executor(&mut self) -> bool {
        let Some(pid) = self.mesh.server().executors().choose(&mut self.rng).copied() else { return false };
        let bereft = self.session_of(pid);
        self.evidence.look();
        signal(pid, Signal::KILL);
        self.shared.log().bereft.extend(bereft);
        true
    }

    fn kill_jail(&mut self) -> bool {
        let outer = children_of(&self.mesh.server().executors());
        let inner = children_of(&outer);
        let all = [outer, inner].concat();
        all.choose(&mut self.rng).inspect(|pid| signal(**pid, Signal::KILL)).is_some()
    }

    /// The session that the sandbox of an executor belongs to, by the record beside it, and whether that is at
    /// the second node.
    fn session_of(&mut self, executor: i32) -> Option<(String, bool)> {
        let line = fs::read_to_string(format!("/proc/{executor}/cmdline")).ok()?;
        let dir = line.split('\0').skip_while(|word| *word != "--dir").nth(1)?;
        let record: Value = serde_json::from_slice(&fs::read(format!("{dir}/sandbox.json")).ok()?).ok()?;
        let nodes = self.mesh.server().nodes();
        let second = nodes.get(1).is_some_and(|(data_dir, _)| Path::new(dir).starts_with(data_dir));
        Some((record["spec"]["session_id"].as_str()?.to_owned(), second))
    }
}
