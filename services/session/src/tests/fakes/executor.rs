//! An executor that keeps its runs as the real one does, and runs what a small language says.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::Stream;
use sandmesh_proto::executor::{
    self as ex,
    execute_request::Frame as Request,
    execute_response::Frame,
    execution_exited::Status as Ended,
    executor_service_server::{ExecutorService, ExecutorServiceServer},
};
use tokio::{net::UnixListener, runtime::Runtime, sync::mpsc, sync::watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request as Call, Response, Status, Streaming};

/// An executor that plays what the code says, see [`FakeExecutor::play`].
#[derive(Clone, Default)]
pub(in crate::tests) struct FakeExecutor(Arc<Mutex<Runs>>);

#[derive(Default)]
pub(in crate::tests) struct Runs {
    runs: HashMap<String, watch::Sender<Log>>,
    /// How often each was really started.
    pub(in crate::tests) started: HashMap<String, u32>,
    pub(in crate::tests) starts: HashMap<String, ex::ExecutionStart>,
    /// In which order they were started.
    pub(in crate::tests) order: Vec<String>,
    pub(in crate::tests) acknowledged: Vec<String>,
    /// How many calls told of those.
    pub(in crate::tests) acknowledgements: usize,
    /// It knows no calls that tell of several, and had so many.
    pub(in crate::tests) is_old: bool,
    pub(in crate::tests) unknown: usize,
    /// How many acknowledgements fail.
    pub(in crate::tests) deaf: u32,
    /// Attaching is answered with NOT_FOUND though the run goes on.
    pub(in crate::tests) confused: bool,
    /// Streams are taken and never answered.
    pub(in crate::tests) hangs: bool,
    /// How many starts are refused because the queue is full.
    pub(in crate::tests) full: u32,
    /// Streams end after so many bytes of output, until this is cleared.
    pub(in crate::tests) break_after: Option<usize>,
    pub(in crate::tests) attaches: u32,
    gate: Arc<watch::Sender<bool>>,
    /// No run reads its input meanwhile.
    stalled: Arc<watch::Sender<bool>>,
}

#[derive(Default, Clone)]
struct Log {
    started: bool,
    out: Vec<u8>,
    err: Vec<u8>,
    end: Option<Frame>,
    input: Vec<u8>,
    taken: ex::InputTaken,
    cancelled: bool,
    lost: bool,
}

impl Log {
    /// Takes input; the role has to take care of its order.
    fn take(&mut self, frame: Option<Request>) {
        let taken = &mut self.taken;
        match frame {
            Some(Request::Stdin(chunk)) => {
                assert_eq!(chunk.offset, taken.stdin_offset, "in order and once");
                taken.stdin_offset += chunk.data.len() as u64;
                self.input.extend(&chunk.data);
            }
            Some(Request::CloseStdin(_)) => taken.stdin_closed = true,
            Some(Request::Signal(signal)) => {
                taken.signal_sequence = taken.signal_sequence.max(signal.sequence);
                taken.signals += 1;
            }
            _ => {}
        }
    }
}

impl FakeExecutor {
    pub(in crate::tests) fn lock(&self) -> MutexGuard<'_, Runs> {
        self.0.lock().unwrap()
    }

    /// Lets every program go on that waits at `gate`.
    pub(in crate::tests) fn open_gate(&self) {
        self.lock().gate.send_replace(true);
    }

    /// Has runs not read their input, or read it again.
    pub(in crate::tests) fn stall(&self, stalled: bool) {
        self.lock().stalled.send_replace(stalled);
    }

    /// Loses a run, as an executor does that was replaced.
    pub(in crate::tests) fn forget(&self, id: &str) {
        let run = self.lock().runs.remove(id).unwrap();
        run.send_modify(|log| log.lost = true);
    }

    /// Breaks the stream of a run, which goes on.
    pub(in crate::tests) fn cut(&self, id: &str) {
        let runs = self.lock();
        runs.runs[id].send_modify(|log| log.lost = true);
    }

    /// Whether a run has ended.
    pub(in crate::tests) fn has_ended(&self, id: &str) -> bool {
        self.lock().runs[id].borrow().end.is_some()
    }

    /// Has a run that ended, and that nobody acknowledged.
    pub(in crate::tests) fn keep_ended(&self, id: &str) {
        let end = Frame::Failed(ex::ExecutionFailed::default());
        let (log, _) = watch::channel(Log { end: Some(end), ..Log::default() });
        self.lock().runs.insert(id.to_owned(), log);
    }

    /// Forgets what is recorded.
    fn hear(&self, ids: Vec<String>) -> Result<(), Status> {
        let mut runs = self.lock();
        if runs.deaf > 0 {
            runs.deaf -= 1;
            return Err(Status::unavailable("deaf"));
        }
        if ids.iter().any(|id| runs.runs.get(id).is_some_and(|run| run.borrow().end.is_none())) {
            return Err(Status::failed_precondition("it runs"));
        }
        runs.runs.retain(|id, _| !ids.contains(id));
        runs.acknowledged.extend(ids);
        runs.acknowledgements += 1;
        Ok(())
    }

    pub(super) fn serve(&self, path: PathBuf) -> Runtime {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(path).unwrap()
        };
        let service = ExecutorServiceServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(
            async move { server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap() },
        );
        runtime
    }

    fn run(&self, start: ex::ExecutionStart) -> watch::Receiver<Log> {
        let mut runs = self.lock();
        if let Some(run) = runs.runs.get(&start.execution_id) {
            return run.subscribe();
        }
        let first = ex::InputTaken {
            stdin_offset: start.stdin.len() as u64,
            stdin_closed: !start.keep_stdin_open,
            ..ex::InputTaken::default()
        };
        let (log, receiver) = watch::channel(Log { taken: first, ..Log::default() });
        *runs.started.entry(start.execution_id.clone()).or_default() += 1;
        runs.order.push(start.execution_id.clone());
        runs.runs.insert(start.execution_id.clone(), log.clone());
        let code = String::from_utf8_lossy(&start.code).into_owned();
        runs.starts.insert(start.execution_id.clone(), start);
        tokio::runtime::Handle::current().spawn(play(code, log, runs.gate.subscribe()));
        receiver
    }
}

/// Plays a program: words, one after the other. `out:TEXT`, `err:TEXT`, `fill:N`, `value:JSON`, `exit:N`,
/// `sleep:MS`, `gate`, `forever`, `input` (echoes its input until it is closed), `oom`, `nostart`.
async fn play(code: String, log: watch::Sender<Log>, mut gate: watch::Receiver<bool>) {
    let mut value = None;
    let mut code_at_end = 0;
    if code.contains("nostart") {
        let failed = ex::ExecutionFailed {
            kind: ex::FailureKind::NotFound.into(),
            errno_name: "ENOENT".into(),
            stage: "spawn_jail".into(),
            message: "no such interpreter".into(),
        };
        return log.send_modify(|log| log.end = Some(Frame::Failed(failed)));
    }
    log.send_modify(|log| log.started = true);
    for word in code.split_whitespace() {
        let (verb, rest) = word.split_once(':').unwrap_or((word, ""));
        match verb {
            "out" => log.send_modify(|log| log.out.extend(rest.bytes())),
            "err" => log.send_modify(|log| log.err.extend(rest.bytes())),
            "fill" => log.send_modify(|log| {
                log.out.extend((0..rest.parse::<usize>().unwrap()).map(|i| u8::try_from(i % 251).unwrap()))
            }),
            "value" => value = Some(rest.to_owned()),
            "bigvalue" => value = Some(format!("\"{}\"", "v".repeat(rest.parse().unwrap()))),
            "exit" => code_at_end = rest.parse().unwrap(),
            "sleep" => tokio::time::sleep(Duration::from_millis(rest.parse().unwrap())).await,
            "gate" => drop(gate.wait_for(|open| *open).await.unwrap()),
            "oom" => return end(&log, Ended::Signal(9), ex::Cause::Oom, None),
            "input" => {
                let mut changes = log.subscribe();
                changes.wait_for(|log| log.taken.stdin_closed || log.cancelled).await.unwrap();
                log.send_modify(|log| log.out = log.input.clone());
            }
            "forever" => {
                log.subscribe().wait_for(|log| log.cancelled).await.unwrap();
            }
            _ => panic!("{word} is no word of a fake program"),
        }
        if log.borrow().cancelled {
            return end(&log, Ended::Signal(9), ex::Cause::Cancelled, None);
        }
    }
    end(&log, Ended::ExitCode(code_at_end), ex::Cause::Unspecified, value);
}

fn end(log: &watch::Sender<Log>, status: Ended, cause: ex::Cause, value: Option<String>) {
    log.send_modify(|log| {
        log.end = Some(Frame::Exited(ex::ExecutionExited {
            status: Some(status),
            cause: cause.into(),
            return_value_json: value.map(Into::into),
            metrics: Some(ex::ExecutionMetrics {
                peak_memory_bytes: 4096,
                ..ex::ExecutionMetrics::default()
            }),
            stdout_bytes: log.out.len() as u64,
            ..ex::ExecutionExited::default()
        }));
    });
}

/// Sends what of a log a stream has not seen yet, as it comes.
async fn tell(
    mut log: watch::Receiver<Log>,
    (mut out, mut err): (usize, usize),
    break_after: Option<usize>,
    frames: mpsc::Sender<Result<ex::ExecuteResponse, Status>>,
) {
    let send = async |frame| frames.send(Ok(ex::ExecuteResponse { frame: Some(frame) })).await.is_ok();
    let mut started = false;
    let mut taken = None;
    let mut sent = 0;
    loop {
        let now = log.borrow_and_update().clone();
        if now.lost {
            return;
        }
        if (now.started || now.end.is_some()) && taken.replace(now.taken) != Some(now.taken) {
            send(Frame::InputTaken(now.taken)).await;
        }
        if now.started && !std::mem::replace(&mut started, true) {
            send(Frame::Started(ex::ExecutionStarted::default())).await;
        }
        while out < now.out.len() {
            let end = now
                .out
                .len()
                .min(out + (64 << 10))
                .min(out.saturating_add(break_after.unwrap_or(usize::MAX)));
            let data = now.out[out..end].to_vec().into();
            send(Frame::Stdout(ex::OutputChunk { offset: out as u64, data })).await;
            sent += end - out;
            out = end;
            if break_after.is_some_and(|limit| sent >= limit) {
                let _ = frames.send(Err(Status::unavailable("broken by a test"))).await;
                return;
            }
        }
        if err < now.err.len() {
            let data = now.err[err..].to_vec().into();
            send(Frame::Stderr(ex::OutputChunk { offset: err as u64, data })).await;
            err = now.err.len();
        }
        if let Some(end) = now.end {
            send(end).await;
            return;
        }
        tokio::select! {
            changed = log.changed() => if changed.is_err() { return },
            () = frames.closed() => return,
        }
    }
}

#[tonic::async_trait]
impl ExecutorService for FakeExecutor {
    type ExecuteStream = std::pin::Pin<Box<dyn Stream<Item = Result<ex::ExecuteResponse, Status>> + Send>>;

    async fn execute(
        &self,
        call: Call<Streaming<ex::ExecuteRequest>>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        if self.lock().hangs {
            std::future::pending::<()>().await;
        }
        let mut requests = call.into_inner();
        let first = requests.message().await?.and_then(|request| request.frame);
        let (id, log, at) = match first {
            Some(Request::Start(start)) => {
                {
                    let mut runs = self.lock();
                    if runs.full > 0 {
                        runs.full -= 1;
                        return Err(Status::resource_exhausted("the queue is full"));
                    }
                }
                (start.execution_id.clone(), self.run(start), (0, 0))
            }
            Some(Request::Attach(attach)) => {
                let mut runs = self.lock();
                runs.attaches += 1;
                let run = runs.runs.get(&attach.execution_id).ok_or_else(|| Status::not_found("unknown"))?;
                if runs.confused {
                    return Err(Status::not_found("confused by a test"));
                }
                if attach.stdout_offset > run.borrow().out.len() as u64 {
                    return Err(Status::out_of_range("not kept"));
                }
                let at = (attach.stdout_offset.try_into().unwrap(), attach.stderr_offset.try_into().unwrap());
                (attach.execution_id, run.subscribe(), at)
            }
            _ => return Err(Status::invalid_argument("the first frame is start or attach")),
        };
        let (frames, stream) = mpsc::channel(4);
        let (break_after, run, mut stalled) = {
            let runs = self.lock();
            (runs.break_after, runs.runs[&id].clone(), runs.stalled.subscribe())
        };
        let here = tokio::runtime::Handle::current();
        here.spawn(tell(log, at, break_after, frames));
        here.spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                stalled.wait_for(|stalled| !stalled).await.unwrap();
                run.send_modify(|log| log.take(request.frame));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn cancel_execution(
        &self,
        call: Call<ex::CancelExecutionRequest>,
    ) -> Result<Response<ex::CancelExecutionResponse>, Status> {
        let runs = self.lock();
        let run = runs.runs.get(&call.get_ref().execution_id).ok_or_else(|| Status::not_found("unknown"))?;
        let was_running = run.borrow().end.is_none();
        run.send_modify(|log| log.cancelled = true);
        Ok(Response::new(ex::CancelExecutionResponse { was_running }))
    }

    async fn acknowledge_execution(
        &self,
        call: Call<ex::AcknowledgeExecutionRequest>,
    ) -> Result<Response<ex::AcknowledgeExecutionResponse>, Status> {
        self.hear(vec![call.into_inner().execution_id])?;
        Ok(Response::new(ex::AcknowledgeExecutionResponse {}))
    }

    async fn acknowledge_executions(
        &self,
        call: Call<ex::AcknowledgeExecutionsRequest>,
    ) -> Result<Response<ex::AcknowledgeExecutionsResponse>, Status> {
        if self.lock().is_old {
            self.lock().unknown += 1;
            return Err(Status::unimplemented(""));
        }
        self.hear(call.into_inner().execution_ids)?;
        Ok(Response::new(ex::AcknowledgeExecutionsResponse {}))
    }

    async fn list_executions(
        &self,
        _: Call<ex::ListExecutionsRequest>,
    ) -> Result<Response<ex::ListExecutionsResponse>, Status> {
        let runs = self.lock();
        let summary = |(id, run): (&String, &watch::Sender<Log>)| ex::ExecutionSummary {
            execution_id: id.clone(),
            ended: run.borrow().end.is_some(),
        };
        Ok(Response::new(ex::ListExecutionsResponse { executions: runs.runs.iter().map(summary).collect() }))
    }

    async fn mount_layer(
        &self,
        _: Call<ex::MountLayerRequest>,
    ) -> Result<Response<ex::MountLayerResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn claim(&self, _: Call<ex::ClaimRequest>) -> Result<Response<ex::ClaimResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }

    async fn get_executor(
        &self,
        _: Call<ex::GetExecutorRequest>,
    ) -> Result<Response<ex::GetExecutorResponse>, Status> {
        Err(Status::unimplemented("not asked by this role"))
    }
}
