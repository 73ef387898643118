//! Warm sandboxes: given to sessions, made for pools, and given up where their place is wanted.

use std::{sync::Arc, time::Duration};

use sandmesh_proto::agent::{
    ClaimSandboxRequest, InstallPackagesRequest, InstallPackagesResponse, PackageSet, Sandbox, SandboxSpec,
    install_packages_response::Outcome,
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::{Answer, Service, is_ambiguous, is_broken, sent};
use crate::{
    Error,
    follower::agent,
    placement::{Refusal, Wanted},
    registry::{Place, Registry},
    view,
};

/// How long the packages of a template may take to be installed.
const PACKAGES_LIMIT: Duration = Duration::from_secs(600);

impl Service {
    /// What is known of nodes and sandboxes.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Gives a session a warm sandbox that is what it wants; `None` when there is none. What a node refuses,
    /// as somebody else has it or it was not clean, is not tried again; where it is not known what became of it,
    /// that is settled on the same node.
    ///
    /// # Errors
    /// `NodeUnavailable` (it may be there: repeat), or what the node says.
    pub(super) async fn claim(&self, id: &str, spec: &SandboxSpec) -> Result<Option<Sandbox>, Error> {
        if spec.session_id.is_empty() {
            return Ok(None);
        }
        while let Some((warm_id, node_id)) = self.registry.take_warm(spec) {
            if self.registry.bind(id, &node_id, spec) != node_id {
                // A repeat that came in between is on its way somewhere else.
                return Ok(None);
            }
            match self.try_claim(&node_id, &warm_id, id, spec).await {
                Ok(sandbox) => return Ok(Some(sandbox)),
                Err(status) if is_ambiguous(status.code()) => {
                    match self.create_on(&node_id, id, spec).await? {
                        Answer::Created(sandbox) => return Ok(Some(*sandbox)),
                        Answer::Refused(_) | Answer::NoImage(_) => {}
                        Answer::Absent(error) => return Err(error),
                    }
                }
                Err(status) => {
                    self.registry.unbind(id, &node_id);
                    let why = status.message();
                    match status.code() {
                        Code::NotFound | Code::FailedPrecondition | Code::ResourceExhausted => {
                            tracing::info!(sandbox.id = id, node.id = node_id, why, "a claim was refused");
                        }
                        code if is_broken(code) && self.is_elsewhere(&node_id) => {
                            tracing::warn!(sandbox.id = id, node.id = node_id, why, "a claim failed");
                        }
                        // One that is too old to be asked this.
                        Code::Unimplemented => return Ok(None),
                        _ => return Err(Error::Node(Box::new(status))),
                    }
                }
            }
        }
        Ok(None)
    }

    async fn try_claim(
        &self,
        node_id: &str,
        warm_id: &str,
        id: &str,
        spec: &SandboxSpec,
    ) -> Result<Sandbox, Status> {
        let mut request = Request::new(ClaimSandboxRequest {
            warm_id: warm_id.to_owned(),
            sandbox_id: id.to_owned(),
            spec: Some(spec.clone()),
        });
        request.set_timeout(self.config.call_timeout.0);
        let link = self.link(node_id)?;
        let answer = agent(link.clone()).claim_sandbox(request).await?.into_inner();
        sent(&link, node_id, id, answer.sandbox)
    }

    /// Makes a warm sandbox where there is room for it. Whoever asks does so once for an id.
    ///
    /// # Errors
    /// `NoCapacity`, `NoSuitableNode`, or what the node says.
    pub(crate) async fn create_warm(&self, id: &str, spec: &SandboxSpec) -> Result<Sandbox, Error> {
        let (wanted, crowded) = (view::wanted(spec), self.config.pools.fill_percent.into());
        let (mut refusals, mut asked) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + self.config.create_timeout.0;
        while let Some(node_id) = self.registry.reserve_for_warm(id, spec, (&wanted, crowded, &asked)) {
            let error = match self.try_create(&node_id, id, (spec, false), deadline).await {
                Ok(sandbox) => return Ok(sandbox),
                Err(error) => error,
            };
            self.registry.unbind(id, &node_id);
            // Should it be made all the same, as is not known, it is found as another one that is warm.
            let may_change = error.code() == Code::ResourceExhausted
                || is_ambiguous(error.code())
                || (is_broken(error.code()) && self.is_elsewhere(&node_id));
            if !may_change && error.code() != Code::FailedPrecondition {
                return Err(Error::Node(Box::new(error)));
            }
            asked.push(node_id.clone());
            refusals.push(Refusal { node_id, why: error.message().to_owned(), may_change });
        }
        Err(Error::refused(id, self.registry.refusals(&wanted, refusals, Some(crowded))))
    }

    /// Has the packages of a template installed in a new warm sandbox, unless its node has them; nobody claims it
    /// meanwhile. Where that does not work, it says why to the session that claims it and asks for them again.
    pub(crate) async fn furnish_warm(&self, sandbox: &Sandbox, packages: Option<PackageSet>) {
        let Some(packages) = packages.filter(|_| sandbox.layer.is_none()) else { return };
        let request = InstallPackagesRequest {
            sandbox_id: sandbox.sandbox_id.clone(),
            packages: Some(packages),
            timeout: prost_types::Duration::try_from(PACKAGES_LIMIT).ok(),
        };
        let place = (sandbox.sandbox_id.clone(), sandbox.node_id.clone());
        self.registry.keep_from_claims(&place);
        let installed = self.install(request, &sandbox.node_id).await;
        self.registry.give_to_claims(&place);
        let why = match installed {
            Ok(InstallPackagesResponse { outcome: Some(Outcome::Failure(failure)), .. }) => failure.message,
            Ok(_) => return,
            Err(error) => error.to_string(),
        };
        tracing::warn!(sandbox.id = sandbox.sandbox_id, why, "packages of a warm sandbox not installed");
    }

    /// Removes a warm sandbox, so that there is room for what a session wants. False when there is none.
    pub(super) async fn make_room(&self, wanted: &Wanted) -> bool {
        let Some((id, node_id)) = self.registry.give_up_warm(wanted) else { return false };
        tracing::info!(sandbox.id = id, node.id = node_id, "a warm sandbox makes room");
        self.remove_warm(&(id, node_id)).await.is_ok()
    }

    /// Removes a warm sandbox.
    ///
    /// # Errors
    /// `NodeUnavailable`, or what the node says.
    pub(crate) async fn remove_warm(&self, (id, node_id): &Place) -> Result<(), Error> {
        self.delete_on(node_id, id).await
    }
}
