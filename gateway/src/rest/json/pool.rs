//! Pools of warm sandboxes in JSON.

use sandmesh_proto::{
    executor::Resources,
    scheduler::{Pool as Wire, ProfileStatus, SetPoolRequest},
    template::{PoolProfile, PoolSettings},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Mistakes, filled,
    quantity::{self, Cpu},
    time,
};
use crate::error::ApiError;

/// How many sandboxes of a template are to be warm.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SetPool {
    /// At least this many.
    #[schema(default = 0)]
    min: Option<u32>,
    /// At most this many; 0: there is no pool.
    #[schema(required = true, nullable = false)]
    max: Option<u32>,
    /// This many beyond what is expected to be asked for while one is made.
    #[schema(default = 0)]
    buffer: Option<u32>,
    /// Warm sandboxes with other limits than the template's.
    #[schema(max_items = 8)]
    profiles: Option<Vec<SetProfile>>,
}

/// How many sandboxes are to be warm that have certain limits.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SetProfile {
    /// The limits.
    #[schema(required = true, nullable = false)]
    resources: Option<Limits>,
    /// At least this many.
    #[schema(default = 0)]
    min: Option<u32>,
    /// At most this many.
    #[schema(required = true, nullable = false, minimum = 1)]
    max: Option<u32>,
    /// This many beyond what is expected to be asked for while one is made.
    #[schema(default = 0)]
    buffer: Option<u32>,
}

/// The limits of warm sandboxes; what is null or left out is the template's.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = ProfileLimits)]
pub(crate) struct Limits {
    /// Cores, such as `"1"` or `"0.5"`.
    cpu: Option<Cpu>,
    /// Memory, as a number with `Ki`, `Mi` or `Gi`.
    #[schema(pattern = r"^\d+(Ki|Mi|Gi)$", example = "512Mi")]
    memory: Option<String>,
    /// Size of the workspace, as a number with `Ki`, `Mi` or `Gi`.
    #[schema(pattern = r"^\d+(Ki|Mi|Gi)$", example = "1Gi")]
    disk: Option<String>,
    /// Processes and threads.
    #[schema(minimum = 1, maximum = 4096)]
    max_processes: Option<u32>,
}

/// The pools.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pools {
    /// Ordered by template.
    items: Vec<Pool>,
    /// How many there are.
    total: u64,
}

/// Warm sandboxes of one template: with its limits, and by profiles with others.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pool {
    /// The template.
    template_id: String,
    /// At least this many are warm.
    min: u32,
    /// At most this many.
    max: u32,
    /// This many beyond what is expected to be asked for while one is made.
    buffer: u32,
    /// How many are to be warm now, by how many were asked for lately.
    target: u32,
    /// Sandboxes that a session can have at once.
    warm: u32,
    /// Sandboxes that are being made to be warm.
    starting: u32,
    /// Sandboxes of sessions that were warm.
    claimed: u32,
    /// Sandboxes of sessions that were made for them; also of those whose limits are of no profile.
    cold: u32,
    /// Why none could be made last; null since one could.
    #[schema(required = true)]
    last_error: Option<String>,
    /// When it is tried again.
    #[schema(required = true, format = DateTime)]
    retry_at: Option<String>,
    /// Those with other limits.
    profiles: Vec<Profile>,
}

/// Warm sandboxes of a template that have certain limits.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PoolProfile)]
pub(crate) struct Profile {
    /// The limits.
    resources: Limits,
    /// At least this many are warm.
    min: u32,
    /// At most this many.
    max: u32,
    /// This many beyond what is expected to be asked for while one is made.
    buffer: u32,
    /// How many are to be warm now, by how many were asked for lately.
    target: u32,
    /// Sandboxes that a session can have at once.
    warm: u32,
    /// Sandboxes that are being made to be warm.
    starting: u32,
    /// Sandboxes of sessions that were warm.
    claimed: u32,
    /// Sandboxes that were made for sessions with these limits.
    cold: u32,
    /// Why none could be made last; null since one could.
    #[schema(required = true)]
    last_error: Option<String>,
    /// When it is tried again.
    #[schema(required = true, format = DateTime)]
    retry_at: Option<String>,
}

impl SetPool {
    /// The request on the wire.
    pub(crate) fn into_request(self, template_id: String) -> Result<SetPoolRequest, ApiError> {
        let mut mistakes = Mistakes::default();
        mistakes.required("max", self.max.as_ref());
        let settings = PoolSettings {
            min: self.min.unwrap_or_default(),
            max: self.max.unwrap_or_default(),
            buffer: self.buffer.unwrap_or_default(),
            profiles: profiles(self.profiles.unwrap_or_default(), "profiles", &mut mistakes),
        };
        mistakes.check().map(|()| SetPoolRequest { template_id, settings: Some(settings) })
    }
}

/// Profiles on the wire, which are in the body at `path`.
pub(super) fn profiles(profiles: Vec<SetProfile>, path: &str, mistakes: &mut Mistakes) -> Vec<PoolProfile> {
    let wire = |(index, profile): (usize, SetProfile)| profile.wire(&format!("{path}.{index}"), mistakes);
    profiles.into_iter().enumerate().map(wire).collect()
}

impl SetProfile {
    fn wire(self, path: &str, mistakes: &mut Mistakes) -> PoolProfile {
        let limits = format!("{path}.resources");
        mistakes.required(&limits, self.resources.as_ref());
        mistakes.required(&format!("{path}.max"), self.max.as_ref());
        PoolProfile {
            resources: Some(self.resources.unwrap_or_default().wire(&limits, mistakes)),
            min: self.min.unwrap_or_default(),
            max: self.max.unwrap_or_default(),
            buffer: self.buffer.unwrap_or_default(),
        }
    }
}

impl Limits {
    fn wire(self, path: &str, mistakes: &mut Mistakes) -> Resources {
        const SIZE: &str = "a number with Ki, Mi or Gi, such as `512Mi`";
        let at = |name: &str| format!("{path}.{name}");
        let (cpu, memory) = (self.cpu, self.memory.as_deref());
        let cpu = cpu.map(|Cpu(text)| quantity::cpu_millis(&text));
        let (memory, disk) = (memory.map(quantity::bytes), self.disk.as_deref().map(quantity::bytes));
        Resources {
            cpu_millis: given(cpu, &at("cpu"), "a number of cores such as `1`, `0.5` or `500m`", mistakes),
            memory_bytes: given(memory, &at("memory"), SIZE, mistakes),
            disk_bytes: given(disk, &at("disk"), SIZE, mistakes),
            max_processes: given(self.max_processes.map(Some), &at("max_processes"), "a number", mistakes),
        }
    }
}

/// A limit that is given, zero where it is not. Zero itself is refused here, because on the wire it means "not
/// given"; every other bound is the template role's.
fn given<T: Default + PartialEq>(
    limit: Option<Option<T>>,
    field: &str,
    form: &str,
    mistakes: &mut Mistakes,
) -> T {
    match limit {
        None => return T::default(),
        Some(Some(limit)) if limit != T::default() => return limit,
        Some(Some(_)) => mistakes.add(field, "greater_than", "must be greater than 0"),
        Some(None) => mistakes.add(field, "string_pattern_mismatch", format!("must be {form}")),
    }
    T::default()
}

impl From<Resources> for Limits {
    fn from(resources: Resources) -> Self {
        let size = |bytes: u64| (bytes > 0).then(|| quantity::size_text(bytes));
        let Resources { cpu_millis, memory_bytes, disk_bytes, max_processes } = resources;
        Self {
            cpu: (cpu_millis > 0).then(|| Cpu(quantity::cpu_text(cpu_millis))),
            memory: size(memory_bytes),
            disk: size(disk_bytes),
            max_processes: (max_processes > 0).then_some(max_processes),
        }
    }
}

impl Profile {
    fn of(settings: PoolProfile, status: ProfileStatus) -> Self {
        Self {
            resources: settings.resources.unwrap_or_default().into(),
            min: settings.min,
            max: settings.max,
            buffer: settings.buffer,
            target: status.target,
            warm: status.warm,
            starting: status.starting,
            claimed: status.claimed,
            cold: status.cold,
            last_error: filled(status.last_error),
            retry_at: time(status.retry_at.as_ref()),
        }
    }
}

impl From<Vec<Wire>> for Pools {
    fn from(pools: Vec<Wire>) -> Self {
        let items: Vec<Pool> = pools.into_iter().map(Pool::from).collect();
        Self { total: items.len() as u64, items }
    }
}

impl From<Wire> for Pool {
    fn from(pool: Wire) -> Self {
        let PoolSettings { min, max, buffer, profiles } = pool.settings.unwrap_or_default();
        let profiles = profiles.into_iter().zip(pool.profiles);
        Self {
            template_id: pool.template_id,
            min,
            max,
            buffer,
            target: pool.target,
            warm: pool.warm,
            starting: pool.starting,
            claimed: pool.claimed,
            cold: pool.cold,
            last_error: filled(pool.last_error),
            retry_at: time(pool.retry_at.as_ref()),
            profiles: profiles.map(|(settings, status)| Profile::of(settings, status)).collect(),
        }
    }
}
