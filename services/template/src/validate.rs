//! What a template may be: every limit, every default, and what an update may change.
//!
//! Owns the values of a template and the rules about them; pure, and knows neither the wire nor the
//! database. [`Fields`] is what somebody wrote, a [`Spec`] is what passed every rule: only the second
//! can be stored.

use std::collections::{BTreeMap, BTreeSet};

use sandmesh_mesh::FieldViolation;

mod rules;

/// One mebibyte.
const MIB: u64 = 1 << 20;

/// The limits that a session gets when it does not say otherwise, or those of a profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Thousandths of a core, [100..4000].
    pub(crate) cpu_millis: u32,
    /// Bytes of memory, [128 MiB..8192 MiB].
    pub(crate) memory_bytes: u64,
    /// Bytes of workspace, [256 MiB..51200 MiB].
    pub(crate) disk_bytes: u64,
    /// Processes and threads, [1..4096].
    pub(crate) max_processes: u32,
}

impl Resources {
    /// With what was left out (zero) taken from `others`.
    #[must_use]
    fn or(self, others: Self) -> Self {
        let or = |value: u32, other: u32| if value == 0 { other } else { value };
        let or_bytes = |value: u64, other: u64| if value == 0 { other } else { value };
        Self {
            cpu_millis: or(self.cpu_millis, others.cpu_millis),
            memory_bytes: or_bytes(self.memory_bytes, others.memory_bytes),
            disk_bytes: or_bytes(self.disk_bytes, others.disk_bytes),
            max_processes: or(self.max_processes, others.max_processes),
        }
    }
}

/// How many warm sandboxes are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// At least this many.
    pub(crate) min: u32,
    /// At most this many, not less than `min`.
    pub(crate) max: u32,
    /// This many ahead of demand.
    pub(crate) buffer: u32,
}

/// The warm sandboxes of a template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    /// With its limits.
    pub(crate) kept: Kept,
    /// With other limits; at most 8, all different.
    pub(crate) profiles: Vec<Profile>,
}

/// Warm sandboxes with certain limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    /// The limits; what is zero is the template's.
    pub(crate) resources: Resources,
    /// How many; some at most.
    pub(crate) kept: Kept,
}

/// A template as somebody wrote it, or as it was stored. The limits are those that [`Spec`] enforces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// Its id, [1..64] of `[A-Za-z0-9_-]`, starting with a letter or digit.
    pub(crate) template_id: String,
    /// Its name, [1..255] characters.
    pub(crate) name: String,
    /// What it is for, at most 8192 characters.
    pub(crate) description: String,
    /// The image, [1..512] characters.
    pub(crate) image_url: String,
    /// One of [`RUNTIME_TYPES`].
    pub(crate) runtime_type: String,
    /// The limits of its sessions.
    pub(crate) resources: Resources,
    /// The lifetime of its sessions in seconds, [60..3600].
    pub(crate) timeout_seconds: u32,
    /// The environment of its executions, at most 256 variables.
    pub(crate) env: BTreeMap<String, String>,
    /// The packages that the image has, at most 1000.
    pub(crate) packages: Vec<String>,
    /// Its warm pool.
    pub(crate) pool: Pool,
    /// False hides it from new sessions.
    pub(crate) is_active: bool,
}

/// The runtime types that a template may have.
pub(crate) const RUNTIME_TYPES: [&str; 8] =
    ["python3.11", "python3.12", "python3.13", "nodejs20", "nodejs22", "bash", "java17", "go1.21"];

impl Fields {
    /// Fills what was left out (zero) with the defaults: half a core, 512 MiB of memory, 1 GiB of
    /// workspace, 128 processes, 300 seconds.
    #[must_use]
    pub(crate) fn with_defaults(mut self) -> Self {
        self.resources = self.resources.or(Resources {
            cpu_millis: 500,
            memory_bytes: 512 * MIB,
            disk_bytes: 1024 * MIB,
            max_processes: 128,
        });
        if self.timeout_seconds == 0 {
            self.timeout_seconds = 300;
        }
        self
    }
}

/// A template that keeps every rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec(Fields);

impl Spec {
    /// Checks every rule.
    ///
    /// # Errors
    /// Every rule that is broken, with the field's path in the request.
    pub(crate) fn check(fields: Fields) -> Result<Self, Vec<FieldViolation>> {
        let violations = rules::broken_by(&fields);
        if violations.is_empty() { Ok(Self(fields)) } else { Err(violations) }
    }

    /// The values.
    #[must_use]
    pub(crate) fn fields(&self) -> &Fields {
        &self.0
    }
}

/// What an update may change; the paths are those of the fields of the message.
const UPDATABLE: [&str; 18] = [
    "name",
    "description",
    "image_url",
    "runtime_type",
    "default_resources",
    "default_resources.cpu_millis",
    "default_resources.memory_bytes",
    "default_resources.disk_bytes",
    "default_resources.max_processes",
    "default_timeout_seconds",
    "default_env",
    "pre_installed_packages",
    "pool",
    "pool.min",
    "pool.max",
    "pool.buffer",
    "pool.profiles",
    "is_active",
];

/// The fields that an update changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mask(BTreeSet<&'static str>);

impl Mask {
    /// Reads the paths of a field mask.
    ///
    /// # Errors
    /// When there are none, or some name no field or one that never changes.
    pub(crate) fn parse(paths: &[String]) -> Result<Self, Vec<FieldViolation>> {
        if paths.is_empty() {
            return Err(vec![FieldViolation::new("update_mask", "missing", "`update_mask` is required")]);
        }
        let mut known = BTreeSet::new();
        let mut violations = Vec::new();
        for path in paths {
            match UPDATABLE.into_iter().find(|field| field == path) {
                Some(field) => _ = known.insert(field),
                None => violations.push(not_updatable(path)),
            }
        }
        if violations.is_empty() { Ok(Self(known)) } else { Err(violations) }
    }

    /// The stored values with those of the mask replaced by the new ones; nothing is filled in.
    #[must_use]
    pub(crate) fn apply(&self, stored: Fields, new: &Fields) -> Fields {
        self.0.iter().fold(stored, |fields, path| replace(fields, path, new))
    }
}

fn not_updatable(path: &str) -> FieldViolation {
    let why = match path {
        "template_id" | "created_at" | "updated_at" => "cannot be changed",
        _ => "is not a field of a template",
    };
    FieldViolation::new("update_mask", "value_error", format!("`{path}` {why}"))
}

fn replace(mut fields: Fields, path: &str, new: &Fields) -> Fields {
    match path {
        "name" => fields.name.clone_from(&new.name),
        "description" => fields.description.clone_from(&new.description),
        "image_url" => fields.image_url.clone_from(&new.image_url),
        "runtime_type" => fields.runtime_type.clone_from(&new.runtime_type),
        "default_resources" => fields.resources = new.resources,
        "default_resources.cpu_millis" => fields.resources.cpu_millis = new.resources.cpu_millis,
        "default_resources.memory_bytes" => fields.resources.memory_bytes = new.resources.memory_bytes,
        "default_resources.disk_bytes" => fields.resources.disk_bytes = new.resources.disk_bytes,
        "default_resources.max_processes" => fields.resources.max_processes = new.resources.max_processes,
        "default_timeout_seconds" => fields.timeout_seconds = new.timeout_seconds,
        "default_env" => fields.env.clone_from(&new.env),
        "pre_installed_packages" => fields.packages.clone_from(&new.packages),
        "pool" => fields.pool = new.pool.clone(),
        "pool.min" => fields.pool.kept.min = new.pool.kept.min,
        "pool.max" => fields.pool.kept.max = new.pool.kept.max,
        "pool.buffer" => fields.pool.kept.buffer = new.pool.kept.buffer,
        "pool.profiles" => fields.pool.profiles.clone_from(&new.pool.profiles),
        "is_active" => fields.is_active = new.is_active,
        _ => {}
    }
    fields
}

/// The templates that a new database starts with.
#[must_use]
pub(crate) fn seeds() -> [Fields; 3] {
    let seed = |id: &str, description: &str, image_url: &str, runtime_type: &str| {
        Fields {
            template_id: id.to_owned(),
            name: id.to_owned(),
            description: description.to_owned(),
            image_url: image_url.to_owned(),
            runtime_type: runtime_type.to_owned(),
            is_active: true,
            ..Fields::default()
        }
        .with_defaults()
    };
    [
        seed("python-basic", "Python and its standard library", "python:3.11-slim", "python3.11"),
        seed("nodejs-basic", "Node.js and its standard library", "node:20-slim", "nodejs20"),
        seed("shell-basic", "bash and the usual commands", "debian:12-slim", "bash"),
    ]
}

#[cfg(test)]
mod tests;
