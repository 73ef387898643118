//! A template as it is printed.

use std::collections::BTreeMap;

use sandmesh_proto::template::Template;
use serde::Serialize;

use super::{cores, pool::PoolSettingsView, some, time};
use crate::cli::table::Fields;

const MIB: u64 = 1 << 20;

/// A template.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct TemplateView {
    pub(in crate::cli) id: String,
    pub(in crate::cli) name: String,
    description: Option<String>,
    image_url: String,
    pub(in crate::cli) runtime_type: String,
    default_cpu_cores: f64,
    default_memory_mb: u64,
    default_disk_mb: u64,
    default_timeout: u32,
    default_timeout_sec: u32,
    default_env_vars: BTreeMap<String, String>,
    pre_installed_packages: Vec<String>,
    pool: Option<PoolSettingsView>,
    pub(in crate::cli) is_active: bool,
    created_at: Option<String>,
    updated_at: Option<String>,
    #[serde(skip)]
    cpu: String,
}

impl From<Template> for TemplateView {
    fn from(template: Template) -> Self {
        let resources = template.default_resources.unwrap_or_default();
        Self {
            id: template.template_id,
            name: template.name,
            description: some(template.description),
            image_url: template.image_url,
            runtime_type: template.runtime_type,
            default_cpu_cores: f64::from(resources.cpu_millis) / 1000.0,
            default_memory_mb: resources.memory_bytes / MIB,
            default_disk_mb: resources.disk_bytes / MIB,
            default_timeout: template.default_timeout_seconds,
            default_timeout_sec: template.default_timeout_seconds,
            default_env_vars: template.default_env.into_iter().collect(),
            pre_installed_packages: template.pre_installed_packages,
            pool: template.pool.map(PoolSettingsView::from),
            is_active: template.is_active,
            created_at: time(template.created_at.as_ref()),
            updated_at: time(template.updated_at.as_ref()),
            cpu: cores(resources.cpu_millis),
        }
    }
}

impl TemplateView {
    /// The limits a session gets that does not say otherwise.
    pub(in crate::cli) fn resources(&self) -> String {
        let Self { cpu, default_memory_mb: memory, default_disk_mb: disk, .. } = self;
        format!("cpu {cpu}, memory {memory}Mi, disk {disk}Mi")
    }

    /// For people, a line each.
    pub(in crate::cli) fn fields(&self) -> Fields {
        let env: Vec<String> =
            self.default_env_vars.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let pool = self.pool.as_ref().map(PoolSettingsView::words);
        Fields::default()
            .with("id", &*self.id)
            .with("name", &*self.name)
            .with("description", self.description.clone().unwrap_or_default())
            .with("runtime", &*self.runtime_type)
            .with("image", &*self.image_url)
            .with("resources", self.resources())
            .with("timeout", format!("{} s", self.default_timeout))
            .with("env", env.join(", "))
            .with("packages", self.pre_installed_packages.join(", "))
            .with("pool", pool.unwrap_or_default())
            .with("active", if self.is_active { "yes" } else { "no" })
            .with("created", self.created_at.clone().unwrap_or_default())
    }
}
