//! One thing that the doctor found.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works and could be better.
    Warning,
    /// It does not work, or not as promised.
    Problem,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
        })
    }
}

/// What was looked at, what was found, what that means and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) what: &'static str,
    pub(super) found: String,
    pub(super) meaning: String,
    pub(super) fix: String,
}

impl Finding {
    /// All is well, and why that matters.
    pub(super) fn ok(what: &'static str, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, found: found.into(), meaning: meaning.into(), fix: String::new() }
    }

    /// The same finding, but not well, with what to do about it.
    pub(super) fn but(self, level: Level, meaning: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level, meaning: meaning.into(), fix: fix.into(), ..self }
    }
}
