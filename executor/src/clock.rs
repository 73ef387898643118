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

/// Lets what is ready to run go first: what is on its way to a client goes through several tasks.
pub(crate) async fn let_others_go_first() {
    const HANDS: usize = 4;
    for _ in 0..HANDS {
        tokio::task::yield_now().await;
    }
}
