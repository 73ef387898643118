//! Which of several processes of this role makes the passes that nobody asks for: the one that has the lease.
//!
//! It is held on to while passes run. Should two make a pass at once all the same, as one was frozen, nothing
//! is harmed: what a pass does names the sandbox that it is about, and is refused where that has changed.

use std::time::Duration;

use sandmesh_mesh::{CancellationToken, Link};
use sandmesh_proto::session::{
    HoldLeaseRequest, ReleaseLeaseRequest, lease_service_client::LeaseServiceClient,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::Status;

/// What the lease is of.
const NAME: &str = "state-sync";
/// For how long it is taken: another takes over at the latest after this and [`EVERY`].
const TERM: Duration = Duration::from_secs(9);
/// How often it is asked for.
const EVERY: Duration = Duration::from_secs(3);

/// The lease, as far as this process knows.
#[derive(Debug)]
pub(crate) struct Lease {
    sessions: Link,
    holder: String,
    /// Until when it is held for sure.
    until: watch::Sender<Option<Instant>>,
}

impl Lease {
    /// One that is not held yet.
    pub(crate) fn new(sessions: Link) -> Self {
        let holder = format!("{:032x}", rand::random::<u128>());
        Self { sessions, holder, until: watch::Sender::new(None) }
    }

    /// Asks for it until the process stops, and gives it back then.
    pub(crate) async fn keep(&self, stopped: CancellationToken) {
        loop {
            let asked = Instant::now();
            match stopped.run_until_cancelled(timeout(EVERY, self.hold())).await {
                None => break,
                Some(Ok(Ok(true))) => self.note(Some(asked + TERM)),
                Some(Ok(Ok(false))) => self.note(None),
                Some(Ok(Err(status))) => tracing::debug!(why = status.message(), "no answer about the lease"),
                Some(Err(_)) => tracing::debug!("no answer about the lease in time"),
            }
            let next = tokio::time::sleep_until(asked + EVERY);
            if stopped.run_until_cancelled(next).await.is_none() {
                break;
            }
        }
        if self.is_held() {
            self.note(None);
            let (name, holder) = (NAME.to_owned(), self.holder.clone());
            let mut client = LeaseServiceClient::new(self.sessions.clone());
            // Without an answer its term ends soon.
            let _ = timeout(EVERY, client.release_lease(ReleaseLeaseRequest { name, holder })).await;
        }
    }

    async fn hold(&self) -> Result<bool, Status> {
        let mut client = LeaseServiceClient::new(self.sessions.clone());
        let (name, holder) = (NAME.to_owned(), self.holder.clone());
        let request = HoldLeaseRequest { name, holder, term: prost_types::Duration::try_from(TERM).ok() };
        Ok(client.hold_lease(request).await?.into_inner().held)
    }

    fn note(&self, until: Option<Instant>) {
        let before = self.until.send_replace(until);
        if before.is_some() != until.is_some() {
            tracing::info!(held = until.is_some(), "the lease to reconcile");
        }
    }

    /// Whether nobody else has it.
    pub(crate) fn is_held(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until it is held.
    pub(crate) async fn held(&self) {
        let mut until = self.until.subscribe();
        // The sender is this.
        let _ = until.wait_for(|until| until.is_some_and(|until| Instant::now() < until)).await;
    }
}
