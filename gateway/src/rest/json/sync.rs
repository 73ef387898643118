//! How long a synchronous execution is waited for.

use std::fmt::Display;

use serde::Deserialize;
use utoipa::IntoParams;

use super::execution::Execute;
use crate::error::{ApiError, Violation};

/// How long a synchronous execution is waited for, in seconds, when the client does not say.
const DEFAULT_SYNC_TIMEOUT: i64 = 300;

/// How a synchronous execution is waited for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct SyncOptions {
    /// How many seconds to wait for the end.
    #[param(minimum = 10, maximum = 3600, default = 300)]
    sync_timeout: Option<i64>,
    /// Accepted for existing clients; nothing polls.
    #[param(minimum = 0.1, maximum = 10.0)]
    poll_interval: Option<f64>,
}

impl SyncOptions {
    /// The seconds to wait, checked, from the query or else from the body.
    pub(crate) fn sync_timeout(&self, body: &Execute) -> Result<u32, ApiError> {
        let place = |in_query: bool| if in_query { "query" } else { "body" };
        let mut wrong = Vec::new();
        let seconds = self.sync_timeout.or(body.sync_timeout).unwrap_or(DEFAULT_SYNC_TIMEOUT);
        if let Some(violation) = outside(seconds, 10, 3600) {
            let loc = [place(self.sync_timeout.is_some()), "sync_timeout"];
            wrong.push(Violation::new(&loc, violation.0, violation.1));
        }
        let interval = self.poll_interval.or(body.poll_interval).unwrap_or(1.0);
        if let Some(violation) = outside(interval, 0.1, 10.0) {
            let loc = [place(self.poll_interval.is_some()), "poll_interval"];
            wrong.push(Violation::new(&loc, violation.0, violation.1));
        }
        match u32::try_from(seconds) {
            Ok(seconds) if wrong.is_empty() => Ok(seconds),
            _ => Err(ApiError::invalid(wrong)),
        }
    }
}

/// The kind and text of a number that is out of its bounds.
fn outside<T: Copy + PartialOrd + Display>(value: T, least: T, most: T) -> Option<(&'static str, String)> {
    if value > most {
        Some(("less_than_equal", format!("must be at most {most}")))
    } else if value >= least {
        None
    } else {
        Some(("greater_than_equal", format!("must be at least {least}")))
    }
}
