//! Keeps as many sandboxes warm as there are to be: sees what templates want and what there is, has `one.rs` and
//! `pool.rs` decide, and carries that out. Each profile, which is a template with certain limits, has a pool of
//! its own.
//!
//! Every scheduler looks and can tell; the one that has the lease acts. Should two act at once for a moment,
//! there are too many for a while, and some go again.

pub(crate) mod one;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use sandmesh_mesh::{Clock, Lease, Link, Mesh, Tasks, timestamp};
use sandmesh_proto::{
    agent::{Sandbox, SandboxSpec, sandbox::State},
    scheduler as pb,
    session::{GetSandboxSpecRequest, sandbox_spec_service_client::SandboxSpecServiceClient},
    template::{
        GetTemplateRequest, ListTemplatesRequest, PoolSettings, Template, UpdateTemplateRequest,
        template_service_client::TemplateServiceClient,
    },
};
use tokio::{
    sync::{Notify, Semaphore, broadcast::error::RecvError},
    time::Instant,
};
use tonic::{Request, Status};

use self::{
    one::{LOOK_EVERY, Pool},
    wanted::Wanted,
};
use crate::{
    Error, config,
    pool::{BURST, Condition, Profile, Settings, StandBack},
    registry::{Place, Used},
    service::Service,
    view,
};

/// What the lease is of.
const LEASE: &str = "pools";

/// How long another role may take to answer.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How soon it is tried again to remove one that could not be removed.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

/// How many templates a page has.
const PAGE: u32 = 200;

/// How soon it is looked again after something changed: much changes at once.
const GATHER: Duration = Duration::from_millis(20);

/// Keeps sandboxes warm.
#[derive(Debug)]
pub(crate) struct Pools {
    service: Arc<Service>,
    sessions: Link,
    templates: Link,
    lease: Lease,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    config: config::Pools,
    pools: Mutex<BTreeMap<Profile, Pool>>,
    /// One permit for each sandbox that may be made.
    starts: Arc<Semaphore>,
    /// Something happened that may call for more.
    changed: Notify,
    /// Which pool comes first.
    turn: AtomicUsize,
    stand_back: Mutex<StandBack>,
}

impl Pools {
    /// Keeps what `service` knows of; asks the session and the template role what is to be.
    ///
    /// # Errors
    /// When one of them cannot be reached by any configured way.
    pub(crate) fn new(service: Arc<Service>, mesh: &Mesh, config: &config::Pools) -> anyhow::Result<Self> {
        let sessions = mesh.link(sandmesh_mesh::RoleName::Session)?;
        Ok(Self {
            service,
            templates: mesh.link(sandmesh_mesh::RoleName::Template)?,
            lease: Lease::new(LEASE, sessions.clone()),
            sessions,
            clock: mesh.clock(),
            tasks: mesh.tasks().clone(),
            starts: Arc::new(Semaphore::new(config.starts_at_once as usize)),
            config: config.clone(),
            pools: Mutex::default(),
            changed: Notify::new(),
            turn: AtomicUsize::new(0),
            stand_back: Mutex::default(),
        })
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<Profile, Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the lease until the process stops.
    pub(crate) async fn keep_lease(self: Arc<Self>) {
        self.lease.keep(self.tasks.token()).await;
    }

    /// Counts what is asked for, until the process stops.
    pub(crate) async fn follow_demand(self: Arc<Self>) {
        let stopped = self.tasks.token();
        let (_, mut changes) = self.service.registry().watch();
        while let Some(change) = stopped.run_until_cancelled(changes.recv()).await {
            match change {
                Ok(sandbox) => self.note(&sandbox),
                // It is a rate: some that are missing change it little.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn note(&self, sandbox: &Sandbox) {
        let Some(spec) = &sandbox.spec else { return };
        let mut pools = self.pools();
        let Some(pool) = pools.get_mut(&view::profile(spec)) else { return };
        match (spec.session_id.is_empty(), sandbox.state()) {
            // With a reason it is how far it is, of one that was counted.
            (false, State::Creating) if sandbox.reason.is_empty() => {
                pool.demand.note(self.clock.now());
                self.stand_back().given(self.clock.now());
            }
            (true, State::Deleted | State::Dead) => {}
            _ => return,
        }
        self.changed.notify_one();
    }

    /// Looks, and acts if it has the lease, until the process stops.
    pub(crate) async fn run(self: Arc<Self>) {
        let stopped = self.tasks.token();
        let mut refresh_at = Instant::now();
        while !stopped.is_cancelled() {
            if Instant::now() >= refresh_at {
                refresh_at = Instant::now() + self.config.refresh_interval.0;
                if let Err(why) = self.refresh().await {
                    tracing::debug!(why = why.message(), "what is to be warm cannot be read");
                }
            }
            let stands_back = self.lease.is_held() && self.act();
            let look_in = if stands_back { BURST } else { LOOK_EVERY };
            let again = async {
                let _ = tokio::time::timeout(look_in, self.changed.notified()).await;
                tokio::time::sleep(GATHER).await;
            };
            stopped.run_until_cancelled(again).await;
        }
    }

    /// Reads which templates have pools, which it returns, and what their sandboxes are to be.
    async fn refresh(&self) -> Result<Vec<Template>, Status> {
        let mut templates = self.templates().await?;
        templates.retain(wanted::has_pool);
        let wanted: Vec<Wanted> = templates.iter().flat_map(wanted::filled).collect();
        let profiles: BTreeSet<Profile> = wanted.iter().map(|pool| pool.profile.clone()).collect();
        self.pools().retain(|profile, pool| {
            profiles.contains(profile) || !pool.starting.is_empty() || !pool.removing.is_empty()
        });
        join_all(wanted.into_iter().map(|pool| self.refresh_one(pool))).await;
        self.end_others(|profile| profiles.contains(profile));
        self.add_forgotten();
        Ok(templates)
    }

    /// Those that are not wanted any more are to have no sandboxes.
    fn end_others(&self, is_wanted: impl Fn(&Profile) -> bool) {
        let mut pools = self.pools();
        let others = pools.iter_mut().filter(|(profile, _)| !is_wanted(profile));
        others.for_each(|(_, pool)| pool.settings = Settings::default());
    }

    /// Warm sandboxes of profiles that want none any more are to go, too.
    fn add_forgotten(&self) {
        let now = self.clock.now();
        let mut pools = self.pools();
        for profile in self.service.registry().warm_profiles() {
            pools.entry(profile).or_insert_with(|| Pool::new(now));
        }
    }

    async fn refresh_one(&self, Wanted { profile, settings }: Wanted) {
        let spec = self.spec(&profile).await;
        let now = self.clock.now();
        let mut pools = self.pools();
        let pool = pools.entry(profile).or_insert_with(|| Pool::new(now));
        match spec {
            Ok(spec) => pool.is_to_be(settings, spec, now),
            Err(why) => {
                pool.settings = settings;
                pool.unclear = format!("it is not known what they are to be: {}", why.message());
            }
        }
    }

    async fn templates(&self) -> Result<Vec<Template>, Status> {
        let mut client = TemplateServiceClient::new(self.templates.clone());
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListTemplatesRequest { page_size: PAGE, page_token, offset: 0 };
            let page = client.list_templates(limited(request)).await?.into_inner();
            all.extend(page.templates);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    async fn spec(&self, profile: &Profile) -> Result<SandboxSpec, Status> {
        let mut client = SandboxSpecServiceClient::new(self.sessions.clone());
        let request = GetSandboxSpecRequest {
            template_id: profile.template_id.clone(),
            resources: Some(view::resources(profile.limits)),
        };
        let answer = client.get_sandbox_spec(limited(request)).await?.into_inner();
        match answer.spec {
            Some(spec) if view::profile(&spec) == *profile => Ok(spec),
            // One that is older than profiles: what is made of it would belong to another pool.
            Some(_) => Err(Status::internal("the session role tells of other limits: update it")),
            None => Err(Status::internal("the session role answered without the spec")),
        }
    }

    /// One look at every pool, and the beginning of what is to be done. True when nothing is made for now, whatever
    /// is missing.
    fn act(self: &Arc<Self>) -> bool {
        let (now, registry) = (self.clock.now(), self.service.registry());
        let stands_back = self.stands_back(now);
        let mut pools = self.pools();
        // Each time another one comes first, so that none is last whenever few may be made.
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % pools.len().max(1);
        let mut in_turn: Vec<_> = pools.iter_mut().collect();
        in_turn.rotate_left(first);
        for (profile, pool) in in_turn {
            let to_do = pool.look((profile, registry), &self.config, now);
            for place in to_do.remove {
                self.begin_removal(profile.clone(), place);
            }
            let spec = pool.spec.clone().unwrap_or_default();
            let start = if stands_back { 0 } else { to_do.start };
            for _ in 0..start {
                let Ok(permit) = Arc::clone(&self.starts).try_acquire_owned() else { break };
                let id = format!("sbx_{:016x}", rand::random::<u64>());
                pool.starting.insert(id.clone(), now);
                self.begin_start(profile.clone(), id, spec.clone(), permit);
            }
        }
        stands_back
    }

    fn stand_back(&self) -> MutexGuard<'_, StandBack> {
        self.stand_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stands_back(&self, now: DateTime<Utc>) -> bool {
        let nodes = self.service.registry().count_reporting();
        self.stand_back().looks(self.service.being_made(), nodes, now)
    }

    fn begin_start(
        self: &Arc<Self>,
        profile: Profile,
        id: String,
        spec: SandboxSpec,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) {
        let pools = Arc::clone(self);
        self.tasks.spawn("make a warm sandbox", async move {
            let began = Instant::now();
            let lifetime = TimeDelta::from_std(pools.config.lifetime.0).unwrap_or_default();
            let spec = SandboxSpec { expires_at: Some(timestamp(pools.clock.now() + lifetime)), ..spec };
            let made = pools.service.create_warm(&id, &spec).await;
            drop(permit);
            let took = began.elapsed();
            if let Ok(sandbox) = &made {
                pools.service.furnish_warm(sandbox, spec.packages).await;
            }
            pools.started(&profile, &id, made, took);
        });
    }

    fn started(&self, profile: &Profile, id: &str, made: Result<Sandbox, Error>, took: Duration) {
        let now = self.clock.now();
        if let Some(pool) = self.pools().get_mut(profile) {
            pool.starting.remove(id);
            match made {
                Ok(_) => pool.made(took),
                Err(error @ Error::NoCapacity { .. }) => pool.backoff.no_room(error.to_string(), now),
                Err(error) => {
                    let Profile { template_id, limits } = profile;
                    tracing::warn!(template.id = template_id, ?limits, %error, "no warm sandbox could be made");
                    pool.backoff.failed(error.to_string(), now);
                }
            }
        }
        self.changed.notify_one();
    }

    fn begin_removal(self: &Arc<Self>, profile: Profile, place: Place) {
        let pools = Arc::clone(self);
        self.tasks.spawn("remove a warm sandbox", async move {
            if let Err(error) = pools.service.remove_warm(&place).await {
                tracing::warn!(sandbox.id = place.0, %error, "a warm sandbox was not removed");
                tokio::time::sleep(REMOVE_AGAIN).await;
            }
            if let Some(pool) = pools.pools().get_mut(&profile) {
                pool.removing.remove(&place);
            }
            pools.changed.notify_one();
        });
    }

    /// The pools as they are, ordered by template.
    ///
    /// # Errors
    /// When it cannot be read which there are.
    pub(crate) async fn list(&self) -> Result<Vec<pb::Pool>, Error> {
        let mut templates = self.refresh().await.map_err(passed_on)?;
        templates.sort_by(|a, b| a.template_id.cmp(&b.template_id));
        let used = self.service.registry().used();
        Ok(templates.iter().map(|template| self.told(template, &used)).collect())
    }

    /// The pool of a template.
    ///
    /// # Errors
    /// What the template role says, as when there is no such template.
    pub(crate) async fn get(&self, template_id: &str) -> Result<pb::Pool, Error> {
        let mut client = TemplateServiceClient::new(self.templates.clone());
        let request = GetTemplateRequest { template_id: template_id.to_owned() };
        let answer = client.get_template(limited(request)).await.map_err(passed_on)?.into_inner();
        Ok(self.now_of(&answer.template.unwrap_or_default()).await)
    }

    /// Sets how many sandboxes of a template are to be warm.
    ///
    /// # Errors
    /// What the template role says, as when there is no such template, or the numbers do not fit.
    pub(crate) async fn set(&self, template_id: &str, settings: PoolSettings) -> Result<pb::Pool, Error> {
        let mut client = TemplateServiceClient::new(self.templates.clone());
        let template =
            Template { template_id: template_id.to_owned(), pool: Some(settings), ..Template::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["pool".to_owned()] });
        let request = UpdateTemplateRequest { template: Some(template), update_mask };
        let answer = client.update_template(limited(request)).await.map_err(passed_on)?.into_inner();
        let pool = self.now_of(&answer.template.unwrap_or_default()).await;
        let settings = &pool.settings;
        tracing::info!(template.id = template_id, ?settings, "how many are to be warm was decided");
        self.changed.notify_one();
        Ok(pool)
    }

    /// The pool of a template as it is, by what was just read of it.
    async fn now_of(&self, template: &Template) -> pb::Pool {
        let wanted: Vec<Wanted> = wanted::filled(template).collect();
        join_all(wanted.iter().map(|pool| self.refresh_one(pool.clone()))).await;
        self.end_others(|profile| {
            profile.template_id != template.template_id || wanted.iter().any(|pool| pool.profile == *profile)
        });
        self.told(template, &self.service.registry().used())
    }

    fn told(&self, template: &Template, used: &BTreeMap<Profile, Used>) -> pb::Pool {
        let (own, others) = wanted::pools(template);
        let of_profile = |pool: &Wanted| used.get(&pool.profile).copied().unwrap_or_default();
        let of_all = Profile::of_template(used, &template.template_id);
        // What is of no profile was made for sessions of this template all the same.
        let of_none = of_all.filter(|(profile, _)| others.iter().all(|pool| pool.profile != **profile));
        let of_none = of_none.fold(Used::default(), |sum, (_, used)| sum.and(*used));
        let profiles = others.iter().map(|pool| self.status(&pool.profile, of_profile(pool))).collect();
        let status = self.status(&own.profile, of_none);
        pb::Pool {
            template_id: template.template_id.clone(),
            settings: Some(wanted::settings(template)),
            target: status.target,
            warm: status.warm,
            starting: status.starting,
            claimed: status.claimed,
            cold: status.cold,
            last_error: status.last_error,
            retry_at: status.retry_at,
            profiles,
        }
    }

    fn status(&self, profile: &Profile, Used { claimed, cold }: Used) -> pb::ProfileStatus {
        let pools = self.pools();
        let Some(pool) = pools.get(profile) else {
            return pb::ProfileStatus { claimed, cold, ..pb::ProfileStatus::default() };
        };
        let warm = pool.seen(profile, self.service.registry(), &self.config);
        let count = |condition| {
            let there = warm.iter().filter(|one| one.current && one.condition == condition).count();
            u32::try_from(there).unwrap_or(u32::MAX)
        };
        let (failed, retry_at) = pool.backoff.told();
        let last_error = if pool.unclear.is_empty() { failed } else { &pool.unclear };
        pb::ProfileStatus {
            target: pool.target(self.clock.now()),
            warm: count(Condition::Ready),
            starting: count(Condition::Starting),
            claimed,
            cold,
            last_error: last_error.to_owned(),
            retry_at: retry_at.map(timestamp),
        }
    }
}

fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

/// What another role says is the caller's to know.
fn passed_on(status: Status) -> Error {
    Error::Node(Box::new(status))
}
