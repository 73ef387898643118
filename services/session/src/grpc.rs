//! The services of this role on the wire: parse, call, encode.

mod files;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use sandmesh_mesh::status;
use sandmesh_proto::session::{
    self as pb, attach_execution_response::Event as Attached, dependency_service_server::DependencyService,
    execute_response::Event as Executed, interact_execution_response::Event as Interacted,
    lease_service_server::LeaseService, sandbox_spec_service_server::SandboxSpecService,
    session_event_service_server::SessionEventService, session_service_server::SessionService,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    encode,
    error::Error,
    service::{Followed, Loss, Offsets, Paging, Service, label_filter, session_state},
    store::session::{self, Filter},
};

/// The longest that a caller may wait for the end of an execution.
const MAX_WAIT_MS: u32 = 3_600_000;

/// Serves [`Service`] over gRPC.
#[derive(Debug, Clone)]
pub(crate) struct Grpc(pub(crate) Arc<Service>);

impl Grpc {
    fn session(&self, row: session::Model) -> pb::Session {
        encode::session(row, self.0.config.max_recoveries)
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SessionService for Grpc {
    type ExecuteStream = Events<pb::ExecuteResponse>;
    type AttachExecutionStream = Events<pb::AttachExecutionResponse>;
    type InteractExecutionStream = Events<pb::InteractExecutionResponse>;

    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<Response<pb::CreateSessionResponse>, Status> {
        let session = self.0.create_session(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(pb::CreateSessionResponse { session: Some(self.session(session)) }))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let session = self.0.session(&request.get_ref().session_id).await.map_err(status)?;
        Ok(Response::new(pb::GetSessionResponse { session: Some(self.session(session)) }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let state = session_state(request.state).map_err(status)?;
        let template_id = Some(request.template_id).filter(|id| !id.is_empty());
        let paging = Paging { size: request.page_size, token: request.page_token, offset: request.offset };
        let labels = label_filter(request.labels).map_err(status)?;
        let filter = Filter { state, template_id, labels };
        Ok(Response::new(self.0.list_sessions(filter, paging).await.map_err(status)?))
    }

    async fn terminate_session(
        &self,
        request: Request<pb::TerminateSessionRequest>,
    ) -> Result<Response<pb::TerminateSessionResponse>, Status> {
        let session = self.0.terminate_session(request.into_inner().session_id).await.map_err(status)?;
        Ok(Response::new(pb::TerminateSessionResponse { session: Some(self.session(session)) }))
    }

    async fn delete_session(
        &self,
        request: Request<pb::DeleteSessionRequest>,
    ) -> Result<Response<pb::DeleteSessionResponse>, Status> {
        self.0.delete_session(request.into_inner().session_id).await.map_err(status)?;
        Ok(Response::new(pb::DeleteSessionResponse {}))
    }

    async fn execute(
        &self,
        request: Request<pb::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let pb::ExecuteRequest { session_id, spec, execution_id, request_id } = request.into_inner();
        let start = pb::StartExecutionRequest { session_id, spec, execution_id, request_id };
        let row = self.0.start_execution(start).await.map_err(status)?;
        let events = self.0.follow(&row.id, Offsets::default()).await.map_err(status)?;
        let accepted = pb::ExecutionAccepted { execution_id: row.id, session_id: row.session_id };
        let first = stream::once(async { Ok(executed(Some(Executed::Accepted(accepted)))) });
        Ok(Response::new(first.chain(events.map(|event| encoded(event, to_executed))).boxed()))
    }

    async fn start_execution(
        &self,
        request: Request<pb::StartExecutionRequest>,
    ) -> Result<Response<pb::StartExecutionResponse>, Status> {
        let row = self.0.start_execution(request.into_inner()).await.map_err(status)?;
        let view = self.0.shown(row).await.map_err(status)?;
        Ok(Response::new(pb::StartExecutionResponse { execution: Some(encode::execution(view)) }))
    }

    async fn get_execution(
        &self,
        request: Request<pb::GetExecutionRequest>,
    ) -> Result<Response<pb::GetExecutionResponse>, Status> {
        let view = self.0.execution(&request.get_ref().execution_id).await.map_err(status)?;
        Ok(Response::new(pb::GetExecutionResponse { execution: Some(encode::execution(view)) }))
    }

    async fn wait_execution(
        &self,
        request: Request<pb::WaitExecutionRequest>,
    ) -> Result<Response<pb::WaitExecutionResponse>, Status> {
        let pb::WaitExecutionRequest { execution_id, wait_ms } = request.into_inner();
        if wait_ms > MAX_WAIT_MS {
            let problem = format!("`wait_ms` must be from 0 to {MAX_WAIT_MS}");
            return Err(status(Error::field("wait_ms", "less_than_equal", problem)));
        }
        let wait = Duration::from_millis(wait_ms.into());
        let view = self.0.wait_execution(&execution_id, wait).await.map_err(status)?;
        Ok(Response::new(pb::WaitExecutionResponse { execution: Some(encode::execution(view)) }))
    }

    async fn attach_execution(
        &self,
        request: Request<pb::AttachExecutionRequest>,
    ) -> Result<Response<Self::AttachExecutionStream>, Status> {
        let request = request.into_inner();
        let at = Offsets { stdout: request.stdout_offset, stderr: request.stderr_offset };
        let events = self.0.follow(&request.execution_id, at).await.map_err(status)?;
        Ok(Response::new(events.map(|event| encoded(event, to_attached)).boxed()))
    }

    async fn list_executions(
        &self,
        request: Request<pb::ListExecutionsRequest>,
    ) -> Result<Response<pb::ListExecutionsResponse>, Status> {
        Ok(Response::new(self.0.list_executions(request.into_inner()).await.map_err(status)?))
    }

    async fn cancel_execution(
        &self,
        request: Request<pb::CancelExecutionRequest>,
    ) -> Result<Response<pb::CancelExecutionResponse>, Status> {
        let view = self.0.cancel_execution(&request.get_ref().execution_id).await.map_err(status)?;
        Ok(Response::new(pb::CancelExecutionResponse { execution: Some(encode::execution(view)) }))
    }

    async fn send_input(
        &self,
        request: Request<pb::SendInputRequest>,
    ) -> Result<Response<pb::SendInputResponse>, Status> {
        let taken = self.0.send_input(request.into_inner()).await.map_err(status)?;
        let (stdin_offset, signal_sequence) = (taken.stdin_offset, taken.signal_sequence);
        Ok(Response::new(pb::SendInputResponse { stdin_offset, signal_sequence }))
    }

    async fn interact_execution(
        &self,
        request: Request<Streaming<pb::InteractExecutionRequest>>,
    ) -> Result<Response<Self::InteractExecutionStream>, Status> {
        let events = self.0.interact(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(events.map(|event| encoded(event, to_interacted)).boxed()))
    }
}

#[tonic::async_trait]
impl DependencyService for Grpc {
    async fn install_dependencies(
        &self,
        request: Request<pb::InstallDependenciesRequest>,
    ) -> Result<Response<pb::InstallDependenciesResponse>, Status> {
        let session = self.0.install_dependencies(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(pb::InstallDependenciesResponse { session: Some(self.session(session)) }))
    }
}

#[tonic::async_trait]
impl SessionEventService for Grpc {
    async fn report_sandbox_lost(
        &self,
        request: Request<pb::ReportSandboxLostRequest>,
    ) -> Result<Response<pb::ReportSandboxLostResponse>, Status> {
        let loss = self.0.report_sandbox_lost(request.into_inner()).await.map_err(status)?;
        let (applied, recovering) = (loss != Loss::Moot, loss == Loss::Recovering);
        Ok(Response::new(pb::ReportSandboxLostResponse { applied, recovering }))
    }

    async fn get_statistics(
        &self,
        _: Request<pb::GetStatisticsRequest>,
    ) -> Result<Response<pb::GetStatisticsResponse>, Status> {
        Ok(Response::new(self.0.statistics().await.map_err(status)?))
    }
}

#[tonic::async_trait]
impl LeaseService for Grpc {
    async fn hold_lease(
        &self,
        request: Request<pb::HoldLeaseRequest>,
    ) -> Result<Response<pb::HoldLeaseResponse>, Status> {
        let lease = self.0.hold_lease(request.get_ref()).await.map_err(status)?;
        let held = lease.holder == request.get_ref().holder;
        let token = u64::try_from(lease.token).unwrap_or_default();
        Ok(Response::new(pb::HoldLeaseResponse { held, holder: lease.holder, token }))
    }

    async fn release_lease(
        &self,
        request: Request<pb::ReleaseLeaseRequest>,
    ) -> Result<Response<pb::ReleaseLeaseResponse>, Status> {
        self.0.release_lease(request.get_ref()).await.map_err(status)?;
        Ok(Response::new(pb::ReleaseLeaseResponse {}))
    }
}

#[tonic::async_trait]
impl SandboxSpecService for Grpc {
    async fn get_sandbox_spec(
        &self,
        request: Request<pb::GetSandboxSpecRequest>,
    ) -> Result<Response<pb::GetSandboxSpecResponse>, Status> {
        let spec = self.0.sandbox_spec(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(pb::GetSandboxSpecResponse { spec: Some(spec) }))
    }
}

fn encoded<T>(event: Result<Followed, Error>, encode: fn(Followed) -> T) -> Result<T, Status> {
    event.map(encode).map_err(status)
}

fn executed(event: Option<Executed>) -> pb::ExecuteResponse {
    pb::ExecuteResponse { event }
}

fn to_executed(event: Followed) -> pb::ExecuteResponse {
    executed(match event {
        Followed::Started(started) => Some(Executed::Started(started)),
        Followed::Stdout(chunk) => Some(Executed::Stdout(chunk)),
        Followed::Stderr(chunk) => Some(Executed::Stderr(chunk)),
        Followed::Result(result) => Some(Executed::Result(*result)),
        Followed::Input(_) => None,
    })
}

fn to_attached(event: Followed) -> pb::AttachExecutionResponse {
    let event = match event {
        Followed::Started(started) => Some(Attached::Started(started)),
        Followed::Stdout(chunk) => Some(Attached::Stdout(chunk)),
        Followed::Stderr(chunk) => Some(Attached::Stderr(chunk)),
        Followed::Result(result) => Some(Attached::Result(*result)),
        Followed::Input(_) => None,
    };
    pb::AttachExecutionResponse { event }
}

fn to_interacted(event: Followed) -> pb::InteractExecutionResponse {
    let event = match event {
        Followed::Started(started) => Interacted::Started(started),
        Followed::Stdout(chunk) => Interacted::Stdout(chunk),
        Followed::Stderr(chunk) => Interacted::Stderr(chunk),
        Followed::Input(taken) => Interacted::InputTaken(taken),
        Followed::Result(result) => Interacted::Result(*result),
    };
    pb::InteractExecutionResponse { event: Some(event) }
}
