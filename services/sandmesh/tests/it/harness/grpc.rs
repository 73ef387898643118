//! Clients of the gRPC services, and what their errors must have.

use std::{fmt::Debug, time::Duration};

use sandmesh_proto::{
    executor::Language,
    health::health_probe_service_client::HealthProbeServiceClient,
    session::{
        CreateSessionRequest, ExecuteRequest, ExecuteResponse, Execution, ExecutionSpec, GetSessionRequest,
        Session, execute_response::Event, session::State, session_service_client::SessionServiceClient,
    },
    template::template_service_client::TemplateServiceClient,
};
use tonic::{Code, Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

/// The largest message that these clients take.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The public services of one server.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    pub(crate) channel: Channel,
    pub(crate) sessions: SessionServiceClient<Channel>,
    pub(crate) templates: TemplateServiceClient<Channel>,
    pub(crate) health: HealthProbeServiceClient<Channel>,
}

/// What an execution that was followed to its end has told.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) execution_id: String,
    pub(crate) started: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) result: Execution,
}

impl Grpc {
    pub(crate) async fn connect(address: &str) -> Self {
        Self::try_connect(address).await.unwrap()
    }

    /// As `connect`, and UNAVAILABLE when the server is not there.
    pub(crate) async fn try_connect(address: &str) -> Result<Self, Status> {
        let channel = Channel::from_shared(address.to_owned()).unwrap().connect().await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let sessions = SessionServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let templates = TemplateServiceClient::new(channel.clone());
        let health = HealthProbeServiceClient::new(channel.clone());
        Ok(Self { channel, sessions, templates, health })
    }

    /// Creates a session and waits until it runs.
    pub(crate) async fn create(&mut self, request: CreateSessionRequest) -> Session {
        let created = self.sessions.create_session(request).await.unwrap().into_inner().session.unwrap();
        for _ in 0..1500 {
            let session = self.get(&created.session_id).await;
            if session.state() == State::Running {
                return session;
            }
            assert_eq!(session.state(), State::Creating, "{session:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("session {} does not run", created.session_id);
    }

    /// A running session of the template `python-basic`; gives its id.
    pub(crate) async fn session(&mut self) -> String {
        let request = CreateSessionRequest { template_id: "python-basic".into(), ..Default::default() };
        self.create(request).await.session_id
    }

    pub(crate) async fn get(&mut self, session_id: &str) -> Session {
        let request = GetSessionRequest { session_id: session_id.into() };
        self.sessions.get_session(request).await.unwrap().into_inner().session.unwrap()
    }

    /// Runs something to its end.
    pub(crate) async fn execute(&mut self, session_id: &str, spec: ExecutionSpec) -> Outcome {
        let request =
            ExecuteRequest { session_id: session_id.into(), spec: Some(spec), ..Default::default() };
        follow(self.sessions.execute(request).await.unwrap().into_inner()).await
    }

    /// Runs Python code to its end.
    pub(crate) async fn python(&mut self, session_id: &str, code: &str) -> Outcome {
        self.execute(session_id, code_spec(Language::Python, code)).await
    }
}

/// What to run, with everything else left out.
pub(crate) fn code_spec(language: Language, code: &str) -> ExecutionSpec {
    ExecutionSpec { code: code.into(), language: language.into(), ..Default::default() }
}

/// Reads a stream to its end and checks its order: accepted, started, output without gaps, result.
pub(crate) async fn follow(mut stream: Streaming<ExecuteResponse>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut result = None;
    while let Some(response) = stream.message().await.unwrap() {
        assert!(result.is_none(), "the result is the last event, then came {response:?}");
        match response.event.expect("an event that is known") {
            Event::Accepted(accepted) => {
                assert!(outcome.execution_id.is_empty() && !outcome.started, "accepted once and first");
                outcome.execution_id = accepted.execution_id;
            }
            Event::Started(_) => {
                assert!(!outcome.execution_id.is_empty() && !outcome.started, "started once, after accepted");
                outcome.started = true;
            }
            Event::Stdout(chunk) => {
                assert!(outcome.started && chunk.offset == outcome.stdout.len() as u64, "no gap, no repeat");
                outcome.stdout.extend_from_slice(&chunk.data);
            }
            Event::Stderr(chunk) => {
                assert!(outcome.started && chunk.offset == outcome.stderr.len() as u64, "no gap, no repeat");
                outcome.stderr.extend_from_slice(&chunk.data);
            }
            Event::Result(execution) => result = Some(execution),
        }
    }
    outcome.result = result.expect("a stream ends with the result");
    assert_eq!(outcome.result.execution_id, outcome.execution_id);
    outcome
}

/// A refusal with this code and reason; gives the status.
#[track_caller]
pub(crate) fn refused<T: Debug>(answer: Result<Response<T>, Status>, code: Code, reason: &str) -> Status {
    let status = answer.expect_err("this is refused");
    assert_eq!(status.code(), code, "{status:?}");
    let info = status
        .get_error_details()
        .error_info()
        .cloned()
        .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "sandmesh"), "{status:?}");
    assert!(!status.message().is_empty());
    status
}

/// A refusal because of one field, which BadRequest names.
#[track_caller]
pub(crate) fn violates<T: Debug>(answer: Result<Response<T>, Status>, field: &str) {
    let status = refused(answer, Code::InvalidArgument, "INVALID_ARGUMENT");
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    assert!(violations.iter().any(|violation| violation.field == field), "no `{field}` in {violations:?}");
}
