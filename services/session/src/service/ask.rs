//! Asking the scheduler for the sandbox of a session, until it is there, it is known that it will not be, or it took
//! too long. While its image is being pulled, which has a limit of its own on the node, no time is counted.

use std::time::Duration;

use sandmesh_mesh::HumanDuration;
use sandmesh_proto::{agent, scheduler};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::Service;
use crate::{
    error::{Error, QUEUE_POSITION},
    lifecycle::SessionState,
    peers::{Backoff, call},
    store::session::Model,
};

/// How long one attempt to create a sandbox may take.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(30);

/// How soon a node is asked again that told its progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// How much of what a node tells of its progress is kept.
const LONGEST_PROGRESS: usize = 200;

/// How the creation of a sandbox failed.
pub(super) enum Refusal {
    /// No node has room now.
    NoCapacity { reason: String, retry_after: Duration, queue_position: Option<String> },
    /// It will not work.
    Final(String),
    /// The session ended meanwhile, or the service stops: nothing more to do here.
    Moot,
}

impl Service {
    /// How long the creation of a session may take in all, with its packages.
    pub(super) fn creating_limit(&self, session: &Model) -> Duration {
        let installs = session.packages.as_ref().map_or(0, |packages| packages.timeout_seconds);
        self.config.creating_timeout.0 + Duration::from_secs(installs.into())
    }

    /// Asks the scheduler until it says yes or no, the time is over, or the session ended. It `may_exist`
    /// where somebody may have asked before.
    pub(super) async fn ask_for_sandbox(
        &self,
        session: &Model,
        mut may_exist: bool,
    ) -> Result<Result<agent::Sandbox, Refusal>, Error> {
        let mut backoff = Backoff::new(self.config.retry_max.0);
        let mut since = session.creation_counts_from();
        loop {
            let age = (self.clock.now() - since).to_std().unwrap_or_default();
            let limit = self.creating_limit(session);
            let Some(left) = limit.checked_sub(age).filter(|left| !left.is_zero()) else {
                let limit = HumanDuration(limit);
                return Ok(Err(Refusal::Final(format!("its sandbox was not created within {limit}"))));
            };
            let request = self.sandbox_request(session, may_exist);
            may_exist = true;
            let answer = call(left.min(ATTEMPT_LIMIT), self.peers.scheduler().create_sandbox(request)).await;
            let refusal = match answer {
                Ok(scheduler::CreateSandboxResponse { sandbox: Some(sandbox) })
                    if is_being_made(&sandbox) =>
                {
                    since = self.clock.now();
                    self.waits_for_image(session, &sandbox.reason).await?;
                    // A node that has nothing new to tell waits before it answers; one that does not is no reason to hurry.
                    if !self.pause(PROGRESS_PAUSE).await {
                        return Ok(Err(Refusal::Moot));
                    }
                    backoff = Backoff::new(self.config.retry_max.0);
                    None
                }
                Ok(scheduler::CreateSandboxResponse { sandbox: Some(sandbox) }) => return Ok(Ok(sandbox)),
                Ok(_) => Some(Refusal::Final("the scheduler answered without a sandbox".to_owned())),
                Err(status) => refusal(&status),
            };
            match refusal {
                // A session that had a sandbox waits for room rather than end for the lack of it.
                Some(Refusal::NoCapacity { .. }) if session.recoveries > 0 => {}
                Some(refusal) => return Ok(Err(refusal)),
                None => {}
            }
            let creating =
                self.store.session(&session.id).await?.is_some_and(|s| s.state == SessionState::Creating);
            if !creating || !self.pause(backoff.pause()).await {
                return Ok(Err(Refusal::Moot));
            }
        }
    }

    /// Notes that the image of a session is being pulled, and how far that is. Who asks why it waits sees it, but where
    /// that it lost its sandbox is told.
    async fn waits_for_image(&self, session: &Model, progress: &str) -> Result<(), Error> {
        let told: String = progress.chars().filter(|c| !c.is_control()).take(LONGEST_PROGRESS).collect();
        let told = Some(told).filter(|_| session.recoveries == 0);
        if self.store.session_awaits_image(session, told, self.clock.now()).await? {
            self.session_changes.publish(&session.id);
        }
        Ok(())
    }
}

/// Whether its node answered with its progress.
fn is_being_made(sandbox: &agent::Sandbox) -> bool {
    sandbox.state() == agent::sandbox::State::Creating
}

/// What a failed attempt means; `None`: try again.
fn refusal(status: &Status) -> Option<Refusal> {
    let reason = status.message().to_owned();
    match status.code() {
        Code::ResourceExhausted => {
            let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
            let retry_after = retry_after.unwrap_or(Duration::from_secs(1));
            let told = status.get_details_error_info();
            let queue_position = told.and_then(|info| info.metadata.get(QUEUE_POSITION).cloned());
            Some(Refusal::NoCapacity { reason, retry_after, queue_position })
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown => None,
        _ => Some(Refusal::Final(format!("its sandbox could not be created: {reason}"))),
    }
}
