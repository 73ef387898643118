//! How values of the domain are kept in columns: states as words, values of several parts as JSON, times as
//! microseconds since 1970 (UTC).
//!
//! JSON is text in every database: what a database takes for JSON itself may not hold what text can hold, as
//! a NUL character. Microseconds in an integer sort and compare the same in every database, which text and native
//! timestamps do not.

use chrono::{DateTime, Utc};
use sandmesh_mesh::json_column;
use sea_orm::{
    ColIdx, DbErr, QueryResult, TryGetError, TryGetable, Value,
    sea_query::{ArrayType, ColumnType, Nullable, StringLen, ValueType, ValueTypeErr},
};

use crate::{
    dependencies::{InstallState, Installed, Packages},
    lifecycle::{Cause, ExecutionState, SessionState},
    values::{Artifacts, Isolation, Language, Metrics, Mode, Pairs, Resources, UserError, Words},
};

macro_rules! word_column {
    ($($type:ty),*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                value.as_str().into()
            }
        }

        impl TryGetable for $type {
            fn try_get_by<I: ColIdx>(result: &QueryResult, index: I) -> Result<Self, TryGetError> {
                let word = String::try_get_by(result, index)?;
                let found = Self::ALL.into_iter().find(|value| value.as_str() == word);
                found.ok_or_else(|| DbErr::Type(format!("`{word}` is no {}", stringify!($type))).into())
            }
        }

        impl ValueType for $type {
            fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
                let word = <String as ValueType>::try_from(value)?;
                Self::ALL.into_iter().find(|value| value.as_str() == word).ok_or(ValueTypeErr)
            }

            fn type_name() -> String {
                stringify!($type).to_owned()
            }

            fn array_type() -> ArrayType {
                ArrayType::String
            }

            fn column_type() -> ColumnType {
                ColumnType::String(StringLen::N(16))
            }
        }

        impl Nullable for $type {
            fn null() -> Value {
                Value::String(None)
            }
        }
    )*};
}

word_column!(InstallState, SessionState, ExecutionState, Cause, Language, Mode);

json_column!(Artifacts, Installed, Isolation, Metrics, Packages, Pairs, Resources, UserError, Words);

/// A time, as a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, sea_orm::DeriveValueType)]
pub(crate) struct Instant(i64);

impl Instant {
    /// The time.
    pub(crate) fn utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0).unwrap_or_default()
    }

    /// Microseconds since 1970.
    pub(crate) fn micros(self) -> i64 {
        self.0
    }

    /// From microseconds since 1970.
    pub(crate) fn from_micros(micros: i64) -> Self {
        Self(micros)
    }
}

impl From<DateTime<Utc>> for Instant {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.timestamp_micros())
    }
}
