//! The creation of sessions: a durable row first, then a sandbox.

mod row;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sandmesh_mesh::timestamp;
use sandmesh_proto::{agent, executor, scheduler, session as pb, template};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tonic::Code;

use super::{
    Service,
    ask::Refusal,
    install::{DEFAULT_TIMEOUT as INSTALL_TIMEOUT, Install, installed},
};
use crate::{
    dependencies::Installed,
    encode,
    error::Error,
    id,
    lifecycle::{SessionEvent, SessionState},
    notify::{Lock, Subscription},
    peers::call,
    store::{
        placement::Placement,
        session::{Inserted, Model},
    },
    validate::{NewSession, new_session},
    values::Language,
};

/// How long a template may take to be read.
const TEMPLATE_LIMIT: Duration = Duration::from_secs(5);

/// How much longer than its session a sandbox may live on its own, should nobody end it: long enough that
/// the session always ends first, and is saved where the object store is away for a while.
const ORPHAN_GRACE: chrono::TimeDelta = chrono::TimeDelta::minutes(10);

/// The lifetime of a session in seconds, where neither the request nor the template says.
const DEFAULT_TIMEOUT: u32 = 300;

/// How often a new id is tried when the one that was made is taken.
const ID_ATTEMPTS: usize = 8;

/// How it went with the packages of a new sandbox.
enum Furnished {
    /// The session can run; with how the installation went, where there was anything to install.
    Ready(Option<Result<Installed, String>>),
    /// It cannot.
    Failed(String),
    /// The session ended meanwhile, or the service stops.
    Moot,
}

/// Who asked for a session and waits for it.
struct Waiter {
    waiting: Arc<AtomicBool>,
    refused: oneshot::Sender<Error>,
}

impl Service {
    /// Creates a session. Answers when it runs, or after a short while that it is being created.
    pub(crate) async fn create_session(
        self: &Arc<Self>,
        request: pb::CreateSessionRequest,
    ) -> Result<Model, Error> {
        let new = new_session(request, &self.config)?;
        let service = Arc::clone(self);
        self.finish("create session", async move { service.create_checked(new).await }).await
    }

    async fn create_checked(self: Arc<Self>, new: NewSession) -> Result<Model, Error> {
        if let Some(request_id) = &new.request_id
            && let Some(first) = self.store.session_of_request(request_id).await?
        {
            return self.settled(&first.id).await;
        }
        let template = self.template(&new.template_id).await?;
        let mut row = self.row(new, template)?;
        let given = row.0;
        for _ in 0..ID_ATTEMPTS {
            // From before there is a row, so that no sweep takes it for a session that nobody creates.
            let lock = self.sandboxes.try_lock(&row.1.id);
            let changes = self.session_changes.subscribe(&row.1.id);
            match self.store.insert_session(row.1.clone(), self.config.max_sessions).await? {
                Inserted::New => return self.create_sandbox_for(row.1, lock, changes).await,
                Inserted::Repeat(first) => {
                    // Whoever creates it may wait for just this.
                    drop(lock);
                    return self.settled(&first.id).await;
                }
                Inserted::QuotaExceeded => return Err(Error::QuotaExceeded(self.config.max_sessions)),
                Inserted::IdTaken if given => return Err(Error::SessionExists(row.1.id)),
                Inserted::IdTaken => row.1.id = id::session(self.clock.now()),
            }
        }
        Err(Error::SessionExists(row.1.id))
    }

    async fn template(&self, id: &str) -> Result<template::Template, Error> {
        let request = template::GetTemplateRequest { template_id: id.to_owned() };
        let missing = |problem| Error::TemplateNotFound { id: id.to_owned(), problem };
        let found = match call(TEMPLATE_LIMIT, self.peers.template().get_template(request)).await {
            Ok(answer) => answer.template.ok_or_else(|| missing("not found"))?,
            Err(status) if status.code() == Code::NotFound => return Err(missing("not found")),
            Err(status) => {
                return Err(Error::Unavailable(format!(
                    "template `{id}` cannot be read: {}",
                    status.message()
                )));
            }
        };
        if found.is_active { Ok(found) } else { Err(missing("is not active")) }
    }

    /// What the sandbox of a session is that asks for nothing but its template and limits; of no session, and
    /// without an end.
    pub(crate) async fn sandbox_spec(
        &self,
        asked: pb::GetSandboxSpecRequest,
    ) -> Result<agent::SandboxSpec, Error> {
        let pb::GetSandboxSpecRequest { template_id, resources } = asked;
        let new = new_session(
            pb::CreateSessionRequest { template_id, resources, ..pb::CreateSessionRequest::default() },
            &self.config,
        )?;
        let template = self.template(&new.template_id).await?;
        let (_, session) = self.row(new, template)?;
        let spec = self.sandbox_request(&session, false).spec.unwrap_or_default();
        Ok(agent::SandboxSpec { session_id: String::new(), expires_at: None, ..spec })
    }

    /// Has the sandbox of a new session made, and waits a little for it.
    async fn create_sandbox_for(
        self: &Arc<Self>,
        session: Model,
        lock: Option<Lock>,
        mut changes: Subscription,
    ) -> Result<Model, Error> {
        let waiting = Arc::new(AtomicBool::new(true));
        let (refused, mut refusal) = oneshot::channel();
        let (id, deadline) = (session.id.clone(), Instant::now() + self.config.create_wait.0);
        let waiter = Some(Waiter { waiting: Arc::clone(&waiting), refused });
        // Without the lock, another may change it meanwhile.
        let written = lock.is_some().then_some(session);
        self.spawn_creation(id.clone(), lock, (written, waiter));
        let settles = async {
            // There is nothing to see before.
            let _ = timeout_at(deadline, changes.changed()).await;
            self.settles(&id, &mut changes, deadline).await
        };
        let settled = tokio::select! {
            settled = settles => settled,
            Ok(error) = &mut refusal => return Err(error),
        };
        // Whoever clears it first says how it ends: as an error here, or as a session that failed.
        if waiting.swap(false, Ordering::AcqRel) || refusal.is_terminated() {
            return settled;
        }
        refusal.await.map_or(settled, Err)
    }

    /// The session as it is once it is not being created any more, or after a short while.
    pub(super) async fn settled(&self, id: &str) -> Result<Model, Error> {
        let deadline = Instant::now() + self.config.create_wait.0;
        self.settles(id, &mut self.session_changes.subscribe(id), deadline).await
    }

    async fn settles(&self, id: &str, changes: &mut Subscription, deadline: Instant) -> Result<Model, Error> {
        loop {
            let session = self.session(id).await?;
            if session.state != SessionState::Creating
                || timeout_at(deadline, changes.changed()).await.is_err()
            {
                return Ok(session);
            }
        }
    }

    /// Creates the sandbox of a session that nobody creates, as after a restart.
    pub(super) fn resume_creation(self: &Arc<Self>, id: String) {
        // Held by whoever creates it now.
        if let Some(lock) = self.sandboxes.try_lock(&id) {
            self.spawn_creation(id, Some(lock), (None, None));
        }
    }

    /// Creates the sandbox of a session, whose row may be known as it is, for who may wait for it.
    fn spawn_creation(
        self: &Arc<Self>,
        id: String,
        lock: Option<Lock>,
        (row, waiter): (Option<Model>, Option<Waiter>),
    ) {
        let service = Arc::clone(self);
        self.spawn("create sandbox", async move {
            let _lock = match lock {
                Some(lock) => lock,
                None => service.sandboxes.lock(&id).await,
            };
            if let Err(error) = service.create_sandbox(&id, row, waiter).await {
                // The sweep tries again.
                tracing::error!(session.id = id, error = format!("{error:#?}"), "sandbox not created");
            }
        });
    }

    async fn create_sandbox(
        self: &Arc<Self>,
        id: &str,
        row: Option<Model>,
        waiter: Option<Waiter>,
    ) -> Result<(), Error> {
        // Of what was read, nobody knows who asked for a sandbox before.
        let (session, may_exist) = match row {
            Some(row) => (Some(row), false),
            None => (self.store.session(id).await?, true),
        };
        let Some(session) = session.filter(|session| session.state == SessionState::Creating) else {
            return Ok(());
        };
        match self.ask_for_sandbox(&session, may_exist).await? {
            Ok(sandbox) if is_weaker(&session, &sandbox) => {
                let reason = "its sandbox was lost, and another one would have another isolation";
                self.end(&session, SessionEvent::CreationFailed, reason).await?;
            }
            Ok(sandbox) => self.furnish(session, sandbox).await?,
            Err(Refusal::NoCapacity { reason, retry_after, queue_position }) => {
                let error = Error::NoCapacity { reason, retry_after, queue_position };
                self.give_up(&session, waiter, error).await?;
            }
            Err(Refusal::Final(reason)) => {
                let reason = after_recovery(&session, reason);
                self.end(&session, SessionEvent::CreationFailed, &reason).await?;
            }
            Err(Refusal::Moot) => {}
        }
        Ok(())
    }

    /// Sees to the packages of a session whose sandbox is there, and lets it run.
    async fn furnish(self: &Arc<Self>, mut session: Model, sandbox: agent::Sandbox) -> Result<(), Error> {
        let packages = match self.packages_at_creation(&mut session, &sandbox).await? {
            Furnished::Ready(packages) => packages,
            Furnished::Failed(why) => {
                let reason = format!("its dependencies could not be installed: {why}");
                self.end(&session, SessionEvent::CreationFailed, &reason).await?;
                return Ok(());
            }
            Furnished::Moot => return Ok(()),
        };
        // One that takes the place of another goes on with its files.
        if session.recovered() > 0 {
            self.restore_workspace(&session, &sandbox.endpoint).await?;
        }
        let made = Placement { packages, ..placement(sandbox) };
        // When the session ended meanwhile, its end waits for the lock and removes the sandbox.
        if self.store.session_ready(&session, made, self.clock.now()).await? {
            tracing::info!(session.id, sandbox.id = session.sandbox_id, "session runs");
        }
        self.session_changes.publish(&session.id);
        Ok(())
    }

    /// Has the packages installed that a new sandbox has not from the start.
    async fn packages_at_creation(
        &self,
        session: &mut Model,
        sandbox: &agent::Sandbox,
    ) -> Result<Furnished, Error> {
        loop {
            if matches!(self.package_set(session), Ok(None)) {
                return Ok(Furnished::Ready(None));
            }
            if let Some(layer) = sandbox.layer.clone() {
                return Ok(Furnished::Ready(Some(Ok(installed(layer)))));
            }
            let Some(begun) = self.store.creation_installs(session, self.clock.now()).await? else {
                return Ok(Furnished::Moot);
            };
            *session = begun;
            self.session_changes.publish(&session.id);
            let why = match self.install(session, &sandbox.node_id).await? {
                Install::Done(installed) => return Ok(Furnished::Ready(Some(Ok(installed)))),
                Install::Moot => return Ok(Furnished::Moot),
                Install::Failed(why) => why,
            };
            let packages = session.packages.as_ref();
            if packages.is_some_and(|packages| packages.keep_on_error) {
                return Ok(Furnished::Ready(Some(Err(why))));
            }
            self.store.install_failed(session, &why, self.clock.now()).await?;
            // What could not be added to a session that had packages before is no reason to end it.
            let added =
                session.installed.is_some() && packages.is_some_and(|packages| packages.wanted.is_some());
            match self.store.session(&session.id).await? {
                Some(now) if added => *session = now,
                _ => return Ok(Furnished::Failed(why)),
            }
        }
    }

    /// There is no room: who waits gets an error and no session; who was told that it is being created
    /// finds it failed.
    async fn give_up(
        self: &Arc<Self>,
        session: &Model,
        waiter: Option<Waiter>,
        error: Error,
    ) -> Result<(), Error> {
        if let Some(waiter) = waiter
            && waiter.waiting.swap(false, Ordering::AcqRel)
            && self.store.discard_session(&session.id).await?
        {
            let _ = waiter.refused.send(error);
            return Ok(());
        }
        self.end(session, SessionEvent::CreationFailed, &error.to_string()).await?;
        Ok(())
    }

    pub(super) fn sandbox_request(
        &self,
        session: &Model,
        may_exist: bool,
    ) -> scheduler::CreateSandboxRequest {
        let language = Language::of_runtime(&session.language_runtime);
        let spec = agent::SandboxSpec {
            image: session.image.clone(),
            resources: Some(encode::resources(session.resources)),
            language: language.map_or(executor::Language::Unspecified, encode::language).into(),
            labels: encode::pairs(&session.labels.0),
            session_id: session.id.clone(),
            template_id: session.template_id.clone(),
            max_concurrent_executions: self.config.max_concurrent_executions,
            expires_at: Some(timestamp(session.expires_at.utc() + ORPHAN_GRACE)),
            restarts: session.recovered(),
            // Where that says why not, its installation does, too.
            packages: self.package_set(session).ok().flatten(),
        };
        let sandbox_id = session.sandbox_id.clone();
        scheduler::CreateSandboxRequest { sandbox_id, spec: Some(spec), may_exist, progress_wanted: true }
    }
}

/// Whether a sandbox that takes the place of another has not the isolation that the session had.
fn is_weaker(session: &Model, sandbox: &agent::Sandbox) -> bool {
    let had = session.isolation.as_ref().filter(|_| session.recoveries > 0);
    had.is_some_and(|had| *had != encode::isolation_from(sandbox.isolation.clone().unwrap_or_default()))
}

/// Why a session ends: one that had a sandbox says first how it was lost.
pub(super) fn after_recovery(session: &Model, reason: String) -> String {
    match session.status_reason.strip_prefix("recovering: ") {
        Some(loss) => format!("{loss}; {reason}"),
        None => reason,
    }
}

fn placement(sandbox: agent::Sandbox) -> Placement {
    Placement {
        endpoint: sandbox.endpoint,
        node_id: sandbox.node_id,
        runtime_type: sandbox.runtime,
        language_runtime: sandbox.language_runtime,
        workspace_path: sandbox.workspace_path,
        isolation: encode::isolation_from(sandbox.isolation.unwrap_or_default()),
        was_warm: sandbox.claimed,
        packages: None,
    }
}
