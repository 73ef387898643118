//! What a process does for its place among others of its role, and whose a request is.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::Link;
use tokio::time::Instant;

use super::Service;
use crate::{
    error::Error,
    replica::{EVERY, Replica, TERM},
    store::Owner,
};

/// How often is looked whether somebody took over what nobody has.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often is looked whether somebody lives who was asked for something.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    Session(String),
    Execution(String),
}

/// Who does what a request asks for.
#[derive(Debug)]
pub(crate) enum Place {
    Here,
    /// The process of this name, behind this link.
    At(String, Link),
}

impl Service {
    /// Holds what is this process's own and takes over what nobody has any more, until the service stops.
    pub(crate) async fn keep_sessions(self: Arc<Self>) {
        let Some(replica) = &self.replica else { return };
        while self.pause(EVERY).await {
            let asked = Instant::now();
            match self.store.renew_replica(&replica.id, TERM).await {
                Ok(true) => replica.renewed(asked),
                Ok(false) => superseded(replica),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#?}"),
                        "the database does not note that this process lives"
                    );
                }
            }
            if replica.may_take_over()
                && let Err(error) = self.take_over(replica).await
            {
                tracing::warn!(error = format!("{error:#?}"), "sessions of others not taken over");
            }
        }
        // The others need not wait.
        if let Err(error) = self.store.renew_replica(&replica.id, Duration::ZERO).await {
            tracing::warn!(error = format!("{error:#?}"), "sessions not handed over");
        }
    }

    /// The sweep does the rest: it finds what is to be done as after a restart.
    async fn take_over(&self, replica: &Replica) -> Result<(), Error> {
        let from = self.store.take_over(&replica.id).await?;
        if from.is_empty() {
            return Ok(());
        }
        tracing::warn!(?from, "sessions of other processes taken over");
        self.leftovers.add(self.store.running_sessions().await?);
        Ok(())
    }

    /// # Errors
    /// When others may have its sessions, as the database did not answer for a while: then it must do nothing
    /// that a guard of the database would come too late for.
    pub(super) fn must_hold(&self) -> Result<(), Error> {
        match &self.replica {
            Some(replica) if !replica.holds() => Err(Error::Unavailable(
                "the database does not answer, and another may have the session".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Who does what is asked for. Waits for a while where the process that did is gone.
    pub(crate) async fn place_of(&self, replica: &Replica, subject: &Subject) -> Result<Place, Error> {
        let deadline = Instant::now() + TERM + 2 * EVERY;
        loop {
            match self.owner_of(subject).await? {
                None => return Ok(Place::Here),
                Some(owner) if owner.id == replica.id => return Ok(Place::Here),
                Some(owner) if owner.lives && owner.endpoint.is_empty() => {
                    return Err(Error::Unavailable(format!(
                        "it belongs to another process of the session service, `{}`, which has no address: set \
                         `session.advertise` there",
                        owner.id
                    )));
                }
                Some(owner) if owner.lives => {
                    let link = replica
                        .link(&owner.endpoint)
                        .map_err(|error| Error::Unavailable(error.to_string()))?;
                    return Ok(Place::At(owner.id, link));
                }
                Some(_) if Instant::now() >= deadline => {
                    let what = "the process that it belonged to is gone, and no other has taken it over yet";
                    return Err(Error::Unavailable(what.to_owned()));
                }
                Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Waits until a process does not live any more.
    pub(crate) async fn until_gone(&self, id: &str) {
        // A database that does not answer says nothing.
        while !matches!(self.store.replica_lives(id).await, Ok(false)) {
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    async fn owner_of(&self, subject: &Subject) -> Result<Option<Owner>, Error> {
        match subject {
            // What is known here is this process's own.
            Subject::Session(id) if self.running.get(id).is_some() => Ok(None),
            Subject::Execution(id) if self.drivers.get(id).is_some() => Ok(None),
            Subject::Session(id) => self.store.owner_of_session(id).await,
            Subject::Execution(id) => self.store.owner_of_execution(id).await,
        }
    }
}

/// All that this process remembers is of no use any more, and what it does is done by another: it ends, and
/// whoever started it starts another.
#[expect(clippy::exit, reason = "nothing that it has begun must go on")]
fn superseded(replica: &Replica) {
    tracing::error!(
        id = replica.id,
        "another process took over the sessions of this one, which was not heard of for {TERM:?}: this one ends"
    );
    std::process::exit(75);
}
