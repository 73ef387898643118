//! Columns that mean the same in every database.
//!
//! In MariaDB and MySQL the plain types for text and bytes end at 64 KiB, and text is compared without
//! regard to case. JSON is kept as text everywhere: as a type of its own each database has other ideas of
//! what it may hold, and nobody asks the database what is in it.

use sea_orm_migration::{
    prelude::{Alias, ColumnDef, ConnectionTrait, DbErr, SchemaManager, TableCreateStatement},
    sea_orm::{DbBackend, Statement},
};

fn any_text(backend: DbBackend, name: &'static str) -> ColumnDef {
    match backend {
        DbBackend::MySql => ColumnDef::new(name).custom(Alias::new("longtext")).take(),
        _ => ColumnDef::new(name).text().take(),
    }
}

fn any_bytes(backend: DbBackend, name: &'static str) -> ColumnDef {
    match backend {
        DbBackend::MySql => ColumnDef::new(name).custom(Alias::new("longblob")).take(),
        _ => ColumnDef::new(name).blob().take(),
    }
}

fn any_json(backend: DbBackend, name: &'static str) -> ColumnDef {
    match backend {
        DbBackend::Sqlite => ColumnDef::new(name).json().take(),
        _ => any_text(backend, name),
    }
}

/// Text of any length.
#[must_use]
pub fn text(backend: DbBackend, name: &'static str) -> ColumnDef {
    any_text(backend, name).not_null().take()
}

/// Text of any length, or none.
#[must_use]
pub fn text_null(backend: DbBackend, name: &'static str) -> ColumnDef {
    any_text(backend, name).null().take()
}

/// Bytes.
#[must_use]
pub fn blob(backend: DbBackend, name: &'static str) -> ColumnDef {
    any_bytes(backend, name).not_null().take()
}

/// Bytes, or none.
#[must_use]
pub fn blob_null(backend: DbBackend, name: &'static str) -> ColumnDef {
    any_bytes(backend, name).null().take()
}

/// JSON, as text.
#[must_use]
pub fn json(backend: DbBackend, name: &'static str) -> ColumnDef {
    any_json(backend, name).not_null().take()
}

/// JSON, as text, or none.
#[must_use]
pub fn json_null(backend: DbBackend, name: &'static str) -> ColumnDef {
    any_json(backend, name).null().take()
}

/// A time in UTC, to the microsecond.
#[must_use]
pub fn time(backend: DbBackend, name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    match backend {
        // Its TIMESTAMP knows seconds only, and ends in 2038.
        DbBackend::MySql => column.custom(Alias::new("datetime(6)")),
        _ => column.timestamp_with_time_zone(),
    };
    column.not_null().take()
}

/// Has a new table compare text as it is: `a` is neither `A` nor `a` with a space behind it. The others do
/// so anyway.
///
/// # Errors
/// When the database does not say what it is.
pub async fn exact(
    manager: &SchemaManager<'_>,
    table: &mut TableCreateStatement,
) -> Result<TableCreateStatement, DbErr> {
    if manager.get_database_backend() == DbBackend::MySql {
        let version = Statement::from_string(DbBackend::MySql, "SELECT VERSION() AS version");
        let row = manager.get_connection().query_one_raw(version).await?;
        let version: String = row.map(|row| row.try_get("", "version")).transpose()?.unwrap_or_default();
        let collation = match version.contains("MariaDB") {
            true => "utf8mb4_nopad_bin",
            false => "utf8mb4_0900_bin",
        };
        table.engine("InnoDB").character_set("utf8mb4").collate(collation);
    }
    Ok(table.take())
}

/// Keeps values of these types as JSON in a text column: the types are those of serde, and none has a key
/// that is no text.
#[macro_export]
macro_rules! json_column {
    ($($type:ty),+ $(,)?) => {$(
        impl From<$type> for ::sea_orm::Value {
            fn from(value: $type) -> Self {
                // None of them has a key that is no text, or a number that is none.
                ::serde_json::to_string(&value).unwrap_or_default().into()
            }
        }

        impl ::sea_orm::TryGetable for $type {
            fn try_get_by<I: ::sea_orm::ColIdx>(result: &::sea_orm::QueryResult, index: I) -> Result<Self, ::sea_orm::TryGetError> {
                let text = <String as ::sea_orm::TryGetable>::try_get_by(result, index)?;
                ::serde_json::from_str(&text).map_err(|error| ::sea_orm::DbErr::Json(error.to_string()).into())
            }
        }

        impl ::sea_orm::sea_query::ValueType for $type {
            fn try_from(value: ::sea_orm::Value) -> Result<Self, ::sea_orm::sea_query::ValueTypeErr> {
                let text = <String as ::sea_orm::sea_query::ValueType>::try_from(value)?;
                ::serde_json::from_str(&text).map_err(|_| ::sea_orm::sea_query::ValueTypeErr)
            }

            fn type_name() -> String {
                stringify!($type).to_owned()
            }

            fn array_type() -> ::sea_orm::sea_query::ArrayType {
                ::sea_orm::sea_query::ArrayType::String
            }

            fn column_type() -> ::sea_orm::sea_query::ColumnType {
                ::sea_orm::sea_query::ColumnType::Text
            }
        }

        impl ::sea_orm::sea_query::Nullable for $type {
            fn null() -> ::sea_orm::Value {
                ::sea_orm::Value::String(None)
            }
        }
    )+};
}
