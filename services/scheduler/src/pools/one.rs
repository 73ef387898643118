//! One pool, that of a profile: what is known of it, and what is to be done for it now.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sandmesh_proto::agent::{PackageSet, SandboxSpec};

use crate::{
    config,
    pool::{self, Backoff, Condition, Demand, Profile, Settings, Warm},
    registry::{Place, Registry},
};

/// How long it takes to make one, as long as none was made.
const LEAD: Duration = Duration::from_secs(2);

/// How often it is looked at least whether the sandboxes are those that are to be.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known of one pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) settings: Settings,
    /// What its sandboxes are to be; `None` while that is not known.
    pub(crate) spec: Option<SandboxSpec>,
    /// Why that is not known now; empty where it is.
    pub(crate) unclear: String,
    /// Those that were made before this are to have other packages, which nodes do not tell.
    packages_since: Option<DateTime<Utc>>,
    pub(crate) demand: Demand,
    pub(crate) backoff: Backoff,
    /// How long it took to make the last one, with those before it counted less.
    lead: Duration,
    /// Those that this process makes now, and since when.
    pub(crate) starting: BTreeMap<String, DateTime<Utc>>,
    /// Those that this process removes now.
    pub(crate) removing: BTreeSet<Place>,
}

/// What is to be done for a pool.
#[derive(Debug, Default)]
pub(crate) struct ToDo {
    /// How many to make, if so many may be made.
    pub(crate) start: u32,
    /// Which to remove; they are noted as being removed.
    pub(crate) remove: Vec<Place>,
}

impl Pool {
    /// One that wants nothing yet.
    pub(crate) fn new(now: DateTime<Utc>) -> Self {
        Self {
            settings: Settings::default(),
            spec: None,
            packages_since: None,
            unclear: String::new(),
            demand: Demand::none(now),
            backoff: Backoff::default(),
            lead: LEAD,
            starting: BTreeMap::new(),
            removing: BTreeSet::new(),
        }
    }

    /// It is to be so from now on. What went wrong with others says nothing of these.
    pub(crate) fn is_to_be(&mut self, settings: Settings, spec: SandboxSpec, now: DateTime<Utc>) {
        if let Some(before) = self.spec.as_ref().filter(|before| **before != spec) {
            self.backoff = Backoff::default();
            if packages_of(before) != packages_of(&spec) {
                self.packages_since = Some(now);
            }
        }
        (self.settings, self.spec, self.unclear) = (settings, Some(spec), String::new());
    }

    /// How many are to be warm.
    pub(crate) fn target(&self, now: DateTime<Utc>) -> u32 {
        self.settings.target(self.demand.per_second(now), self.lead + LOOK_EVERY)
    }

    /// What is to be done now. Nothing while it is not known what its sandboxes are to be: those that are there may
    /// be just that.
    pub(crate) fn look(
        &mut self,
        (profile, registry): (&Profile, &Registry),
        config: &config::Pools,
        now: DateTime<Utc>,
    ) -> ToDo {
        if self.spec.is_none() && self.settings.max > 0 {
            return ToDo::default();
        }
        let warm = self.seen(profile, registry, config);
        let plan = pool::plan(self.target(now), &warm, config.lifetime.0, now);
        let remove = plan.remove.into_iter().filter(|place| self.removing.insert(place.clone())).collect();
        let starting = u32::try_from(self.starting.len()).unwrap_or(u32::MAX);
        let allowed = self.backoff.allows(plan.start.saturating_add(starting), now);
        ToDo { start: allowed.saturating_sub(starting), remove }
    }

    /// Its warm sandboxes: those that are known of, and those on their way.
    pub(crate) fn seen(&self, profile: &Profile, registry: &Registry, config: &config::Pools) -> Vec<Warm> {
        let none = SandboxSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&none);
        let mut warm = registry.warm(profile, spec, config.fill_percent.into());
        for one in &mut warm {
            // Its packages may not be there yet.
            if self.starting.contains_key(&one.place.0) && one.condition == Condition::Ready {
                one.condition = Condition::Starting;
            }
            one.current &= self.packages_since.is_none_or(|since| one.made_at >= since);
        }
        let known: BTreeSet<&str> = warm.iter().map(|one| one.place.0.as_str()).collect();
        let coming = self.starting.iter().filter(|(id, _)| !known.contains(id.as_str()));
        let coming: Vec<Warm> = coming.map(|(id, made_at)| on_its_way(id, *made_at)).collect();
        warm.extend(coming);
        warm
    }

    /// One was made, and it took so long.
    pub(crate) fn made(&mut self, took: Duration) {
        self.lead = (self.lead * 3 + took) / 4;
        self.backoff = Backoff::default();
    }
}

/// What of packages makes a difference: the fingerprint only says where they are.
fn packages_of(spec: &SandboxSpec) -> Option<PackageSet> {
    Some(PackageSet { fingerprint: String::new(), ..spec.packages.clone()? })
}

fn on_its_way(id: &str, made_at: DateTime<Utc>) -> Warm {
    let place = (id.to_owned(), String::new());
    Warm { place, condition: Condition::Starting, current: true, made_at, stressed: false }
}
