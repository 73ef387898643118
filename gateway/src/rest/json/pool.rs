//! Pools of warm sandboxes in JSON.

use sandmesh_proto::{
    scheduler::{Pool as Wire, SetPoolRequest},
    template::PoolSettings,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Mistakes, filled, time};
use crate::error::ApiError;

/// How many sandboxes of a template are to be warm.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SetPool {
    /// At least this many.
    #[schema(default = 0)]
    min: Option<u32>,
    /// At most this many; 0: there is no pool.
    #[schema(required = true, nullable = false)]
    max: Option<u32>,
    /// This many beyond what is expected to be asked for while one is made.
    #[schema(default = 0)]
    buffer: Option<u32>,
}

/// The pools.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pools {
    /// Ordered by template.
    items: Vec<Pool>,
    /// How many there are.
    total: u64,
}

/// Warm sandboxes of one template.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pool {
    /// The template.
    template_id: String,
    /// At least this many are warm.
    min: u32,
    /// At most this many.
    max: u32,
    /// This many beyond what is expected to be asked for while one is made.
    buffer: u32,
    /// How many are to be warm now, by how many were asked for lately.
    target: u32,
    /// Sandboxes that a session can have at once.
    warm: u32,
    /// Sandboxes that are being made to be warm.
    starting: u32,
    /// Sandboxes of sessions that were warm.
    claimed: u32,
    /// Sandboxes of sessions that were made for them.
    cold: u32,
    /// Why none could be made last; null since one could.
    #[schema(required = true)]
    last_error: Option<String>,
    /// When it is tried again.
    #[schema(required = true, format = DateTime)]
    retry_at: Option<String>,
}

impl SetPool {
    /// The request on the wire.
    pub(crate) fn into_request(self, template_id: String) -> Result<SetPoolRequest, ApiError> {
        let mut mistakes = Mistakes::default();
        mistakes.required("max", self.max.as_ref());
        let settings = PoolSettings {
            min: self.min.unwrap_or_default(),
            max: self.max.unwrap_or_default(),
            buffer: self.buffer.unwrap_or_default(),
        };
        mistakes.check().map(|()| SetPoolRequest { template_id, settings: Some(settings) })
    }
}

impl From<Vec<Wire>> for Pools {
    fn from(pools: Vec<Wire>) -> Self {
        let items: Vec<Pool> = pools.into_iter().map(Pool::from).collect();
        Self { total: items.len() as u64, items }
    }
}

impl From<Wire> for Pool {
    fn from(pool: Wire) -> Self {
        let PoolSettings { min, max, buffer } = pool.settings.unwrap_or_default();
        Self {
            template_id: pool.template_id,
            min,
            max,
            buffer,
            target: pool.target,
            warm: pool.warm,
            starting: pool.starting,
            claimed: pool.claimed,
            cold: pool.cold,
            last_error: filled(pool.last_error),
            retry_at: time(pool.retry_at.as_ref()),
        }
    }
}
