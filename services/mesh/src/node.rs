//! One process of the mesh: its roles, their server, and their orderly end.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    future::Future,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use axum::Router;
use chrono::{DateTime, Utc};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandmesh_proto::health::{
    CheckRoleRequest, CheckRoleResponse,
    role_health_service_server::{RoleHealthService, RoleHealthServiceServer},
};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::HealthServer;

use crate::{
    Clock, Link, LinkError, MeshConfig, Role, RoleName, Secret, ServerBuilder, SystemClock, Tasks, VERSION,
    link::{Slot, is_elsewhere},
    listener::{Listener, Tls},
    readiness::Readiness,
    server,
    tls::{Credentials, Membership},
};

/// What a role gets to work with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mesh {
    data_dir: Arc<Path>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    links: Arc<BTreeMap<RoleName, Link>>,
    peers: Arc<BTreeMap<RoleName, Link>>,
    token: Option<Secret>,
    credentials: Credentials,
    joined: Option<Arc<Membership>>,
    address: Arc<str>,
    started_at: DateTime<Utc>,
}

impl Mesh {
    /// Parts of a mesh, for tests and for embedding.
    #[must_use]
    pub fn builder(data_dir: impl Into<PathBuf>) -> MeshBuilder {
        MeshBuilder {
            data_dir: data_dir.into(),
            clock: Arc::new(SystemClock),
            links: BTreeMap::new(),
            peers: BTreeMap::new(),
            token: None,
            joined: None,
            address: "".into(),
        }
    }

    /// The link to a role.
    ///
    /// # Errors
    /// When the role does not run here and the configuration does not say where it runs.
    pub fn link(&self, role: RoleName) -> Result<Link, LinkError> {
        self.links.get(&role).cloned().ok_or(LinkError::NotConfigured(role))
    }

    /// The links to every process that runs a role, this one among them: for who must tell all of them.
    ///
    /// # Errors
    /// When the role does not run here and the configuration does not say where it runs.
    pub fn links(&self, role: RoleName) -> Result<Vec<Link>, LinkError> {
        let mut links = self.link(role)?.each();
        links.extend(self.peers.get(&role).into_iter().flat_map(Link::each));
        Ok(links)
    }

    /// A link to a process of this mesh at an address that is learned while running, as of a node that
    /// registers. On another machine, `https://NODE@HOST:PORT`, it is sure to be that node.
    ///
    /// # Errors
    /// When the address has neither form.
    pub fn dial(&self, endpoint: &str) -> Result<Link, LinkError> {
        match is_elsewhere(endpoint) {
            true => Link::dial_machine(endpoint, &self.credentials),
            false => Link::dial_with(endpoint, self.token.clone()),
        }
    }

    /// A link to an executor: at a socket of this machine, or through the agent of another. It is told nothing
    /// that user code must not know.
    ///
    /// # Errors
    /// When the address has neither form.
    pub fn dial_executor(&self, endpoint: &str) -> Result<Link, LinkError> {
        match is_elsewhere(endpoint) {
            true => Link::dial_machine(endpoint, &self.credentials),
            false => Link::dial(endpoint),
        }
    }

    /// Whether this machine joined the mesh as a node.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.joined.is_some()
    }

    /// Where the time comes from.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// Where background tasks are spawned.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Where files are kept.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// How other processes of the mesh dial this one; empty when it serves none, or at an address that does
    /// not say where.
    #[must_use]
    pub fn dialable(&self) -> String {
        match &self.joined {
            Some(joined) => format!("https://{}@{}", joined.node_id, joined.place(&self.address)),
            None => dialable(&self.address),
        }
    }

    /// How they dial this one where it is known to them by another address.
    #[must_use]
    pub fn dialable_at(&self, address: &str) -> String {
        match &self.joined {
            Some(joined) => format!("https://{}@{}", joined.node_id, address.trim_start_matches("https://")),
            None => address.to_owned(),
        }
    }

    /// The version of the program.
    #[must_use]
    pub fn version(&self) -> &'static str {
        VERSION
    }

    /// When this process started.
    #[must_use]
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }
}

fn dialable(listen: &str) -> String {
    let anywhere = ["0.0.0.0:", "[::]:"].iter().any(|any| listen.starts_with(any));
    match listen {
        "" => String::new(),
        _ if anywhere => String::new(),
        _ if listen.starts_with("unix:") => listen.to_owned(),
        _ => format!("http://{listen}"),
    }
}

/// The addresses but for one, with commas between them; `None` when there is no other. One file of settings
/// does for all processes, so that it names this one, too.
fn without(endpoints: &str, own: &str) -> Option<String> {
    let others: Vec<_> = endpoints.split(',').map(str::trim).filter(|endpoint| *endpoint != own).collect();
    (!others.is_empty()).then(|| others.join(","))
}

/// Makes a [`Mesh`] of chosen parts.
#[derive(Debug)]
pub struct MeshBuilder {
    data_dir: PathBuf,
    clock: Arc<dyn Clock>,
    links: BTreeMap<RoleName, Link>,
    peers: BTreeMap<RoleName, Link>,
    token: Option<Secret>,
    joined: Option<Membership>,
    address: Arc<str>,
}

impl MeshBuilder {
    /// Takes the time from `clock`.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Reaches `role` by `link`.
    #[must_use]
    pub fn link(mut self, role: RoleName, link: Link) -> Self {
        self.links.insert(role, link);
        self
    }

    /// Others run `role` at `link`, too.
    #[must_use]
    pub fn peers(mut self, role: RoleName, link: Link) -> Self {
        self.peers.insert(role, link);
        self
    }

    /// Serves other processes at `address`.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.address = address.into();
        self
    }

    /// Shows `token` to the processes that [`Mesh::dial`] reaches.
    #[must_use]
    pub fn token(mut self, token: Option<Secret>) -> Self {
        self.token = token;
        self
    }

    /// Is a machine that joined.
    fn joined(mut self, joined: Option<Membership>) -> Self {
        self.joined = joined;
        self
    }

    /// The mesh.
    #[must_use]
    pub fn build(self) -> Mesh {
        let credentials = match &self.joined {
            Some(joined) => joined.credentials.clone(),
            None => {
                let scheduler = self.links.get(&RoleName::Scheduler).cloned();
                Credentials::of_control(scheduler, Arc::clone(&self.clock))
            }
        };
        Mesh {
            credentials,
            joined: self.joined.map(Arc::new),
            data_dir: self.data_dir.into(),
            started_at: self.clock.now(),
            clock: self.clock,
            tasks: Tasks::new(),
            links: Arc::new(self.links),
            peers: Arc::new(self.peers),
            token: self.token,
            address: self.address,
        }
    }
}

/// One process of the mesh.
#[derive(Debug)]
pub struct Node {
    mesh: Mesh,
    slot: Slot,
    config: MeshConfig,
    roles: Vec<Arc<dyn Role>>,
    internal: Option<Listener>,
    _locks: Vec<File>,
}

impl Node {
    /// Binds the address for other processes and takes the data directory, before anything is built.
    ///
    /// # Errors
    /// When the address is taken, the directory cannot be used, or another process runs one of the roles
    /// on it.
    pub async fn bind(config: &MeshConfig) -> anyhow::Result<Self> {
        Self::bind_as(config, "").await
    }

    /// As [`Node::bind`], on a machine that may be one that joins: then as the node `node_id`.
    ///
    /// # Errors
    /// As there, and when the mesh does not take it.
    pub async fn bind_as(config: &MeshConfig, node_id: &str) -> anyhow::Result<Self> {
        config.validate()?;
        raise_open_files();
        fs::create_dir_all(&config.data_dir).with_context(|| {
            format!("setting `mesh.data_dir`: cannot make `{}`", config.data_dir.display())
        })?;
        fs::set_permissions(&config.data_dir, fs::Permissions::from_mode(0o700))?;
        let locks =
            config.roles.iter().map(|role| lock(&config.data_dir, *role)).collect::<Result<_, _>>()?;
        let internal = match config.address() {
            "" => None,
            address => Some(Listener::bind(address).await?),
        };
        let slot = Slot::default();
        let mut mesh = Mesh::builder(&config.data_dir).token(config.token.clone()).address(config.address());
        if !config.join.is_empty() {
            let joined = Membership::enter(config, node_id, Arc::new(SystemClock)).await?;
            let control = joined.control()?;
            mesh = mesh.link(RoleName::Scheduler, control).joined(Some(joined));
        }
        for (role, endpoints) in &config.links {
            let token = config.token.as_ref();
            if !config.roles.contains(role) {
                mesh = mesh.link(*role, Link::dial_any(endpoints, token)?);
            } else if let Some(others) = without(endpoints, &dialable(&config.listen)) {
                mesh = mesh.peers(*role, Link::dial_any(&others, token)?);
            }
        }
        for role in &config.roles {
            mesh = mesh.link(*role, Link::to_slot(role.as_str(), slot.clone()));
        }
        let mesh = mesh.build();
        Ok(Self { mesh, slot, config: config.clone(), roles: Vec::new(), internal, _locks: locks })
    }

    /// What roles are built from.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Adds a role that was built.
    pub fn add(&mut self, role: Arc<dyn Role>) {
        self.roles.push(role);
    }

    /// Serves until `stop` resolves, then stops in order: not ready, no new calls, then calls in flight
    /// and background tasks together; all within the grace period.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut server = ServerBuilder::default();
        let mut served = Vec::new();
        for role in &self.roles {
            let before = server.names().len();
            Arc::clone(role).register(&mut server);
            served.push((Arc::clone(role), server.names()[before..].to_vec()));
        }
        let own = server.names().len();
        server.add(RoleHealthServiceServer::new(RoleHealth(self.roles.clone())));
        let readiness = Readiness::new(served, &server.names()[own..]);
        server.add(HealthServer::new(readiness.clone()));
        let public = bound(server.take_public()).await?;
        let for_nodes = bound(server.take_for_nodes()).await?;
        let router = server.router()?;
        self.slot.set(Some(router.clone()));
        let serving = Tasks::new();
        if let Some(listener) = self.internal.take() {
            tracing::info!(address = %listener.address(), "serving the mesh");
            let tls = self.mesh.joined.as_ref().map(|_| self.tls(false));
            serving.spawn("mesh server", listener.serve(self.guarded(router), serving.clone(), tls));
        }
        if let Some(joined) = &self.mesh.joined {
            let (control, stopped) = (self.mesh.link(RoleName::Scheduler)?, self.mesh.tasks.token());
            self.mesh.tasks.spawn("next certificate", Arc::clone(joined).renew(control, stopped));
        }
        for role in &self.roles {
            Arc::clone(role).start(&self.mesh.tasks);
        }
        if let Some((listener, router)) = public {
            tracing::info!(address = %listener.address(), "serving clients");
            serving.spawn("public server", listener.serve(router, serving.clone(), None));
        }
        if let Some((listener, router)) = for_nodes {
            tracing::info!(address = %listener.address(), "machines may join");
            serving.spawn("server for nodes", listener.serve(router, serving.clone(), Some(self.tls(true))));
        }
        stop.await;
        tracing::info!("shutting down");
        readiness.withdraw();
        self.shut_down(&serving).await;
        Ok(())
    }

    fn tls(&self, strangers: bool) -> Tls {
        Tls::new(self.mesh.credentials.clone(), strangers)
    }

    /// On TCP only processes that show the credential are served, and on another machine only the control plane;
    /// a unix socket is guarded by its mode.
    fn guarded(&self, router: Router) -> Router {
        match &self.config.token {
            _ if self.mesh.has_joined() => server::require_control(router),
            Some(token) if !self.config.listen.starts_with("unix:") => {
                server::require_token(router, token.clone())
            }
            _ => router,
        }
    }

    /// Servers and tasks are told at once: the streams that follow something end with their task's token,
    /// and would hold up their server otherwise.
    async fn shut_down(&self, serving: &Tasks) {
        let grace = self.config.shutdown_grace.0;
        let (servers, tasks) = tokio::join!(serving.shut_down(grace), self.mesh.tasks.shut_down(grace));
        self.slot.set(None);
        if servers + tasks > 0 {
            tracing::warn!(servers, tasks, "the grace period ended before these did");
        }
    }
}

/// Binds what a role asked to have served.
async fn bound(asked: Option<(SocketAddr, Router)>) -> anyhow::Result<Option<(Listener, Router)>> {
    let Some((address, router)) = asked else { return Ok(None) };
    Ok(Some((Listener::tcp(&address.to_string()).await?, router)))
}

/// A server has a descriptor for each connection and stream; the usual soft limit is for programs that
/// use `select`. What cannot be raised stays as it is.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// One holder of each role on a data directory: two would drive the same executions.
fn lock(data_dir: &Path, role: RoleName) -> anyhow::Result<File> {
    let path = data_dir.join(format!("{role}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another process runs role `{role}` on `{}`; stop it, or give another --data-dir",
            data_dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the data directory"),
    }
}

/// Lets the health-probe role ask the roles of this process about their dependencies.
#[derive(Debug)]
struct RoleHealth(Vec<Arc<dyn Role>>);

#[tonic::async_trait]
impl RoleHealthService for RoleHealth {
    async fn check_role(
        &self,
        request: Request<CheckRoleRequest>,
    ) -> Result<Response<CheckRoleResponse>, Status> {
        let name = request.into_inner().role;
        let role = self.0.iter().find(|role| role.name().as_str() == name);
        let role = role.ok_or_else(|| Status::not_found(format!("role `{name}` does not run here")))?;
        Ok(Response::new(CheckRoleResponse { probes: role.probe().await }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_says_nothing_of_where_is_not_dialled() {
        assert_eq!(dialable("127.0.0.1:8001"), "http://127.0.0.1:8001");
        assert_eq!(dialable("unix:/run/session.sock"), "unix:/run/session.sock");
        for nowhere in ["", "0.0.0.0:8001", "[::]:8001"] {
            assert_eq!(dialable(nowhere), "");
        }
    }

    #[test]
    fn addresses_of_a_role_but_its_own_are_those_of_others() {
        assert_eq!(without("http://a:1, http://b:1", "http://a:1").as_deref(), Some("http://b:1"));
        assert_eq!(without("http://a:1", "http://a:1"), None);
        assert_eq!(without("http://a:1", "").as_deref(), Some("http://a:1"));
    }

    #[tokio::test]
    async fn every_process_of_a_role_is_told_and_one_is_asked() {
        let dial = |endpoints| Link::dial_any(endpoints, None).unwrap();
        let mesh = Mesh::builder("/none")
            .link(RoleName::Session, dial("http://a:1, http://b:1"))
            .link(RoleName::Scheduler, Link::to_slot("scheduler", Slot::default()))
            .peers(RoleName::Scheduler, dial("http://c:1"))
            .build();
        assert_eq!(mesh.links(RoleName::Session).unwrap().len(), 2);
        let schedulers = mesh.links(RoleName::Scheduler).unwrap();
        assert_eq!(format!("{schedulers:?}"), r#"[Link("scheduler"), Link("http://c:1")]"#);
        assert!(mesh.links(RoleName::Template).is_err());
    }
}
