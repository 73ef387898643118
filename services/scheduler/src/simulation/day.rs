//! A day, event by event: who comes and goes, what nodes do, when pools are looked at. What sessions go through is in
//! `sessions.rs`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sandmesh_mesh::{CancellationToken, Clock, HumanDuration, Link, ManualClock};

use super::{
    Options,
    agents::Agent,
    demand::{self, Arrival, TEMPLATES},
    outcome::{Figures, Outcome},
    pooled::Pools,
    sessions::{Gone, Session, Waiting},
};
use crate::{Config, config, queue::Lines, registry::Registry};

/// A second, in the microseconds that times are in here.
pub(super) const SECOND: u64 = 1_000_000;

/// How often a node reports, in seconds; more seldom than in a mesh, as a day of ten thousand nodes has many.
const REPORT: u64 = 60;

/// How often it is looked at pools, in seconds.
const LOOK: u64 = 2;

/// How often a sample is taken, in seconds.
const SAMPLE: u64 = 60;

/// How many hours pass between two failures of one node, and between two times that it is drained.
const FAILS: f64 = 500.0;
const DRAINS: f64 = 300.0;

/// How long all have to come to rest when nobody comes any more, in seconds.
const REST: u64 = 300;

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    Arrival,
    Burst,
    Session(Arrival),
    /// It has what it claimed.
    Claimed {
        session: u64,
        warm_id: String,
        node: usize,
    },
    /// Its sandbox is made.
    Made {
        session: u64,
        node: usize,
    },
    /// A warm one was removed for it.
    Room {
        session: u64,
        warm_id: String,
        node: usize,
    },
    /// Its node did not answer.
    Away {
        session: u64,
        node: usize,
    },
    /// It has waited as long as one may.
    Impatient(u64),
    End {
        session: u64,
        node: usize,
    },
    WarmMade {
        template: usize,
        id: String,
        node: usize,
        took: u64,
    },
    WarmRemoved {
        template: usize,
        id: String,
        node: usize,
    },
    Reports(u64),
    Look,
    Lost,
    Sample,
    Fail,
    Return(usize),
    Drain,
    Resume(usize),
}

/// Everything.
pub(super) struct Day {
    pub(super) options: Options,
    pub(super) random: StdRng,
    clock: ManualClock,
    pub(super) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    numbered: u64,
    pub(super) registry: Registry,
    link: Link,
    pub(super) agents: Vec<Agent>,
    pub(super) by_id: HashMap<String, usize>,
    pub(super) pools: Pools,
    pub(super) queue: Lines<Waiting>,
    pub(super) gone: Gone,
    pub(super) sessions: HashMap<u64, Session>,
    pub(super) config: Config,
    pub(super) outcome: Outcome,
    /// What happened since the last sample.
    pub(super) lately: Lately,
}

/// What happened since the last sample.
#[derive(Debug, Default)]
pub(super) struct Lately {
    pub(super) arrived: u64,
    pub(super) warm: u64,
    pub(super) cold: u64,
    pub(super) waited: u64,
    pub(super) decisions: Figures,
}

/// Lives through a day, or as many hours as are asked for.
#[must_use]
pub fn run(options: &Options) -> Outcome {
    let began = Instant::now();
    let mut day = Day::new(options);
    day.begin();
    let end = day.end();
    while let Some(((at, _), event)) = day.events.pop_first() {
        if at > end + REST * SECOND {
            break;
        }
        day.clock.advance(Duration::from_micros(at - day.now));
        day.now = at;
        day.happen(event);
        day.serve_queue();
    }
    day.finish();
    day.outcome.seconds = began.elapsed().as_secs_f64();
    day.outcome
}

fn settings(options: &Options) -> Config {
    let seconds = |seconds| HumanDuration(Duration::from_secs(seconds));
    let pools =
        config::Pools { starts_at_once: (options.nodes / 20).clamp(4, 1000), ..config::Pools::default() };
    Config {
        heartbeat_interval: seconds(REPORT),
        heartbeat_timeout: seconds(REPORT * 2 + 10),
        node_lost_after: seconds(REPORT * 5),
        max_nodes: options.nodes,
        pools,
        ..Config::default()
    }
}

impl Day {
    fn new(options: &Options) -> Self {
        let clock = ManualClock::new(DateTime::from_timestamp(2_000_000_000, 0).unwrap_or_default());
        let config = settings(options);
        let registry = Registry::new(config.clone(), Arc::new(clock.clone()), CancellationToken::new());
        let mut random = StdRng::seed_from_u64(options.seed);
        let images: Vec<String> = TEMPLATES.iter().map(demand::Template::image).collect();
        let agents: Vec<Agent> = (0..options.nodes).map(|n| Agent::new(n, &images, &mut random)).collect();
        Self {
            by_id: agents.iter().enumerate().map(|(n, agent)| (agent.id.clone(), n)).collect(),
            pools: Pools::new(options.nodes, config.pools.clone(), clock.now()),
            queue: Lines::new(config.queue.max_waiting as usize),
            options: options.clone(),
            random,
            clock,
            now: 0,
            events: BTreeMap::new(),
            numbered: 0,
            registry,
            link: Link::local(tonic::service::Routes::default().into_axum_router()),
            agents,
            gone: Gone::default(),
            sessions: HashMap::new(),
            config,
            outcome: Outcome::default(),
            lately: Lately::default(),
        }
    }

    fn end(&self) -> u64 {
        micros(self.options.hours * 3600.0)
    }

    /// The time as the registry knows it.
    pub(super) fn time(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Has something happen so many microseconds from now.
    pub(super) fn after(&mut self, pause: u64, event: Event) {
        self.numbered += 1;
        self.events.insert((self.now + pause, self.numbered), event);
    }

    fn begin(&mut self) {
        for n in 0..self.agents.len() {
            self.report(n);
            self.registry.opened(&self.agents[n].id, Vec::new());
        }
        for group in 0..REPORT {
            self.after(group * SECOND, Event::Reports(group));
        }
        for event in [Event::Arrival, Event::Look, Event::Lost, Event::Sample] {
            self.after(SECOND, event);
        }
        self.again(Event::Burst, 0.5);
        self.again(Event::Fail, f64::from(self.options.nodes) / FAILS);
        self.again(Event::Drain, f64::from(self.options.nodes) / DRAINS);
    }

    /// Has something happen some time, so often in an hour.
    fn again(&mut self, event: Event, hourly: f64) {
        let pause = demand::pause(hourly, &mut self.random);
        self.after(micros(pause * 3600.0), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival => self.arrive(),
            Event::Burst => self.burst(),
            Event::Session(arrival) => self.ask(arrival),
            Event::Claimed { session, warm_id, node } => self.claimed(session, &warm_id, node),
            Event::Made { session, node } => self.made(session, node),
            Event::Room { session, warm_id, node } => self.room_made(session, &warm_id, node),
            Event::Away { session, node } => self.away(session, node),
            Event::Impatient(session) => self.impatient(session),
            Event::End { session, node } => self.end_of(session, node),
            Event::WarmMade { template, id, node, took } => self.warm_made(template, &id, node, took),
            Event::WarmRemoved { template, id, node } => self.warm_removed(template, &id, node),
            Event::Reports(group) => self.reports(group),
            Event::Look => self.look(),
            Event::Lost => self.lose(),
            Event::Sample => self.sample(),
            Event::Fail => self.fail(),
            Event::Return(node) => self.come_back(node),
            Event::Drain => self.drain(),
            Event::Resume(node) => self.set_draining(node, false),
        }
    }

    fn arrive(&mut self) {
        if self.now >= self.end() {
            return;
        }
        let hour = self.now as f64 / SECOND as f64 / 3600.0;
        let rate = demand::busiest_rate(self.options.sandboxes) * demand::tide(hour);
        let (pause, arrival) = (demand::pause(rate, &mut self.random), Arrival::any(&mut self.random));
        self.after(micros(pause), Event::Arrival);
        self.ask(arrival);
    }

    /// One tenant asks for many of one template, within ten seconds.
    fn burst(&mut self) {
        self.again(Event::Burst, 0.5);
        if self.now >= self.end() {
            return;
        }
        let most = (self.options.nodes / 5).max(20);
        let (count, template) =
            (self.random.random_range(most / 4..=most), demand::template_of(&mut self.random));
        for _ in 0..count {
            let arrival = Arrival::of(template, "tenant-of-bursts".to_owned(), &mut self.random);
            let pause = self.random.random_range(0..10 * SECOND);
            self.after(pause, Event::Session(arrival));
        }
    }

    fn reports(&mut self, group: u64) {
        self.after(REPORT * SECOND, Event::Reports(group));
        for n in (usize::try_from(group).unwrap_or_default()..self.agents.len()).step_by(60) {
            if !self.agents[n].is_down {
                self.report(n);
            }
        }
    }

    fn report(&mut self, n: usize) {
        let (node, link) = (self.agents[n].node(), self.link.clone());
        let began = Instant::now();
        let follow = self.registry.report(node, link);
        self.outcome.reports.add(began.elapsed().as_secs_f64() * 1e6);
        if let Ok(Some(_)) = follow {
            let there = self.agents[n].sandboxes.values().cloned().collect();
            self.registry.opened(&self.agents[n].id, there);
        }
    }

    fn lose(&mut self) {
        self.after(REPORT * SECOND, Event::Lost);
        self.registry.declare_lost();
    }

    /// A machine dies, with all that is on it.
    fn fail(&mut self) {
        self.again(Event::Fail, f64::from(self.options.nodes) / FAILS);
        let n = self.random.random_range(0..self.agents.len());
        if self.agents[n].is_down || self.now >= self.end() {
            return;
        }
        self.outcome.events.0 += 1;
        self.agents[n].is_down = true;
        self.registry.closed(&self.agents[n].id);
        for id in std::mem::take(&mut self.agents[n].sandboxes).into_keys() {
            self.lose_session(&id);
        }
        let minutes = self.random.random_range(1..60);
        self.after(minutes * 60 * SECOND, Event::Return(n));
    }

    fn come_back(&mut self, n: usize) {
        self.agents[n].is_down = false;
        self.report(n);
        let there = self.agents[n].sandboxes.values().cloned().collect();
        self.registry.opened(&self.agents[n].id, there);
    }

    fn drain(&mut self) {
        self.again(Event::Drain, f64::from(self.options.nodes) / DRAINS);
        let n = self.random.random_range(0..self.agents.len());
        if !self.agents[n].is_down && self.now < self.end() {
            self.outcome.events.1 += 1;
            self.set_draining(n, true);
            self.after(3600 * SECOND, Event::Resume(n));
        }
    }

    fn set_draining(&mut self, n: usize, draining: bool) {
        self.agents[n].draining = draining;
        if !self.agents[n].is_down {
            self.registry.told(self.agents[n].node());
        }
    }

    fn sample(&mut self) {
        self.after(SAMPLE * SECOND, Event::Sample);
        let up = self.agents.iter().filter(|agent| !agent.is_down);
        let (places, used) = up.fold((0.0, 0.0), |(places, used), agent| {
            (places + f64::from(agent.places()), used + agent.sandboxes.len() as f64)
        });
        let warm: u32 = self.pools.count(&self.registry).iter().map(|(_, count)| count).sum();
        let sessions = self.sessions.len() as u64;
        let (most, most_warm) = self.outcome.peak;
        self.outcome.peak = (most.max(sessions), most_warm.max(warm.into()));
        if self.now > self.end() {
            return;
        }
        let lately = std::mem::take(&mut self.lately);
        let used_percent = 100.0 * used / places;
        self.outcome.used.add(used_percent);
        self.outcome.samples.push([
            self.now as f64 / SECOND as f64 / 3600.0,
            sessions as f64,
            lately.arrived as f64 / SAMPLE as f64,
            used_percent,
            100.0 * lately.warm as f64 / (lately.warm + lately.cold).max(1) as f64,
            warm.into(),
            lately.waited as f64,
            lately.decisions.quantile(0.99),
        ]);
    }

    fn look(&mut self) {
        self.after(LOOK * SECOND, Event::Look);
        let began = Instant::now();
        let work = self.pools.look(&self.registry, self.time());
        self.outcome.passes.add(began.elapsed().as_secs_f64() * 1e6);
        for work in work {
            for (id, node_id) in work.to_do.remove {
                let node = self.by_id.get(&node_id).copied().unwrap_or_default();
                self.after(SECOND / 10, Event::WarmRemoved { template: work.template, id, node });
            }
            for _ in 0..work.to_do.start {
                self.start_warm(work.template);
            }
        }
    }

    fn finish(&mut self) {
        self.outcome.alive = self.sessions.len() as u64;
        self.outcome.waiting = self.queue.len() as u64;
        for (n, (settings, count)) in self.pools.count(&self.registry).into_iter().enumerate() {
            if !(settings.min..=settings.max).contains(&count) {
                let outside = format!("{count} of {} for {settings:?}", TEMPLATES[n].id);
                self.outcome.pools_outside.push(outside);
            }
        }
    }
}

/// Seconds in microseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "no time here is negative or long"
)]
pub(super) fn micros(seconds: f64) -> u64 {
    (seconds * SECOND as f64) as u64
}
