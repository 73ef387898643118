//! What a new session is, by what was asked for and its template.

use std::collections::BTreeMap;

use sandmesh_proto::{executor, template};

use super::{DEFAULT_TIMEOUT, Error, INSTALL_TIMEOUT, Service};
use crate::{
    dependencies::{InstallState, Packages, Wanted},
    id,
    lifecycle::SessionState,
    store::session::Model,
    validate::{NewSession, check_resources, dependencies, template_package},
    values::{Language, Pairs, Resources},
};

impl Service {
    /// The row of a new session, and whether its id was given.
    pub(super) fn row(&self, new: NewSession, template: template::Template) -> Result<(bool, Model), Error> {
        let now = self.clock.now();
        let resources = filled(new.resources, template.default_resources, self.config.default_processes);
        check_resources(&resources, &self.config)?;
        let timeout = new
            .timeout_seconds
            .unwrap_or_else(|| or(template.default_timeout_seconds, DEFAULT_TIMEOUT))
            .min(3600);
        let packages = packages(&new, &template)?;
        let mut env: BTreeMap<String, String> = template.default_env.into_iter().collect();
        env.extend(new.env.0);
        let given = new.session_id.is_some();
        let row = Model {
            id: new.session_id.unwrap_or_else(|| id::session(now)),
            template_id: new.template_id,
            state: SessionState::Creating,
            status_reason: String::new(),
            request_id: new.request_id,
            resources,
            isolation: None,
            image: template.image_url,
            workspace_path: String::new(),
            runtime_type: String::new(),
            language_runtime: template.runtime_type,
            node_id: String::new(),
            sandbox_id: id::sandbox(),
            endpoint: String::new(),
            sandbox_removed: false,
            env: Pairs(env),
            labels: new.labels,
            python_package_index_url: new.python_package_index_url,
            timeout_seconds: i32::try_from(timeout).unwrap_or(i32::MAX),
            idle_timeout_seconds: i32::try_from(new.idle_timeout_seconds).unwrap_or(i32::MAX),
            created_at: now.into(),
            updated_at: now.into(),
            last_activity_at: now.into(),
            expires_at: (now + chrono::TimeDelta::seconds(timeout.into())).into(),
            completed_at: None,
            recoveries: 0,
            loss: None,
            creating_since: None,
            image_awaited_at: None,
            deleted_at: None,
            owner: self.store.owner().to_owned(),
            workspace: String::new(),
            install_state: packages.as_ref().map(|_| InstallState::Pending),
            packages,
            install_error: None,
            installed: None,
            install_started_at: None,
            install_completed_at: None,
            warm_start: None,
        };
        Ok((given, row))
    }
}

/// The packages of a new session: its own and its template's; `None` when there are none.
fn packages(new: &NewSession, template: &template::Template) -> Result<Option<Packages>, Error> {
    let language = Language::of_runtime(&template.runtime_type);
    let requested = dependencies(&new.dependencies, language)?;
    let mut of_template = Vec::new();
    for text in language
        .into_iter()
        .filter(|one| *one != Language::Shell)
        .flat_map(|_| &template.pre_installed_packages)
    {
        let package = language.and_then(|language| template_package(text, language));
        let problem = || format!("has a package that cannot be installed: `{text}`");
        of_template.push(package.ok_or_else(|| Error::field("template_id", "value_error", problem()))?);
    }
    if requested.is_empty() && of_template.is_empty() {
        return Ok(None);
    }
    Ok(Some(Packages {
        template: of_template,
        requested: Vec::new(),
        wanted: Some(Wanted { packages: requested, index_url: String::new() }),
        timeout_seconds: new.install_timeout_seconds.unwrap_or(INSTALL_TIMEOUT),
        keep_on_error: !new.fail_on_dependency_error,
    }))
}

/// Limits, with what was not given taken from the template.
fn filled(given: Resources, template: Option<executor::Resources>, processes: u32) -> Resources {
    let template = template.unwrap_or_default();
    Resources {
        cpu_millis: or(given.cpu_millis, template.cpu_millis),
        memory_bytes: or(given.memory_bytes, template.memory_bytes),
        disk_bytes: or(given.disk_bytes, template.disk_bytes),
        max_processes: or(given.max_processes, or(template.max_processes, processes)),
    }
}

fn or<T: Default + PartialEq>(given: T, default: T) -> T {
    if given == T::default() { default } else { given }
}
