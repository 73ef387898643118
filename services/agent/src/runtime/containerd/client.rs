//! The API of containerd, as far as it is used: by a unix socket and nothing else.
//!
//! The connection is made when it is needed, and again when it broke, so that a containerd that was started
//! anew is as good as before.

use std::{error::Error as _, future::Future, io, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Error as TransportError},
};

use super::api::containerd::services::{
    containers::v1::containers_client::ContainersClient, content::v1::content_client::ContentClient,
    events::v1::events_client::EventsClient, images::v1::images_client::ImagesClient,
    snapshots::v1::snapshots_client::SnapshotsClient, tasks::v1::tasks_client::TasksClient,
    version::v1::version_client::VersionClient,
};
use crate::runtime::container::engine::{Refusal, Trouble};

/// What it is called.
pub(super) const TITLE: &str = "containerd";
/// How long it may take to do a thing; making a container takes long on a busy disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How large an answer may be: the specs of many containers are.
const LARGEST_ANSWER: usize = 16 << 20;
/// The key of the metadata by which every call names its namespace.
const NAMESPACE: &str = "containerd-namespace";

/// What calls go through.
pub(super) type Way = InterceptedService<Channel, Namespaced>;

/// Names the namespace in each call.
#[derive(Debug, Clone)]
pub(super) struct Namespaced(MetadataValue<Ascii>);

impl Interceptor for Namespaced {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(NAMESPACE, self.0.clone());
        Ok(request)
    }
}

/// A containerd, and a namespace of it.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    channel: Channel,
    namespace: Namespaced,
}

impl Client {
    /// The one at a socket. Nothing is asked yet.
    ///
    /// # Errors
    /// When the namespace cannot be the name of one.
    pub(super) fn at(socket: PathBuf, namespace: &str) -> anyhow::Result<Self> {
        let path = socket.clone();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        Ok(Self { socket, channel, namespace: Namespaced(namespace.parse()?) })
    }

    fn way(&self) -> Way {
        InterceptedService::new(self.channel.clone(), self.namespace.clone())
    }

    pub(super) fn containers(&self) -> ContainersClient<Way> {
        ContainersClient::new(self.way()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn content(&self) -> ContentClient<Way> {
        ContentClient::new(self.way()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn events(&self) -> EventsClient<Way> {
        EventsClient::new(self.way())
    }

    pub(super) fn images(&self) -> ImagesClient<Way> {
        ImagesClient::new(self.way()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Way> {
        SnapshotsClient::new(self.way())
    }

    pub(super) fn tasks(&self) -> TasksClient<Way> {
        TasksClient::new(self.way())
    }

    pub(super) fn version(&self) -> VersionClient<Way> {
        VersionClient::new(self.way())
    }

    /// The answer to a call, which has a time limit.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Trouble> {
        match timeout(ANSWER_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.trouble(&status)),
            Err(_) => Err(Trouble::Late { engine: TITLE, socket: self.name() }),
        }
    }

    fn name(&self) -> String {
        self.socket.display().to_string()
    }

    /// It cannot be reached.
    pub(super) fn away(&self, why: String) -> Trouble {
        Trouble::Away { engine: TITLE, socket: self.name(), why }
    }

    /// What a status means.
    pub(super) fn trouble(&self, status: &Status) -> Trouble {
        let broke = status.source().is_some_and(|cause| cause.is::<TransportError>());
        if broke || status.code() == Code::Unavailable {
            return self.away(root_cause(status));
        }
        let kind = match status.code() {
            Code::NotFound => Refusal::NotFound,
            Code::AlreadyExists => Refusal::Conflict,
            _ => Refusal::Other,
        };
        Trouble::Refused { engine: TITLE, kind, message: status.message().to_owned() }
    }
}

/// What is below all that is told on top of it.
fn root_cause(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = status.source();
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_status_is_told_by_its_kind() {
        let client = Client::at("/nowhere/containerd.sock".into(), "sandmesh").unwrap();
        let trouble = |code: Code| client.trouble(&Status::new(code, "what"));
        assert!(trouble(Code::NotFound).is_not_found());
        assert!(trouble(Code::AlreadyExists).is_conflict());
        assert!(matches!(trouble(Code::Unknown), Trouble::Refused { kind: Refusal::Other, .. }));
        let told = client.answer(client.version().version(())).await.unwrap_err().to_string();
        assert!(told.contains("/nowhere/containerd.sock") && told.contains("No such file"), "{told}");
        assert!(Client::at("/s".into(), "a\nb").is_err());
    }
}
