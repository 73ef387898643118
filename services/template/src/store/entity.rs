//! The rows of the template tables, and the way between a row and a template.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sandmesh_mesh::json_column;
use sea_orm::{ActiveValue::Set, DbErr};
use serde::{Deserialize, Serialize};

use super::Stored;
use crate::validate::{Fields, Kept, Pool, Profile, Resources, Spec};

/// Environment variables as one JSON column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Env(BTreeMap<String, String>);

/// Names of packages as one JSON column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packages(Vec<String>);

/// Warm sandboxes with other limits than the template's as one JSON column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profiles(Vec<StoredProfile>);

/// One of them; what is zero is the template's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredProfile {
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    max_processes: u32,
    min: u32,
    max: u32,
    buffer: u32,
}

json_column!(Env, Packages, Profiles);

impl From<Profile> for StoredProfile {
    fn from(Profile { resources, kept: Kept { min, max, buffer } }: Profile) -> Self {
        let Resources { cpu_millis, memory_bytes, disk_bytes, max_processes } = resources;
        Self { cpu_millis, memory_bytes, disk_bytes, max_processes, min, max, buffer }
    }
}

impl From<StoredProfile> for Profile {
    fn from(row: StoredProfile) -> Self {
        let StoredProfile { cpu_millis, memory_bytes, disk_bytes, max_processes, min, max, buffer } = row;
        let resources = Resources { cpu_millis, memory_bytes, disk_bytes, max_processes };
        Self { resources, kept: Kept { min, max, buffer } }
    }
}

#[expect(unreachable_pub, reason = "the derive needs its types public")]
pub(super) mod template {
    use chrono::{DateTime, Utc};
    use sea_orm::entity::prelude::*;

    use super::{Env, Packages, Profiles};

    /// A template. Numbers are signed 64-bit: every database has those.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "templates")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub template_id: String,
        #[sea_orm(unique)]
        pub name: String,
        pub description: String,
        pub image_url: String,
        pub runtime_type: String,
        pub cpu_millis: i64,
        pub memory_bytes: i64,
        pub disk_bytes: i64,
        pub max_processes: i64,
        pub timeout_seconds: i64,
        pub env: Env,
        pub packages: Packages,
        pub pool_min: i64,
        pub pool_max: i64,
        pub pool_buffer: i64,
        /// None in a row that is older than the column.
        pub pool_profiles: Option<Profiles>,
        pub is_active: bool,
        pub revision: i64,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[expect(unreachable_pub, reason = "the derive needs its types public")]
pub(super) mod seeding {
    use chrono::{DateTime, Utc};
    use sea_orm::entity::prelude::*;

    /// A set of seeds that was planted.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "template_seedings")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub name: String,
        pub seeded_at: DateTime<Utc>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The row of a template that is written at `now`.
pub(super) fn row(spec: &Spec, revision: i64, now: DateTime<Utc>) -> template::ActiveModel {
    let fields = spec.fields().clone();
    let resources = fields.resources;
    // The rules keep sizes far below the largest signed number.
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    template::ActiveModel {
        template_id: Set(fields.template_id),
        name: Set(fields.name),
        description: Set(fields.description),
        image_url: Set(fields.image_url),
        runtime_type: Set(fields.runtime_type),
        cpu_millis: Set(resources.cpu_millis.into()),
        memory_bytes: Set(signed(resources.memory_bytes)),
        disk_bytes: Set(signed(resources.disk_bytes)),
        max_processes: Set(resources.max_processes.into()),
        timeout_seconds: Set(fields.timeout_seconds.into()),
        env: Set(Env(fields.env)),
        packages: Set(Packages(fields.packages)),
        pool_min: Set(fields.pool.kept.min.into()),
        pool_max: Set(fields.pool.kept.max.into()),
        pool_buffer: Set(fields.pool.kept.buffer.into()),
        pool_profiles: Set(Some(Profiles(fields.pool.profiles.into_iter().map(Into::into).collect()))),
        is_active: Set(fields.is_active),
        revision: Set(revision),
        created_at: Set(now),
        updated_at: Set(now),
    }
}

/// A number of a row; one that does not fit was written by somebody else.
fn number<T: TryFrom<i64>>(column: &str, value: i64) -> Result<T, DbErr> {
    T::try_from(value).map_err(|_| DbErr::Type(format!("column `{column}` holds {value}")))
}

impl TryFrom<template::Model> for Stored {
    type Error = DbErr;

    fn try_from(row: template::Model) -> Result<Self, DbErr> {
        let fields = Fields {
            template_id: row.template_id,
            name: row.name,
            description: row.description,
            image_url: row.image_url,
            runtime_type: row.runtime_type,
            resources: Resources {
                cpu_millis: number("cpu_millis", row.cpu_millis)?,
                memory_bytes: number("memory_bytes", row.memory_bytes)?,
                disk_bytes: number("disk_bytes", row.disk_bytes)?,
                max_processes: number("max_processes", row.max_processes)?,
            },
            timeout_seconds: number("timeout_seconds", row.timeout_seconds)?,
            env: row.env.0,
            packages: row.packages.0,
            pool: Pool {
                kept: Kept {
                    min: number("pool_min", row.pool_min)?,
                    max: number("pool_max", row.pool_max)?,
                    buffer: number("pool_buffer", row.pool_buffer)?,
                },
                profiles: row.pool_profiles.unwrap_or_default().0.into_iter().map(Into::into).collect(),
            },
            is_active: row.is_active,
        };
        Ok(Self { fields, revision: row.revision, created_at: row.created_at, updated_at: row.updated_at })
    }
}
