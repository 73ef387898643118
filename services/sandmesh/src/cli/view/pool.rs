//! Pools as they are printed, and what a template says of its own.

use sandmesh_proto::{
    executor::Resources,
    scheduler::{Pool, ProfileStatus},
    template::{PoolProfile, PoolSettings},
};
use serde::Serialize;

use super::{cores, size, some, time};

/// The pool of a template.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct PoolView {
    template_id: String,
    #[serde(flatten)]
    kept: Kept,
    #[serde(flatten)]
    status: Status,
    profiles: Vec<ProfileView>,
}

/// How many are to be warm.
#[derive(Debug, Clone, Serialize)]
struct Kept {
    min: u32,
    max: u32,
    buffer: u32,
}

/// How many are, and what else there is to tell of them.
#[derive(Debug, Serialize)]
struct Status {
    target: u32,
    warm: u32,
    starting: u32,
    claimed: u32,
    cold: u32,
    last_error: Option<String>,
    retry_at: Option<String>,
}

/// Those with other limits than the template's.
#[derive(Debug, Serialize)]
struct ProfileView {
    #[serde(flatten)]
    settings: ProfileSettingsView,
    #[serde(flatten)]
    status: Status,
}

/// What a template says of its pool.
#[derive(Debug, Serialize)]
pub(super) struct PoolSettingsView {
    #[serde(flatten)]
    kept: Kept,
    profiles: Vec<ProfileSettingsView>,
}

#[derive(Debug, Serialize)]
struct ProfileSettingsView {
    resources: LimitsView,
    #[serde(flatten)]
    kept: Kept,
}

/// Limits; what is null is the template's.
#[derive(Debug, Serialize)]
struct LimitsView {
    cpu: Option<String>,
    memory: Option<String>,
    disk: Option<String>,
    max_processes: Option<u32>,
}

impl From<Pool> for PoolView {
    fn from(wire: Pool) -> Self {
        let settings = wire.settings.unwrap_or_default();
        let profile = |(settings, status): (PoolProfile, ProfileStatus)| ProfileView {
            settings: settings.into(),
            status: status.into(),
        };
        let profiles = settings.profiles.into_iter().zip(wire.profiles).map(profile).collect();
        let status = Status {
            target: wire.target,
            warm: wire.warm,
            starting: wire.starting,
            claimed: wire.claimed,
            cold: wire.cold,
            last_error: some(wire.last_error),
            retry_at: time(wire.retry_at.as_ref()),
        };
        let kept = Kept { min: settings.min, max: settings.max, buffer: settings.buffer };
        Self { template_id: wire.template_id, kept, status, profiles }
    }
}

impl From<ProfileStatus> for Status {
    fn from(wire: ProfileStatus) -> Self {
        Self {
            target: wire.target,
            warm: wire.warm,
            starting: wire.starting,
            claimed: wire.claimed,
            cold: wire.cold,
            last_error: some(wire.last_error),
            retry_at: time(wire.retry_at.as_ref()),
        }
    }
}

impl From<PoolSettings> for PoolSettingsView {
    fn from(PoolSettings { min, max, buffer, profiles }: PoolSettings) -> Self {
        let profiles = profiles.into_iter().map(ProfileSettingsView::from).collect();
        Self { kept: Kept { min, max, buffer }, profiles }
    }
}

impl From<PoolProfile> for ProfileSettingsView {
    fn from(PoolProfile { resources, min, max, buffer }: PoolProfile) -> Self {
        Self { resources: resources.unwrap_or_default().into(), kept: Kept { min, max, buffer } }
    }
}

impl From<Resources> for LimitsView {
    fn from(resources: Resources) -> Self {
        let Resources { cpu_millis, memory_bytes, disk_bytes, max_processes } = resources;
        let size = |bytes: u64| (bytes > 0).then(|| size(bytes));
        Self {
            cpu: (cpu_millis > 0).then(|| cores(cpu_millis)),
            memory: size(memory_bytes),
            disk: size(disk_bytes),
            max_processes: (max_processes > 0).then_some(max_processes),
        }
    }
}

impl LimitsView {
    /// For people, with the words that the command line takes.
    fn words(&self) -> String {
        let processes = self.max_processes.as_ref().map(u32::to_string);
        let limits =
            [("cpu", &self.cpu), ("memory", &self.memory), ("disk", &self.disk), ("processes", &processes)];
        let given =
            limits.into_iter().filter_map(|(name, limit)| Some(format!("{name}={}", limit.as_ref()?)));
        given.collect::<Vec<_>>().join(",")
    }
}

impl PoolView {
    /// For people, a cell each: of the template's limits, then of each profile.
    pub(in crate::cli) fn rows(&self) -> impl Iterator<Item = [String; 10]> {
        let own = row(&self.template_id, String::new(), &self.kept, &self.status);
        let others = self.profiles.iter().map(|ProfileView { settings, status }| {
            row(&self.template_id, settings.resources.words(), &settings.kept, status)
        });
        std::iter::once(own).chain(others)
    }
}

fn row(template_id: &str, limits: String, kept: &Kept, status: &Status) -> [String; 10] {
    [
        template_id.to_owned(),
        limits,
        kept.min.to_string(),
        kept.max.to_string(),
        kept.buffer.to_string(),
        format!("{} of {}", status.warm, status.target),
        status.starting.to_string(),
        status.claimed.to_string(),
        status.cold.to_string(),
        status.last_error.clone().unwrap_or_default(),
    ]
}

impl PoolSettingsView {
    /// For people, in one line.
    pub(super) fn words(&self) -> String {
        let words = |Kept { min, max, buffer }: &Kept| format!("min {min}, max {max}, buffer {buffer}");
        let profile = |profile: &ProfileSettingsView| {
            format!("{}: {}", profile.resources.words(), words(&profile.kept))
        };
        let all = std::iter::once(words(&self.kept)).chain(self.profiles.iter().map(profile));
        all.collect::<Vec<_>>().join("; ")
    }
}
