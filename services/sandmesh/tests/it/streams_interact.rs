//! Input and output on one stream, `InteractExecution`: whatever breaks, each byte and each signal arrives once.

use std::time::Duration;

use sandmesh_proto::{
    executor::{InputTaken, Language, Mode, SignalRequest, StdinChunk, StdinClose},
    session::{
        AttachExecutionRequest, Execution, ExecutionSpec, InteractExecutionRequest,
        InteractExecutionResponse, SendInputRequest, StartExecutionRequest,
        interact_execution_request::Frame, interact_execution_response::Event, send_input_request::Input,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

use crate::harness::{Grpc, Server, Wiring, code_spec, violates};

in_both_wirings!(
    input_for_a_program_that_does_not_read_yet_survives_kills,
    what_was_acknowledged_before_a_kill_is_read,
    wrong_input_is_refused_by_field_and_the_run_goes_on,
);

/// How often a client takes a stream up again.
const ATTEMPTS: usize = 400;

/// How long nothing may happen before it is taken to be all.
const QUIET: Duration = Duration::from_millis(500);

/// A piece of input.
const PIECE: usize = 64 << 10;

/// Reads nothing before SIGUSR1; then it checks everything, and tells how many signals came.
const SLOW_READER: &str = "
import signal, sys, time
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
print('ready', flush=True)
while not caught: time.sleep(0.01)
data = sys.stdin.buffer.read()
good = data == b''.join(b'%07d\\n' % n for n in range(len(data) // 8))
print(len(data), good, len(caught), flush=True)
";

/// `length` bytes that differ from place to place.
fn bytes(length: usize) -> Vec<u8> {
    (0..length / 8).flat_map(|n| format!("{n:07}\n").into_bytes()).collect()
}

fn chunk(all: &[u8], from: u64) -> Option<StdinChunk> {
    let rest = all.get(usize::try_from(from).unwrap()..).filter(|rest| !rest.is_empty())?;
    Some(StdinChunk { offset: from, data: rest[..rest.len().min(PIECE)].to_vec().into() })
}

fn close(length: u64) -> StdinClose {
    StdinClose { offset: Some(length) }
}

async fn start(server: &Server, language: Language, code: &str, keep_stdin_open: bool) -> String {
    let mut grpc = server.grpc().await;
    let session_id = grpc.session().await;
    let spec = ExecutionSpec {
        mode: Mode::Script.into(),
        keep_stdin_open,
        timeout_seconds: Some(110),
        ..code_spec(language, code)
    };
    let request = StartExecutionRequest { session_id, spec: Some(spec), ..Default::default() };
    let started = grpc.sessions.start_execution(request).await.unwrap().into_inner();
    started.execution.unwrap().execution_id
}

/// A stream, and what is sent on it.
struct Talk {
    send: mpsc::Sender<InteractExecutionRequest>,
    receive: Streaming<InteractExecutionResponse>,
}

impl Talk {
    async fn open(server: &Server, first: Frame) -> Result<Self, Status> {
        let mut grpc = Grpc::try_connect(&format!("http://127.0.0.1:{}", server.port)).await?;
        let (send, frames) = mpsc::channel(4);
        let _ = send.try_send(InteractExecutionRequest { frame: Some(first) });
        let receive = grpc.sessions.interact_execution(ReceiverStream::new(frames)).await?.into_inner();
        Ok(Self { send, receive })
    }

    async fn attach(server: &Server, id: &str, stdout_offset: u64) -> Result<Self, Status> {
        let attach = AttachExecutionRequest { execution_id: id.into(), stdout_offset, ..Default::default() };
        Self::open(server, Frame::Attach(attach)).await
    }

    async fn send(&self, frame: Frame) {
        let _ = self.send.send(InteractExecutionRequest { frame: Some(frame) }).await;
    }

    async fn refusal(mut self) -> Status {
        loop {
            match self.receive.message().await {
                Ok(message) => assert!(message.is_some(), "it is refused"),
                Err(status) => return status,
            }
        }
    }
}

/// A client as one should be: it keeps what was not taken, and goes on from there.
struct Client {
    id: String,
    all: Vec<u8>,
    taken: InputTaken,
    stdout: Vec<u8>,
    result: Option<Execution>,
}

impl Client {
    fn new(id: &str, all: Vec<u8>) -> Self {
        Self { id: id.into(), all, taken: InputTaken::default(), stdout: Vec::new(), result: None }
    }

    /// Goes on, over as many streams as it takes, until so much was taken or the execution has ended.
    async fn until(&mut self, server: &Server, enough: impl Fn(&InputTaken) -> bool) {
        for _ in 0..ATTEMPTS {
            match self.once(server, &enough).await {
                Ok(()) => return,
                Err(status) if [Code::Unavailable, Code::Unknown].contains(&status.code()) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => panic!("after {:?}: {status:?}", self.taken),
            }
        }
        panic!("does not get on: {:?}", self.taken);
    }

    async fn once(&mut self, server: &Server, enough: &impl Fn(&InputTaken) -> bool) -> Result<(), Status> {
        let mut talk = Talk::attach(server, &self.id, self.stdout.len() as u64).await?;
        // Where to go on is what the server says first.
        let mut next = None;
        loop {
            let frame = next.and_then(|at| self.frame(at));
            tokio::select! {
                permit = talk.send.reserve(), if frame.is_some() => {
                    // A stream that has ended says why to who reads it.
                    let (Ok(permit), Some((frame, then))) = (permit, frame) else { next = None; continue };
                    permit.send(InteractExecutionRequest { frame: Some(frame) });
                    next = then;
                }
                message = talk.receive.message() => match message?.expect("a result is the last").event.unwrap() {
                    Event::Started(_) => {}
                    Event::Stdout(chunk) => {
                        assert_eq!(chunk.offset, self.stdout.len() as u64, "no gap, no repeat");
                        self.stdout.extend_from_slice(&chunk.data);
                    }
                    Event::Stderr(chunk) => panic!("{}", String::from_utf8_lossy(&chunk.data)),
                    Event::Result(result) => { self.result = Some(result); return Ok(()) }
                    Event::InputTaken(taken) => {
                        assert!(taken.stdin_offset >= self.taken.stdin_offset, "{:?}, {taken:?}", self.taken);
                        next = next.or(Some(taken.stdin_offset)).filter(|_| !taken.stdin_closed);
                        self.taken = taken;
                        if enough(&taken) { return Ok(()) }
                    }
                },
            }
        }
    }

    /// What to send from a place on, and what place comes then.
    fn frame(&self, at: u64) -> Option<(Frame, Option<u64>)> {
        if at > self.all.len() as u64 {
            return None;
        }
        Some(match chunk(&self.all, at) {
            Some(chunk) => {
                let then = at + chunk.data.len() as u64;
                (Frame::Stdin(chunk), Some(then))
            }
            None => (Frame::CloseStdin(close(at)), Some(at + 1)),
        })
    }

    /// Sends until nothing is taken any more.
    async fn until_quiet(&mut self, server: &Server) {
        loop {
            let before = self.taken;
            let _ = tokio::time::timeout(QUIET, self.until(server, |_| false)).await;
            if before == self.taken && self.taken.stdin_offset > 0 {
                return;
            }
        }
    }
}

/// `kill -9`, as a machine that fails.
async fn kill(server: &mut Server, wiring: Wiring, name: &str) {
    match wiring {
        Wiring::Embedded => server.kill(),
        Wiring::Split => server.process(name).kill(),
    }
    server.start_again().await;
}

/// Sends one input by itself, again while it is not known whether it was taken.
async fn send_input(server: &Server, id: &str, input: Input) -> Result<InputTaken, Status> {
    for _ in 0..ATTEMPTS {
        let once = async {
            let mut grpc = Grpc::try_connect(&format!("http://127.0.0.1:{}", server.port)).await?;
            let request = SendInputRequest { execution_id: id.into(), input: Some(input.clone()) };
            grpc.sessions.send_input(request).await.map(Response::into_inner)
        };
        match once.await {
            Err(status) if [Code::Unavailable, Code::Unknown].contains(&status.code()) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answer => {
                return answer.map(|taken| InputTaken {
                    stdin_offset: taken.stdin_offset,
                    signal_sequence: taken.signal_sequence,
                    ..InputTaken::default()
                });
            }
        }
    }
    panic!("input does not get through");
}

fn usr1(sequence: u64) -> SignalRequest {
    SignalRequest { signal: 10, sequence }
}

async fn input_for_a_program_that_does_not_read_yet_survives_kills(wiring: Wiring) {
    let mut server = wiring.start().await;
    let all = bytes(4 << 20);
    let id = start(&server, Language::Python, SLOW_READER, true).await;
    let mut client = Client::new(&id, all);
    client.until_quiet(&server).await;
    assert_eq!(client.stdout, b"ready\n");
    assert!(client.taken.stdin_offset <= 1 << 20, "nobody reads, and {:?}", client.taken);
    kill(&mut server, wiring, "session").await;
    client.until_quiet(&server).await;
    // The signal passes what is not read, and is delivered once.
    let mut talk = Talk::attach(&server, &id, 0).await.unwrap();
    for offset in 0..64 {
        talk.send(Frame::Signal(usr1(1))).await;
        talk.send(Frame::Stdin(chunk(&client.all, offset).unwrap())).await;
    }
    while !matches!(talk.receive.message().await.unwrap().unwrap().event.unwrap(),
        Event::InputTaken(taken) if taken.signal_sequence == 1)
    {}
    for (mebibytes, victim) in [(1, "session"), (2, "gateway"), (3, "session")] {
        client.until(&server, |taken| taken.stdin_offset > mebibytes << 20).await;
        kill(&mut server, wiring, victim).await;
        match send_input(&server, &id, Input::Signal(usr1(1))).await {
            Ok(taken) => assert_eq!(taken.signal_sequence, 1),
            // All of the rest was on its way.
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}"),
        }
    }
    client.until(&server, |_| false).await;
    let result = client.result.unwrap();
    let told = String::from_utf8(client.stdout).unwrap();
    assert_eq!((told.as_str(), result.exit_code), ("ready\n4194304 True 1\n", Some(0)), "{result:?}");
}

async fn what_was_acknowledged_before_a_kill_is_read(wiring: Wiring) {
    let mut server = wiring.start().await;
    let all = bytes(4 << 20);
    let id = start(&server, Language::Python, SLOW_READER, true).await;
    server.api.wrote(&id, "ready").await;
    let mut acknowledged = 0;
    while let Ok(taken) = {
        let piece = Input::Stdin(chunk(&all, acknowledged).unwrap());
        tokio::time::timeout(QUIET, send_input(&server, &id, piece)).await
    } {
        acknowledged = taken.unwrap().stdin_offset;
    }
    assert!((1..1 << 20).contains(&acknowledged), "nobody reads, and {acknowledged} bytes were taken");
    kill(&mut server, wiring, "session").await;
    send_input(&server, &id, Input::Signal(usr1(1))).await.unwrap();
    // What was not acknowledged may be on its way, or not.
    while let Some(piece) = chunk(&all, acknowledged) {
        acknowledged = send_input(&server, &id, Input::Stdin(piece)).await.unwrap().stdin_offset;
    }
    for wrong in [acknowledged - 1, acknowledged + 1] {
        let answer = send_input(&server, &id, Input::CloseStdin(close(wrong))).await;
        violates(answer.map(Response::new), "close_stdin.offset");
    }
    send_input(&server, &id, Input::CloseStdin(close(acknowledged))).await.unwrap();
    let run = server.api.ended(&id).await;
    assert_eq!(run["stdout"], "ready\n4194304 True 1\n", "{run}");
}

async fn wrong_input_is_refused_by_field_and_the_run_goes_on(wiring: Wiring) {
    let server = wiring.start().await;
    let code = "trap 'echo caught' USR1; echo ready; while read line; do echo \"$line\"; done; echo end";
    let id = start(&server, Language::Shell, code, true).await;
    server.api.wrote(&id, "ready").await;
    for first in [Frame::Signal(usr1(0)), Frame::CloseStdin(StdinClose::default())] {
        let status = Talk::open(&server, first).await.err().unwrap();
        violates(Err::<Response<()>, _>(status), "frame");
    }
    let attach = AttachExecutionRequest { execution_id: id.clone(), ..Default::default() };
    let wrong = [
        (Frame::Attach(attach), "frame"),
        (Frame::Stdin(StdinChunk { offset: 1, data: "x".into() }), "stdin.offset"),
        (Frame::Stdin(StdinChunk { offset: 0, data: vec![0; (1 << 20) + 1].into() }), "stdin.data"),
        (Frame::CloseStdin(close(1)), "close_stdin.offset"),
        (Frame::Signal(SignalRequest { signal: 32, sequence: 1 }), "signal.signal"),
    ];
    for (frame, field) in wrong {
        let talk = Talk::attach(&server, &id, 0).await.unwrap();
        talk.send(frame).await;
        violates(Err::<Response<()>, _>(talk.refusal().await), field);
    }
    let status = Talk::attach(&server, "nothing", 0).await.err().unwrap();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    // As clients did that know of no numbers.
    let talk = Talk::attach(&server, &id, 0).await.unwrap();
    talk.send(Frame::Stdin(StdinChunk { offset: 0, data: "one\n".into() })).await;
    server.api.wrote(&id, "one").await;
    talk.send(Frame::Signal(usr1(0))).await;
    server.api.wrote(&id, "caught").await;
    talk.send(Frame::CloseStdin(StdinClose::default())).await;
    let run = server.api.ended(&id).await;
    assert_eq!(run["stdout"], "ready\none\ncaught\nend\n", "{run}");
    // What comes too late is no mistake: the result tells.
    let mut late = Talk::attach(&server, &id, 0).await.unwrap();
    late.send(Frame::Stdin(StdinChunk { offset: 4, data: "late".into() })).await;
    let mut last = None;
    while let Some(message) = late.receive.message().await.unwrap() {
        last = message.event;
    }
    assert!(matches!(last, Some(Event::Result(_))), "{last:?}");

    let closed = start(&server, Language::Shell, "sleep 2", false).await;
    let talk = Talk::attach(&server, &closed, 0).await.unwrap();
    talk.send(Frame::Stdin(StdinChunk { offset: 0, data: "x".into() })).await;
    violates(Err::<Response<()>, _>(talk.refusal().await), "input");
}
