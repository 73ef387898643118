//! The run of one execution: wait for a slot, prepare, start, pump, stop in time, take apart, tell.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::FutureExt as _;
use sandmesh_proto::executor::{self as pb, execute_response::Frame};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::{OwnedWriteHalf, pipe},
    select,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    clock,
    execution::{Control, Execution, Stop},
    isolation::{
        Sandbox,
        process::{Process, RequestPipe},
    },
    native::wire::Stage,
    outcome::{Ended, Measured},
    replay::ReplayLog,
    request::{Program, Start},
    runner::{MAX_RESULT_BYTES, Runner},
    status::Failure,
    stdin::Opening,
    supervise::supervise,
    warm::Warm,
    workspace::Workspace,
};

/// How long output may still come after an end that no report told of: whoever wrote may be dying.
const DRAIN: Duration = Duration::from_millis(500);

/// How long an init may take to end by itself after its report.
const LEAVING: Duration = Duration::from_millis(100);

/// How long a control group may take to become empty.
const DISMANTLE: Duration = Duration::from_secs(10);

/// The pieces in which output is read, at first and where there is much: most executions print little.
const FIRST_READ: usize = 4 << 10;
const READ_BYTES: usize = 64 << 10;

/// An execution that was admitted.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) execution: Arc<Execution>,
    pub(crate) start: Start,
    pub(crate) stdin: Opening,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) warm: Arc<Warm>,
    pub(crate) workspace: Workspace,
    /// One permit per execution that may run at a time.
    pub(crate) slots: Arc<Semaphore>,
    /// The place in the queue; given back when the run is over.
    pub(crate) place: OwnedSemaphorePermit,
}

impl Run {
    /// Runs it. Whatever happens, the execution has an outcome afterwards, and its place in the queue is free
    /// before anybody can know; its slot is when nothing of it is left.
    pub(crate) async fn run(self) {
        let (execution, warm) = (Arc::clone(&self.execution), Arc::clone(&self.warm));
        let ran = AssertUnwindSafe(self.attempt()).catch_unwind().await;
        let (outcome, remains) = ran.unwrap_or_else(|_| (panicked(&execution), None));
        let leaving = remains.is_some().then(|| warm.leave());
        let control = execution.set_outcome(outcome);
        warm.replenish_soon();
        if let Some(remains) = remains {
            remains.clear(control, &execution).await;
        }
        drop(leaving);
    }

    async fn attempt(self) -> (Frame, Option<Remains>) {
        let Self { execution, start, stdin, sandbox, warm, workspace, slots, place } = self;
        let arrived = Instant::now();
        let slot = select! {
            slot = slots.acquire_owned() => slot,
            stop = execution.stop_requested() => {
                return (Frame::Failed(withdrawn(stop, "wait_for_slot").into()), None);
            }
        };
        let queued = arrived.elapsed();
        let began = workspace.now();
        let announce = Announce {
            execution: &execution,
            start: &start,
            stdin: Mutex::new(Some(stdin)),
            queued,
            began: Instant::now(),
        };
        let lived = match live(&announce, &sandbox, &warm).await {
            Ok((ended, process)) if ended.life.never_was() => {
                // Its parent was lost right then. Nothing of the user's ran, so it may be tried again.
                dismantle(process, &execution).await;
                live(&announce, &sandbox, &warm).await
            }
            lived => lived,
        };
        drop(place);
        match lived {
            Ok((ended, process)) => {
                let changes = workspace.changes(began).await;
                (ended.into_frame(changes), Some(Remains { process, _slot: slot.ok() }))
            }
            Err(failure) => (Frame::Failed(failure.into()), None),
        }
    }
}

/// What is left of a run whose outcome is known.
struct Remains {
    process: Process,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Remains {
    /// Waits until nothing is left, killing what does not end by itself.
    async fn clear(mut self, control: Option<Control>, execution: &Execution) {
        clock::let_others_go_first().await;
        drop(timeout(LEAVING, self.process.all_gone()).await);
        // Without it, the init kills all that is left.
        drop(control);
        dismantle(self.process, execution).await;
    }
}

async fn dismantle(process: Process, execution: &Execution) {
    if !process.dismantle(DISMANTLE).await {
        tracing::error!(execution.id = execution.id, "processes of an ended execution do not die");
    }
}

/// The life of one process, from taking it to its end.
async fn live<'a>(
    announce: &Announce<'a>,
    sandbox: &Sandbox,
    warm: &Warm,
) -> Result<(Ended<'a>, Process), Failure> {
    let (execution, start) = (announce.execution, announce.start);
    let (mut process, runner, request) = select! {
        launched = launch(start, sandbox, warm) => launched?,
        // What was made until then dies with the attempt.
        stop = execution.stop_requested() => return Err(withdrawn(stop, "make_process")),
    };
    let (stdout, stderr, result) = (process.stdout.take(), process.stderr.take(), process.result.take());
    let asked = process.request.take();
    let over = watch::Sender::new(None);
    let source = |pipe| Source::of(pipe, over.subscribe());
    let output = async {
        tokio::join!(pump(source(stdout), &execution.stdout), pump(source(stderr), &execution.stderr));
    };
    let asked = async {
        let mut over = over.subscribe();
        select! {
            () = ask(asked, request) => {}
            () = passed(&mut over) => {}
        }
    };
    let life = async {
        let life = supervise(&mut process, announce, start.timeout).await;
        // Who reports has reaped all who could write, or killed them: a keeper has no pipe.
        let patience = if life.exited.is_some() { Duration::ZERO } else { DRAIN };
        over.send_replace(Some(Instant::now() + patience));
        life
    };
    let (life, (), (), raw_result) = tokio::join!(life, output, asked, collect(source(result)));
    let measured = Measured { usage: process.account(), limits: sandbox.limits(), queued: announce.queued };
    select! {
        biased;
        () = process.memory_back() => {}
        // Nothing follows that could want it.
        () = execution.session_ended() => {}
    }
    Ok((Ended { life, measured, returned: runner.read_result(raw_result), execution }, process))
}

/// Tells the execution that its process exists.
#[derive(Debug)]
pub(crate) struct Announce<'a> {
    pub(crate) execution: &'a Execution,
    start: &'a Start,
    /// The input, until there is a process to connect.
    stdin: Mutex<Option<Opening>>,
    queued: Duration,
    began: Instant,
}

/// When the user's process was started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StartedAt {
    pub(crate) instant: Instant,
    pub(crate) startup: Duration,
}

impl Announce<'_> {
    /// The user's process runs from now on.
    pub(crate) fn started(
        &self,
        instant: Instant,
        control: OwnedWriteHalf,
        input: Option<pipe::Sender>,
    ) -> StartedAt {
        let opening = self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (opening, input) {
            (Some(opening), Some(pipe)) => {
                let (first, keep_open) = (self.start.stdin.clone(), self.start.keep_stdin_open);
                clock::spawn(opening.open(pipe, first, keep_open));
            }
            (Some(opening), None) => opening.close(),
            (None, _) => {}
        }
        let startup = instant - self.began;
        let started = pb::ExecutionStarted {
            started_at: Some(clock::now().into()),
            queued: duration(self.queued),
            startup: duration(startup),
        };
        self.execution.set_started(started, control);
        StartedAt { instant, startup }
    }

    /// What to call a step that failed.
    pub(crate) fn what_failed(&self, stage: Stage) -> String {
        match (stage, &self.start.program) {
            (Stage::Exec, Program::Command(argv)) => {
                format!("cannot execute `{}`", argv.first().map_or("", String::as_str))
            }
            (Stage::Exec, Program::Code { .. }) => "cannot execute the interpreter".to_owned(),
            (Stage::Workdir, _) => "cannot enter the workspace".to_owned(),
            _ => "cannot prepare the process".to_owned(),
        }
    }
}

/// As the wire has it.
pub(crate) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// A process that waits for its request, and the request.
async fn launch(
    start: &Start,
    sandbox: &Sandbox,
    warm: &Warm,
) -> Result<(Process, Runner, Vec<Bytes>), Failure> {
    let runner = Runner::of(&start.program, sandbox).map_err(|language| {
        let message = format!("there is no {language} interpreter in the sandbox");
        Failure::new(pb::FailureKind::NotFound, "find_interpreter", message)
    })?;
    let failed = |stage, source: &io::Error| {
        let errno = source.raw_os_error().unwrap_or_default();
        let mut failure = Failure::from_errno(errno, stage, "cannot make the jail");
        failure.message = format!("cannot make the jail: {source}");
        failure
    };
    let taken = warm.take(runner.kind(start, sandbox)).await;
    let (mut process, kind) = taken.map_err(|err| failed(err.stage, &err.source))?;
    if start.keep_stdin_open || !start.stdin.is_empty() {
        process.open_input().map_err(|err| failed("create_pipes", &err))?;
    }
    let request = runner.prepare(kind, start, sandbox.limits(), &process.scene);
    Ok((process, runner, request))
}

/// Writes the request; a process that does not read it has its reasons.
async fn ask(pipe: Option<RequestPipe>, request: Vec<Bytes>) {
    let Some(pipe) = pipe else { return };
    if let Err(err) = pipe.write_all(request).await
        && err.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::warn!(error = %err, "cannot write the request of an execution");
    }
}

/// Waits until the time for the rest is over.
async fn passed(over: &mut watch::Receiver<Option<Instant>>) {
    let until = over.wait_for(Option::is_some).await.ok().and_then(|until| *until);
    // A timer takes a millisecond at least.
    if let Some(until) = until.filter(|until| *until > Instant::now()) {
        sleep_until(until).await;
    }
}

/// What comes out of a pipe: all of it, and when the time for the rest is over what is there already.
struct Source {
    pipe: Option<pipe::Receiver>,
    over: watch::Receiver<Option<Instant>>,
    /// How much of what was there is still to be taken, once the time is over.
    left: Option<usize>,
}

impl Source {
    const fn of(pipe: Option<pipe::Receiver>, over: watch::Receiver<Option<Instant>>) -> Self {
        Self { pipe, over, left: None }
    }

    /// Reads some of it; nothing at its end.
    async fn read(&mut self, buffer: &mut [u8]) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        if self.left.is_none() {
            select! {
                // In this order: it may be a pipe that never pauses.
                biased;
                () = passed(&mut self.over) => {}
                read = pipe.read(buffer) => return read.unwrap_or(0),
            }
        }
        // Not by way of the runtime, which asks for nothing before it heard that something is there.
        let left = self.left.unwrap_or_else(|| rustix::io::ioctl_fionread(&*pipe).map_or(0, saturated));
        let room = buffer.len().min(left);
        let count = rustix::io::retry_on_intr(|| rustix::io::read(&*pipe, &mut buffer[..room])).unwrap_or(0);
        self.left = Some(left - count);
        count
    }
}

fn saturated(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Appends all that comes. What was read is kept however long the disk takes.
async fn pump(mut from: Source, log: &ReplayLog) {
    let mut buffer = vec![0; FIRST_READ];
    loop {
        let count = from.read(&mut buffer).await;
        if count == 0 {
            return;
        }
        log.append(&buffer[..count]).await;
        if count == buffer.len() {
            buffer.resize(READ_BYTES, 0);
        }
    }
}

/// Reads all of the result, and keeps one byte more than it may have, so that too much shows. Whoever writes
/// more must not block on it.
async fn collect(mut from: Source) -> Vec<u8> {
    let most = usize::try_from(MAX_RESULT_BYTES + 2).unwrap_or(usize::MAX);
    let (mut result, mut buffer) = (Vec::new(), vec![0; FIRST_READ]);
    loop {
        let count = from.read(&mut buffer).await;
        if count == 0 {
            return result;
        }
        result.extend_from_slice(&buffer[..count.min(most - result.len())]);
        if count == buffer.len() {
            buffer.resize(READ_BYTES, 0);
        }
    }
}

fn withdrawn(stop: Stop, stage: &'static str) -> Failure {
    let why = match stop {
        Stop::SessionEnded => "the session ended before it was started",
        Stop::Cancelled | Stop::Timeout | Stop::DiskLimit => "it was cancelled before it was started",
    };
    Failure::new(pb::FailureKind::Cancelled, stage, why)
}

/// The outcome of a run that ran into an error of ours. Its jail died with it.
fn panicked(execution: &Execution) -> Frame {
    tracing::error!(execution.id = execution.id, "the run of an execution panicked");
    if !execution.was_started() {
        return Frame::Failed(Failure::new(pb::FailureKind::Internal, "run", "the executor failed").into());
    }
    Frame::Exited(pb::ExecutionExited {
        status: Some(pb::execution_exited::Status::Signal(libc::SIGKILL)),
        cause: pb::Cause::ExecutorLost.into(),
        cause_detail: "the executor failed".to_owned(),
        stdout_bytes: execution.stdout.total(),
        stderr_bytes: execution.stderr.total(),
        stdout_truncated: execution.stdout.is_truncated(),
        stderr_truncated: execution.stderr.is_truncated(),
        ended_at: Some(SystemTime::into(clock::now())),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// An init holds the pipes of its nest open until it ends, which is after its report.
    #[tokio::test]
    async fn what_is_there_when_the_time_is_over_is_taken_and_no_end_is_waited_for() {
        let (mut writer, reader) = pipe::pipe().unwrap();
        let over = watch::Sender::new(None);
        let writes = async {
            for part in [b"one ", b"two "] {
                writer.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            writer.write_all(b"three").await.unwrap();
            over.send_replace(Some(Instant::now()));
        };
        let source = Source::of(Some(reader), over.subscribe());
        assert_eq!(tokio::join!(collect(source), writes).0, b"one two three");
        writer.write_all(b"late").await.expect_err("nobody reads any more");
    }

    /// What is written to a pipe of packets is read one by one, and the runtime hears of them once.
    #[tokio::test]
    async fn packets_are_taken_too() {
        let flags = nix::fcntl::OFlag::O_DIRECT | nix::fcntl::OFlag::O_NONBLOCK;
        let (reader, writer) = nix::unistd::pipe2(flags).unwrap();
        let reader = pipe::Receiver::from_owned_fd(reader).unwrap();
        let over = watch::Sender::new(None);
        for packet in [b"a", b"b", b"c"] {
            nix::unistd::write(&writer, packet).unwrap();
        }
        let ends = async {
            // Until the first was read.
            while rustix::io::ioctl_fionread(&writer).unwrap() == 3 {
                tokio::task::yield_now().await;
            }
            over.send_replace(Some(Instant::now()));
        };
        let source = Source::of(Some(reader), over.subscribe());
        assert_eq!(tokio::join!(collect(source), ends).0, b"abc");
    }

    /// Another execution may have been given the pipe, and never stop.
    #[tokio::test]
    async fn pipe_that_never_pauses_is_not_read_for_ever() {
        let (mut writer, reader) = pipe::pipe().unwrap();
        let over = watch::Sender::new(Some(Instant::now()));
        let writes = async { while writer.write_all(&[0; 4096]).await.is_ok() {} };
        tokio::join!(collect(Source::of(Some(reader), over.subscribe())), writes);
    }
}
