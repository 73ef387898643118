//! Waiting for a database server at the start of a process: machines start in any order.

use std::time::Duration;

use sea_orm::DbErr;
use tokio::time::Instant;

use super::is_unavailable;

/// How long a server is waited for that is not there.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Opens a database, again while its server is not there, for a minute at most. What is wrong with the
/// settings is told at once.
///
/// # Errors
/// What the last attempt failed with.
pub async fn patiently<T>(open: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    within(PATIENCE, open).await
}

async fn within<T>(
    patience: Duration,
    mut open: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    let mut told = false;
    loop {
        match open().await {
            Err(error) if is_away(&error) && Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "waiting for the database, for {patience:?} at most"
                    );
                }
            }
            done => return done,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_away(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<DbErr>().is_some_and(is_unavailable))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use sea_orm::ConnAcquireErr;

    use super::*;

    /// What a server that is away is to a pool.
    fn away() -> anyhow::Result<u32> {
        Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)).context("cannot open it")
    }

    #[tokio::test]
    async fn server_that_comes_up_is_waited_for_and_what_is_wrong_is_told_at_once() {
        let mut attempts = 0;
        let opened = patiently(async || {
            attempts += 1;
            if attempts < 3 { away() } else { Ok(attempts) }
        });
        assert_eq!(opened.await.unwrap(), 3);
        let began = Instant::now();
        let wrong = patiently(async || Err::<(), _>(DbErr::Custom("no such user".into()).into()));
        assert!(wrong.await.is_err() && began.elapsed() < PAUSE);
        assert!(within(2 * PAUSE, async || away()).await.is_err());
    }
}
