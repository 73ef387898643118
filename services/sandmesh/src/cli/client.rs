//! The connection to the gateway: one link, with the API key on every call.

use std::time::Duration;

use sandmesh_mesh::{Link, MAX_MESSAGE_BYTES};
use sandmesh_proto::{
    scheduler::{node_service_client::NodeServiceClient, pool_service_client::PoolServiceClient},
    session::{
        dependency_service_client::DependencyServiceClient, file_service_client::FileServiceClient,
        session_service_client::SessionServiceClient,
    },
    template::template_service_client::TemplateServiceClient,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
};

use super::{Globals, failure::Failure};

/// How long an answer that is not a stream may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The services of the gateway.
#[derive(Debug)]
pub(super) struct Client {
    link: InterceptedService<Link, ApiKey>,
}

type Keyed = InterceptedService<Link, ApiKey>;

/// Puts the API key on every call.
#[derive(Debug, Clone)]
pub(super) struct ApiKey(Option<MetadataValue<Ascii>>);

impl Interceptor for ApiKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Connects when first used.
    pub(super) fn new(globals: &Globals) -> Result<Self, Failure> {
        if globals.url.starts_with("https:") {
            let message =
                "`https` is not spoken here; reach the gateway over `http`, through a tunnel if need be";
            return Err(Failure::usage(message));
        }
        let link = Link::dial(&globals.url).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self { link: InterceptedService::new(link, api_key(globals)?) })
    }

    /// Sessions and executions.
    pub(super) fn sessions(&self) -> SessionServiceClient<Keyed> {
        SessionServiceClient::new(self.link.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Nodes and their sandboxes.
    pub(super) fn nodes(&self) -> NodeServiceClient<Keyed> {
        NodeServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Pools of warm sandboxes.
    pub(super) fn pools(&self) -> PoolServiceClient<Keyed> {
        PoolServiceClient::new(self.link.clone())
    }

    /// Packages of sessions.
    pub(super) fn dependencies(&self) -> DependencyServiceClient<Keyed> {
        DependencyServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Files of sessions.
    pub(super) fn files(&self) -> FileServiceClient<Keyed> {
        FileServiceClient::new(self.link.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Templates.
    pub(super) fn templates(&self) -> TemplateServiceClient<Keyed> {
        TemplateServiceClient::new(self.link.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

fn api_key(globals: &Globals) -> Result<ApiKey, Failure> {
    let Some(key) = globals.api_key.as_ref().filter(|key| !key.expose().is_empty()) else {
        return Ok(ApiKey(None));
    };
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", key.expose())
        .parse()
        .map_err(|_| Failure::usage("the API key holds characters that cannot be sent"))?;
    value.set_sensitive(true);
    Ok(ApiKey(Some(value)))
}

/// A request with a deadline, for answers that are not streams.
pub(super) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

#[cfg(test)]
mod tests {
    use sandmesh_mesh::Secret;

    use super::*;
    use crate::cli::Format;

    fn globals(url: &str, key: Option<&str>) -> Globals {
        Globals { url: url.to_owned(), api_key: key.map(Secret::new), output: Format::Text }
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_dialled_is_a_usage_error() {
        for url in ["https://x", "ftp://x", "localhost:8000", ""] {
            assert_eq!(Client::new(&globals(url, None)).unwrap_err().exit_code(), 2, "{url}");
        }
    }

    #[test]
    fn the_api_key_travels_as_bearer_and_is_never_shown() {
        let mut key = api_key(&globals("http://x", Some("hunter2"))).unwrap();
        assert!(!format!("{key:?}").contains("hunter2"));
        let request = key.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap().to_str().unwrap(), "Bearer hunter2");
    }

    #[test]
    fn a_key_with_a_line_break_is_refused_without_showing_it() {
        let failure = api_key(&globals("http://x", Some("hunter2\n"))).unwrap_err();
        assert!(!failure.lines("http://x")[0].contains("hunter2"));
        assert_eq!(failure.exit_code(), 2);
    }
}
