//! Input that is taken once, whatever becomes of the streams that it came on.

use std::time::Duration;

use sandmesh_proto::executor::{self as pb, execute_request::Frame as Input};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::*;

/// Reads nothing before SIGUSR1, and then checks everything.
const SLOW_READER: &str = "
import signal, sys, time
go = []
signal.signal(signal.SIGUSR1, lambda *_: go.append(1))
print('ready', flush=True)
while not go: time.sleep(0.005)
data = sys.stdin.buffer.read()
print(len(data), data == b''.join(b'%07d\\n' % n for n in range(len(data) // 8)))
";

/// Says what it caught, until its input ends.
const CATCHER: &str =
    "trap 'echo caught' USR1; echo ready; while read -t 0.02; (( $? == 0 || $? > 128 )); do :; done";

fn open(start: pb::ExecutionStart) -> (String, Input) {
    (start.execution_id.clone(), Input::Start(pb::ExecutionStart { keep_stdin_open: true, ..start }))
}

/// `length` bytes that differ from place to place.
fn bytes(length: usize) -> Vec<u8> {
    (0..length / 8).flat_map(|n| format!("{n:07}\n").into_bytes()).collect()
}

fn chunk(all: &[u8], from: u64, length: usize) -> Input {
    let start = usize::try_from(from).unwrap().min(all.len());
    let data = all[start..(start + length).min(all.len())].to_vec().into();
    Input::Stdin(pb::StdinChunk { offset: from, data })
}

fn close(length: u64) -> Input {
    Input::CloseStdin(pb::StdinClose { offset: Some(length) })
}

#[tokio::test]
async fn input_goes_on_from_what_was_taken_after_every_break() {
    const PIECE: usize = 64 << 10;
    let daemon = Daemon::start(Settings::default()).await;
    let all = bytes(4 << 20);
    let end = all.len() as u64;
    let (id, start) = open(script(SLOW_READER));
    let mut talk = Talk::open(&mut daemon.client().await, start).await.unwrap();
    talk.until_stdout(&mut Said::default(), "ready").await;
    for n in 0..20 {
        if n == 5 {
            // Far more waits than the pipe takes, and the signal passes it.
            talk.send(signal(libc::SIGUSR1, 1)).await;
            talk.until_taken(|taken| taken.signal_sequence == 1).await;
        }
        let mut at = talk.until_taken(|_| true).await.stdin_offset;
        assert!(n > 4 || at < 1 << 20, "nobody reads, and {at} bytes were taken");
        for _ in 0..16 {
            talk.send(chunk(&all, at, PIECE)).await;
            at = (at + PIECE as u64).min(end);
        }
        if n > 5 && n % 2 == 0 {
            talk.until_taken(|taken| taken.stdin_offset == at).await;
        }
        // Away without a word, in the middle of it.
        talk = Talk::open(&mut daemon.client().await, attach(&id, 0, 0)).await.unwrap();
    }
    talk.until_taken(|taken| taken.stdin_offset == end).await;
    talk.send(close(end)).await;
    talk.until_taken(|taken| taken.stdin_closed).await;
    let talk = Talk::open(&mut daemon.client().await, attach(&id, 0, 0)).await.unwrap();
    let said = talk.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!(said.out(), format!("ready\n{end} True\n"));
}

#[tokio::test]
async fn signal_with_a_sequence_is_delivered_once_and_one_without_each_time() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let (id, start) = open(shell(CATCHER));
    let mut talk = Talk::open(&mut client, start).await.unwrap();
    let mut caught = 0;
    for (sequence, delivered) in
        [(1, true), (1, false), (3, true), (2, false), (3, false), (0, true), (0, true)]
    {
        caught += usize::from(delivered);
        let mut again = Talk::open(&mut client, attach(&id, 0, 0)).await.unwrap();
        again.until_stdout(&mut Said::default(), "ready").await;
        again.send(signal(libc::SIGUSR1, sequence)).await;
        // The next is not merged with this one by the kernel.
        again.until_taken(|taken| taken.signals == caught as u64).await;
        if delivered {
            talk = Talk::open(&mut client, attach(&id, 0, 0)).await.unwrap();
            talk.until_stdout(&mut Said::default(), &"caught\n".repeat(caught)).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let taken = talk.until_taken(|_| true).await;
    assert_eq!((taken.signal_sequence, taken.signals), (3, 4));
    talk.send(close(0)).await;
    let whole = Talk::open(&mut client, attach(&id, 0, 0)).await.unwrap();
    assert_eq!(
        whole.rest(Said::default(), (0, 0)).await.unwrap().out(),
        "ready\ncaught\ncaught\ncaught\ncaught\n"
    );
}

#[tokio::test]
async fn close_of_another_length_is_refused_and_the_input_stays_open() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let (id, start) = open(pb::ExecutionStart { stdin: "abc".into(), ..shell("cat") });
    let mut talk = Talk::open(&mut client, start).await.unwrap();
    assert_eq!(talk.until_taken(|_| true).await.stdin_offset, 3, "the first bytes are counted at once");
    for length in [2, 4] {
        talk.send(close(length)).await;
        let status = talk.rest(Said::default(), (0, 0)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violation = &status.get_details_bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "close_stdin.offset", "{violation:?}");
        talk = Talk::open(&mut client, attach(&id, 0, 0)).await.unwrap();
        assert!(!talk.until_taken(|_| true).await.stdin_closed);
    }
    talk.send(Input::Stdin(pb::StdinChunk { offset: 3, data: "de".into() })).await;
    talk.send(close(5)).await;
    talk.send(close(5)).await;
    let said = talk.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!((said.out().as_str(), said.code()), ("abcde", Some(0)));
}
