//! Streams of arbitrary frames to one executor: each is answered or refused, and the next start still works.

use std::{panic::AssertUnwindSafe, time::Duration};

use bolero::{TypeGenerator, check};
use futures::StreamExt as _;
use sandmesh_proto::executor::{self as pb, execute_request::Frame as Input, execute_response::Frame};
use tokio::{runtime::Runtime, time::timeout};
use tonic::{Code, Status};

use crate::support::*;

/// Far more than anything here takes; whatever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon does not live long enough for a longer budget.
const STREAMS_PER_DAEMON: u64 = 500;

/// The executor is asked for good work after so many streams.
const STREAMS_PER_CHECK: u64 = 20;

#[test]
fn streams_of_any_frames_are_answered_and_good_work_goes_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut bench = AssertUnwindSafe(Bench::new(&runtime));
    let talks = check!(name = "streams").with_type::<Talking>().with_shrink_time(Duration::ZERO);
    talks.with_iterations(200).with_test_time(Duration::from_secs(8)).for_each(|talking| {
        let bench = &mut *bench;
        if bench.streams == STREAMS_PER_DAEMON {
            *bench = Bench::new(&runtime);
        }
        runtime.block_on(bench.run(talking));
    });
    let bench = &mut *bench;
    runtime.block_on(bench.check());
}

/// One stream.
#[derive(Debug, TypeGenerator)]
struct Talking {
    first: First,
    /// The caller sends nothing at all.
    silent: u8,
    rest: [Option<Step>; 6],
    /// The caller sends no more, but does not say so.
    stays: bool,
    /// The caller leaves without reading.
    leaves: bool,
    cancels: bool,
}

#[derive(Debug, TypeGenerator)]
enum First {
    Start(Start),
    Step(Step),
}

#[derive(Debug, TypeGenerator)]
struct Start {
    id: u8,
    program: u8,
    stdin: Vec<u8>,
    keep_stdin_open: bool,
}

#[derive(Debug, TypeGenerator)]
enum Step {
    Start(Start),
    Attach { id: u8, stdout: Offset, stderr: Offset },
    Stdin(Offset, Vec<u8>),
    CloseStdin,
    Signal(i32),
    LegalSignal(u8),
    Unset,
}

#[derive(Debug, TypeGenerator)]
enum Offset {
    Zero,
    Near(u8),
    Any(u64),
}

impl Offset {
    fn get(&self) -> u64 {
        match *self {
            Self::Zero => 0,
            Self::Near(offset) => offset.into(),
            Self::Any(offset) => offset,
        }
    }
}

/// A few ids of each round, so that many streams are about the same execution; now and then one of the first
/// round, which was acknowledged.
fn id_of(choice: u8, round: u64) -> String {
    let round = if choice.is_multiple_of(16) { 0 } else { round };
    format!("fuzz_{round}_{}", choice % 12)
}

impl Talking {
    fn frames(&self, round: u64) -> Vec<pb::ExecuteRequest> {
        if self.silent.is_multiple_of(16) {
            return Vec::new();
        }
        let first = match &self.first {
            First::Start(start) => Some(start.frame(round)),
            First::Step(step) => step.frame(round),
        };
        let rest = self.rest.iter().flatten().map(|step| step.frame(round));
        [first].into_iter().chain(rest).map(|frame| pb::ExecuteRequest { frame }).collect()
    }
}

fn signal_of(signal: i32) -> Input {
    Input::Signal(pb::SignalRequest { signal, ..Default::default() })
}

impl Start {
    fn frame(&self, round: u64) -> Input {
        const PROGRAMS: [&str; 8] = [
            "cat",
            "exit 3",
            "kill -9 $$",
            "head -c 200000 /dev/zero",
            "sleep 30 & echo early",
            "trap '' TERM INT; cat >/dev/null; echo late >&2",
            "exec 0<&- 1>&-; sleep 0.01",
            "printf '{' >&3",
        ];
        let code = PROGRAMS.get(usize::from(self.program) % (PROGRAMS.len() + 3));
        let start = match (code, self.program % 3) {
            (Some(code), _) => shell(code),
            (None, 0) => script("import sys; print(len(sys.stdin.buffer.read()))"),
            (None, 1) => pb::ExecutionStart {
                command: vec!["no-such-program".into()],
                code: Vec::new().into(),
                ..shell("")
            },
            (None, _) => pb::ExecutionStart { timeout: None, ..shell("true") },
        };
        Input::Start(pb::ExecutionStart {
            execution_id: id_of(self.id, round),
            stdin: self.stdin.clone().into(),
            keep_stdin_open: self.keep_stdin_open,
            ..start
        })
    }
}

impl Step {
    fn frame(&self, round: u64) -> Option<Input> {
        Some(match self {
            Self::Start(start) => start.frame(round),
            Self::Attach { id, stdout, stderr } => attach(&id_of(*id, round), stdout.get(), stderr.get()),
            Self::Stdin(offset, data) => {
                Input::Stdin(pb::StdinChunk { offset: offset.get(), data: data.clone().into() })
            }
            Self::CloseStdin => Input::CloseStdin(pb::StdinClose::default()),
            Self::Signal(signal) => signal_of(*signal),
            Self::LegalSignal(signal) => signal_of((signal % 33).into()),
            Self::Unset => return None,
        })
    }
}

/// A daemon that gets stream after stream.
struct Bench {
    daemon: Daemon,
    client: Client,
    streams: u64,
}

impl Bench {
    fn new(runtime: &Runtime) -> Self {
        let settings = Settings { max_processes: 256, ..Settings::default() };
        let daemon = runtime.block_on(Daemon::start(settings));
        let client = runtime.block_on(daemon.client());
        Self { daemon, client, streams: 0 }
    }

    async fn run(&mut self, talking: &Talking) {
        timeout(PATIENCE, self.talk(talking)).await.unwrap_or_else(|_| panic!("hangs: {talking:?}"));
        self.streams += 1;
        if self.streams.is_multiple_of(STREAMS_PER_CHECK) {
            timeout(PATIENCE, self.check()).await.unwrap_or_else(|_| panic!("hangs after {talking:?}"));
        }
    }

    async fn talk(&mut self, talking: &Talking) {
        let frames = talking.frames(self.streams / STREAMS_PER_CHECK);
        // Without a frame the executor waits for one as long as there may be one.
        let stays = talking.stays && !frames.is_empty();
        let silence = futures::stream::pending().take(usize::from(stays));
        match self.client.execute(futures::stream::iter(frames).chain(silence)).await {
            Err(status) => refused(&status),
            Ok(_) if talking.leaves => {}
            Ok(answer) => self.read(answer.into_inner(), talking.cancels).await,
        }
        if talking.cancels {
            self.cancel_all().await;
        }
    }

    /// Reads to the end, which comes at the latest when everything is cancelled.
    async fn read(&mut self, mut answer: tonic::Streaming<pb::ExecuteResponse>, to_the_end: bool) {
        if to_the_end {
            self.cancel_all().await;
        }
        let (mut ended, mut stdout, mut stderr) = (false, None, None);
        while let Some(frame) = answer.next().await {
            assert!(!ended, "a frame after the last: {frame:?}");
            match frame.map(|frame| frame.frame) {
                Ok(Some(Frame::Stdout(chunk))) => goes_on(&mut stdout, &chunk),
                Ok(Some(Frame::Stderr(chunk))) => goes_on(&mut stderr, &chunk),
                Ok(frame) => ended = matches!(frame, Some(Frame::Exited(_) | Frame::Failed(_))),
                Err(status) => return refused(&status),
            }
            if !to_the_end {
                return;
            }
        }
        assert!(ended, "the stream ended early");
    }

    async fn kept(&mut self) -> Vec<pb::ExecutionSummary> {
        let list = self.client.list_executions(pb::ListExecutionsRequest {}).await.unwrap();
        list.into_inner().executions
    }

    async fn cancel_all(&mut self) {
        for execution in self.kept().await {
            let request = pb::CancelExecutionRequest { execution_id: execution.execution_id };
            self.client.cancel_execution(request).await.unwrap();
        }
    }

    /// Everything ends and is forgotten, and a good start is answered as if nothing had been.
    async fn check(&mut self) {
        self.cancel_all().await;
        for execution in self.kept().await {
            let id = execution.execution_id;
            let mut end = Talk::open(&mut self.client, attach(&id, 0, 0)).await.unwrap();
            while let Some(frame) = end.next().await {
                frame.unwrap();
            }
            let request = pb::AcknowledgeExecutionRequest { execution_id: id };
            self.client.acknowledge_execution(request).await.unwrap();
        }
        assert_eq!(self.kept().await, []);
        let said = run(&mut self.client, shell("cat; echo good")).await;
        assert_eq!((said.out().as_str(), said.code()), ("good\n", Some(0)), "{}", self.daemon.log());
        let said = run(&mut self.client, python("def handler(event): return 7")).await;
        assert_eq!(said.value(), 7);
        assert!(self.daemon.child.try_wait().unwrap().is_none(), "the executor ended");
        self.forget_good().await;
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    async fn forget_good(&mut self) {
        for execution in self.kept().await {
            let request = pb::AcknowledgeExecutionRequest { execution_id: execution.execution_id };
            self.client.acknowledge_execution(request).await.unwrap();
        }
    }
}

/// A piece of output begins where the one before it ended.
fn goes_on(end: &mut Option<u64>, chunk: &pb::OutputChunk) {
    assert_eq!(chunk.offset, end.unwrap_or(chunk.offset));
    *end = Some(chunk.offset + chunk.data.len() as u64);
}

/// The contract names every code with which a stream is refused.
fn refused(status: &Status) {
    let known = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::OutOfRange,
        Code::ResourceExhausted,
    ];
    assert!(known.contains(&status.code()), "{status:?}");
}
