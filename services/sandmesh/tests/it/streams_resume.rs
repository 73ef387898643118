//! Watchers that go on from their cursor: exactly once, whatever breaks between them and the execution.

use std::time::Duration;

use rustix::process::Signal;
use sandmesh_proto::session::AttachExecutionRequest;
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::{
    harness::{Server, Wiring, process::signal, refused},
    streams_watch::{End, Front, Out, Seen, Watcher},
};

in_both_wirings!(
    watchers_that_come_and_go_see_every_byte_once,
    watchers_see_every_byte_once_whatever_is_killed_and_started_again,
    what_a_watcher_saw_is_in_the_record_when_the_executor_dies,
    a_cursor_that_is_not_kept_is_refused_while_it_runs_and_after_a_restart,
);

/// How many pieces [`writing`] writes to each stream.
const PIECES: usize = 300;

/// Writes bytes of every value to the standard output and text to the standard error, with a pause after
/// each piece.
fn writing(pause: f32) -> serde_json::Value {
    let code = format!(
        "import os, time\n\
         for i in range({PIECES}):\n    \
             os.write(1, bytes((i * 7 + j) & 255 for j in range(i * 5)))\n    \
             os.write(2, ('\u{e4}\u{20ac}\u{1f600}%d\\n' % i).encode())\n    \
             time.sleep({pause})\n"
    );
    json!({"language": "python", "mode": "script", "code": code, "timeout": 120})
}

/// What [`writing`] writes.
fn written() -> Seen {
    let piece = |i: usize| (0..i * 5).map(move |j| u8::try_from((i * 7 + j) & 255).unwrap());
    Seen {
        stdout: (0..PIECES).flat_map(piece).collect(),
        stderr: (0..PIECES).flat_map(|i| format!("\u{e4}\u{20ac}\u{1f600}{i}\n").into_bytes()).collect(),
    }
}

/// One watcher for each way in.
fn watchers(server: &Server, execution: &str) -> [Watcher; 2] {
    let grpc = Front::Grpc(format!("http://127.0.0.1:{}", server.port));
    [Front::Sse(server.api.clone()), grpc].map(|front| Watcher::new(front, execution))
}

type Whole = (Watcher, Seen, End);

/// Has a watcher follow to the end in the background.
fn follow(mut watcher: Watcher) -> JoinHandle<Whole> {
    tokio::spawn(async move {
        let (seen, end) = watcher.all().await;
        (watcher, seen, end)
    })
}

fn completed() -> End {
    End::Ended { state: "completed".into(), cause: String::new() }
}

#[track_caller]
fn assert_same(seen: &Seen, expected: &Seen, what: &str) {
    for (name, seen, expected) in
        [("stdout", &seen.stdout, &expected.stdout), ("stderr", &seen.stderr, &expected.stderr)]
    {
        let differ = seen.iter().zip(expected).position(|(a, b)| a != b);
        assert!(
            seen == expected,
            "{what}: {name}: {} of {} bytes, first difference at {differ:?}",
            seen.len(),
            expected.len()
        );
    }
}

async fn watchers_that_come_and_go_see_every_byte_once(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let execution = server.api.start(&id, writing(0.005)).await;
    let expected = written();
    let coming_and_going = watchers(&server, &execution).map(|mut watcher| async move {
        let (mut seen, mut pieces) = (Seen::default(), 0_usize);
        let end = watcher
            .until_end(|out, bytes| {
                seen.take(out, bytes);
                pieces += 1;
                pieces % 7 != 0
            })
            .await;
        (watcher, seen, end)
    });
    for (watcher, seen, end) in futures::future::join_all(coming_and_going).await {
        assert_eq!(end, completed(), "{watcher:?}");
        assert!(watcher.resumed > 5, "{watcher:?}");
        assert_same(&seen, &expected, "live");
    }
    for mut watcher in watchers(&server, &execution) {
        let (seen, end) = watcher.all().await;
        assert_eq!(end, completed(), "{watcher:?}");
        assert_same(&seen, &expected, "replayed");
    }
}

async fn watchers_see_every_byte_once_whatever_is_killed_and_started_again(wiring: Wiring) {
    let mut server = wiring.start().await;
    let id = server.api.session().await;
    let execution = server.api.start(&id, writing(0.04)).await;
    let following = watchers(&server, &execution).map(follow);
    let victims: &[&[&str]] = match wiring {
        Wiring::Embedded => &[&["sandmesh"], &["sandmesh"], &["sandmesh"]],
        Wiring::Split => &[&["gateway"], &["session"], &["gateway", "session"], &["session"]],
    };
    for names in victims {
        tokio::time::sleep(Duration::from_millis(400)).await;
        for name in *names {
            server.process(name).kill();
        }
        server.start_again().await;
    }
    assert_eq!(
        server.api.get(&format!("/executions/{execution}")).await.is(200)["status"],
        "running",
        "all of it was killed while it ran"
    );
    let expected = written();
    for whole in following {
        let (watcher, seen, end) = whole.await.unwrap();
        assert_eq!(end, completed(), "{watcher:?}");
        assert!(watcher.resumed > 0, "{watcher:?}");
        assert_same(&seen, &expected, "through kills");
    }
    for mut watcher in watchers(&server, &execution) {
        assert_same(&watcher.all().await.0, &expected, "recorded");
    }
}

async fn what_a_watcher_saw_is_in_the_record_when_the_executor_dies(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_RECOVERIES", "0")]).await;
    let flood = json!({
        "language": "shell", "timeout": 60,
        "code": "i=0; while :; do echo line $i; echo note $i >&2; i=$((i+1)); done",
    });
    for round in 0..3_usize {
        let id = server.api.session().await;
        let executor = server.only_executor();
        let execution = server.api.start(&id, flood.clone()).await;
        let [mut first, second] = watchers(&server, &execution);
        let second = follow(second);
        let (mut seen, mut killed) = (Seen::default(), false);
        let end = first
            .until_end(|out, bytes| {
                seen.take(out, bytes);
                if !killed && out == Out::Stdout && seen.stdout.len() > (10_000 << round) {
                    killed = true;
                    signal(executor, Signal::KILL);
                }
                true
            })
            .await;
        let lost = End::Ended { state: "crashed".into(), cause: "executor_lost".into() };
        assert_eq!(end, lost, "{first:?}");
        let (watcher, also_seen, end) = second.await.unwrap();
        assert_eq!(end, lost, "{watcher:?}");
        for mut watcher in watchers(&server, &execution) {
            let (recorded, _) = watcher.all().await;
            assert_same(&seen, &recorded, "server-sent events, against the record");
            assert_same(&also_seen, &recorded, "gRPC, against the record");
        }
        server.expect_nothing_left(Duration::from_secs(10)).await;
    }
}

async fn a_cursor_that_is_not_kept_is_refused_while_it_runs_and_after_a_restart(wiring: Wiring) {
    let mut server = wiring.start_with(&[("SANDMESH_AGENT__MAX_OUTPUT", "64KiB")]).await;
    let id = server.api.session().await;
    let code = "head -c 200000 /dev/zero | tr '\\0' x; echo written >&2; sleep 6";
    let execution = server.api.start(&id, json!({"language": "shell", "code": code, "timeout": 60})).await;
    let [_, mut watcher] = watchers(&server, &execution);
    // All that is kept, and what was written last.
    let mut seen = Seen::default();
    watcher
        .once(&mut |out, bytes: &[u8]| {
            seen.take(out, bytes);
            seen.stdout.len() < 64 << 10 || seen.stderr.is_empty()
        })
        .await;
    assert_eq!(watcher.at.stdout, 64 << 10);
    for restarted in [false, true] {
        if restarted {
            server.kill();
            server.start_again().await;
        }
        // Beyond what is kept, and beyond what was ever written.
        for offset in [(64 << 10) + 1, 100_000, 1 << 40] {
            server
                .api
                .get(&format!("/executions/{execution}/stream?stdout_offset={offset}"))
                .await
                .refused(410, "Sandbox.CursorExpired");
            let request = AttachExecutionRequest {
                execution_id: execution.clone(),
                stdout_offset: offset,
                stderr_offset: 0,
            };
            let answer = server.grpc().await.sessions.attach_execution(request).await;
            refused(answer, Code::OutOfRange, "CURSOR_EXPIRED");
        }
    }
    assert_eq!(server.api.get(&format!("/executions/{execution}")).await.is(200)["status"], "running");
    let (_, end) = watcher.all().await;
    assert_eq!((end, watcher.at.stdout), (completed(), 64 << 10), "from the last byte that is kept");
}
