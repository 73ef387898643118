//! The ids that this role makes.

use chrono::{DateTime, Utc};

/// A session id, such as `sess_20261122_0a1b2c3d`.
pub(crate) fn session(now: DateTime<Utc>) -> String {
    format!("sess_{}_{:08x}", now.format("%Y%m%d"), rand::random::<u32>())
}

/// An execution id, such as `exec_20261122131500_0a1b2c3d`.
pub(crate) fn execution(now: DateTime<Utc>) -> String {
    format!("exec_{}_{:08x}", now.format("%Y%m%d%H%M%S"), rand::random::<u32>())
}

/// A sandbox id, such as `sbx_0011223344556677`.
pub(crate) fn sandbox() -> String {
    format!("sbx_{:016x}", rand::random::<u64>())
}

/// Random hex digits, to tell apart what would be named the same.
pub(crate) fn nonce() -> String {
    format!("{:016x}", rand::random::<u64>())
}
