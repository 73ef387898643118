//! Between the role's own types and those on the wire.

use sandmesh_proto::health;

use crate::condition::Condition;

/// A condition as it travels.
pub(crate) fn condition_pb(condition: Condition) -> health::Condition {
    match condition {
        Condition::Healthy => health::Condition::Healthy,
        Condition::Degraded => health::Condition::Degraded,
        Condition::Unhealthy => health::Condition::Unhealthy,
    }
}
