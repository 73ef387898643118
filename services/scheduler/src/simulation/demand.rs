//! Who asks for sandboxes, when, and for how long: a day with a quiet night, bursts, and durations of which a few are
//! very long.

use std::f64::consts::PI;

use rand::{Rng, rngs::StdRng};
use sandmesh_proto::{
    agent::SandboxSpec,
    executor::{Language, Resources},
};

use super::agents::GIB;

/// How many tenants there are; the first ask for most.
const TENANTS: f64 = 200.0;

/// No session is longer, in seconds.
const LONGEST: f64 = 3600.0;

/// One session in so many asks for a zone.
const PICKY: f64 = 0.02;

/// A template: how often it is asked for of a hundred times, how large and how long its sandboxes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Template {
    pub(super) id: &'static str,
    pub(super) percent: f64,
    cpu_millis: u32,
    memory_gib: f64,
    language: Language,
    /// The shortest session, in seconds. Half are 1.6 times as long and longer, one in ten nearly five times.
    shortest: f64,
    /// How long it takes to make one, in seconds.
    pub(super) making: f64,
    /// How long it takes to pull its image, in seconds.
    pub(super) pulling: f64,
}

const fn template(id: &'static str, percent: f64, size: (u32, f64), times: (f64, f64, f64)) -> Template {
    let (cpu_millis, memory_gib) = size;
    let (shortest, making, pulling) = times;
    Template { id, percent, cpu_millis, memory_gib, language: Language::Python, shortest, making, pulling }
}

/// The last two have no pool, and their images are large.
pub(super) const TEMPLATES: [Template; 8] = [
    template("python-basic", 32.0, (500, 0.5), (600.0, 1.5, 8.0)),
    template("nodejs-basic", 18.0, (500, 0.5), (600.0, 1.5, 10.0)),
    template("shell", 10.0, (250, 0.25), (120.0, 0.8, 4.0)),
    template("python-datascience", 16.0, (1000, 2.0), (900.0, 3.0, 30.0)),
    template("browser", 8.0, (2000, 2.0), (600.0, 5.0, 40.0)),
    template("build", 8.0, (4000, 4.0), (800.0, 3.0, 25.0)),
    template("model", 4.0, (4000, 8.0), (1200.0, 8.0, 90.0)),
    template("legacy", 4.0, (1000, 1.0), (600.0, 4.0, 60.0)),
];

/// How many of them have a pool.
pub(super) const POOLED: usize = 6;

impl Template {
    pub(super) fn image(&self) -> String {
        format!("registry.example/{}:1", self.id)
    }

    /// What a warm sandbox of it is.
    pub(super) fn spec(&self) -> SandboxSpec {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few GiB")]
        let memory_bytes = (self.memory_gib * GIB as f64) as u64;
        SandboxSpec {
            image: self.image(),
            resources: Some(Resources { cpu_millis: self.cpu_millis, memory_bytes, ..Resources::default() }),
            language: self.language.into(),
            template_id: self.id.to_owned(),
            ..SandboxSpec::default()
        }
    }

    /// How long a session is, in seconds: of a Pareto distribution, cut.
    pub(super) fn lasting(&self, random: &mut StdRng) -> f64 {
        (self.shortest * random.random_range(f64::EPSILON..1.0_f64).powf(-1.0 / SHAPE)).min(LONGEST)
    }

    /// The mean of that.
    fn mean(&self) -> f64 {
        let cut = (self.shortest / LONGEST).powf(SHAPE - 1.0);
        self.shortest * (SHAPE - cut) / (SHAPE - 1.0)
    }
}

/// The shape of the distribution: the smaller, the longer the longest.
const SHAPE: f64 = 1.5;

/// One session that is asked for.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) template: usize,
    pub(super) tenant: String,
    /// In which zone it is to be; empty: in any.
    pub(super) zone: String,
}

impl Arrival {
    pub(super) fn any(random: &mut StdRng) -> Self {
        let tenant = format!("tenant-{:.0}", (TENANTS * random.random::<f64>().powi(3)).floor());
        Self::of(template_of(random), tenant, random)
    }

    pub(super) fn of(template: usize, tenant: String, random: &mut StdRng) -> Self {
        let is_picky = random.random_bool(PICKY);
        let zone = if is_picky { random.random_range(0..3_u32).to_string() } else { String::new() };
        Self { template, tenant, zone }
    }

    /// What its sandbox is to be.
    pub(super) fn spec(&self, session: u64) -> SandboxSpec {
        let zone = Some(("node/zone".to_owned(), self.zone.clone())).filter(|_| !self.zone.is_empty());
        let tenant = ("tenant".to_owned(), self.tenant.clone());
        SandboxSpec {
            session_id: format!("ses_{session:016x}"),
            labels: std::iter::once(tenant).chain(zone).collect(),
            ..TEMPLATES[self.template].spec()
        }
    }
}

/// A template, as often as it is asked for.
pub(super) fn template_of(random: &mut StdRng) -> usize {
    let mut at = random.random_range(0.0..100.0);
    for (n, template) in TEMPLATES.iter().enumerate() {
        at -= template.percent;
        if at < 0.0 {
            return n;
        }
    }
    0
}

/// How many arrive in a second so that so many are there at the busiest time, without bursts.
pub(super) fn busiest_rate(sandboxes: u32) -> f64 {
    let mean: f64 = TEMPLATES.iter().map(|template| template.percent / 100.0 * template.mean()).sum();
    f64::from(sandboxes) / mean
}

/// The part of the busiest rate at some hour: the least at three in the morning, the most twelve hours later.
pub(super) fn tide(hour: f64) -> f64 {
    0.625 - 0.375 * ((hour - 3.0) / 12.0 * PI).cos()
}

/// How long until the next, when so many come in a unit of time.
pub(super) fn pause(rate: f64, random: &mut StdRng) -> f64 {
    -random.random_range(f64::EPSILON..1.0_f64).ln() / rate
}
