//! The packages of sessions: installed while a session is created, and added while it runs.
//!
//! The row says what is wanted and how far it is; the node that has the sandbox installs, once for all who
//! want the same. A repeat joins what runs, so that the sweep can take up what a crash left at any point, in
//! any process.

use std::{sync::Arc, time::Duration};

use sandmesh_proto::{agent, scheduler, session as pb};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::Service;
use crate::{
    content,
    dependencies::{Dependency, InstallState, Installed, MOST, Packages, Wanted},
    encode,
    error::Error,
    lifecycle::SessionState,
    notify::Lock,
    peers::{Backoff, call},
    store::session::Model,
    validate::{dependencies, packages_to_install},
    values::Language,
};

/// How much longer than an installation may take its node may take to say so.
const SLACK: Duration = Duration::from_secs(45);

/// How often it is looked whether a session still wants what is being installed for it, should nobody tell.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long an installation may take where the request does not say.
pub(crate) const DEFAULT_TIMEOUT: u32 = 300;

/// What tells packages from others, more or less: it only says where they better are. Not where they come from, as that may be a secret.
fn fingerprint(language: Language, packages: &[agent::Package]) -> String {
    let name = |name: &str| name.to_lowercase().replace(['_', '.'], "-");
    let mut lines: Vec<String> =
        packages.iter().map(|one| format!("{} {}", name(&one.name), one.version)).collect();
    lines.sort();
    content::checksum(format!("{language:?}\n{}", lines.join("\n")).as_bytes())
}

/// The longest message of an installer that is kept, in bytes.
const MESSAGE_BYTES: usize = 16 << 10;

/// How an installation went.
#[derive(Debug)]
pub(super) enum Install {
    /// Everything is there.
    Done(Installed),
    /// It failed, and why.
    Failed(String),
    /// The session ended meanwhile, or the service stops.
    Moot,
}

impl Service {
    /// What a session's sandbox is to have of packages; `None` when there is nothing to have.
    ///
    /// # Errors
    /// Why it cannot be had, as when its index is not one that sessions may name any more.
    pub(super) fn package_set(&self, session: &Model) -> Result<Option<agent::PackageSet>, String> {
        let (Some(packages), Some(language)) =
            (&session.packages, Language::of_runtime(&session.language_runtime))
        else {
            return Ok(None);
        };
        let Some(due) = packages.due(session.installed.is_some(), language) else { return Ok(None) };
        let asked = packages.wanted.as_ref().map(|wanted| wanted.index_url.as_str());
        let asked = asked.filter(|url| !url.is_empty()).unwrap_or(&session.python_package_index_url);
        let index_url = match language {
            Language::Python => self.config.packages.python(asked),
            Language::JavaScript | Language::Shell => Some(self.config.packages.npm()),
        };
        let index_url = index_url.ok_or("its index is not one that sessions of this server may name")?;
        let package = |one: Dependency| agent::Package { name: one.name, version: one.version };
        let packages: Vec<agent::Package> = due.into_iter().map(package).collect();
        let fingerprint = fingerprint(language, &packages);
        Ok(Some(agent::PackageSet {
            language: encode::language(language).into(),
            packages,
            index_url,
            fingerprint,
        }))
    }

    /// Has the node of a session's sandbox install what is due, until it says how that went, the time is over,
    /// or the session does not want it any more.
    pub(super) async fn install(&self, session: &Model, node_id: &str) -> Result<Install, Error> {
        let set = match self.package_set(session) {
            Ok(Some(set)) => set,
            Ok(None) => return Ok(Install::Done(Installed::default())),
            Err(why) => return Ok(Install::Failed(why)),
        };
        let limit = session.packages.as_ref().map_or(DEFAULT_TIMEOUT, |packages| packages.timeout_seconds);
        let limit = Duration::from_secs(limit.into());
        let since = session.install_started_at.map_or_else(|| self.clock.now(), |at| at.utc());
        let mut backoff = Backoff::new(self.config.retry_max.0);
        loop {
            let spent = (self.clock.now() - since).to_std().unwrap_or_default();
            let Some(left) = limit.checked_sub(spent).filter(|left| !left.is_zero()) else {
                return Ok(Install::Failed(format!(
                    "the packages were not installed within {} s",
                    limit.as_secs()
                )));
            };
            let request = scheduler::InstallPackagesRequest {
                request: Some(agent::InstallPackagesRequest {
                    sandbox_id: session.sandbox_id.clone(),
                    packages: Some(set.clone()),
                    timeout: prost_types::Duration::try_from(left).ok(),
                }),
                node_id: node_id.to_owned(),
            };
            let mut client = self.peers.scheduler();
            let asked = call(left + SLACK, client.install_packages(request));
            let answer = tokio::select! {
                answer = asked => answer,
                () = self.unwanted(session) => return Ok(Install::Moot),
            };
            if let Some(outcome) = outcome(answer, session) {
                return Ok(outcome);
            }
            if !self.pause(backoff.pause()).await {
                return Ok(Install::Moot);
            }
        }
    }

    /// Waits until a session has ended, or is another.
    async fn unwanted(&self, session: &Model) {
        let mut changes = self.session_changes.subscribe(&session.id);
        loop {
            let is_same = |now: &Model| now.sandbox_id == session.sandbox_id && !now.state.is_final();
            match self.store.session(&session.id).await {
                Ok(now) if !now.as_ref().is_some_and(is_same) => return,
                // What cannot be read now can later.
                _ => {}
            }
            tokio::select! {
                () = changes.changed() => {}
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Installs packages into a running session, besides those that are there. Answers when that ended, or
    /// after a short while.
    pub(crate) async fn install_dependencies(
        self: &Arc<Self>,
        request: pb::InstallDependenciesRequest,
    ) -> Result<Model, Error> {
        packages_to_install(&request, &self.config)?;
        let service = Arc::clone(self);
        self.finish("install dependencies", async move { service.install_checked(request).await }).await
    }

    async fn install_checked(
        self: Arc<Self>,
        request: pb::InstallDependenciesRequest,
    ) -> Result<Model, Error> {
        let session = self.session(&request.session_id).await?;
        may_install(&session)?;
        let language = Language::of_runtime(&session.language_runtime);
        let more = dependencies(&request.dependencies, language)?;
        let (Some(language), installed) = (language, session.installed.is_some()) else {
            return Err(Error::field(
                "dependencies",
                "value_error",
                "there are no packages for this session",
            ));
        };
        let before = session
            .packages
            .clone()
            .unwrap_or_else(|| Packages { timeout_seconds: DEFAULT_TIMEOUT, ..Packages::default() });
        let all = before.with(&more, installed, language);
        if all.len() + before.template.len() > MOST {
            let problem = format!("`dependencies` would be more than {MOST} for the session");
            return Err(Error::field("dependencies", "too_long", problem));
        }
        let wanted = Some(Wanted { packages: all, index_url: request.python_package_index_url });
        let packages = Packages { wanted, ..before };
        if !self.store.begin_install(&session, packages, self.clock.now()).await? {
            let now = self.session(&request.session_id).await?;
            return may_install(&now).and(Err(Error::InstallRunning(now.id)));
        }
        self.session_changes.publish(&session.id);
        self.spawn_install(session.id.clone());
        self.after_install(&session.id).await
    }

    /// The session as it is once nothing is being installed, or after a short while.
    async fn after_install(&self, id: &str) -> Result<Model, Error> {
        let deadline = Instant::now() + self.config.create_wait.0;
        let mut changes = self.session_changes.subscribe(id);
        loop {
            let session = self.session(id).await?;
            let active = session.install_state.is_some_and(InstallState::is_active);
            if !active || tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Ok(session);
            }
        }
    }

    fn spawn_install(self: &Arc<Self>, id: String) {
        // Held by whoever drives it now.
        let Some(held) = self.installs.try_lock(&id) else { return };
        let service = Arc::clone(self);
        self.spawn("install packages", async move {
            if let Err(error) = service.drive_install(&id, held).await {
                // The sweep tries again.
                tracing::error!(session.id = id, error = format!("{error:#?}"), "packages not installed");
            }
        });
    }

    async fn drive_install(&self, id: &str, _held: Lock) -> Result<(), Error> {
        let Some(session) = self.store.session_or_deleted(id).await? else { return Ok(()) };
        if session.state == SessionState::Creating
            || !session.install_state.is_some_and(InstallState::is_active)
        {
            return Ok(());
        }
        let outcome = match session.state {
            SessionState::Running => self.install(&session, &session.node_id).await?,
            state => Install::Failed(format!("the session is {}", state.as_str())),
        };
        let now = self.clock.now();
        let ended = match outcome {
            Install::Done(installed) => self.store.install_done(&session, installed, now).await?,
            Install::Failed(why) => self.store.install_failed(&session, &why, now).await?,
            // The sweep sees to it, when the session has ended.
            Install::Moot => false,
        };
        if ended {
            tracing::info!(session.id = id, "installation of packages ended");
        }
        self.session_changes.publish(id);
        Ok(())
    }

    /// Drives the installations that nobody drives, as after a restart.
    pub(super) async fn resume_installs(self: &Arc<Self>) -> Result<(), Error> {
        for id in self.store.sessions_installing().await? {
            self.spawn_install(id);
        }
        Ok(())
    }
}

/// Whether packages can be installed into a session now.
fn may_install(session: &Model) -> Result<(), Error> {
    if session.install_state.is_some_and(InstallState::is_active) && !session.state.is_final() {
        return Err(Error::InstallRunning(session.id.clone()));
    }
    if session.state != SessionState::Running {
        return Err(Error::SessionNotActive { id: session.id.clone(), state: session.state.as_str() });
    }
    Ok(())
}

/// What an answer means; `None`: ask again.
fn outcome(answer: Result<scheduler::InstallPackagesResponse, Status>, session: &Model) -> Option<Install> {
    use agent::install_packages_response::Outcome;
    match answer {
        Ok(answer) => Some(match answer.response.and_then(|response| response.outcome) {
            Some(Outcome::Layer(layer)) => Install::Done(installed(layer)),
            Some(Outcome::Failure(failure)) => Install::Failed(shortened(&failure.message)),
            None => Install::Failed("the node answered without an outcome".to_owned()),
        }),
        Err(status) => match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown => {
                tracing::debug!(session.id, error = status.message(), "asking for packages again");
                None
            }
            _ => Some(Install::Failed(shortened(status.message()))),
        },
    }
}

/// What a layer holds, for the row of its session.
pub(super) fn installed(layer: agent::Layer) -> Installed {
    let package = |one: agent::Package| Dependency { name: one.name, version: one.version };
    let installed_at = layer.installed_at.as_ref().and_then(sandmesh_mesh::datetime);
    Installed {
        packages: layer.installed.into_iter().map(package).collect(),
        location: layer.location,
        installed_at: installed_at.map_or(0, |at| at.timestamp_micros()),
    }
}

/// A message that a column of any database takes.
fn shortened(message: &str) -> String {
    let message = message.replace('\0', "");
    let cut = message.len().saturating_sub(MESSAGE_BYTES);
    let start = (cut..message.len()).find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    message[start..].to_owned()
}
