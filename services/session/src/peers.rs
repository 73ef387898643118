//! The other services that this role calls, each call with a deadline.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sandmesh_mesh::{Link, LinkError, MAX_MESSAGE_BYTES, Mesh, RoleName};
use sandmesh_proto::{
    executor::{
        executor_service_client::ExecutorServiceClient, workspace_service_client::WorkspaceServiceClient,
    },
    scheduler::scheduler_service_client::SchedulerServiceClient,
    template::template_service_client::TemplateServiceClient,
};
use tonic::{Response, Status};

use crate::error::Error;

/// The services that this role calls.
///
/// Each executor has a connection for its drivers, one for control, which must not wait for a place among
/// many streams, and one for files, of which each that is read has another. Drivers read whatever comes at once, so none fills the window for the others.
#[derive(Debug)]
pub(crate) struct Peers {
    mesh: Mesh,
    scheduler: Link,
    template: Link,
    executors: Mutex<HashMap<String, Connections>>,
}

#[derive(Debug, Clone)]
struct Connections {
    drivers: Link,
    control: Link,
    files: Link,
}

/// The files in a sandbox.
pub(crate) type Files = WorkspaceServiceClient<Link>;

impl Peers {
    /// # Errors
    /// When there is no way to the scheduler or the template role.
    pub(crate) fn new(mesh: &Mesh) -> Result<Self, LinkError> {
        let (scheduler, template) = (mesh.link(RoleName::Scheduler)?, mesh.link(RoleName::Template)?);
        Ok(Self { mesh: mesh.clone(), scheduler, template, executors: Mutex::default() })
    }

    pub(crate) fn scheduler(&self) -> SchedulerServiceClient<Link> {
        SchedulerServiceClient::new(self.scheduler.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn template(&self) -> TemplateServiceClient<Link> {
        TemplateServiceClient::new(self.template.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The executor at an endpoint, to drive executions. Connected until [`Peers::forget`].
    ///
    /// # Errors
    /// When the endpoint is not one.
    pub(crate) fn driver(&self, endpoint: &str) -> Result<ExecutorServiceClient<Link>, Error> {
        Ok(executor(self.connections(endpoint)?.drivers))
    }

    /// The executor at an endpoint, for short calls. Connected until [`Peers::forget`].
    ///
    /// # Errors
    /// When the endpoint is not one.
    pub(crate) fn control(&self, endpoint: &str) -> Result<ExecutorServiceClient<Link>, Error> {
        Ok(executor(self.connections(endpoint)?.control))
    }

    /// As [`Peers::control`], where it is connected.
    pub(crate) fn known(&self, endpoint: &str) -> Option<ExecutorServiceClient<Link>> {
        let executors = self.executors.lock().unwrap_or_else(PoisonError::into_inner);
        executors.get(endpoint).map(|connections| executor(connections.control.clone()))
    }

    /// The files in the sandbox at an endpoint. Connected until [`Peers::forget`].
    ///
    /// # Errors
    /// When the endpoint is not one.
    pub(crate) fn files(&self, endpoint: &str) -> Result<Files, Error> {
        Ok(WorkspaceServiceClient::new(self.connections(endpoint)?.files)
            .max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn connections(&self, endpoint: &str) -> Result<Connections, Error> {
        let mut executors = self.executors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = executors.get(endpoint) {
            return Ok(found.clone());
        }
        let dial = || self.mesh.dial_executor(endpoint).map_err(anyhow::Error::new);
        let made = Connections { drivers: dial()?.shared(), control: dial()?, files: dial()? };
        Ok(executors.entry(endpoint.to_owned()).or_insert(made).clone())
    }

    /// Closes the connections to the executor of a session that ended.
    pub(crate) fn forget(&self, endpoint: &str) {
        self.executors.lock().unwrap_or_else(PoisonError::into_inner).remove(endpoint);
    }
}

fn executor(link: Link) -> ExecutorServiceClient<Link> {
    ExecutorServiceClient::new(link)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Makes a call that ends after `limit` at the latest.
pub(crate) async fn call<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {limit:?}"))),
    }
}

/// The pauses between attempts: twice as long each time, with jitter, up to a limit.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(max: Duration) -> Self {
        Self::between(Duration::from_millis(20), max)
    }

    /// Pauses from `first` on, up to `max`.
    pub(crate) fn between(first: Duration, max: Duration) -> Self {
        Self { next: first.min(max), max }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.max);
        pause
    }
}
