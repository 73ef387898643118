//! Who kills: at each step one victim at random, with a `kill -9`, and the start of what was killed before.

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::Notify;

use super::{evidence::Evidence, log::Shared};
use crate::harness::{
    Server,
    process::{children_of, signal},
};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    /// A client's connection.
    Client,
    /// One of the processes of the mesh, by its name.
    Process(&'static str),
    /// The executor of a sandbox.
    Executor,
    /// A process of the jail in a sandbox: bubblewrap, or what it started first.
    Jail,
}

impl Victim {
    /// The name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Client => "client connection",
            Self::Process("gateway") => "gateway",
            Self::Process("session") => "session role",
            Self::Process("agent") => "agent",
            Self::Process("control") => "scheduler and template roles",
            Self::Process("watch") => "health-probe and state-sync roles",
            Self::Process(other) => other,
            Self::Executor => "executor",
            Self::Jail => "jail parent",
        }
    }
}

/// How often each is killed, of a hundred.
const SHARES: [(Victim, u32); 8] = [
    (Victim::Client, 25),
    (Victim::Process("gateway"), 15),
    (Victim::Process("session"), 15),
    (Victim::Executor, 13),
    (Victim::Jail, 15),
    (Victim::Process("agent"), 8),
    (Victim::Process("control"), 5),
    (Victim::Process("watch"), 4),
];

/// The longest that a killed process stays away.
const AWAY_MS: u64 = 400;

/// Kills, and starts again.
pub(super) struct Killer<'a> {
    pub(super) server: &'a mut Server,
    pub(super) rng: StdRng,
    pub(super) clients: Vec<Arc<Notify>>,
    pub(super) shared: Arc<Shared>,
    pub(super) evidence: &'a mut Evidence,
    pub(super) kills: BTreeMap<Victim, u32>,
    /// When processes that were killed are started again.
    pub(super) away: BTreeMap<&'static str, Instant>,
}

impl Killer<'_> {
    /// Kills so often, with pauses of `pause` on average, and leaves everything running.
    pub(super) async fn rage(&mut self, kills: u32, pause: Duration) {
        let mut done = 0;
        while done < kills {
            tokio::time::sleep(pause.mul_f64(self.rng.random_range(0.1..1.9))).await;
            self.evidence.look();
            self.start_again(Instant::now());
            let victim = self.choose();
            if self.kill(victim) {
                *self.kills.entry(victim).or_default() += 1;
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
            Victim::Process(name) => self.kill_process(name),
            Victim::Executor => self.kill_executor(),
            Victim::Jail => self.kill_jail(),
        }
    }

    fn cut(&mut self) -> bool {
        let client = self.clients.choose(&mut self.rng);
        client.inspect(|client| client.notify_waiters()).is_some()
    }

    fn kill_process(&mut self, name: &'static str) -> bool {
        if self.away.contains_key(name) {
            return false;
        }
        let back = Duration::from_millis(self.rng.random_range(0..AWAY_MS));
        self.server.process(name).kill();
        self.away.insert(name, Instant::now() + back);
        if name == "session" {
            self.shared.log().session_role_killed.push(Instant::now());
        }
        true
    }

    /// Starts what has been away long enough. Nothing ends but by being killed.
    fn start_again(&mut self, now: Instant) {
        for process in &mut self.server.processes {
            let name = process.launch.name.clone();
            let Some(status) = process.exited() else { continue };
            match self.away.get(name.as_str()) {
                Some(back) if *back > now => continue,
                Some(_) => {}
                None => {
                    let log = process.log_tail(10);
                    self.shared.violation(format!("{name} ended by itself with {status}\n{log}"));
                }
            }
            self.away.remove(name.as_str());
            *process = process.launch.spawn();
        }
    }

    fn kill_executor(&mut self) -> bool {
        let Some(pid) = self.server.executors().choose(&mut self.rng).copied() else { return false };
        let session = session_of(pid);
        self.evidence.look();
        signal(pid, Signal::KILL);
        self.shared.log().bereft.extend(session);
        true
    }

    fn kill_jail(&mut self) -> bool {
        let outer = children_of(&self.server.executors());
        let inner = children_of(&outer);
        let all = [outer, inner].concat();
        all.choose(&mut self.rng).inspect(|pid| signal(**pid, Signal::KILL)).is_some()
    }
}

/// The session that the sandbox of an executor belongs to, by the record beside it.
fn session_of(executor: i32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{executor}/cmdline")).ok()?;
    let dir = line.split('\0').skip_while(|word| *word != "--dir").nth(1)?.to_owned();
    let record: Value = serde_json::from_slice(&fs::read(format!("{dir}/sandbox.json")).ok()?).ok()?;
    record["spec"]["session_id"].as_str().map(str::to_owned)
}
