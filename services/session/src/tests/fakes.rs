//! The peers of this role, at the wire: a scheduler and a template service in this process, and an executor
//! behind a unix socket in a runtime of its own, so that it can die as a process does.

mod executor;

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use sandmesh_mesh::{Link, grpc_router};
use sandmesh_proto::{
    agent, executor as ex,
    scheduler::{
        self as sch,
        scheduler_service_server::{SchedulerService, SchedulerServiceServer},
    },
    template::{
        self as tpl,
        template_service_server::{TemplateService, TemplateServiceServer},
    },
};
use tokio::{runtime::Runtime, sync::Semaphore};
use tonic::{Request as Call, Response, Status, service::Routes};

pub(super) use self::executor::FakeExecutor;

/// Everything outside of the session role.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Inside>>);

pub(super) struct Inside {
    directory: PathBuf,
    pub(super) sandboxes: HashMap<String, FakeSandbox>,
    /// Answers to the next attempts to create a sandbox; then they work.
    pub(super) create_errors: VecDeque<Status>,
    pub(super) create_delay: Duration,
    pub(super) creates: u32,
    pub(super) deleted: Vec<String>,
    pub(super) scheduler_down: bool,
    pub(super) last_spec: Option<agent::SandboxSpec>,
    /// The jail of the sandboxes that are made.
    pub(super) jail: &'static str,
    pub(super) templates: HashMap<String, tpl::Template>,
    /// What was to be installed.
    pub(super) installs: Vec<agent::InstallPackagesRequest>,
    /// Answers to the next installations; then they work.
    pub(super) install_answers: VecDeque<Result<agent::install_packages_response::Outcome, Status>>,
    /// Without permits installations take for ever.
    pub(super) install_gate: Arc<Semaphore>,
    /// Nodes have every layer of packages already.
    pub(super) has_layers: bool,
}

/// Everything that was asked for, in version 1.0.
fn layer(set: Option<&agent::PackageSet>) -> agent::Layer {
    let package = |package: &agent::Package| agent::Package { version: "1.0".into(), ..package.clone() };
    agent::Layer {
        key: "key".into(),
        installed: set.into_iter().flat_map(|set| &set.packages).map(package).collect(),
        location: "/packages".into(),
        installed_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
    }
}

pub(super) struct FakeSandbox {
    pub(super) sandbox: agent::Sandbox,
    pub(super) executor: FakeExecutor,
    runtime: Option<Runtime>,
}

impl World {
    pub(super) fn new(directory: PathBuf) -> Self {
        let template = |id: &str, is_active| tpl::Template {
            template_id: id.to_owned(),
            runtime_type: "python3.11".into(),
            image_url: "python:3.11".into(),
            default_timeout_seconds: 300,
            default_resources: Some(ex::Resources {
                cpu_millis: 500,
                memory_bytes: 512 << 20,
                disk_bytes: 1 << 30,
                max_processes: 0,
            }),
            default_env: [("FROM_TEMPLATE".to_owned(), "t".to_owned()), ("BOTH".to_owned(), "t".to_owned())]
                .into(),
            is_active,
            ..tpl::Template::default()
        };
        let templates = [template("python-basic", true), template("retired", false)];
        Self(Arc::new(Mutex::new(Inside {
            directory,
            sandboxes: HashMap::new(),
            create_errors: VecDeque::new(),
            create_delay: Duration::ZERO,
            creates: 0,
            deleted: Vec::new(),
            scheduler_down: false,
            last_spec: None,
            jail: "bubblewrap",
            installs: Vec::new(),
            install_answers: VecDeque::new(),
            install_gate: Arc::new(Semaphore::new(1)),
            has_layers: false,
            templates: templates.into_iter().map(|t| (t.template_id.clone(), t)).collect(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap()
    }

    pub(super) fn scheduler(&self) -> Link {
        Link::local(grpc_router(Routes::new(SchedulerServiceServer::new(self.clone()))))
    }

    pub(super) fn template(&self) -> Link {
        Link::local(grpc_router(Routes::new(TemplateServiceServer::new(self.clone()))))
    }

    /// The executor of a sandbox.
    pub(super) fn executor(&self, sandbox_id: &str) -> FakeExecutor {
        self.lock().sandboxes[sandbox_id].executor.clone()
    }

    /// Kills a sandbox: its executor stops in the middle of whatever it does.
    pub(super) fn kill(&self, sandbox_id: &str) {
        let mut world = self.lock();
        let sandbox = world.sandboxes.get_mut(sandbox_id).unwrap();
        sandbox.sandbox.set_state(agent::sandbox::State::Dead);
        sandbox.sandbox.reason = "killed by a test".into();
        sandbox.runtime.take().unwrap().shutdown_background();
    }

    fn create(&self, id: &str, spec: agent::SandboxSpec) -> agent::Sandbox {
        let mut world = self.lock();
        if let Some(sandbox) = world.sandboxes.get(id) {
            return sandbox.sandbox.clone();
        }
        let path = world.directory.join(format!("{id}.sock"));
        let executor = FakeExecutor::default();
        let runtime = executor.serve(path.clone());
        let mut sandbox = agent::Sandbox {
            sandbox_id: id.to_owned(),
            endpoint: format!("unix:{}", path.display()),
            node_id: "node-1".into(),
            runtime: "process".into(),
            language_runtime: "python3.11".into(),
            workspace_path: "/workspace".into(),
            isolation: Some(ex::Isolation { jail: world.jail.into(), ..ex::Isolation::default() }),
            layer: spec.packages.as_ref().filter(|_| world.has_layers).map(|set| layer(Some(set))),
            spec: Some(spec.clone()),
            ..agent::Sandbox::default()
        };
        sandbox.set_state(agent::sandbox::State::Running);
        world.last_spec = Some(spec);
        world.sandboxes.insert(
            id.to_owned(),
            FakeSandbox { sandbox: sandbox.clone(), executor, runtime: Some(runtime) },
        );
        sandbox
    }
}

impl Drop for FakeSandbox {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Never<T> = tokio_stream::Pending<Result<T, Status>>;

#[tonic::async_trait]
impl SchedulerService for World {
    type WatchSandboxesStream = Never<sch::WatchSandboxesResponse>;

    async fn create_sandbox(
        &self,
        call: Call<sch::CreateSandboxRequest>,
    ) -> Result<Response<sch::CreateSandboxResponse>, Status> {
        let request = call.into_inner();
        let (error, delay) = {
            let mut world = self.lock();
            world.creates += 1;
            (world.create_errors.pop_front(), world.create_delay)
        };
        tokio::time::sleep(delay).await;
        match error {
            Some(error) => Err(error),
            None => {
                let sandbox = self.create(&request.sandbox_id, request.spec.unwrap());
                Ok(Response::new(sch::CreateSandboxResponse { sandbox: Some(sandbox) }))
            }
        }
    }

    async fn delete_sandbox(
        &self,
        call: Call<sch::DeleteSandboxRequest>,
    ) -> Result<Response<sch::DeleteSandboxResponse>, Status> {
        let id = call.into_inner().sandbox_id;
        let mut world = self.lock();
        if world.scheduler_down {
            return Err(Status::unavailable("down"));
        }
        world.sandboxes.remove(&id);
        world.deleted.push(id);
        Ok(Response::new(sch::DeleteSandboxResponse {}))
    }

    async fn get_sandbox(
        &self,
        call: Call<sch::GetSandboxRequest>,
    ) -> Result<Response<sch::GetSandboxResponse>, Status> {
        let world = self.lock();
        if world.scheduler_down {
            return Err(Status::unavailable("down"));
        }
        match world.sandboxes.get(&call.get_ref().sandbox_id) {
            Some(found) => {
                Ok(Response::new(sch::GetSandboxResponse { sandbox: Some(found.sandbox.clone()) }))
            }
            None => Err(Status::not_found("no such sandbox")),
        }
    }

    async fn install_packages(
        &self,
        call: Call<sch::InstallPackagesRequest>,
    ) -> Result<Response<sch::InstallPackagesResponse>, Status> {
        let request = call.into_inner().request.unwrap_or_default();
        let (answer, gate) = {
            let mut world = self.lock();
            world.installs.push(request.clone());
            (world.install_answers.pop_front(), Arc::clone(&world.install_gate))
        };
        let _open = gate.acquire().await;
        let layer = || agent::install_packages_response::Outcome::Layer(layer(request.packages.as_ref()));
        let answer = answer.unwrap_or_else(|| Ok(layer()))?;
        let response = agent::InstallPackagesResponse { outcome: Some(answer), reused: false };
        Ok(Response::new(sch::InstallPackagesResponse { response: Some(response) }))
    }

    async fn list_sandboxes(
        &self,
        _: Call<sch::ListSandboxesRequest>,
    ) -> Result<Response<sch::ListSandboxesResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn watch_sandboxes(
        &self,
        _: Call<sch::WatchSandboxesRequest>,
    ) -> Result<Response<Self::WatchSandboxesStream>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn list_nodes(
        &self,
        _: Call<sch::ListNodesRequest>,
    ) -> Result<Response<sch::ListNodesResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn register_node(
        &self,
        _: Call<sch::RegisterNodeRequest>,
    ) -> Result<Response<sch::RegisterNodeResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }
}

#[tonic::async_trait]
impl TemplateService for World {
    async fn get_template(
        &self,
        call: Call<tpl::GetTemplateRequest>,
    ) -> Result<Response<tpl::GetTemplateResponse>, Status> {
        let template = self.lock().templates.get(&call.get_ref().template_id).cloned();
        let template = template.ok_or_else(|| Status::not_found("no such template"))?;
        Ok(Response::new(tpl::GetTemplateResponse { template: Some(template) }))
    }

    async fn create_template(
        &self,
        _: Call<tpl::CreateTemplateRequest>,
    ) -> Result<Response<tpl::CreateTemplateResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn list_templates(
        &self,
        _: Call<tpl::ListTemplatesRequest>,
    ) -> Result<Response<tpl::ListTemplatesResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn update_template(
        &self,
        _: Call<tpl::UpdateTemplateRequest>,
    ) -> Result<Response<tpl::UpdateTemplateResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn delete_template(
        &self,
        _: Call<tpl::DeleteTemplateRequest>,
    ) -> Result<Response<tpl::DeleteTemplateResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }
}
