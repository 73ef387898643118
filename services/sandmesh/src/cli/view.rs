//! What the commands print: JSON with the field names of the REST API, and the words of the text form.

mod execution;
mod operator;
mod pool;
mod session;
mod template;

use chrono::{DateTime, SecondsFormat, Utc};
use prost_types::Timestamp;
use sandmesh_mesh::datetime;
use serde::Serialize;

pub(super) use execution::ExecutionView;
pub(super) use operator::{JoinTokenView, NodeView, SandboxView};
pub(super) use pool::PoolView;
pub(super) use session::SessionView;
pub(super) use template::TemplateView;

/// A page of things, newest first.
#[derive(Debug, Serialize)]
pub(super) struct Page<T> {
    /// The things.
    pub(super) items: Vec<T>,
    /// How many match in all.
    pub(super) total: u64,
    /// The most that was asked for.
    pub(super) limit: u32,
    /// How many were skipped.
    pub(super) offset: u32,
    /// Whether there are more than are here.
    pub(super) has_more: bool,
    /// Where the list goes on.
    pub(super) next_page_token: Option<String>,
}

/// The word for an enum value: `STATE_RUNNING` without `STATE_` is `running`.
pub(super) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

/// RFC 3339 in UTC, to the microsecond; `None` when there is no time.
pub(super) fn time(time: Option<&Timestamp>) -> Option<String> {
    let time: DateTime<Utc> = datetime(time?)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// `1`, `0.5`: thousandths of a core as cores.
pub(super) fn cores(millis: u32) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `512Mi`, `1Gi`: bytes in the largest unit that divides them.
pub(super) fn size(bytes: u64) -> String {
    let units = [("Gi", 1u64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// The text, unless there is none.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_read_as_they_are_written() {
        for (millis, text) in
            [(1000, "1"), (500, "0.5"), (2250, "2.25"), (10_000, "10"), (1, "0.001"), (0, "0")]
        {
            assert_eq!(cores(millis), text);
        }
        for (bytes, text) in
            [(512 << 20, "512Mi"), (1 << 30, "1Gi"), (1536 << 20, "1536Mi"), (1000, "1000"), (0, "0")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_state_is_a_lowercase_word() {
        assert_eq!(word("STATE_RUNNING", "STATE_"), "running");
        assert_eq!(word("CAUSE_PIDS_LIMIT", "CAUSE_"), "pids_limit");
    }
}
