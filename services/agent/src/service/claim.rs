//! Giving a warm sandbox to a session: it becomes another sandbox, which is at home where the warm one was.
//!
//! The ledger decides, under its lock, who gets it: from then on the warm one is gone and the other is being
//! made. What comes after is as with any creation: a task that nobody can interrupt.

use std::sync::Arc;

use tokio::sync::watch::Sender;

use super::{Begun, Service, known};
use crate::{
    Error,
    ledger::Job,
    runtime::Order,
    sandbox::{Sandbox, SandboxId, Spec, State},
};

impl Service {
    /// Gives a warm sandbox to whoever wants this, as the sandbox `id`. A repeat with the same spec gets the
    /// first. When the caller goes away it goes on to its end.
    ///
    /// # Errors
    /// `NotFound` when somebody else has it, `Exists`, `Dead`, `Full`, `Unsupported`, `NotClaimed`.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        warm: &SandboxId,
        id: SandboxId,
        spec: Spec,
    ) -> Result<Sandbox, Error> {
        loop {
            match self.begin_claim(warm, &id, &spec)? {
                Begun::Exists(sandbox) => return Ok(*sandbox),
                Begun::Busy(Job::Create(outcome)) => return outcome.await,
                // Once it is gone the id is free; a failure to destroy shows in the next turn.
                Begun::Busy(Job::Delete(outcome)) => drop(outcome.await),
            }
        }
    }

    fn begin_claim(self: &Arc<Self>, warm: &SandboxId, id: &SandboxId, spec: &Spec) -> Result<Begun, Error> {
        let mut ledger = self.ledger();
        if let Some(begun) = known(&ledger, id, spec)? {
            return Ok(begun);
        }
        self.check_open()?;
        let free = ledger.get(warm).filter(|slot| slot.job.is_none()).and_then(|slot| slot.sandbox.clone());
        let free = free.filter(|free| free.state == State::Running && free.spec.session_id.is_empty());
        let free = free.ok_or_else(|| Error::NotFound(warm.to_string()))?;
        if !free.spec.can_become(spec) {
            let (node, why) =
                (self.identity.node_id.clone(), format!("warm sandbox `{warm}` is another one"));
            return Err(Error::Unsupported { node, id: id.clone(), why });
        }
        // Nobody may get packages that they did not ask for, now or a moment later.
        if self.installs.is_for(warm) || (free.facts.layer.is_some() && spec.packages.is_none()) {
            return Err(Error::NotFound(warm.to_string()));
        }
        for key in &free.facts.layers {
            self.installs.layers.hold(id, key, self.clock.now());
        }
        // To whoever looks for sandboxes that nobody needs, it is as new as its session's use of it.
        let (spec, created_at) = (spec.clone(), self.clock.now());
        let taken = Sandbox { id: id.clone(), spec, state: State::Creating, created_at, ..free.clone() };
        let (service, becoming) = (Arc::clone(self), taken.clone());
        let outcome = self.spawn("claim sandbox", async move { service.take(free, becoming).await });
        ledger.remove(warm);
        self.installs.layers.release(warm, self.clock.now());
        ledger.put(taken, Some(Job::Create(outcome.clone())));
        Ok(Begun::Busy(Job::Create(outcome)))
    }

    /// The task of a claim. A warm sandbox that cannot be had is destroyed.
    async fn take(self: &Arc<Self>, warm: Sandbox, taken: Sandbox) -> Result<Sandbox, Error> {
        let Sandbox { id, spec, created_at, .. } = taken.clone();
        match self
            .runtime
            .claim(&taken.home, &Order { id, spec, created_at, layer: None, progress: Sender::default() })
            .await
        {
            Ok(()) => {
                let sandbox = Sandbox { state: State::Running, ..taken };
                self.ledger().put(sandbox.clone(), None);
                self.follow(&sandbox);
                Ok(sandbox)
            }
            Err(error) => {
                tracing::warn!(sandbox.id = %taken.id, %error, "sandbox not claimed");
                let unfit = Sandbox { state: State::Dead, reason: error.to_string(), ..warm };
                let mut ledger = self.ledger();
                ledger.remove(&taken.id);
                self.installs.layers.release(&taken.id, self.clock.now());
                let id = unfit.id.clone();
                ledger.put(unfit, None);
                drop(ledger);
                drop(self.begin_delete(&id));
                Err(error)
            }
        }
    }
}
