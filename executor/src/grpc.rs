//! `ExecutorService` on the wire: frames in, frames out.

use std::{
    pin::{Pin, pin},
    sync::Arc,
};

use async_stream::try_stream;
use futures::{Stream, StreamExt as _};
use sandmesh_proto::executor::{
    self as pb, execute_request::Frame as Input, execute_response::Frame as Output,
    executor_service_server::ExecutorService,
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    cli::Language,
    clock,
    execution::{Cursor, Execution},
    feed::feed,
    isolation::layer::Layer,
    request::check_id,
    service::Service,
    status::Error,
};

/// The gRPC face of [`Service`].
#[derive(Debug, Clone)]
pub(crate) struct Grpc(pub(crate) Arc<Service>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ExecutorService for Grpc {
    type ExecuteStream = Pin<Box<dyn Stream<Item = Result<pb::ExecuteResponse, Status>> + Send>>;

    async fn execute(&self, request: Request<Streaming<pb::ExecuteRequest>>) -> Answer<Self::ExecuteStream> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|request| request.frame);
        let (execution, from) = match first {
            Some(Input::Start(start)) => (self.0.start(start.try_into()?).await?, Cursor::default()),
            Some(Input::Attach(attach)) => {
                let from = Cursor { stdout: attach.stdout_offset, stderr: attach.stderr_offset };
                (self.0.attach(&attach.execution_id, from).await?, from)
            }
            _ => return Err(Error::invalid("frame", "the first frame must be start or attach").into()),
        };
        let (refuse, refused) = oneshot::channel();
        clock::spawn(feed(Arc::clone(&execution), input, refuse));
        Ok(Response::new(Box::pin(answer(execution, from, refused))))
    }

    async fn cancel_execution(
        &self,
        request: Request<pb::CancelExecutionRequest>,
    ) -> Answer<pb::CancelExecutionResponse> {
        let was_running = self.0.cancel(&request.into_inner().execution_id)?;
        Ok(Response::new(pb::CancelExecutionResponse { was_running }))
    }

    async fn acknowledge_execution(
        &self,
        request: Request<pb::AcknowledgeExecutionRequest>,
    ) -> Answer<pb::AcknowledgeExecutionResponse> {
        self.0.acknowledge(&[request.into_inner().execution_id])?;
        Ok(Response::new(pb::AcknowledgeExecutionResponse {}))
    }

    async fn acknowledge_executions(
        &self,
        request: Request<pb::AcknowledgeExecutionsRequest>,
    ) -> Answer<pb::AcknowledgeExecutionsResponse> {
        self.0.acknowledge(&request.into_inner().execution_ids)?;
        Ok(Response::new(pb::AcknowledgeExecutionsResponse {}))
    }

    async fn list_executions(
        &self,
        _: Request<pb::ListExecutionsRequest>,
    ) -> Answer<pb::ListExecutionsResponse> {
        let summary = |execution: &Arc<Execution>| pb::ExecutionSummary {
            execution_id: execution.id.clone(),
            ended: execution.has_ended(),
        };
        Ok(Response::new(pb::ListExecutionsResponse {
            executions: self.0.list().iter().map(summary).collect(),
        }))
    }

    async fn claim(&self, request: Request<pb::ClaimRequest>) -> Answer<pb::ClaimResponse> {
        let pb::ClaimRequest { claimant, expires_at } = request.into_inner();
        check_id("claimant", &claimant)?;
        // Not before it.
        let seconds = |at: prost_types::Timestamp| {
            let at = at.seconds.saturating_add(i64::from(at.nanos > 0));
            u64::try_from(at).map_err(|_| Error::invalid("expires_at", "is not a time"))
        };
        self.0.claim(claimant, expires_at.map(seconds).transpose()?)?;
        Ok(Response::new(pb::ClaimResponse {}))
    }

    async fn mount_layer(&self, request: Request<pb::MountLayerRequest>) -> Answer<pb::MountLayerResponse> {
        let request = request.get_ref();
        let language = match request.language() {
            pb::Language::Python => Language::Python,
            pb::Language::Javascript => Language::Javascript,
            _ => return Err(Error::invalid("language", "must be python or javascript").into()),
        };
        let layer = Layer::new(&request.key, language).map_err(|problem| Error::invalid("key", problem))?;
        self.0.mount_layer(layer).await?;
        Ok(Response::new(pb::MountLayerResponse {}))
    }

    async fn get_executor(&self, _: Request<pb::GetExecutorRequest>) -> Answer<pb::GetExecutorResponse> {
        Ok(Response::new(self.0.describe().await))
    }
}

/// The execution's frames, until its outcome or until one of the caller's frames is refused.
fn answer(
    execution: Arc<Execution>,
    from: Cursor,
    mut refused: oneshot::Receiver<Error>,
) -> impl Stream<Item = Result<pb::ExecuteResponse, Status>> + Send {
    try_stream! {
        let mut frames = pin!(execution.frames(from));
        let mut listening = true;
        loop {
            let frame = tokio::select! {
                biased;
                error = &mut refused, if listening => {
                    listening = false;
                    // A feed that ended in good order refuses nothing.
                    error.map_or(Ok(None), Err)
                }
                frame = frames.next() => match frame {
                    Some(frame) => frame.map(Some),
                    None => break,
                },
            };
            if let Some(frame) = frame? {
                // Nothing follows an outcome, not even the refusal of what came too late for it.
                listening &= !matches!(frame, Output::Exited(_) | Output::Failed(_));
                yield pb::ExecuteResponse { frame: Some(frame) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Keep;

    #[tokio::test]
    async fn nothing_follows_an_outcome() {
        let keep = Keep { memory_bytes: 0, total_bytes: 0 };
        let (execution, _opening) = Execution::new("exec_1".into(), 0, keep, std::path::Path::new("/")).await;
        execution.set_outcome(Output::Failed(pb::ExecutionFailed::default()));
        let (refuse, refused) = oneshot::channel();
        let mut frames = pin!(answer(Arc::new(execution), Cursor::default(), refused));
        loop {
            let frame = frames.next().await.unwrap().unwrap().frame;
            if matches!(frame, Some(Output::Failed(_))) {
                break;
            }
        }
        refuse.send(Error::invalid("frame", "came too late")).unwrap();
        assert!(frames.next().await.is_none());
    }
}
