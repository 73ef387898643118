//! Collects what is wrong with the fields of one request.

use std::{collections::HashMap, ops::RangeInclusive};

use sandmesh_mesh::FieldViolation;

use crate::{error::Error, values::Pairs};

/// The names and values of an environment together may be this long.
const MAX_ENV_BYTES: usize = 64 << 10;

/// How many variables an environment may have.
const MAX_ENV: usize = 256;

/// What is wrong with a request so far.
#[derive(Debug, Default)]
pub(crate) struct Check(Vec<FieldViolation>);

impl Check {
    /// Notes that a field is wrong. `problem` completes the sentence "`field` ...".
    pub(crate) fn fail(&mut self, field: &str, kind: &'static str, problem: &str) {
        self.0.push(FieldViolation::new(field, kind, format!("`{field}` {problem}")));
    }

    /// Checks a number against a range.
    pub(crate) fn number<N: Copy + PartialOrd + std::fmt::Display>(
        &mut self,
        field: &str,
        value: N,
        range: RangeInclusive<N>,
    ) {
        let kind = match () {
            () if value < *range.start() => "greater_than_equal",
            () if value > *range.end() => "less_than_equal",
            () => return,
        };
        self.fail(field, kind, &format!("must be from {} to {}", range.start(), range.end()));
    }

    /// Checks the length of a text, in bytes.
    pub(crate) fn length(&mut self, field: &str, value: &str, range: RangeInclusive<usize>) {
        if value.len() > *range.end() {
            self.fail(field, "string_too_long", &format!("must be at most {} bytes long", range.end()));
        } else if value.is_empty() && *range.start() > 0 {
            self.fail(field, "missing", "is required");
        } else if value.len() < *range.start() {
            self.fail(field, "string_too_short", &format!("must be at least {} bytes long", range.start()));
        }
    }

    /// Checks how many there are.
    pub(crate) fn count(&mut self, field: &str, count: usize, most: usize) {
        if count > most {
            self.fail(field, "too_long", &format!("must have at most {most} entries"));
        }
    }

    /// Checks the form of an id that may be left out; `None` when it is.
    pub(crate) fn id(&mut self, field: &str, value: String) -> Option<String> {
        if value.is_empty() {
            return None;
        }
        self.length(field, &value, 1..=64);
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !value.starts_with(|c: char| c.is_ascii_alphanumeric()) || !value.chars().all(inside) {
            self.fail(field, "string_pattern_mismatch", "must match ^[A-Za-z0-9][A-Za-z0-9_-]*$");
        }
        Some(value)
    }

    /// Checks a request id that may be left out; `None` when it is.
    pub(crate) fn request_id(&mut self, value: String) -> Option<String> {
        self.length("request_id", &value, 0..=128);
        Some(value).filter(|value| !value.is_empty())
    }

    /// Checks an environment. Values are not shown: they may be secrets.
    pub(crate) fn env(&mut self, field: &str, env: HashMap<String, String>) -> Pairs {
        self.count(field, env.len(), MAX_ENV);
        if env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>() > MAX_ENV_BYTES {
            self.fail(field, "too_long", &format!("must be at most {MAX_ENV_BYTES} bytes in all"));
        }
        let env: Pairs = Pairs(env.into_iter().collect());
        for (name, value) in &env.0 {
            if !is_identifier(name, false) {
                let problem =
                    format!("has a name that does not match ^[A-Za-z_][A-Za-z0-9_]*$: {}", shown(name));
                self.fail(field, "string_pattern_mismatch", &problem);
            }
            if value.contains('\0') {
                self.fail(
                    field,
                    "value_error",
                    &format!("has a NUL character in the value of {}", shown(name)),
                );
            }
        }
        env
    }

    /// Ok when nothing is wrong.
    pub(crate) fn done(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(self.refused()) }
    }

    /// The refusal of the request.
    pub(crate) fn refused(self) -> Error {
        Error::Invalid(self.0)
    }
}

/// True for a name as programming languages take it; `dollar` is a letter in some.
pub(super) fn is_identifier(text: &str, dollar: bool) -> bool {
    let start = |c: char| c.is_ascii_alphabetic() || c == '_' || (dollar && c == '$');
    text.starts_with(start) && text.chars().all(|c| start(c) || c.is_ascii_digit())
}

/// A caller's text in a message: quoted, without control characters, not too long.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    format!("`{}{dots}`", short.escape_debug())
}
