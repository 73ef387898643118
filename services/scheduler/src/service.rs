//! What the scheduler does: takes the reports of nodes, places sandboxes, and finds them again.
//!
//! A sandbox is never made twice: it is sent to one node, and goes on to another only after the first has
//! said no. A call whose outcome is not known is made again at the same node.

mod claim;
mod list;
mod making;
mod operate;
mod report;
mod wait;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use sandmesh_mesh::{Link, LinkError, Mesh, RoleName, is_elsewhere, reason_of, was_not_sent};
use sandmesh_proto::{
    agent::{
        CreateSandboxRequest, DeleteSandboxRequest, GetSandboxRequest, InstallPackagesRequest,
        InstallPackagesResponse, Node, Sandbox, SandboxSpec, sandbox::State,
    },
    scheduler::NodeStatus,
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use self::making::Making;
pub(crate) use self::operate::{Filter, Page};
use crate::{
    Config, Error,
    follower::{agent, located},
    members::Members,
    memory::Memory,
    placement::{Refusal, Refusals, Wanted},
    registry::Registry,
    view,
};

/// How soon a call whose outcome is not known is made again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Longer than a node lets any installation take.
const INSTALL_LIMIT: Duration = Duration::from_secs(3700);

/// After how long a node is left alone where nobody was reached: it may be starting anew.
const ABSENT_AFTER: Duration = Duration::from_secs(2);

/// Places sandboxes on nodes.
#[derive(Debug)]
pub(crate) struct Service {
    config: Config,
    mesh: Mesh,
    registry: Arc<Registry>,
    memory: Memory,
    members: Members,
    waiters: wait::Waiters,
    making: Making,
}

/// What a node answered to a creation.
enum Answer {
    Created(Box<Sandbox>),
    /// It said no, and has not got it.
    Refused(Refusal),
    /// The same, as it cannot have the image.
    NoImage(Refusal),
    /// It was never reached, and has not got it from this.
    Absent(Error),
}

impl Service {
    /// # Errors
    /// When what is to be remembered cannot be read.
    pub(crate) fn new(config: Config, mesh: Mesh) -> anyhow::Result<Self> {
        let registry = Arc::new(Registry::new(config.clone(), mesh.clock(), mesh.tasks().token()));
        let (memory, places) = Memory::load(mesh.data_dir().join("scheduler.nodes"));
        let waiters = wait::Waiters::new(config.queue.max_waiting as usize);
        let members = Members::load(&mesh.data_dir().join("scheduler.members"))?;
        let making = Making::default();
        let service = Self { config, mesh, registry, memory, members, waiters, making };
        for (node_id, endpoint) in places {
            // Where it cannot be dialled any more, it is what reports that counts.
            if let Ok(link) = service.dial(&endpoint) {
                service.registry.remember(Node { node_id, endpoint, ..Node::default() }, link);
            }
        }
        Ok(service)
    }

    /// Which machine has which name.
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    fn dial(&self, endpoint: &str) -> Result<Link, LinkError> {
        match endpoint {
            "" => self.mesh.link(RoleName::Agent),
            endpoint => self.mesh.dial(endpoint),
        }
    }

    /// Places a sandbox and creates it there. A repeat goes to the node that the first went to; where that
    /// `may_exist` unknown to this process, the nodes are asked.
    ///
    /// # Errors
    /// `NoCapacity`, `NoSuitableNode`, `NodeUnavailable` (it may be there: repeat), or what the node says.
    pub(crate) async fn create(
        &self,
        id: &str,
        spec: &SandboxSpec,
        mut may_exist: bool,
    ) -> Result<Sandbox, Error> {
        loop {
            let sandbox = self.create_some_way(id, spec, may_exist).await?;
            if sandbox.state() != State::Creating {
                return Ok(sandbox);
            }
            may_exist = true;
            tokio::time::sleep(PAUSES.1).await;
        }
    }

    /// The same, until it runs or its node tells its progress.
    ///
    /// # Errors
    /// As [`Service::create`].
    pub(crate) async fn create_some_way(
        &self,
        id: &str,
        spec: &SandboxSpec,
        may_exist: bool,
    ) -> Result<Sandbox, Error> {
        let mut refusals = Vec::new();
        let place = match self.registry.node_of(id) {
            None if may_exist => self.find(id).await,
            known => known,
        };
        if let Some(node_id) = place {
            match self.create_on(&node_id, id, spec).await? {
                Answer::Created(sandbox) => return Ok(*sandbox),
                // It was at it and failed, perhaps after a long time: elsewhere it would take as long again.
                Answer::NoImage(refusal) => {
                    return Err(Error::refused(id, Refusals::of(vec![refusal])));
                }
                Answer::Refused(refusal) => refusals.push(refusal),
                // It may have it from before.
                Answer::Absent(error) => return Err(error),
            }
        }
        self.registry.wait_for_node().await;
        if let Some(sandbox) = self.claim(id, spec).await? {
            return Ok(sandbox);
        }
        let wanted = view::wanted(spec);
        // Behind those who wait, unless there is nothing that they could have.
        let in_turn = self.others_wait() && self.registry.has_room(&wanted);
        let full = match in_turn {
            true => Error::NoCapacity { id: id.to_owned(), refusals: Refusals::of(refusals), before: 1 },
            false => match self.place_now(id, spec, &wanted, refusals).await {
                Err(full @ Error::NoCapacity { .. }) => full,
                placed => return placed,
            },
        };
        // Where no node takes it whatever ends, to wait a moment is of no use.
        match self.registry.could_run(&wanted, &[]) {
            true => self.create_when_there_is_room(id, spec, &wanted, full).await,
            false => Err(full),
        }
    }

    /// Creates a sandbox where there is room, or where warm ones make some.
    async fn place_now(
        &self,
        id: &str,
        spec: &SandboxSpec,
        wanted: &Wanted,
        mut refusals: Vec<Refusal>,
    ) -> Result<Sandbox, Error> {
        loop {
            match self.place(id, spec, wanted, std::mem::take(&mut refusals)).await {
                Err(Error::NoCapacity { .. }) if self.make_room(wanted).await => {}
                placed => return placed,
            }
        }
    }

    /// Creates a sandbox on the best node that takes it; `refusals` are those of nodes that were asked before, and
    /// may be asked again.
    async fn place(
        &self,
        id: &str,
        spec: &SandboxSpec,
        wanted: &Wanted,
        mut refusals: Vec<Refusal>,
    ) -> Result<Sandbox, Error> {
        let (mut asked, mut absent) = (Vec::new(), None);
        while let Some(node_id) = self.registry.reserve(id, spec, (wanted, &asked)) {
            refusals.retain(|refusal| refusal.node_id != node_id);
            match self.create_on(&node_id, id, spec).await? {
                Answer::Created(sandbox) => return Ok(*sandbox),
                Answer::Refused(refusal) | Answer::NoImage(refusal) => refusals.push(refusal),
                Answer::Absent(error) => {
                    self.registry.unbind(id, &node_id);
                    absent = Some(error);
                }
            }
            asked.push(node_id);
        }
        // One that is not there now may be so soon, and have room.
        Err(absent.unwrap_or_else(|| Error::refused(id, self.registry.refusals(wanted, refusals, None))))
    }

    /// The node that says that it has a sandbox. One that cannot be asked may have it, too: should it, the
    /// other is removed by who finds two.
    async fn find(&self, id: &str) -> Option<String> {
        self.registry.wait_for_node().await;
        let nodes = self.registry.healthy_nodes();
        let asked = join_all(nodes.iter().map(|node_id| self.get_on(node_id, id))).await;
        let mut found = nodes.into_iter().zip(asked);
        found.find(|(_, asked)| matches!(asked, Ok(Some(_)))).map(|(node_id, _)| node_id)
    }

    /// How many sandboxes are being made for sessions.
    pub(crate) fn being_made(&self) -> usize {
        self.making.count()
    }

    /// Creates at one node, again and again while it is not known whether it did.
    async fn create_on(&self, node_id: &str, id: &str, spec: &SandboxSpec) -> Result<Answer, Error> {
        let _one = self.making.begin();
        let begun = Instant::now();
        let deadline = begun + self.config.create_timeout.0;
        let (mut pause, mut sent) = (PAUSES.0, false);
        loop {
            let error = match self.try_create(node_id, id, (spec, true), deadline).await {
                Ok(sandbox) => return Ok(Answer::Created(Box::new(sandbox))),
                Err(error) => error,
            };
            sent |= !was_not_sent(&error);
            match error.code() {
                _ if !sent && begun.elapsed() >= ABSENT_AFTER => {
                    return Ok(Answer::Absent(unavailable(node_id, &error)));
                }
                code if is_broken(code) && self.is_elsewhere(node_id) => {
                    self.registry.unbind(id, node_id);
                    let why = error.message().to_owned();
                    let refusal = Refusal { node_id: node_id.to_owned(), why, may_change: true };
                    return Ok(Answer::Refused(refusal));
                }
                Code::ResourceExhausted | Code::FailedPrecondition => {
                    self.registry.unbind(id, node_id);
                    let may_change = error.code() == Code::ResourceExhausted;
                    let why = error.message().to_owned();
                    let refusal = Refusal { node_id: node_id.to_owned(), why, may_change };
                    return Ok(match is_of_image(&error) {
                        true => Answer::NoImage(refusal),
                        false => Answer::Refused(refusal),
                    });
                }
                code if !is_ambiguous(code) => return Err(Error::Node(Box::new(error))),
                _ if Instant::now() + pause >= deadline => return Err(unavailable(node_id, &error)),
                _ => tracing::debug!(
                    node.id = node_id,
                    sandbox.id = id,
                    error = error.message(),
                    "asking again"
                ),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn try_create(
        &self,
        node_id: &str,
        id: &str,
        (spec, progress_wanted): (&SandboxSpec, bool),
        deadline: Instant,
    ) -> Result<Sandbox, Status> {
        let mut request = Request::new(CreateSandboxRequest {
            sandbox_id: id.to_owned(),
            spec: Some(spec.clone()),
            progress_wanted,
        });
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let link = self.link(node_id)?;
        let answer = agent(link.clone()).create_sandbox(request).await?.into_inner();
        sent(&link, node_id, id, answer.sandbox)
    }

    /// Destroys a sandbox wherever it may be, or `only_there`. Idempotent.
    ///
    /// # Errors
    /// `NodeUnavailable` when a node that may have it cannot be asked, `NoNodes`, or what the node says.
    pub(crate) async fn delete(&self, id: &str, node_id: &str, only_there: bool) -> Result<(), Error> {
        if only_there && !node_id.is_empty() {
            return self.delete_on(node_id, id).await;
        }
        let nodes = self.nodes_of(id, node_id).await?;
        for outcome in join_all(nodes.iter().map(|node_id| self.delete_on(node_id, id))).await {
            outcome?;
        }
        Ok(())
    }

    async fn delete_on(&self, node_id: &str, id: &str) -> Result<(), Error> {
        if self.registry.is_lost(node_id) {
            // Should it come back with the sandbox, that has no session then and is removed.
            self.registry.unbind(id, node_id);
            return Ok(());
        }
        let delete = async {
            let mut request = Request::new(DeleteSandboxRequest { sandbox_id: id.to_owned() });
            request.set_timeout(self.config.create_timeout.0);
            agent(self.link(node_id)?).delete_sandbox(request).await
        };
        delete.await.map_err(|error| told(node_id, error))?;
        self.registry.unbind(id, node_id);
        Ok(())
    }

    /// Has packages installed for a sandbox by the node that has it. The deadline is the caller's: the node
    /// ends the installation at its own.
    ///
    /// # Errors
    /// `NotFound` when no node has it, `NodeUnavailable`, `NoNodes`, or what the node says.
    pub(crate) async fn install(
        &self,
        request: InstallPackagesRequest,
        node_id: &str,
    ) -> Result<InstallPackagesResponse, Error> {
        let nodes = self.nodes_of(&request.sandbox_id, node_id).await?;
        let mut failure = Error::NotFound(request.sandbox_id.clone());
        for node_id in nodes {
            let install = async {
                let mut sent = Request::new(request.clone());
                sent.set_timeout(INSTALL_LIMIT);
                agent(self.link(&node_id)?).install_packages(sent).await
            };
            match install.await {
                Ok(answer) => return Ok(answer.into_inner()),
                // Another may have it.
                Err(error) if error.code() == Code::NotFound => {}
                Err(error) => failure = told(&node_id, error),
            }
        }
        Err(failure)
    }

    /// Reads a sandbox from the node that has it: from the one that the caller names, if that is known.
    ///
    /// # Errors
    /// `NotFound` when its node, or every node, says so; `NodeUnavailable`, `NoNodes`, or what the node says.
    pub(crate) async fn get(&self, id: &str, node_id: &str) -> Result<Sandbox, Error> {
        let mut nodes = self.nodes_of(id, node_id).await?;
        if self.registry.link(node_id).is_some() {
            nodes = BTreeSet::from([node_id.to_owned()]);
        }
        let mut failure = None;
        for outcome in join_all(nodes.iter().map(|node_id| self.get_on(node_id, id))).await {
            match outcome {
                Ok(Some(sandbox)) => return Ok(sandbox),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::NotFound(id.to_owned())))
    }

    async fn get_on(&self, node_id: &str, id: &str) -> Result<Option<Sandbox>, Error> {
        if self.registry.is_lost(node_id) {
            return Ok(self.registry.on_lost_node(id, node_id));
        }
        let get = async {
            let mut request = Request::new(GetSandboxRequest { sandbox_id: id.to_owned() });
            request.set_timeout(self.config.call_timeout.0);
            let link = self.link(node_id)?;
            let answer = agent(link.clone()).get_sandbox(request).await?.into_inner();
            Ok::<_, Status>(answer.sandbox.map(|sandbox| located(&link, node_id, sandbox)))
        };
        match get.await {
            Ok(sandbox) => Ok(sandbox),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(told(node_id, error)),
        }
    }

    /// The nodes that may have a sandbox: where it was placed, where the caller knows it, or else all.
    async fn nodes_of(&self, id: &str, node_id: &str) -> Result<BTreeSet<String>, Error> {
        if !self.registry.has_nodes() {
            self.registry.wait_for_node().await;
        }
        let mut nodes: BTreeSet<String> = self.registry.node_of(id).into_iter().collect();
        if !node_id.is_empty() {
            nodes.insert(node_id.to_owned());
        }
        if nodes.is_empty() {
            nodes.extend(self.registry.node_ids());
        }
        if nodes.is_empty() { Err(Error::NoNodes) } else { Ok(nodes) }
    }

    /// Whether a node is on another machine, which is trusted with its own sandboxes and no more.
    fn is_elsewhere(&self, node_id: &str) -> bool {
        self.registry.link(node_id).is_some_and(|link| is_elsewhere(link.target()))
    }

    fn link(&self, node_id: &str) -> Result<Link, Status> {
        self.registry.link(node_id).ok_or_else(|| Status::unavailable("it has not registered"))
    }

    /// The nodes, ordered by id.
    pub(crate) fn nodes(&self) -> Vec<NodeStatus> {
        self.registry.statuses()
    }
}

/// The sandbox that a node must have sent.
fn sent(link: &Link, node_id: &str, id: &str, sandbox: Option<Sandbox>) -> Result<Sandbox, Status> {
    let usable = |sandbox: &Sandbox| {
        let lacks_endpoint = is_elsewhere(link.target()) && sandbox.endpoint.is_empty();
        sandbox.sandbox_id == id && (sandbox.state() == State::Creating || !lacks_endpoint)
    };
    let sandbox = sandbox.filter(usable);
    let sandbox = sandbox.map(|sandbox| located(link, node_id, sandbox));
    sandbox.ok_or_else(|| Status::internal(format!("node `{node_id}` answered without the sandbox")))
}

/// Whether it is the node that is not as it should be, rather than what it was asked for.
fn is_broken(code: Code) -> bool {
    matches!(
        code,
        Code::Internal
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::DataLoss
    )
}

/// Whether a call that ended so may have had its effect.
fn is_ambiguous(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted
    )
}

/// Whether a node could not have the image.
fn is_of_image(refusal: &Status) -> bool {
    let begins = |reason: String| ["IMAGE_", "REGISTRY_"].iter().any(|start| reason.starts_with(start));
    reason_of(refusal).is_some_and(begins)
}

fn unavailable(node_id: &str, error: &Status) -> Error {
    Error::NodeUnavailable { node_id: node_id.to_owned(), why: error.message().to_owned() }
}

/// What a caller is told when a node did not do as asked.
fn told(node_id: &str, error: Status) -> Error {
    if is_ambiguous(error.code()) { unavailable(node_id, &error) } else { Error::Node(Box::new(error)) }
}

#[cfg(test)]
mod tests;
