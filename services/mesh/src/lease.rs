//! Which of several processes of a role does what is to be done once: the one that has the lease, which the
//! session role keeps in its database.
//!
//! It is held on to while that is done. A process that was frozen may think for a moment that it has what
//! another took over: what is done under a lease must do no harm when two do it at once.

use std::time::Duration;

use sandmesh_proto::session::{
    HoldLeaseRequest, ReleaseLeaseRequest, lease_service_client::LeaseServiceClient,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::Status;

use crate::{CancellationToken, Link};

/// For how long it is taken: another takes over at the latest after this and [`EVERY`].
const TERM: Duration = Duration::from_secs(9);
/// How often it is asked for.
const EVERY: Duration = Duration::from_secs(3);

/// A lease, as far as this process knows.
#[derive(Debug)]
pub struct Lease {
    name: &'static str,
    sessions: Link,
    holder: String,
    /// Until when it is held for sure.
    until: watch::Sender<Option<Instant>>,
}

impl Lease {
    /// One of this name that is not held yet; `sessions` is the session role.
    #[must_use]
    pub fn new(name: &'static str, sessions: Link) -> Self {
        let holder = format!("{:032x}", rand::random::<u128>());
        Self { name, sessions, holder, until: watch::Sender::new(None) }
    }

    /// Asks for it until the process stops, and gives it back then.
    pub async fn keep(&self, stopped: CancellationToken) {
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
            let (name, holder) = (self.name.to_owned(), self.holder.clone());
            let mut client = LeaseServiceClient::new(self.sessions.clone());
            // Without an answer its term ends soon.
            let _ = timeout(EVERY, client.release_lease(ReleaseLeaseRequest { name, holder })).await;
        }
    }

    async fn hold(&self) -> Result<bool, Status> {
        let mut client = LeaseServiceClient::new(self.sessions.clone());
        let (name, holder) = (self.name.to_owned(), self.holder.clone());
        let request = HoldLeaseRequest { name, holder, term: prost_types::Duration::try_from(TERM).ok() };
        Ok(client.hold_lease(request).await?.into_inner().held)
    }

    fn note(&self, until: Option<Instant>) {
        let before = self.until.send_replace(until);
        if before.is_some() != until.is_some() {
            tracing::info!(lease = self.name, held = until.is_some(), "a lease");
        }
    }

    /// Whether nobody else has it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until it is held.
    pub async fn held(&self) {
        let mut until = self.until.subscribe();
        // The sender is this.
        let _ = until.wait_for(|until| until.is_some_and(|until| Instant::now() < until)).await;
    }
}
