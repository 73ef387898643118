//! Between the wire types and the agent's own; requests are checked here and nowhere below.

use sandmesh_mesh::{FieldViolation, Secret, datetime, timestamp};
use sandmesh_proto::{agent as pb, executor};

use crate::{
    Error,
    config::EXECUTIONS_MAX,
    packages::{self, Layer, Package, PackageSet},
    sandbox::{Isolation, Language, Resources, Sandbox, SandboxId, Spec, State, WORKSPACE_PATH},
    service::{Identity, Load},
};

/// The longest text in a spec, in bytes.
const TEXT_MAX: usize = 512;
/// The most labels in a spec.
const LABELS_MAX: usize = 64;

/// Reads an id.
///
/// # Errors
/// `Invalid`, naming the field.
pub(crate) fn sandbox_id(text: &str) -> Result<SandboxId, Error> {
    text.parse().map_err(|error: crate::sandbox::InvalidSandboxId| {
        Error::Invalid(vec![FieldViolation::new("sandbox_id", "string_pattern_mismatch", error.to_string())])
    })
}

/// Reads the id of a sandbox that is to be there.
///
/// # Errors
/// `NotFound` for what cannot be one.
pub(crate) fn known_id(text: &str) -> Result<SandboxId, Error> {
    text.parse().map_err(|_| Error::NotFound(text.to_owned()))
}

/// Reads a spec.
///
/// # Errors
/// `Invalid`, naming each field that is wrong.
pub(crate) fn spec(sent: Option<pb::SandboxSpec>) -> Result<Spec, Error> {
    let Some(sent) = sent else {
        return Err(Error::Invalid(vec![FieldViolation::new("spec", "missing", "a spec is required")]));
    };
    let mut wrong = Vec::new();
    let language = language_from_pb(sent.language());
    if language.is_none() {
        wrong.push(FieldViolation::new("spec.language", "enum", "a language is required"));
    }
    let resources = resources(sent.resources.unwrap_or_default(), &mut wrong);
    let texts =
        [("image", &sent.image), ("session_id", &sent.session_id), ("template_id", &sent.template_id)];
    for (field, text) in texts {
        if text.len() > TEXT_MAX {
            let problem = format!("may have {TEXT_MAX} bytes at most");
            wrong.push(FieldViolation::new(format!("spec.{field}"), "string_too_long", problem));
        }
    }
    let too_long = |text: &String| text.len() > TEXT_MAX;
    if sent.labels.len() > LABELS_MAX || sent.labels.iter().any(|(k, v)| too_long(k) || too_long(v)) {
        let problem = format!("may be {LABELS_MAX} at most, of {TEXT_MAX} bytes at most");
        wrong.push(FieldViolation::new("spec.labels", "too_long", problem));
    }
    if sent.max_concurrent_executions > EXECUTIONS_MAX {
        let (field, problem) =
            ("spec.max_concurrent_executions", format!("must be at most {EXECUTIONS_MAX}"));
        wrong.push(FieldViolation::new(field, "less_than_equal", problem));
    }
    let expires_at = sent.expires_at.as_ref().map(datetime);
    if expires_at == Some(None) {
        wrong.push(FieldViolation::new("spec.expires_at", "value_error", "is not a time"));
    }
    let (Some(language), true) = (language, wrong.is_empty()) else { return Err(Error::Invalid(wrong)) };
    Ok(Spec {
        image: sent.image,
        resources,
        language,
        labels: sent.labels.into_iter().collect(),
        session_id: sent.session_id,
        template_id: sent.template_id,
        max_concurrent_executions: sent.max_concurrent_executions,
        expires_at: expires_at.flatten(),
        restarts: sent.restarts,
        packages: None,
    })
}

/// The most packages of a set.
const PACKAGES_MAX: usize = 250;
/// The longest name or specifier of a package.
const WORD_MAX: usize = 256;
/// The longest URL of an index.
const URL_MAX: usize = 2048;
/// The longest fingerprint of a set.
const FINGERPRINT_MAX: usize = 128;

/// Reads a set of packages. What they are to be is checked where they are asked for: here is only seen to it
/// that nothing can be an option, an address or a path.
///
/// # Errors
/// `Invalid`, naming each field that is wrong.
pub(crate) fn package_set(sent: pb::PackageSet) -> Result<PackageSet, Error> {
    let mut wrong = Vec::new();
    let language = language_from_pb(sent.language()).filter(|language| *language != Language::Shell);
    if language.is_none() {
        wrong.push(FieldViolation::new("packages.language", "enum", "must be python or javascript"));
    }
    if sent.packages.is_empty() || sent.packages.len() > PACKAGES_MAX {
        let problem = format!("must be 1 to {PACKAGES_MAX}");
        wrong.push(FieldViolation::new("packages.packages", "too_long", problem));
    }
    for (index, package) in sent.packages.iter().enumerate() {
        if !is_package_name(&package.name) || !is_package_version(&package.version) {
            let field = format!("packages.packages[{index}]");
            wrong.push(FieldViolation::new(
                field,
                "value_error",
                "is not a name and a specifier of versions",
            ));
        }
    }
    if !is_index(&sent.index_url) {
        wrong.push(FieldViolation::new("packages.index_url", "value_error", "must be an http or https URL"));
    }
    if sent.fingerprint.len() > FINGERPRINT_MAX {
        let problem = format!("may have {FINGERPRINT_MAX} bytes at most");
        wrong.push(FieldViolation::new("packages.fingerprint", "string_too_long", problem));
    }
    let (Some(language), true) = (language, wrong.is_empty()) else { return Err(Error::Invalid(wrong)) };
    let packages = sent.packages.into_iter().map(|pb::Package { name, version }| Package { name, version });
    Ok(PackageSet {
        language,
        packages: packages.collect(),
        index_url: Secret::new(sent.index_url),
        fingerprint: sent.fingerprint,
    })
}

fn is_package_name(name: &str) -> bool {
    // A scope and a name, for npm.
    let parts: Vec<&str> = match name.strip_prefix('@') {
        Some(rest) => rest.split('/').collect(),
        None => vec![name],
    };
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '~');
    let fits =
        |part: &&str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(inside);
    let count = if name.starts_with('@') { 2 } else { 1 };
    name.len() <= WORD_MAX && parts.len() == count && parts.iter().all(fits)
}

fn is_package_version(version: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || " .,_-+!*<>=~^|".contains(c);
    version.len() <= WORD_MAX && version.chars().all(inside)
}

fn is_index(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let visible = url.chars().all(|c| c.is_ascii_graphic());
    url.len() <= URL_MAX && visible && rest.is_some_and(|rest| !rest.is_empty())
}

/// The layer of a sandbox as it travels. Lists leave out what is in it.
pub(crate) fn layer_pb(layer: &Layer, whole: bool) -> pb::Layer {
    let package =
        |package: &Package| pb::Package { name: package.name.clone(), version: package.version.clone() };
    pb::Layer {
        key: layer.key.to_string(),
        installed: layer.installed.iter().filter(|_| whole).map(package).collect(),
        location: packages::LOCATION.to_owned(),
        installed_at: Some(timestamp(layer.installed_at)),
    }
}

fn resources(sent: executor::Resources, wrong: &mut Vec<FieldViolation>) -> Resources {
    let read = Resources {
        cpu_millis: sent.cpu_millis,
        memory_bytes: sent.memory_bytes,
        disk_bytes: sent.disk_bytes,
        max_processes: sent.max_processes,
    };
    for (field, value) in [
        ("cpu_millis", u64::from(read.cpu_millis)),
        ("memory_bytes", read.memory_bytes),
        ("disk_bytes", read.disk_bytes),
        ("max_processes", u64::from(read.max_processes)),
    ] {
        if value == 0 {
            let field = format!("spec.resources.{field}");
            wrong.push(FieldViolation::new(field, "greater_than_equal", "must be at least 1"));
        }
    }
    read
}

pub(crate) fn language_from_pb(language: executor::Language) -> Option<Language> {
    match language {
        executor::Language::Unspecified => None,
        executor::Language::Python => Some(Language::Python),
        executor::Language::Javascript => Some(Language::Javascript),
        executor::Language::Shell => Some(Language::Shell),
    }
}

pub(crate) fn language_pb(language: Language) -> executor::Language {
    match language {
        Language::Python => executor::Language::Python,
        Language::Javascript => executor::Language::Javascript,
        Language::Shell => executor::Language::Shell,
    }
}

pub(crate) fn isolation_from_pb(sent: executor::Isolation) -> Isolation {
    let executor::Isolation { sandbox, jail, seccomp, network, user, limits, interpreters } = sent;
    Isolation { sandbox, jail, seccomp, network, user, limits, interpreters }
}

fn isolation_pb(isolation: &Isolation) -> executor::Isolation {
    let Isolation { sandbox, jail, seccomp, network, user, limits, interpreters } = isolation.clone();
    executor::Isolation { sandbox, jail, seccomp, network, user, limits, interpreters }
}

fn resources_pb(resources: &Resources) -> executor::Resources {
    let Resources { cpu_millis, memory_bytes, disk_bytes, max_processes } = *resources;
    executor::Resources { cpu_millis, memory_bytes, disk_bytes, max_processes }
}

pub(crate) fn spec_pb(spec: &Spec) -> pb::SandboxSpec {
    pb::SandboxSpec {
        image: spec.image.clone(),
        resources: Some(resources_pb(&spec.resources)),
        language: language_pb(spec.language).into(),
        labels: spec.labels.clone().into_iter().collect(),
        session_id: spec.session_id.clone(),
        template_id: spec.template_id.clone(),
        max_concurrent_executions: spec.max_concurrent_executions,
        expires_at: spec.expires_at.map(timestamp),
        restarts: spec.restarts,
        packages: None,
    }
}

fn state_pb(state: State) -> pb::sandbox::State {
    match state {
        State::Creating => pb::sandbox::State::Creating,
        State::Running => pb::sandbox::State::Running,
        State::Dead => pb::sandbox::State::Dead,
        State::Deleted => pb::sandbox::State::Deleted,
    }
}

/// A sandbox as it travels; `node_id` and `runtime` are those of its node.
pub(crate) fn sandbox_pb(
    sandbox: &Sandbox,
    node_id: &str,
    runtime: &str,
    layer: Option<pb::Layer>,
) -> pb::Sandbox {
    pb::Sandbox {
        sandbox_id: sandbox.id.to_string(),
        spec: Some(spec_pb(&sandbox.spec)),
        state: state_pb(sandbox.state).into(),
        reason: sandbox.reason.clone(),
        endpoint: sandbox.facts.endpoint.clone(),
        isolation: Some(isolation_pb(&sandbox.facts.isolation)),
        node_id: node_id.to_owned(),
        runtime: runtime.to_owned(),
        created_at: Some(timestamp(sandbox.created_at)),
        language_runtime: sandbox.facts.language_runtime.clone(),
        workspace_path: WORKSPACE_PATH.to_owned(),
        node_lost: false,
        layer,
        claimed: sandbox.was_claimed(),
    }
}

/// The node as it travels.
pub(crate) fn node_pb(identity: &Identity, load: Load, runtime: &str) -> pb::Node {
    let limits = &identity.limits;
    let capacity = Resources {
        cpu_millis: limits.cpu_millis.unwrap_or_default(),
        memory_bytes: limits.memory_bytes,
        ..Resources::default()
    };
    pb::Node {
        node_id: identity.node_id.clone(),
        runtime: runtime.to_owned(),
        max_sandboxes: limits.max_sandboxes,
        sandboxes: load.sandboxes,
        capacity: Some(resources_pb(&capacity)),
        allocated: Some(resources_pb(&load.allocated)),
        images: load.images,
        languages: identity.ability.languages.iter().map(|language| language_pb(*language).into()).collect(),
        isolation: Some(isolation_pb(&identity.ability.isolation)),
        draining: load.draining,
        // Each scheduler is told where it dials this agent: `register.rs`.
        endpoint: String::new(),
        labels: identity.labels.clone().into_iter().collect(),
        package_sets: load.package_sets,
    }
}

#[cfg(test)]
mod tests {
    use sandmesh_mesh::Fault;

    use super::*;

    fn sent() -> pb::SandboxSpec {
        pb::SandboxSpec {
            resources: Some(executor::Resources {
                cpu_millis: 1000,
                memory_bytes: 1 << 29,
                disk_bytes: 1 << 30,
                max_processes: 128,
            }),
            language: executor::Language::Python.into(),
            expires_at: Some(prost_types::Timestamp { seconds: 2_000_000_000, nanos: 5 }),
            ..Default::default()
        }
    }

    fn fields(sent: pb::SandboxSpec) -> Vec<String> {
        spec(Some(sent)).unwrap_err().violations().into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn a_spec_travels_unchanged() {
        assert_eq!(spec_pb(&spec(Some(sent())).unwrap()), sent());
    }

    #[test]
    fn each_wrong_field_is_named() {
        let no_limits = pb::SandboxSpec { resources: None, language: 0, ..sent() };
        assert_eq!(fields(no_limits).len(), 5);
        let no_time = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        assert_eq!(fields(pb::SandboxSpec { expires_at: Some(no_time), ..sent() }), ["spec.expires_at"]);
        let many = pb::SandboxSpec { max_concurrent_executions: 1025, ..sent() };
        assert_eq!(fields(many), ["spec.max_concurrent_executions"]);
        assert_eq!(fields(pb::SandboxSpec { image: "i".repeat(513), ..sent() }), ["spec.image"]);
        assert_eq!(spec(None).unwrap_err().violations()[0].field, "spec");
    }
}
