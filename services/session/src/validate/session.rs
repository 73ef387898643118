//! The limits of `CreateSession`.

use std::collections::HashMap;

use sandmesh_proto::{executor, session as pb};

use super::{
    check::{Check, shown},
    dependency,
};
use crate::{
    config::Config,
    error::Error,
    values::{Pairs, Resources},
};

/// Less memory than this does not hold an interpreter.
const MIN_MEMORY: u64 = 16 << 20;

/// Less disk than this does not hold a workspace.
const MIN_DISK: u64 = 1 << 20;

/// The kernel does not limit a CPU to less than a hundredth.
const MIN_CPU_MILLIS: u32 = 10;

/// A session to create, as far as the request says; the template fills the rest.
#[derive(Debug)]
pub(crate) struct NewSession {
    pub(crate) session_id: Option<String>,
    pub(crate) template_id: String,
    /// Zero where the request does not say.
    pub(crate) resources: Resources,
    pub(crate) timeout_seconds: Option<u32>,
    pub(crate) idle_timeout_seconds: u32,
    pub(crate) env: Pairs,
    pub(crate) labels: Pairs,
    pub(crate) python_package_index_url: String,
    /// Of a language that the template tells; see `dependency::dependencies`.
    pub(crate) dependencies: Vec<pb::Dependency>,
    pub(crate) install_timeout_seconds: Option<u32>,
    pub(crate) fail_on_dependency_error: bool,
    pub(crate) request_id: Option<String>,
}

/// Checks a request to create a session.
///
/// # Errors
/// Names every field that is wrong.
pub(crate) fn new_session(request: pb::CreateSessionRequest, config: &Config) -> Result<NewSession, Error> {
    let mut check = Check::default();
    check.length("template_id", &request.template_id, 1..=64);
    let session_id = check.id("session_id", request.session_id);
    if let Some(seconds) = request.timeout_seconds {
        check.number("timeout_seconds", seconds, 1..=3600);
    }
    let idle_timeout_seconds = request.idle_timeout_seconds.unwrap_or(0);
    check.number("idle_timeout_seconds", idle_timeout_seconds, 0..=86_400);
    let resources = resources(request.resources.unwrap_or_default());
    check_given(&mut check, &resources, config);
    let env = check.env("env", request.env);
    let labels = labels(&mut check, request.labels);
    check_dependencies(&mut check, &request.dependencies, request.install_timeout_seconds);
    check_index(&mut check, &request.python_package_index_url, config);
    let request_id = check.request_id(request.request_id);
    check.done()?;
    Ok(NewSession {
        session_id,
        template_id: request.template_id,
        resources,
        timeout_seconds: request.timeout_seconds,
        idle_timeout_seconds,
        env,
        labels,
        python_package_index_url: request.python_package_index_url,
        dependencies: request.dependencies,
        install_timeout_seconds: request.install_timeout_seconds,
        fail_on_dependency_error: request.fail_on_dependency_error.unwrap_or(true),
        request_id,
    })
}

/// Checks the limits of a session after the template has filled them.
pub(crate) fn check_resources(resources: &Resources, config: &Config) -> Result<(), Error> {
    let mut check = Check::default();
    check.number("resources.cpu_millis", resources.cpu_millis, MIN_CPU_MILLIS..=config.max_cpu_millis);
    check.number("resources.memory_bytes", resources.memory_bytes, MIN_MEMORY..=config.max_memory.0);
    check.number("resources.disk_bytes", resources.disk_bytes, MIN_DISK..=config.max_disk.0);
    check.number("resources.max_processes", resources.max_processes, 1..=config.max_processes);
    check.done()
}

fn resources(given: executor::Resources) -> Resources {
    Resources {
        cpu_millis: given.cpu_millis,
        memory_bytes: given.memory_bytes,
        disk_bytes: given.disk_bytes,
        max_processes: given.max_processes,
    }
}

/// Checks the limits that the request gives; zero is not given.
fn check_given(check: &mut Check, given: &Resources, config: &Config) {
    if given.cpu_millis > 0 {
        check.number("resources.cpu_millis", given.cpu_millis, MIN_CPU_MILLIS..=config.max_cpu_millis);
    }
    if given.memory_bytes > 0 {
        check.number("resources.memory_bytes", given.memory_bytes, MIN_MEMORY..=config.max_memory.0);
    }
    if given.disk_bytes > 0 {
        check.number("resources.disk_bytes", given.disk_bytes, MIN_DISK..=config.max_disk.0);
    }
    check.number("resources.max_processes", given.max_processes, 0..=config.max_processes);
}

fn labels(check: &mut Check, labels: HashMap<String, String>) -> Pairs {
    check.count("labels", labels.len(), 64);
    for (name, value) in &labels {
        if name.is_empty() || name.len() > 128 || value.len() > 1024 {
            let problem = format!("has {}: names are 1 to 128 bytes long, values at most 1024", shown(name));
            check.fail("labels", "string_too_long", &problem);
        }
    }
    Pairs(labels.into_iter().collect())
}

fn check_dependencies(check: &mut Check, dependencies: &[pb::Dependency], timeout: Option<u32>) {
    check.count("dependencies", dependencies.len(), 50);
    for (index, dependency) in dependencies.iter().enumerate().take(50) {
        dependency::check(check, index, dependency);
    }
    if let Some(seconds) = timeout {
        check.number("install_timeout_seconds", seconds, 30..=1800);
    }
}

/// Checks a request to install packages, as far as the request itself tells.
///
/// # Errors
/// Names every field that is wrong.
pub(crate) fn packages_to_install(
    request: &pb::InstallDependenciesRequest,
    config: &Config,
) -> Result<(), Error> {
    let mut check = Check::default();
    if request.dependencies.is_empty() {
        check.fail("dependencies", "too_short", "must have at least 1 entry");
    }
    check_dependencies(&mut check, &request.dependencies, None);
    check_index(&mut check, &request.python_package_index_url, config);
    check.done()
}

fn check_index(check: &mut Check, url: &str, config: &Config) {
    let field = "python_package_index_url";
    check.length(field, url, 0..=2048);
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['));
    if !url.is_empty() && (!host || url.contains(|c: char| c.is_whitespace() || c.is_control())) {
        check.fail(field, "value_error", "must be an http or https URL");
    } else if config.packages.python(url).is_none() {
        let problem = "is not an index that this server allows; leave it out for the default, or have it added \
                       to `session.packages.python_indexes`";
        check.fail(field, "value_error", problem);
    }
}
