//! From the field paths of the wire to the names that REST clients know.

use std::{collections::HashMap, fmt};

use serde::Serialize;
use tonic_types::ErrorDetails;
use utoipa::ToSchema;

/// One step to a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Loc {
    /// The name of a field, or where it is: `body`, `query`, `header`.
    Name(String),
    /// A position in a list.
    Index(u64),
}

impl From<&str> for Loc {
    fn from(step: &str) -> Self {
        step.parse().map_or_else(|_| Self::Name(brief(step.to_owned())), Self::Index)
    }
}

/// A text for a client, which may quote what the client sent: of that the beginning is enough.
pub(super) fn brief(mut text: String) -> String {
    const MOST: usize = 2000;
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text.push('\u{2026}');
    }
    text
}

/// One field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Violation {
    /// Where it is, for example `["body", "timeout"]`.
    #[schema(example = json!(["body", "timeout"]))]
    pub(crate) loc: Vec<Loc>,
    /// What is wrong and what would be right.
    #[schema(example = "must be at least 1")]
    pub(crate) msg: String,
    /// What kind of mistake it is, for example `greater_than_equal`.
    #[schema(example = "greater_than_equal")]
    pub(crate) r#type: String,
}

impl Violation {
    /// Names a field by its path, starting with `body`, `query` or `header`.
    pub(crate) fn new(loc: &[&str], kind: &str, msg: impl Into<String>) -> Self {
        Self {
            loc: loc.iter().map(|step| Loc::from(*step)).collect(),
            msg: brief(msg.into()),
            r#type: kind.to_owned(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.loc.iter().enumerate() {
            let dot = if position == 0 { "" } else { "." };
            match step {
                Loc::Name(name) => write!(f, "{dot}{name}")?,
                Loc::Index(index) => write!(f, "{dot}{index}")?,
            }
        }
        write!(f, ": {}", self.msg)
    }
}

/// The fields that a status says are wrong.
pub(super) fn violations(details: &ErrorDetails, metadata: &HashMap<String, String>) -> Vec<Violation> {
    let fields = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
    let kind =
        |field: &str| metadata.get(&format!("violation.{field}")).map_or("value_error", String::as_str);
    fields
        .iter()
        .map(|violation| Violation {
            loc: location(&violation.field),
            msg: without_name(&violation.description, &violation.field).to_owned(),
            r#type: kind(&violation.field).to_owned(),
        })
        .collect()
}

/// A description often begins with the field's name on the wire; the location tells it already.
fn without_name<'a>(description: &'a str, field: &str) -> &'a str {
    let named = description.strip_prefix('`').and_then(|rest| rest.strip_prefix(field));
    named.and_then(|rest| rest.strip_prefix("` ")).unwrap_or(description)
}

/// The REST name of each field that has another one on the wire; the longest path that fits wins.
const NAMES: &[(&[&str], &[&str])] = &[
    (&["template", "template_id"], &["body", "id"]),
    (&["template", "default_resources", "cpu_millis"], &["body", "default_cpu_cores"]),
    (&["template", "default_resources", "memory_bytes"], &["body", "default_memory_mb"]),
    (&["template", "default_resources", "disk_bytes"], &["body", "default_disk_mb"]),
    (&["template", "default_timeout_seconds"], &["body", "default_timeout"]),
    (&["template", "default_env"], &["body", "default_env_vars"]),
    (&["template"], &["body"]),
    (&["spec", "timeout_seconds"], &["body", "timeout"]),
    (&["spec", "event_json"], &["body", "event"]),
    (&["spec", "env"], &["body", "env_vars"]),
    (&["spec"], &["body"]),
    (&["resources", "cpu_millis"], &["body", "cpu"]),
    (&["resources", "memory_bytes"], &["body", "memory"]),
    (&["resources", "disk_bytes"], &["body", "disk"]),
    (&["session_id"], &["body", "id"]),
    (&["timeout_seconds"], &["body", "timeout"]),
    (&["idle_timeout_seconds"], &["body", "idle_timeout"]),
    (&["install_timeout_seconds"], &["body", "install_timeout"]),
    (&["env"], &["body", "env_vars"]),
    (&["page_size"], &["query", "limit"]),
    (&["page_token"], &["query", "page_token"]),
    (&["offset"], &["query", "offset"]),
    (&["state"], &["query", "status"]),
    (&["stdout_offset"], &["query", "stdout_offset"]),
    (&["stderr_offset"], &["query", "stderr_offset"]),
    (&[], &["body"]),
];

/// The same of limits that are in something else, as those of a profile.
const LIMITS: [(&str, &str); 3] = [("cpu_millis", "cpu"), ("memory_bytes", "memory"), ("disk_bytes", "disk")];

/// Where a REST client finds the field that the wire calls `path`, for example `spec.timeout_seconds`.
fn location(path: &str) -> Vec<Loc> {
    let steps: Vec<&str> = path.split(['.', '[', ']']).filter(|step| !step.is_empty()).collect();
    let fitting = NAMES.iter().filter(|(wire, _)| steps.starts_with(wire));
    let (wire, rest) = fitting.max_by_key(|(wire, _)| wire.len()).copied().unwrap_or((&[], &["body"]));
    let mut rest: Vec<&str> = rest.iter().copied().chain(steps.into_iter().skip(wire.len())).collect();
    if let [.., "resources", last] = &mut *rest
        && let Some((_, name)) = LIMITS.iter().find(|(wire, _)| wire == last)
    {
        *last = name;
    }
    rest.into_iter().map(Loc::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(path: &str) -> String {
        let violation = Violation { loc: location(path), msg: String::new(), r#type: String::new() };
        violation.to_string().trim_end_matches(": ").to_owned()
    }

    #[test]
    fn a_wire_field_is_told_by_its_rest_name() {
        for (wire, expected) in [
            ("timeout_seconds", "body.timeout"),
            ("spec.timeout_seconds", "body.timeout"),
            ("spec.code", "body.code"),
            ("spec.env[PATH]", "body.env_vars.PATH"),
            ("resources.cpu_millis", "body.cpu"),
            ("resources.max_processes", "body.resources.max_processes"),
            ("template.default_resources.memory_bytes", "body.default_memory_mb"),
            ("template.default_timeout_seconds", "body.default_timeout"),
            ("template.template_id", "body.id"),
            ("template.pool.max", "body.pool.max"),
            ("template.pool.profiles.1.resources", "body.pool.profiles.1.resources"),
            ("template.pool.profiles.1.resources.memory_bytes", "body.pool.profiles.1.resources.memory"),
            ("template_id", "body.template_id"),
            ("session_id", "body.id"),
            ("dependencies[3].name", "body.dependencies.3.name"),
            ("page_token", "query.page_token"),
        ] {
            assert_eq!(rest(wire), expected, "{wire}");
        }
    }

    #[test]
    fn a_message_does_not_repeat_the_name_on_the_wire() {
        assert_eq!(without_name("`spec.code` is required", "spec.code"), "is required");
        assert_eq!(without_name("is required", "spec.code"), "is required");
    }

    #[test]
    fn a_position_in_a_list_is_a_number() {
        assert_eq!(location("dependencies[3].name")[2], Loc::Index(3));
    }
}
