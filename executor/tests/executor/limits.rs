//! Deadlines, cancelling, caps and resource limits: each ends an execution with its own cause, and
//! leaves nothing behind.

use std::time::{Duration, Instant, SystemTime};

use sandmesh_proto::executor::{self as pb, execute_request::Frame as Input};
use serde_json::json;
use tonic::Code;

use crate::support::*;

/// Leaves a process that is in no group and session of its parent and ignores what it can.
const DAEMONS: &str = "
import os, signal, sys, time
for n in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        for s in range(1, 65):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        os.closerange(0, 100)
        while True: time.sleep(0.01)
print('ready')
";

#[tokio::test]
async fn timeout_kills_the_whole_tree_in_time_and_keeps_the_output() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for forever in ["while True: time.sleep(1)", "while True: pass", "os.kill(os.getpid(), signal.SIGSTOP)"] {
        let text = format!("{DAEMONS}{forever}");
        let start = pb::ExecutionStart { timeout: seconds(1.0), ..script(&text) };
        let mut talk = Talk::open(&mut client, Input::Start(start)).await.unwrap();
        let mut said = Said::default();
        talk.until_stdout(&mut said, "ready").await;
        assert!(daemon.running().len() > 5, "{:?}", daemon.running());
        let said = talk.rest(said, (0, 0)).await.unwrap();
        assert_eq!((said.signal(), said.cause()), (Some(libc::SIGKILL), pb::Cause::Timeout));
        assert_eq!(said.out(), "ready\n");
        assert!(daemon.running().is_empty(), "{:?}", daemon.running());
        let took = Duration::try_from(said.exited().metrics.unwrap().duration.unwrap()).unwrap();
        println!("{took:?} for {forever}");
        assert!(took >= Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test]
async fn background_processes_end_with_the_main_one() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let began = Instant::now();
    let said = run(&mut client, script(DAEMONS)).await;
    assert_eq!((said.code(), said.cause()), (Some(0), pb::Cause::Unspecified));
    assert!(daemon.running().is_empty());
    let said = run(&mut client, shell("sleep 15 & sleep 15 & echo done")).await;
    assert_eq!((said.out().as_str(), said.code()), ("done\n", Some(0)));
    assert!(began.elapsed() < Duration::from_secs(10), "open pipes of the background must not delay the end");
}

#[tokio::test]
async fn cancel_ends_a_run_and_is_idempotent() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let start = script(&format!("{DAEMONS}while True: pass"));
    let id = start.execution_id.clone();
    let mut talk = Talk::open(&mut client, Input::Start(start)).await.unwrap();
    let mut said = Said::default();
    talk.until_stdout(&mut said, "ready").await;
    let cancel = || pb::CancelExecutionRequest { execution_id: id.clone() };
    assert!(client.cancel_execution(cancel()).await.unwrap().into_inner().was_running);
    let said = talk.rest(said, (0, 0)).await.unwrap();
    assert_eq!(
        (said.signal(), said.cause(), said.out().as_str()),
        (Some(9), pb::Cause::Cancelled, "ready\n")
    );
    assert!(daemon.running().is_empty());
    assert!(!client.cancel_execution(cancel()).await.unwrap().into_inner().was_running);
    let unknown = pb::CancelExecutionRequest { execution_id: "nobody".into() };
    assert_eq!(client.cancel_execution(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn queue_is_bounded_in_order_and_its_wait_does_not_count() {
    let daemon = Daemon::start(Settings { max_executions: 1, max_queued: 2, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let start = || pb::ExecutionStart { timeout: seconds(2.0), ..script("import time; time.sleep(1.5)") };
    let first = Talk::open(&mut client, Input::Start(start())).await.unwrap();
    let second = Talk::open(&mut client, Input::Start(start())).await.unwrap();
    let waiting = start();
    let id = waiting.execution_id.clone();
    let third = Talk::open(&mut client, Input::Start(waiting)).await.unwrap();
    let full = Talk::open(&mut client, Input::Start(start())).await.err().unwrap();
    assert_eq!(full.code(), Code::ResourceExhausted);
    let details = tonic_types::StatusExt::get_details_error_info(&full).unwrap();
    assert_eq!(details.reason, "TOO_MANY_EXECUTIONS");
    let us = client.get_executor(pb::GetExecutorRequest {}).await.unwrap().into_inner();
    assert_eq!((us.running, us.queued), (1, 2));
    client.cancel_execution(pb::CancelExecutionRequest { execution_id: id }).await.unwrap();
    let third = third.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!(third.failed.unwrap().kind(), pb::FailureKind::Cancelled);
    let first = first.rest(Said::default(), (0, 0)).await.unwrap();
    // Its slot is free the moment its outcome is known.
    Talk::open(&mut client, Input::Start(script("pass"))).await.unwrap();
    let second = second.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!((first.code(), second.code()), (Some(0), Some(0)), "waiting is not running");
    let queued = second.exited().metrics.unwrap().queued.unwrap();
    assert!(queued.seconds >= 1, "{queued:?}");
}

#[tokio::test]
async fn executions_run_at_the_same_time() {
    let daemon = Daemon::start(Settings { max_executions: 8, ..Settings::default() }).await;
    let client = daemon.client().await;
    // Each waits for all the others.
    let text = "
import os, time
def handler(event):
    open(f\"here-{event['n']}\", 'w').close()
    while sum(name.startswith('here') for name in os.listdir('.')) < 8: time.sleep(0.01)
    return event['n']
";
    let runs = (0..8).map(|n| {
        let mut client = client.clone();
        let start = pb::ExecutionStart { event_json: json!({ "n": n }).to_string().into(), ..python(text) };
        async move { run(&mut client, start).await.value() }
    });
    let values = futures::future::join_all(runs).await;
    assert_eq!(values, (0..8).map(|n| json!(n)).collect::<Vec<_>>());
}

#[tokio::test]
async fn place_is_free_when_the_outcome_is_known() {
    let daemon = Daemon::start(Settings { max_executions: 1, max_queued: 0, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    for _ in 0..20 {
        assert_eq!(run(&mut client, shell("true")).await.code(), Some(0));
        assert_eq!(run(&mut client, script("pass")).await.code(), Some(0));
    }
}

#[tokio::test]
async fn memory_limit_is_a_typed_cause_and_the_executor_lives() {
    let daemon = Daemon::start(Settings { memory_bytes: 64 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    for hog in [
        "print('before'); x = bytearray(200 << 20)",
        "print('before')\nimport os\nif os.fork() == 0: x = bytearray(200 << 20)\nelse: raise SystemExit(os.wait()[1] and 1)",
    ] {
        let said = run(&mut client, script(hog)).await;
        assert_eq!(said.cause(), pb::Cause::Oom, "{said:?}");
        let detail = &said.exited().cause_detail;
        assert!(detail.starts_with("limit 64 MiB, peak 6"), "{detail}");
        assert_eq!(said.out(), "before\n", "{hog}");
        assert_eq!(run(&mut client, script("print('alive')")).await.out(), "alive\n");
    }
    let shared =
        run(&mut client, script("f = open('/dev/shm/x', 'wb')\nwhile True: f.write(b'x' * 65536)")).await;
    assert!(shared.err().contains("No space left") || shared.cause() == pb::Cause::Oom, "{shared:?}");
    let text =
        "import os\npid = os.fork()\nif pid == 0: x = bytearray(200 << 20)\nprint(os.waitpid(pid, 0)[1])";
    let survived = run(&mut client, script(text)).await;
    assert_eq!((survived.out().as_str(), survived.cause()), ("9\n", pb::Cause::Unspecified), "it coped");
}

#[tokio::test]
async fn memory_is_there_for_the_next_when_an_outcome_is_known() {
    let daemon = Daemon::start(Settings { memory_bytes: 256 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    // The kernel frees it piece by piece, long after the processes ended.
    let entries = "import os\nfor n in range(10**6): os.mkdir(f'/tmp/{n:0200}')";
    let shared = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\nfor n in range(28):\n    at = libc.shmat(libc.shmget(0, ctypes.c_size_t(8 << 20), 0o1600), None, 0)\n    ctypes.memset(ctypes.c_void_p(at), 1, 8 << 20)";
    for hog in [entries, shared, entries] {
        let said = run(&mut client, script(hog)).await;
        let peak = said.exited().metrics.unwrap().peak_memory_bytes;
        assert!(peak > 200 << 20, "{said:?}");
        // What came after the end is no part of it.
        let (from, to) = (said.started.unwrap().started_at.unwrap(), said.exited().ended_at.unwrap());
        let lasted = SystemTime::try_from(to).unwrap().duration_since(SystemTime::try_from(from).unwrap());
        let duration = Duration::try_from(said.exited().metrics.unwrap().duration.unwrap()).unwrap();
        assert!(lasted.unwrap().abs_diff(duration) < Duration::from_millis(250), "{said:?}");
        let next = run(&mut client, script("x = b'x' * (200 << 20)\nprint('had')")).await;
        assert_eq!(next.out(), "had\n", "{next:?}");
    }
}

#[tokio::test]
async fn fork_bomb_is_bounded_and_gone() {
    let daemon = Daemon::start(Settings { max_processes: 40, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let said = run(&mut client, script("import os\nwhile True: os.fork()")).await;
    assert_eq!(said.cause(), pb::Cause::PidsLimit, "{said:?}");
    assert!(said.exited().cause_detail.contains("limit 40 processes"), "{said:?}");
    assert!(daemon.running().is_empty());
    let bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass";
    let mut talk =
        Talk::open(&mut client, Input::Start(pb::ExecutionStart { timeout: seconds(1.0), ..script(bomb) }))
            .await
            .unwrap();
    talk.next().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let running = daemon.running().len();
    assert!((30..=40).contains(&running), "{running}");
    let said = talk.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!(said.cause(), pb::Cause::Timeout);
    assert!(daemon.running().is_empty());
    assert_eq!(run(&mut client, script("print('alive')")).await.out(), "alive\n");
}

#[tokio::test]
async fn zombies_are_reaped() {
    let daemon = Daemon::start(Settings { max_processes: 40, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let text = "
import os
for n in range(300):
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
print('done')
";
    let said = run(&mut client, script(text)).await;
    assert_eq!((said.out().as_str(), said.cause()), ("done\n", pb::Cause::Unspecified), "{said:?}");
}

#[tokio::test]
async fn disk_limit_ends_with_its_cause() {
    let daemon = Daemon::start(Settings { disk_bytes: 16 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let said = run(&mut client, shell("head -c 20000000 /dev/zero > one-file")).await;
    assert_eq!((said.cause(), said.code()), (pb::Cause::DiskLimit, Some(128 + libc::SIGXFSZ)), "{said:?}");
    let text = "rm one-file; for n in $(seq 1 30); do head -c 1000000 /dev/zero > file-$n; done; sleep 10";
    let said = run(&mut client, shell(text)).await;
    assert_eq!(said.cause(), pb::Cause::DiskLimit, "{said:?}");
    let said = run(&mut client, shell("rm file-*; echo again")).await;
    assert_eq!(said.out(), "again\n");
}

#[tokio::test]
async fn those_who_come_and_go_do_not_pass_the_disk_limit_unseen() {
    let daemon = Daemon::start(Settings { disk_bytes: 16 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let text = "
import os, time
with open(os.urandom(8).hex(), 'wb') as file: file.write(bytes(8 << 20))
time.sleep(0.3)
";
    // One in two is there when it is looked.
    for n in 0..30 {
        if run(&mut client, script(text)).await.cause() == pb::Cause::DiskLimit {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200 + 37 * (n % 8))).await;
    }
    panic!("nobody was stopped");
}

#[tokio::test]
async fn the_disk_limit_does_not_end_what_has_not_begun() {
    let settings = Settings { disk_bytes: 16 << 20, max_executions: 1, ..Settings::default() };
    let daemon = Daemon::start(settings).await;
    let (mut client, mut waiting) = (daemon.client().await, daemon.client().await);
    let text = "for n in $(seq 1 30); do head -c 1000000 /dev/zero > file-$n; done; echo full; sleep 10";
    let (filled, waited) =
        tokio::join!(run(&mut client, shell(text)), async { run(&mut waiting, shell("echo mine")).await });
    assert_eq!(filled.cause(), pb::Cause::DiskLimit, "{filled:?}");
    assert_eq!((waited.out().as_str(), waited.cause()), ("mine\n", pb::Cause::Unspecified), "{waited:?}");
}

/// Ways to use the disk that a look at the names in the workspace does not show: 4 MiB each time.
const OUT_OF_SIGHT: [(&str, &str, &str); 6] = [
    (
        "deleted and open",
        "kept = []",
        "f = open(f'f{n}', 'wb', 0); f.write(data); os.unlink(f'f{n}'); kept.append(f)",
    ),
    (
        "never named",
        "kept = []",
        "fd = os.open('.', os.O_TMPFILE | os.O_RDWR); os.write(fd, data); kept.append(fd)",
    ),
    (
        "deleted and mapped",
        "import mmap; kept = []",
        "f = open(f'f{n}', 'w+b', 0); f.write(data); kept.append(mmap.mmap(f.fileno(), 0)); os.unlink(f'f{n}'); f.close()",
    ),
    ("in a directory that nobody reads", "os.mkdir('d', 0o300)", "open(f'd/f{n}', 'wb', 0).write(data)"),
    (
        "below a directory that nobody enters",
        "os.makedirs('e/f'); d = os.open('e/f', os.O_RDONLY); os.chmod('e', 0)",
        "fd = os.open(f'f{n}', os.O_CREAT | os.O_WRONLY, dir_fd=d); os.write(fd, data); os.close(fd)",
    ),
    (
        "of many names",
        "os.mkdir('g')",
        "open(f'f{n}', 'wb', 0).write(data); [os.link(f'f{n}', f'g/f{n}-{m}') for m in range(50)]; os.chmod('g', 0o300)",
    ),
];

#[tokio::test]
async fn disk_out_of_sight_counts() {
    let daemon = Daemon::start(Settings { disk_bytes: 24 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    for (what, before, each) in OUT_OF_SIGHT {
        let text = format!(
            "import os, time\ndata = b'x' * (4 << 20)\n{before}\nfor n in range(30):\n    {each}\n    time.sleep(0.05)\ntime.sleep(10)\nprint('had all of it')"
        );
        let said = run(&mut client, script(&text)).await;
        assert_eq!((said.out().as_str(), said.cause()), ("", pb::Cause::DiskLimit), "{what}: {said:?}");
        // Making room is not growth, however much there is.
        let cleaning = "chmod -R u+rwx .; find . -mindepth 1 -delete; sleep 1; ls -A; echo clean";
        let said = run(&mut client, shell(cleaning)).await;
        assert_eq!(said.out(), "clean\n", "{what}: {said:?}");
    }
}

#[tokio::test]
async fn what_is_too_deep_to_be_measured_has_to_go() {
    let daemon = Daemon::start(Settings { disk_bytes: 24 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let dig = "import os, time\nfor n in range(40): os.mkdir('d' * 200); os.chdir('d' * 200)\ntime.sleep(20)";
    for text in [dig, "import time; time.sleep(20)"] {
        let said = run(&mut client, script(text)).await;
        assert_eq!(said.cause(), pb::Cause::DiskLimit, "{said:?}");
    }
    run(&mut client, shell("rm -rf ./d*")).await;
    let said = run(&mut client, shell("ls -A; sleep 2; echo fine")).await;
    assert_eq!(said.out(), "fine\n", "{said:?}");
}

#[tokio::test]
async fn directory_that_is_closed_to_its_owner_is_not_more_than_it_is() {
    let daemon = Daemon::start(Settings { disk_bytes: 24 << 20, ..Settings::default() }).await;
    let text =
        "mkdir -m 0 closed; mkdir -m 300 blind; head -c 1000000 /dev/zero > blind/file; sleep 2; echo fine";
    let said = run(&mut daemon.client().await, shell(text)).await;
    assert_eq!((said.out().as_str(), said.code()), ("fine\n", Some(0)), "{said:?}");
}

#[tokio::test]
async fn while_the_disk_is_scarce_nothing_may_be_hidden_on_it() {
    let more = vec!["--disk-reserve-bytes".to_owned(), u64::MAX.to_string()];
    let daemon = Daemon::start(Settings { more, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let said = run(&mut client, shell("sleep 2; echo fine")).await;
    assert_eq!(said.out(), "fine\n", "{said:?}");
    let text = "
import array, os, socket, time
a, b = socket.socketpair()
fd = os.open('.', os.O_TMPFILE | os.O_RDWR)
a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])
os.close(fd)
time.sleep(10)";
    let said = run(&mut client, script(text)).await;
    assert_eq!(said.cause(), pb::Cause::DiskLimit, "{said:?}");
}

#[tokio::test]
async fn cpu_limit_slows_down() {
    let daemon = Daemon::start(Settings { cpu_millis: 200, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let text = "import time; t = time.time(); c = time.process_time()\nwhile time.process_time() - c < 0.2: pass\nprint(time.time() - t > 0.5)";
    assert_eq!(run(&mut client, script(text)).await.out(), "True\n");
}
