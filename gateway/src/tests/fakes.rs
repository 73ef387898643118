//! Roles that remember what they were asked and answer by simple rules.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use sandmesh_mesh::{Fault, FieldViolation, Link, grpc_router, status};
use sandmesh_proto::{
    executor::{ExecutionMetrics, ExecutionStarted, OutputChunk, Resources},
    health::health_probe_service_server::HealthProbeServiceServer,
    scheduler::{node_service_server::NodeServiceServer, pool_service_server::PoolServiceServer},
    session::{
        self as pb,
        attach_execution_response::Event,
        session_service_server::{SessionService, SessionServiceServer},
    },
    statesync::{
        ReconcileRequest, ReconcileResponse,
        state_sync_service_server::{StateSyncService, StateSyncServiceServer},
    },
    template::{
        self as tpb, Template,
        template_service_server::{TemplateService, TemplateServiceServer},
    },
};
use tonic::{Code, Request, Response, Status};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};

mod operators;

type Reply<T> = Result<Response<T>, Status>;

/// What the fakes were asked, and all of them behind one link.
#[derive(Debug, Clone, Default)]
pub(super) struct Fakes {
    pub(super) created: Arc<Mutex<Vec<pb::CreateSessionRequest>>>,
    pub(super) started: Arc<Mutex<Vec<pb::StartExecutionRequest>>>,
    pub(super) attached: Arc<Mutex<Vec<pb::AttachExecutionRequest>>>,
    pub(super) listed: Arc<Mutex<Vec<pb::ListSessionsRequest>>>,
    pub(super) updated: Arc<Mutex<Vec<tpb::UpdateTemplateRequest>>>,
    pub(super) metadata: Arc<Mutex<Vec<http::HeaderMap>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("{2}")]
struct Refused(Code, &'static str, String, Vec<FieldViolation>);

impl Fault for Refused {
    fn code(&self) -> Code {
        self.0
    }
    fn reason(&self) -> &'static str {
        self.1
    }
    fn violations(&self) -> Vec<FieldViolation> {
        self.3.clone()
    }
    fn retry_after(&self) -> Option<Duration> {
        (self.1 == "NO_CAPACITY").then_some(Duration::from_secs(7))
    }
}

fn refuse<T>(code: Code, reason: &'static str, message: &str) -> Reply<T> {
    Err(status(Refused(code, reason, message.to_owned(), Vec::new())))
}

fn session(session_id: &str) -> pb::Session {
    pb::Session {
        session_id: session_id.to_owned(),
        template_id: "python-basic".into(),
        state: pb::session::State::Running.into(),
        runtime_type: "process".into(),
        sandbox_id: "sbx_1".into(),
        resources: Some(Resources {
            cpu_millis: 500,
            memory_bytes: 512 << 20,
            disk_bytes: 1 << 30,
            max_processes: 128,
        }),
        timeout_seconds: 300,
        created_at: Some(prost_types::Timestamp { seconds: 1_767_323_045, nanos: 120_000_000 }),
        ..pb::Session::default()
    }
}

fn execution(execution_id: &str, state: pb::execution::State) -> pb::Execution {
    pb::Execution {
        execution_id: execution_id.to_owned(),
        session_id: "s".into(),
        state: state.into(),
        language: 1,
        stdout: b"out\xff".to_vec().into(),
        return_value_json: Some(r#"{"n": 1.10, "big": 12345678901234567890123}"#.into()),
        metrics: Some(ExecutionMetrics {
            duration: Some(prost_types::Duration { seconds: 0, nanos: 1_500_000 }),
            peak_memory_bytes: 3 << 19,
            ..ExecutionMetrics::default()
        }),
        started_at: Some(prost_types::Timestamp::default()),
        ..pb::Execution::default()
    }
}

impl Fakes {
    pub(super) fn link(&self) -> Link {
        let mut routes = tonic::service::RoutesBuilder::default();
        let reporter = tonic_health::server::HealthReporter::new();
        routes
            .add_service(SessionServiceServer::new(self.clone()))
            .add_service(TemplateServiceServer::new(self.clone()))
            .add_service(HealthProbeServiceServer::new(self.clone()))
            .add_service(StateSyncServiceServer::new(self.clone()))
            .add_service(NodeServiceServer::new(self.clone()))
            .add_service(PoolServiceServer::new(self.clone()))
            .add_service(HealthServer::new(HealthService::from_health_reporter(reporter)));
        Link::local(grpc_router(routes.routes()))
    }

    /// Forgets what was asked so far.
    pub(super) fn forget(&self) {
        self.created.lock().unwrap().clear();
        self.started.lock().unwrap().clear();
        self.attached.lock().unwrap().clear();
        self.listed.lock().unwrap().clear();
        self.updated.lock().unwrap().clear();
        self.metadata.lock().unwrap().clear();
    }

    fn note<T>(&self, request: Request<T>) -> T {
        let (metadata, _, message) = request.into_parts();
        self.metadata.lock().unwrap().push(metadata.into_headers());
        message
    }
}

#[tonic::async_trait]
impl SessionService for Fakes {
    type ExecuteStream = BoxStream<'static, Result<pb::ExecuteResponse, Status>>;
    type AttachExecutionStream = BoxStream<'static, Result<pb::AttachExecutionResponse, Status>>;
    type InteractExecutionStream = BoxStream<'static, Result<pb::InteractExecutionResponse, Status>>;

    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Reply<pb::CreateSessionResponse> {
        let request = self.note(request);
        self.created.lock().unwrap().push(request.clone());
        match request.template_id.as_str() {
            "nothing" => {
                refuse(Code::FailedPrecondition, "TEMPLATE_NOT_FOUND", "template `nothing` not found")
            }
            "full" => refuse(Code::ResourceExhausted, "NO_CAPACITY", "no node has room"),
            "broken" => refuse(Code::Internal, "INTERNAL", "password is hunter2"),
            "panic" => panic!("a role panicked"),
            _ if request.timeout_seconds == Some(0) => {
                let field = "timeout_seconds";
                let wrong =
                    FieldViolation::new(field, "greater_than_equal", format!("`{field}` must be at least 1"));
                Err(status(Refused(Code::InvalidArgument, "INVALID_ARGUMENT", String::new(), vec![wrong])))
            }
            _ => Ok(Response::new(pb::CreateSessionResponse {
                session: Some(session("sess_20260102_0a1b2c3d")),
            })),
        }
    }

    async fn get_session(&self, request: Request<pb::GetSessionRequest>) -> Reply<pb::GetSessionResponse> {
        let id = self.note(request).session_id;
        match id.as_str() {
            "unknown" => refuse(Code::NotFound, "SESSION_NOT_FOUND", "session `unknown` not found"),
            _ => Ok(Response::new(pb::GetSessionResponse { session: Some(session(&id)) })),
        }
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Reply<pb::ListSessionsResponse> {
        self.listed.lock().unwrap().push(self.note(request));
        let sessions = vec![session("b"), session("a")];
        Ok(Response::new(pb::ListSessionsResponse { sessions, next_page_token: "t2".into(), total: 5 }))
    }

    async fn terminate_session(
        &self,
        request: Request<pb::TerminateSessionRequest>,
    ) -> Reply<pb::TerminateSessionResponse> {
        let session = Some(session(&self.note(request).session_id));
        Ok(Response::new(pb::TerminateSessionResponse { session }))
    }

    async fn delete_session(
        &self,
        request: Request<pb::DeleteSessionRequest>,
    ) -> Reply<pb::DeleteSessionResponse> {
        self.note(request);
        Ok(Response::new(pb::DeleteSessionResponse {}))
    }

    async fn execute(&self, request: Request<pb::ExecuteRequest>) -> Reply<Self::ExecuteStream> {
        let session_id = self.note(request).session_id;
        let accepted = pb::ExecutionAccepted { execution_id: "exec_1".into(), session_id };
        let ended = execution("exec_1", pb::execution::State::Completed);
        let events =
            [pb::execute_response::Event::Accepted(accepted), pb::execute_response::Event::Result(ended)];
        let events = events.map(|event| Ok(pb::ExecuteResponse { event: Some(event) }));
        Ok(Response::new(futures::stream::iter(events).boxed()))
    }

    async fn start_execution(
        &self,
        request: Request<pb::StartExecutionRequest>,
    ) -> Reply<pb::StartExecutionResponse> {
        let request = self.note(request);
        self.started.lock().unwrap().push(request.clone());
        let id = if request.session_id == "slow" { "slow" } else { "exec_1" };
        let execution = Some(execution(id, pb::execution::State::Pending));
        Ok(Response::new(pb::StartExecutionResponse { execution }))
    }

    async fn get_execution(
        &self,
        request: Request<pb::GetExecutionRequest>,
    ) -> Reply<pb::GetExecutionResponse> {
        let id = self.note(request).execution_id;
        Ok(Response::new(pb::GetExecutionResponse {
            execution: Some(execution(&id, pb::execution::State::Completed)),
        }))
    }

    async fn wait_execution(
        &self,
        request: Request<pb::WaitExecutionRequest>,
    ) -> Reply<pb::WaitExecutionResponse> {
        use pb::execution::State;
        let id = self.note(request).execution_id;
        let state = if id == "slow" { State::Running } else { State::Failed };
        Ok(Response::new(pb::WaitExecutionResponse { execution: Some(execution(&id, state)) }))
    }

    async fn attach_execution(
        &self,
        request: Request<pb::AttachExecutionRequest>,
    ) -> Reply<Self::AttachExecutionStream> {
        let request = self.note(request);
        self.attached.lock().unwrap().push(request.clone());
        if request.execution_id == "expired" {
            return refuse(Code::OutOfRange, "CURSOR_EXPIRED", "not kept");
        }
        let at = request.stdout_offset;
        let mut events = vec![
            Ok(Event::Started(ExecutionStarted::default())),
            Ok(Event::Stdout(OutputChunk { offset: at, data: "h\u{e9}".as_bytes()[..2].to_vec().into() })),
            Ok(Event::Stdout(OutputChunk {
                offset: at.saturating_add(2),
                data: "h\u{e9}".as_bytes()[2..].to_vec().into(),
            })),
            Ok(Event::Stderr(OutputChunk { offset: request.stderr_offset, data: b"e".to_vec().into() })),
        ];
        if request.execution_id == "breaks" {
            events.push(Err(Status::unavailable("10.0.0.7 went away")));
        } else {
            events.push(Ok(Event::Result(execution(&request.execution_id, pb::execution::State::Completed))));
        }
        let events = events
            .into_iter()
            .map(|event| event.map(|event| pb::AttachExecutionResponse { event: Some(event) }));
        Ok(Response::new(futures::stream::iter(events.collect::<Vec<_>>()).boxed()))
    }

    async fn list_executions(
        &self,
        request: Request<pb::ListExecutionsRequest>,
    ) -> Reply<pb::ListExecutionsResponse> {
        self.note(request);
        let executions = vec![execution("exec_1", pb::execution::State::Completed)];
        Ok(Response::new(pb::ListExecutionsResponse { executions, next_page_token: String::new(), total: 1 }))
    }

    async fn cancel_execution(
        &self,
        request: Request<pb::CancelExecutionRequest>,
    ) -> Reply<pb::CancelExecutionResponse> {
        self.note(request);
        refuse(Code::FailedPrecondition, "EXECUTION_ENDED", "execution `exec_1` is completed")
    }

    async fn send_input(&self, request: Request<pb::SendInputRequest>) -> Reply<pb::SendInputResponse> {
        self.note(request);
        Ok(Response::new(pb::SendInputResponse::default()))
    }

    async fn interact_execution(
        &self,
        _: Request<tonic::Streaming<pb::InteractExecutionRequest>>,
    ) -> Reply<Self::InteractExecutionStream> {
        refuse(Code::Unimplemented, "UNIMPLEMENTED", "not here")
    }
}

#[tonic::async_trait]
impl TemplateService for Fakes {
    async fn create_template(
        &self,
        request: Request<tpb::CreateTemplateRequest>,
    ) -> Reply<tpb::CreateTemplateResponse> {
        Ok(Response::new(tpb::CreateTemplateResponse { template: self.note(request).template }))
    }

    async fn get_template(
        &self,
        request: Request<tpb::GetTemplateRequest>,
    ) -> Reply<tpb::GetTemplateResponse> {
        let template_id = self.note(request).template_id;
        Ok(Response::new(tpb::GetTemplateResponse {
            template: Some(Template { template_id, ..Template::default() }),
        }))
    }

    async fn list_templates(
        &self,
        request: Request<tpb::ListTemplatesRequest>,
    ) -> Reply<tpb::ListTemplatesResponse> {
        self.note(request);
        let templates = vec![Template { template_id: "python-basic".into(), ..Template::default() }];
        Ok(Response::new(tpb::ListTemplatesResponse { templates, next_page_token: String::new(), total: 1 }))
    }

    async fn update_template(
        &self,
        request: Request<tpb::UpdateTemplateRequest>,
    ) -> Reply<tpb::UpdateTemplateResponse> {
        let request = self.note(request);
        self.updated.lock().unwrap().push(request.clone());
        Ok(Response::new(tpb::UpdateTemplateResponse { template: request.template }))
    }

    async fn delete_template(
        &self,
        request: Request<tpb::DeleteTemplateRequest>,
    ) -> Reply<tpb::DeleteTemplateResponse> {
        self.note(request);
        Ok(Response::new(tpb::DeleteTemplateResponse {}))
    }
}

#[tonic::async_trait]
impl StateSyncService for Fakes {
    async fn reconcile(&self, request: Request<ReconcileRequest>) -> Reply<ReconcileResponse> {
        self.note(request);
        Ok(Response::new(ReconcileResponse { checked: 3, healthy: 2, ..ReconcileResponse::default() }))
    }
}
