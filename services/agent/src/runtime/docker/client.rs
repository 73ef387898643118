//! The engine's API, as far as it is used: by a unix socket and nothing else.
//!
//! Each call has a connection of its own, so that an engine that was started anew is as good as before.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    container::LogOutput,
    errors::Error as ApiError,
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary, SystemInfo},
    query_parameters::{
        CreateContainerOptions, InspectContainerOptions, ListContainersOptions, LogsOptions,
        RemoveContainerOptions, StartContainerOptions,
    },
};
use futures::TryStreamExt;
use tokio::{sync::OnceCell, time::Instant};

use crate::runtime::container::engine::{Refusal, Trouble, absent};

/// How long the engine may take to do a thing; making a container takes long on a busy disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How soon it is looked again whether a container is gone that is being removed.
const PAUSE: Duration = Duration::from_millis(20);
/// How much is read of what a container said before it was given a log.
const SAID: usize = 4 << 10;

/// What it is called.
pub(super) const TITLE: &str = "the Docker engine";

/// The engine.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    /// Made when it was reached for the first time, as its version is agreed on with it.
    client: OnceCell<Docker>,
}

impl Client {
    /// The one at a socket. Nothing is asked yet.
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket, client: OnceCell::new() }
    }

    /// What it is known by, for a person.
    pub(super) fn name(&self) -> String {
        self.socket.display().to_string()
    }

    /// A client that speaks a version that the engine does.
    pub(super) async fn client(&self) -> Result<&Docker, Trouble> {
        let connect = || async {
            let path = self.name();
            let client = Docker::connect_with_unix(&path, ANSWER_TIMEOUT.as_secs(), API_DEFAULT_VERSION)?;
            client.negotiate_version().await
        };
        self.client.get_or_try_init(connect).await.map_err(|error| self.trouble(error))
    }

    /// What an error of the client means.
    pub(super) fn trouble(&self, error: ApiError) -> Trouble {
        match error {
            ApiError::DockerResponseServerError { status_code: status, message } => refused(status, &message),
            ApiError::DockerStreamError { error: message } => refused(500, &message),
            ApiError::RequestTimeoutError => Trouble::Late { engine: TITLE, socket: self.name() },
            other => self.away(causes(&other)),
        }
    }

    /// It cannot be reached.
    pub(super) fn away(&self, why: String) -> Trouble {
        Trouble::Away { engine: TITLE, socket: self.name(), why }
    }

    /// Whether it answers.
    pub(super) async fn ping(&self) -> Result<(), Trouble> {
        let answer = self.client().await?.ping().await;
        answer.map(drop).map_err(|error| self.trouble(error))
    }

    /// What it says of itself.
    pub(super) async fn info(&self) -> Result<SystemInfo, Trouble> {
        self.client().await?.info().await.map_err(|error| self.trouble(error))
    }

    /// What it is made of: the names of its parts.
    pub(super) async fn parts(&self) -> Result<Vec<String>, Trouble> {
        let version = self.client().await?.version().await.map_err(|error| self.trouble(error))?;
        Ok(version.components.into_iter().flatten().map(|part| part.name).collect())
    }

    /// Makes a container, and answers with its id.
    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, Trouble> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        let made = self.client().await?.create_container(Some(options), body).await;
        made.map(|made| made.id).map_err(|error| self.trouble(error))
    }

    /// Starts a container.
    pub(super) async fn start(&self, name: &str) -> Result<(), Trouble> {
        let started = self.client().await?.start_container(name, None::<StartContainerOptions>).await;
        started.map_err(|error| self.trouble(error))
    }

    /// A container as it is now; `None` if there is none.
    pub(super) async fn container(&self, name: &str) -> Result<Option<ContainerInspectResponse>, Trouble> {
        let found = self.client().await?.inspect_container(name, None::<InspectContainerOptions>).await;
        absent(found.map_err(|error| self.trouble(error)))
    }

    /// The containers with a label, whether they run or not.
    pub(super) async fn containers(&self, label: &str) -> Result<Vec<ContainerSummary>, Trouble> {
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let found = self.client().await?.list_containers(Some(options)).await;
        found.map_err(|error| self.trouble(error))
    }

    /// Kills and removes a container with what only it had. Returns when it is gone, or was.
    pub(super) async fn remove(&self, name: &str, within: Duration) -> Result<(), Trouble> {
        let deadline = Instant::now() + within;
        loop {
            let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
            let removed = self.client().await?.remove_container(name, Some(options)).await;
            match removed.map_err(|error| self.trouble(error)) {
                Err(trouble) if trouble.is_not_found() => return Ok(()),
                // Somebody else is at it.
                Err(trouble) if trouble.is_conflict() && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// What a container wrote to its own standard streams: before it was given a log, why it cannot run.
    pub(super) async fn said(&self, name: &str) -> Result<Vec<u8>, Trouble> {
        let options = LogsOptions { stdout: true, stderr: true, tail: "50".to_owned(), ..Default::default() };
        let parts = self.client().await?.logs(name, Some(options));
        let said = parts.try_fold(Vec::new(), |mut said: Vec<u8>, part: LogOutput| async move {
            said.extend_from_slice(&part.into_bytes());
            said.truncate(SAID);
            Ok(said)
        });
        said.await.map_err(|error| self.trouble(error))
    }
}

/// What the engine means with an HTTP status.
pub(super) fn refused(status: u16, message: &str) -> Trouble {
    let kind = match status {
        404 => Refusal::NotFound,
        409 => Refusal::Conflict,
        _ => Refusal::Other,
    };
    Trouble::Refused { engine: TITLE, kind, message: message.trim().to_owned() }
}

/// An error with all that caused it: what is on top of them says little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}
