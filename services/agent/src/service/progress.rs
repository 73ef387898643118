//! A creation that waits for what may take long, as an image that is being pulled: what it waits for is in the ledger,
//! and told to who asked for that and asks again. How it ended is kept for them: it may end while nobody asks.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use tokio::time::Instant;

use super::Service;
use crate::{
    Error,
    ledger::{Job, Outcome},
    runtime::Order,
    sandbox::{Facts, Sandbox, SandboxId, Spec, State},
};

/// How often it is told what a creation waits for.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// How long it is kept for one who does not ask again.
const KEPT: Duration = Duration::from_secs(60);

/// The creations whose progress was told, until somebody asks again.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<HashMap<SandboxId, (Outcome<Sandbox>, Instant)>>);

impl Told {
    fn note(&self, id: SandboxId, outcome: Outcome<Sandbox>, now: Instant) {
        // No change in here is left half done by a panic.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, (_, since)| now.duration_since(*since) < KEPT);
        told.insert(id, (outcome, now));
    }

    /// Why a creation failed whose progress was told; once.
    fn failure(&self, id: &SandboxId) -> Option<Error> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        told.and_then(|(outcome, _)| outcome.now_or_never()?.err())
    }
}

impl Service {
    /// As [`Service::create`], but while it waits for what may take long it answers every few seconds, with the sandbox
    /// as it is being made and what it waits for.
    ///
    /// # Errors
    /// As [`Service::create`].
    pub(crate) async fn create_some_way(
        self: &Arc<Self>,
        id: SandboxId,
        spec: Spec,
    ) -> Result<Sandbox, Error> {
        if let Some(error) = self.told.failure(&id) {
            return Err(error);
        }
        let mut created = pin!(self.create(id.clone(), spec));
        loop {
            tokio::select! {
                outcome = &mut created => return outcome,
                () = tokio::time::sleep(PROGRESS_EVERY) => {}
            }
            let ledger = self.ledger();
            let slot = ledger.get(&id);
            let waits = |sandbox: &&Sandbox| sandbox.state == State::Creating && !sandbox.reason.is_empty();
            if let Some(Job::Create(outcome)) = slot.and_then(|slot| slot.job.as_ref())
                && let Some(sandbox) = slot.and_then(|slot| slot.sandbox.as_ref()).filter(waits)
            {
                self.told.note(id, outcome.clone(), Instant::now());
                return Ok(sandbox.clone());
            }
        }
    }

    /// Has the runtime make it, and takes down what that waits for.
    pub(super) async fn create_told(&self, order: &Order) -> Result<Facts, Error> {
        let mut told = order.progress.subscribe();
        let mut created = pin!(self.runtime.create(order));
        loop {
            tokio::select! {
                outcome = &mut created => return outcome,
                Ok(()) = told.changed() => {
                    let reason = told.borrow_and_update().clone();
                    self.ledger().waits(&order.id, order.created_at, reason);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::contract::id;

    fn outcome(ended: Option<Error>) -> Outcome<Sandbox> {
        match ended {
            Some(error) => futures::future::ready(Err(error)).boxed().shared(),
            None => futures::future::pending().boxed().shared(),
        }
    }

    #[test]
    fn a_failure_that_nobody_heard_is_told_to_who_asks_again_and_once() {
        let (told, now) = (Told::default(), Instant::now());
        told.note(id(1), outcome(Some(Error::PageToken)), now);
        told.note(id(2), outcome(None), now);
        assert!(matches!(told.failure(&id(1)), Some(Error::PageToken)));
        assert!(told.failure(&id(1)).is_none(), "from then on it may be made again");
        assert!(told.failure(&id(2)).is_none(), "it goes on");
        assert!(told.failure(&id(3)).is_none());
    }

    #[test]
    fn who_does_not_ask_again_is_forgotten() {
        let (told, now) = (Told::default(), Instant::now());
        told.note(id(1), outcome(Some(Error::PageToken)), now);
        told.note(id(2), outcome(None), now + KEPT);
        assert!(told.failure(&id(1)).is_none());
    }
}
