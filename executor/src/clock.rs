//! The one place where the executor takes the time of day and starts tasks. It has no mesh to take
//! either from: it stands alone in its sandbox.

use std::{future::Future, time::SystemTime};

/// The time of day.
#[expect(clippy::disallowed_methods, reason = "the executor's own clock")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Starts a task that ends by itself with what it serves: an execution or a stream.
#[expect(clippy::disallowed_methods, reason = "the executor's own tasks")]
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}
