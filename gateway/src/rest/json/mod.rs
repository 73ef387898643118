//! The JSON shapes of the contract, and how they map to messages.
//!
//! Field names and defaults are those of `/openapi.json`, which is made from these types. Here a text
//! becomes a number; whether the number is acceptable is for the roles to say.

pub(crate) mod container;
pub(crate) mod dependency;
pub(crate) mod execution;
pub(crate) mod file;
pub(crate) mod health;
pub(crate) mod node;
pub(crate) mod pool;
mod quantity;
pub(crate) mod session;
pub(crate) mod sync;
pub(crate) mod template;

use std::collections::HashMap;

use chrono::SecondsFormat;
use prost_types::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de::IntoDeserializer};
use utoipa::{IntoParams, ToSchema};

use crate::error::{ApiError, Violation};
use execution::ExecutionStatus;
use session::SessionStatus;

/// How many items a page has when the client does not say.
const DEFAULT_LIMIT: u32 = 50;

/// How many items a page has at most.
const MAX_LIMIT: u32 = 200;

/// A text for people.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Message {
    /// The text.
    pub(crate) message: String,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    /// The items.
    pub(crate) items: Vec<T>,
    /// How many match in all.
    pub(crate) total: u64,
    /// How many items a page has at most, after clamping.
    pub(crate) limit: u32,
    /// How many items were skipped.
    pub(crate) offset: u32,
    /// True when there are more after these.
    pub(crate) has_more: bool,
    /// Give this as `page_token` to read on; null on the last page.
    #[schema(required = true)]
    pub(crate) next_page_token: Option<String>,
}

/// Which part of a list is wanted.
#[derive(Debug)]
pub(crate) struct Paging {
    /// How many items at most, from 1 to 200.
    pub(crate) limit: u32,
    /// How many to skip; not together with a token.
    pub(crate) offset: u32,
    /// Where the page before ended; may be empty.
    pub(crate) token: String,
}

impl Paging {
    fn new(limit: Option<i64>, offset: Option<u32>, token: Option<&str>) -> Self {
        let limit = limit.map_or(DEFAULT_LIMIT, |limit| {
            u32::try_from(limit.clamp(1, MAX_LIMIT.into())).unwrap_or(MAX_LIMIT)
        });
        Self { limit, offset: offset.unwrap_or(0), token: token.unwrap_or_default().to_owned() }
    }

    /// The page that these items are.
    pub(crate) fn page<T>(self, items: Vec<T>, total: u64, next: String) -> Page<T> {
        let seen = u64::from(self.offset) + u64::try_from(items.len()).unwrap_or(u64::MAX);
        let has_more = !next.is_empty() || (self.token.is_empty() && seen < total && !items.is_empty());
        let next_page_token = (!next.is_empty()).then_some(next);
        Page { items, total, limit: self.limit, offset: self.offset, has_more, next_page_token }
    }
}

/// Which sessions are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListSessions {
    /// Only those in this state.
    #[param(inline)]
    pub(crate) status: Option<SessionStatus>,
    /// Only those of this template.
    pub(crate) template_id: Option<String>,
    /// Only those with these labels, as `KEY=VALUE`, separated by commas; at most 8.
    #[param(example = "team=blue,stage=test")]
    labels: Option<String>,
    /// How many at most; clamped to 1..200.
    #[param(default = 50)]
    limit: Option<i64>,
    /// Skip this many.
    #[param(default = 0)]
    offset: Option<u32>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

impl ListSessions {
    /// Which part of the list is wanted.
    pub(crate) fn paging(&self) -> Paging {
        Paging::new(self.limit, self.offset, self.page_token.as_deref())
    }

    /// The labels that are wanted.
    pub(crate) fn labels(&self) -> Result<HashMap<String, String>, ApiError> {
        let pairs = self.labels.as_deref().unwrap_or_default().split(',').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pairs.map(pair).collect::<Option<_>>().ok_or_else(|| {
            let problem = "must be KEY=VALUE, separated by commas";
            ApiError::field(Violation::new(&["query", "labels"], "string_pattern_mismatch", problem))
        })
    }

    /// The state on the wire; unspecified when every state is wanted.
    pub(crate) fn state(&self) -> i32 {
        self.status.map_or(0, |status| status.wire().into())
    }
}

/// Which executions of a session are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListExecutions {
    /// Only those in this state.
    #[param(inline)]
    status: Option<ExecutionStatus>,
    /// How many at most; clamped to 1..200.
    #[param(default = 50)]
    limit: Option<i64>,
    /// Skip this many.
    #[param(default = 0)]
    offset: Option<u32>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
}

impl ListExecutions {
    /// Which part of the list is wanted.
    pub(crate) fn paging(&self) -> Paging {
        Paging::new(self.limit, self.offset, self.page_token.as_deref())
    }

    /// The state on the wire; unspecified when every state is wanted.
    pub(crate) fn state(&self) -> i32 {
        self.status.map_or(0, |status| status.wire().into())
    }
}

/// Which templates are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListTemplates {
    /// How many at most; clamped to 1..200.
    #[param(default = 50)]
    limit: Option<i64>,
    /// Skip this many.
    #[param(default = 0)]
    offset: Option<u32>,
}

impl ListTemplates {
    /// Which part of the list is wanted.
    pub(crate) fn paging(&self) -> Paging {
        Paging::new(self.limit, self.offset, None)
    }
}

/// A time as HTTP headers have it.
pub(super) fn http_date(time: Option<&Timestamp>) -> Option<String> {
    Some(sandmesh_mesh::datetime(time?)?.format("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

/// A time as the API writes times: UTC, to the microsecond, with `Z`; null where there is none yet.
pub(super) fn time(time: Option<&Timestamp>) -> Option<String> {
    let time = sandmesh_mesh::datetime(time?)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// A text that may be empty; null then.
fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// What is wrong with a request as REST writes it.
#[derive(Debug, Default)]
struct Mistakes(Vec<Violation>);

impl Mistakes {
    /// A field of the body; a dot is between the names of steps to it.
    fn add(&mut self, field: &str, kind: &str, msg: impl Into<String>) {
        let loc: Vec<&str> = std::iter::once("body").chain(field.split('.')).collect();
        self.0.push(Violation::new(&loc, kind, msg));
    }

    /// A field that must be given.
    fn required<T>(&mut self, field: &str, value: Option<&T>) {
        if value.is_none() {
            self.add(field, "missing", "is required");
        }
    }

    /// A field that may be left out, but not given empty: on the wire both would look alike.
    fn not_empty(&mut self, field: &str, value: Option<&String>) {
        if value.is_some_and(String::is_empty) {
            self.add(field, "string_too_short", "must not be empty");
        }
    }

    fn check(self) -> Result<(), ApiError> {
        if self.0.is_empty() { Ok(()) } else { Err(ApiError::invalid(self.0)) }
    }
}

/// One of some words. Read as a text first: the parser takes anything else in place of a word for JSON that
/// is not valid, and forgets where it was.
pub(crate) fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| T::deserialize(text.into_deserializer())).transpose()
}

#[cfg(test)]
mod tests;
