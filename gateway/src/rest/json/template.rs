//! Templates in JSON.

use std::collections::HashMap;

use prost_types::FieldMask;
use sandmesh_proto::{executor::Resources, template as pb};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Mistakes, filled,
    pool::{Limits, SetProfile, profiles},
    quantity, time,
};
use crate::error::ApiError;

const MIB: u64 = 1 << 20;

/// A template to create.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CreateTemplate {
    /// Its id.
    #[schema(required = true, nullable = false, min_length = 1, max_length = 64)]
    id: Option<String>,
    /// Its name, unique.
    #[schema(required = true, nullable = false, min_length = 1, max_length = 255)]
    name: Option<String>,
    /// What it is for.
    description: Option<String>,
    /// The image; runtimes without images ignore it.
    #[schema(required = true, nullable = false, min_length = 1, max_length = 512)]
    image_url: Option<String>,
    /// `python3.11`, `python3.12`, `python3.13`, `nodejs20`, `nodejs22`, `bash`, `java17` or `go1.21`.
    #[schema(required = true, nullable = false, example = "python3.11")]
    runtime_type: Option<String>,
    /// Cores of a session that does not say otherwise.
    #[schema(minimum = 0.1, maximum = 4.0, default = 0.5)]
    default_cpu_cores: Option<f64>,
    /// Memory of a session that does not say otherwise, in MiB.
    #[schema(minimum = 128, maximum = 8192, default = 512)]
    default_memory_mb: Option<u64>,
    /// Workspace of a session that does not say otherwise, in MiB.
    #[schema(minimum = 256, maximum = 51200, default = 1024)]
    default_disk_mb: Option<u64>,
    /// Lifetime of a session that does not say otherwise, in seconds.
    #[schema(minimum = 60, maximum = 3600, default = 300)]
    default_timeout: Option<u32>,
    /// The same as `default_timeout`, which wins.
    #[schema(minimum = 60, maximum = 3600)]
    default_timeout_sec: Option<u32>,
    /// Environment of every execution.
    default_env_vars: Option<HashMap<String, String>>,
    /// Packages the image has already.
    pre_installed_packages: Option<Vec<String>>,
    /// Warm sandboxes.
    pool: Option<PoolChange>,
}

/// A change of a template; what is left out stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct UpdateTemplate {
    /// Its name, unique.
    #[schema(min_length = 1, max_length = 255)]
    name: Option<String>,
    /// What it is for.
    description: Option<String>,
    /// The image.
    #[schema(min_length = 1, max_length = 512)]
    image_url: Option<String>,
    /// The language runtime.
    runtime_type: Option<String>,
    /// Cores of a session that does not say otherwise.
    #[schema(minimum = 0.1, maximum = 4.0)]
    default_cpu_cores: Option<f64>,
    /// Memory of a session that does not say otherwise, in MiB.
    #[schema(minimum = 128, maximum = 8192)]
    default_memory_mb: Option<u64>,
    /// Workspace of a session that does not say otherwise, in MiB.
    #[schema(minimum = 256, maximum = 51200)]
    default_disk_mb: Option<u64>,
    /// Lifetime of a session that does not say otherwise, in seconds.
    #[schema(minimum = 60, maximum = 3600)]
    default_timeout: Option<u32>,
    /// The same as `default_timeout`, which wins.
    #[schema(minimum = 60, maximum = 3600)]
    default_timeout_sec: Option<u32>,
    /// Environment of every execution.
    default_env_vars: Option<HashMap<String, String>>,
    /// Packages the image has already.
    pre_installed_packages: Option<Vec<String>>,
    /// Warm sandboxes.
    pool: Option<PoolChange>,
    /// False hides it from new sessions.
    is_active: Option<bool>,
}

/// How many warm sandboxes of a template are kept; what is left out stays as it is, at first 0.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct PoolChange {
    /// At least this many.
    min: Option<u32>,
    /// At most this many.
    max: Option<u32>,
    /// This many ahead of demand.
    buffer: Option<u32>,
    /// Warm sandboxes with other limits than the template's, all of them.
    #[schema(max_items = 8)]
    profiles: Option<Vec<SetProfile>>,
}

/// How many warm sandboxes of a template are kept.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Pool {
    /// At least this many.
    min: u32,
    /// At most this many.
    max: u32,
    /// This many ahead of demand.
    buffer: u32,
    /// Warm sandboxes with other limits than the template's.
    profiles: Vec<Profile>,
}

/// How many warm sandboxes of a template are kept that have certain limits.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TemplatePoolProfile)]
pub(crate) struct Profile {
    /// The limits.
    resources: Limits,
    /// At least this many.
    min: u32,
    /// At most this many.
    max: u32,
    /// This many ahead of demand.
    buffer: u32,
}

impl CreateTemplate {
    /// The template on the wire.
    pub(crate) fn into_template(self) -> Result<pb::Template, ApiError> {
        let mut mistakes = Mistakes::default();
        mistakes.required("id", self.id.as_ref());
        mistakes.required("name", self.name.as_ref());
        mistakes.required("image_url", self.image_url.as_ref());
        mistakes.required("runtime_type", self.runtime_type.as_ref());
        let template = pb::Template {
            template_id: self.id.unwrap_or_default(),
            name: self.name.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
            image_url: self.image_url.unwrap_or_default(),
            runtime_type: self.runtime_type.unwrap_or_default(),
            default_resources: Some(Resources {
                cpu_millis: cores(self.default_cpu_cores, &mut mistakes),
                memory_bytes: mebibytes("default_memory_mb", self.default_memory_mb, &mut mistakes),
                disk_bytes: mebibytes("default_disk_mb", self.default_disk_mb, &mut mistakes),
                max_processes: 0,
            }),
            default_timeout_seconds: timeout(
                self.default_timeout.or(self.default_timeout_sec),
                &mut mistakes,
            ),
            default_env: self.default_env_vars.unwrap_or_default(),
            pre_installed_packages: self.pre_installed_packages.unwrap_or_default(),
            pool: self.pool.map(|pool| pool.wire(&mut mistakes)),
            ..pb::Template::default()
        };
        mistakes.check().map(|()| template)
    }
}

impl UpdateTemplate {
    /// The message for the template role; `None` when nothing is to be changed.
    pub(crate) fn into_request(self, id: String) -> Result<Option<pb::UpdateTemplateRequest>, ApiError> {
        let paths = self.paths();
        if paths.is_empty() {
            return Ok(None);
        }
        let is_active = self.is_active.unwrap_or_default();
        let template = CreateTemplate {
            id: Some(id),
            name: Some(self.name.unwrap_or_default()),
            description: self.description,
            image_url: Some(self.image_url.unwrap_or_default()),
            runtime_type: Some(self.runtime_type.unwrap_or_default()),
            default_cpu_cores: self.default_cpu_cores,
            default_memory_mb: self.default_memory_mb,
            default_disk_mb: self.default_disk_mb,
            default_timeout: self.default_timeout,
            default_timeout_sec: self.default_timeout_sec,
            default_env_vars: self.default_env_vars,
            pre_installed_packages: self.pre_installed_packages,
            pool: self.pool,
        };
        let template = Some(pb::Template { is_active, ..template.into_template()? });
        Ok(Some(pb::UpdateTemplateRequest { template, update_mask: Some(FieldMask { paths }) }))
    }

    /// The wire names of the fields that are given.
    fn paths(&self) -> Vec<String> {
        let timeout = self.default_timeout.or(self.default_timeout_sec);
        let pool = |given: fn(&PoolChange) -> bool| self.pool.as_ref().is_some_and(given);
        let given = [
            ("name", self.name.is_some()),
            ("description", self.description.is_some()),
            ("image_url", self.image_url.is_some()),
            ("runtime_type", self.runtime_type.is_some()),
            ("default_resources.cpu_millis", self.default_cpu_cores.is_some()),
            ("default_resources.memory_bytes", self.default_memory_mb.is_some()),
            ("default_resources.disk_bytes", self.default_disk_mb.is_some()),
            ("default_timeout_seconds", timeout.is_some()),
            ("default_env", self.default_env_vars.is_some()),
            ("pre_installed_packages", self.pre_installed_packages.is_some()),
            ("pool.min", pool(|pool| pool.min.is_some())),
            ("pool.max", pool(|pool| pool.max.is_some())),
            ("pool.buffer", pool(|pool| pool.buffer.is_some())),
            ("pool.profiles", pool(|pool| pool.profiles.is_some())),
            ("is_active", self.is_active.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(path, _)| path.to_owned()).collect()
    }
}

/// Thousandths of a core, zero when not given. Zero itself is refused here, because on the wire it means
/// "not given"; every other bound is the template role's.
fn cores(cores: Option<f64>, mistakes: &mut Mistakes) -> u32 {
    let Some(cores) = cores else { return 0 };
    let millis = quantity::cpu_millis(&cores.to_string()).filter(|millis| *millis > 0);
    if millis.is_none() {
        mistakes.add("default_cpu_cores", "greater_than_equal", "must be at least 0.1 and at most 4");
    }
    millis.unwrap_or(0)
}

/// As [`cores`], for a size in MiB.
fn mebibytes(field: &str, size: Option<u64>, mistakes: &mut Mistakes) -> u64 {
    let Some(size) = size else { return 0 };
    let bytes = size.checked_mul(MIB).filter(|bytes| *bytes > 0);
    if bytes.is_none() {
        let kind = if size == 0 { "greater_than_equal" } else { "less_than_equal" };
        mistakes.add(field, kind, "is out of range");
    }
    bytes.unwrap_or(0)
}

/// As [`cores`], for the lifetime.
fn timeout(seconds: Option<u32>, mistakes: &mut Mistakes) -> u32 {
    if seconds == Some(0) {
        mistakes.add("default_timeout", "greater_than_equal", "must be at least 60");
    }
    seconds.unwrap_or(0)
}

/// A named environment.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Template {
    /// Its id.
    #[schema(example = "python-basic")]
    pub(crate) id: String,
    /// Its name.
    name: String,
    /// What it is for.
    #[schema(required = true)]
    description: Option<String>,
    /// The image.
    image_url: String,
    /// The language runtime.
    runtime_type: String,
    /// Cores of a session that does not say otherwise.
    default_cpu_cores: f64,
    /// Memory of a session that does not say otherwise, in MiB.
    default_memory_mb: u64,
    /// Workspace of a session that does not say otherwise, in MiB.
    default_disk_mb: u64,
    /// Lifetime of a session that does not say otherwise, in seconds.
    default_timeout: u32,
    /// The same as `default_timeout`.
    default_timeout_sec: u32,
    /// Environment of every execution.
    default_env_vars: HashMap<String, String>,
    /// Packages the image has already.
    pre_installed_packages: Vec<String>,
    /// Warm sandboxes.
    pool: Pool,
    /// False hides it from new sessions.
    is_active: bool,
    /// When it was created.
    #[schema(required = true, format = DateTime)]
    created_at: Option<String>,
    /// When it was changed last.
    #[schema(required = true, format = DateTime)]
    updated_at: Option<String>,
}

impl From<pb::Template> for Template {
    fn from(template: pb::Template) -> Self {
        let resources = template.default_resources.unwrap_or_default();
        Self {
            id: template.template_id,
            name: template.name,
            description: filled(template.description),
            image_url: template.image_url,
            runtime_type: template.runtime_type,
            default_cpu_cores: f64::from(resources.cpu_millis) / 1000.0,
            default_memory_mb: resources.memory_bytes / MIB,
            default_disk_mb: resources.disk_bytes / MIB,
            default_timeout: template.default_timeout_seconds,
            default_timeout_sec: template.default_timeout_seconds,
            default_env_vars: template.default_env,
            pre_installed_packages: template.pre_installed_packages,
            pool: template.pool.map(Pool::from).unwrap_or_default(),
            is_active: template.is_active,
            created_at: time(template.created_at.as_ref()),
            updated_at: time(template.updated_at.as_ref()),
        }
    }
}

impl PoolChange {
    fn wire(self, mistakes: &mut Mistakes) -> pb::PoolSettings {
        pb::PoolSettings {
            min: self.min.unwrap_or(0),
            max: self.max.unwrap_or(0),
            buffer: self.buffer.unwrap_or(0),
            profiles: profiles(self.profiles.unwrap_or_default(), "pool.profiles", mistakes),
        }
    }
}

impl From<pb::PoolSettings> for Pool {
    fn from(pool: pb::PoolSettings) -> Self {
        let profile = |pb::PoolProfile { resources, min, max, buffer }| Profile {
            resources: resources.unwrap_or_default().into(),
            min,
            max,
            buffer,
        };
        let profiles = pool.profiles.into_iter().map(profile).collect();
        Self { min: pool.min, max: pool.max, buffer: pool.buffer, profiles }
    }
}
