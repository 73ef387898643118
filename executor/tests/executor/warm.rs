//! Warm parents: what their children share and do not share, and what happens when one is lost.

use std::{
    collections::HashSet,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sandmesh_proto::executor::{self as pb, execute_request::Frame as Input};

use crate::support::*;

fn fresh() -> Settings {
    Settings { more: vec!["--interpreters".to_owned(), "fresh".to_owned()], ..Settings::default() }
}

/// With a Python of its own.
fn plain() -> Settings {
    Settings { snapshots: false, ..Settings::default() }
}

fn is_python(pid: &u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("python"))
}

#[tokio::test]
async fn children_share_no_random_state() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "import random, uuid, secrets, os, tempfile\ndef handler(e): return [random.random(), str(uuid.uuid4()), secrets.token_hex(8), os.urandom(4).hex(), tempfile.mktemp()]";
    let mut seen = HashSet::new();
    for _ in 0..8 {
        for value in run(&mut client, python(text)).await.value().as_array().unwrap() {
            assert!(seen.insert(value.to_string()), "{value} came twice");
        }
    }
}

#[tokio::test]
async fn nothing_of_an_execution_reaches_the_next_but_through_the_workspace() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let poison = "
import builtins, json, os, sys, ctypes
def handler(event):
    json.dumps = json.loads = len = lambda *a, **k: 'poisoned'
    builtins.print = None; os.getcwd = None; sys.path.clear(); sys.modules['re'] = None
    os.environ['LEFT'] = 'x'; os.umask(0o077)
    for place in ['/tmp/left', '/dev/shm/left', '/workspace/left']: open(place, 'w').write('x')
    os.write(1, b'done')
";
    let look = "
import os, re, sys
def handler(event):
    print('fine')
    return [sorted(p for p in ['/tmp/left', '/dev/shm/left', '/workspace/left'] if os.path.exists(p)), 'LEFT' in os.environ, os.umask(0o22), len(sys.path) > 2]
";
    for _ in 0..3 {
        let poisoned = run(&mut client, python(poison)).await;
        assert_eq!(poisoned.out(), "done", "{}", poisoned.err());
        let looked = run(&mut client, python(look)).await;
        assert_eq!(looked.value(), serde_json::json!([["/workspace/left"], false, 0o22, true]));
        assert_eq!(looked.out(), "fine\n");
    }
}

#[tokio::test]
async fn what_a_warm_parent_cannot_give_a_fresh_interpreter_does() {
    let text = "def handler(e): return [hash('abc'), hex(id(object()))[:9]]";
    let distinct = async |daemon: &Daemon| {
        let mut client = daemon.client().await;
        let mut seen = HashSet::new();
        for _ in 0..4 {
            seen.insert(run(&mut client, python(text)).await.value()[0].to_string());
        }
        seen.len()
    };
    assert_eq!(
        distinct(&Daemon::start(Settings::default()).await).await,
        1,
        "documented: one seed for a session"
    );
    assert_eq!(distinct(&Daemon::start(fresh()).await).await, 4);
}

#[tokio::test]
async fn fresh_interpreters_pass_the_main_job_in_every_language_and_leave_no_parent() {
    let daemon = Daemon::start(fresh()).await;
    let mut client = daemon.client().await;
    let answers = [
        run(&mut client, python("def handler(e): print('out'); return 1")).await,
        run(&mut client, javascript("exports.handler = () => { console.log('out'); return 1 }")).await,
        run(&mut client, shell("echo out; echo 1 >&3")).await,
    ];
    for said in answers {
        assert_eq!((said.out().as_str(), said.value()), ("out\n", serde_json::json!(1)));
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while !parents(&daemon).is_empty() {
        assert!(Instant::now() < deadline, "each jail ends with its execution: {:?}", parents(&daemon));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn variables_that_an_interpreter_reads_at_its_start_count() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let start = pb::ExecutionStart {
        env: env(&[("PYTHONHASHSEED", "0"), ("PYTHONPATH", "/workspace/lib")]),
        ..python(
            "import sys\ndef handler(e): return [sys.flags.hash_randomization, '/workspace/lib' in sys.path]",
        )
    };
    assert_eq!(run(&mut client, start).await.value(), serde_json::json!([0, true]));
}

#[tokio::test]
async fn lost_parent_ends_its_executions_with_a_cause_and_is_replaced() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for _ in 0..3 {
        let start = script("print('up', flush=True)\nwhile True: pass");
        let mut talk = Talk::open(&mut client, Input::Start(start)).await.unwrap();
        let mut said = Said::default();
        talk.until_stdout(&mut said, "up").await;
        let parent = parents(&daemon).into_iter().filter(is_python).min().unwrap();
        send(parent, Signal::SIGKILL);
        let said = talk.rest(said, (0, 0)).await.unwrap();
        assert_eq!((said.cause(), said.out().as_str()), (pb::Cause::ExecutorLost, "up\n"));
        assert_eq!(run(&mut client, script("print('again')")).await.out(), "again\n");
    }
}

#[tokio::test]
async fn parent_lost_before_the_start_costs_nothing_but_time() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    run(&mut client, script("pass")).await;
    let (mut done, mut lost) = (0, 0);
    for round in 0..60_u64 {
        let victims: Vec<_> = parents(&daemon).into_iter().filter(is_python).collect();
        let killing = async {
            tokio::time::sleep(Duration::from_micros(round * 50)).await;
            if let Some(parent) = victims.iter().min() {
                let _ = try_send(*parent, Signal::SIGKILL);
            }
        };
        let start = script("print('ran')");
        let (said, ()) = tokio::join!(run(&mut client, start), killing);
        assert!(said.failed.is_none(), "round {round}: {said:?}");
        match said.cause() {
            pb::Cause::Unspecified => done += u32::from(said.out() == "ran\n"),
            cause => {
                assert_eq!(cause, pb::Cause::ExecutorLost, "{said:?}");
                lost += 1;
            }
        }
    }
    println!("{done} done, {lost} lost with their parent");
    assert_eq!(done + lost, 60);
}

#[tokio::test]
async fn python_that_cannot_be_a_warm_parent_is_started_each_time() {
    let (_place, daemon) = with_python_that_is_no("*parent").await;
    let said = run(&mut daemon.client().await, script("print('slow but fine')")).await;
    assert_eq!(said.out(), "slow but fine\n", "{said:?}");
    assert!(daemon.log().contains("python cannot be kept warm"), "{}", daemon.log());
}

#[tokio::test]
async fn rehearsal_that_fails_is_not_held_again() {
    let (_place, daemon) = with_python_that_is_no("*rehearsed-parent").await;
    let mut client = daemon.client().await;
    let deadline = Instant::now() + Duration::from_secs(13);
    for number in 0.. {
        assert_eq!(
            run(&mut client, python(&format!("def handler(e): return {number}"))).await.value(),
            number
        );
        if Instant::now() > deadline {
            assert!(number > 200, "{number}");
            break;
        }
        // Less than are kept.
        tokio::time::sleep(Duration::from_millis(if number > 200 { 50 } else { 0 })).await;
    }
    let log = daemon.log();
    assert_eq!(log.matches("cannot replace a warm parent").count(), 1, "{log}");
}

/// An executor with a Python that fails where its arguments are like this.
async fn with_python_that_is_no(pattern: &str) -> (tempfile::TempDir, Daemon) {
    // Below /usr, which every jail shows.
    let place = tempfile::Builder::new().prefix("sandmesh-test-").tempdir_in("/usr/local/lib").unwrap();
    let all = || std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(), all()).unwrap();
    let python3 = place.path().join("python3");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in {pattern}) echo no >&2; exit 3;; esac\nexec /usr/bin/python3 \"$@\"\n"
    );
    std::fs::write(&python3, text).unwrap();
    std::fs::set_permissions(&python3, all()).unwrap();
    let more = vec!["--python".to_owned(), python3.display().to_string()];
    (place, Daemon::start(Settings { more, ..Settings::default() }).await)
}

#[tokio::test]
async fn cancel_is_heard_while_an_interpreter_warms_up() {
    let place = tempfile::Builder::new().prefix("sandmesh-test-").tempdir_in("/usr/local/lib").unwrap();
    let python3 = place.path().join("python3");
    let text = "#!/bin/sh\ncase \"$*\" in *parent) sleep 20;; esac\nexec /usr/bin/python3 \"$@\"\n";
    std::fs::write(&python3, text).unwrap();
    for path in [place.path(), &python3] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let more = vec!["--python".to_owned(), python3.display().to_string()];
    let daemon = Daemon::start(Settings { more, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let began = std::time::Instant::now();
    let start = pb::ExecutionStart { execution_id: "slow".to_owned(), ..script("print('ran')") };
    let mut other = client.clone();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let request = pb::CancelExecutionRequest { execution_id: "slow".to_owned() };
        other.cancel_execution(request).await.unwrap();
    };
    let (said, ()) = tokio::join!(run(&mut client, start), cancel);
    let failed = said.failed.unwrap();
    assert_eq!(failed.kind(), pb::FailureKind::Cancelled, "{failed:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn children_know_the_processor_that_they_run_on() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import ctypes, os
def handler(event):
    there = sorted(os.sched_getaffinity(0))
    told = []
    for number in there * 3:
        os.sched_setaffinity(0, {number})
        told.append(ctypes.CDLL(None).sched_getcpu())
    return [there * 3, told]";
    for _ in 0..3 {
        let said = run(&mut client, python(text)).await.value();
        assert_eq!(said[0], said[1]);
    }
}

#[tokio::test]
async fn spares_are_bounded_and_end_with_the_executor() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for start in [script("pass"), javascript("exports.handler = () => 1"), shell("true")] {
        run(&mut client, start).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!((1..=8).contains(&groups(&daemon).len()), "{:?}", groups(&daemon));
    send(daemon.child.id(), Signal::SIGTERM);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !groups(&daemon).is_empty() || !parents(&daemon).is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?} {:?}", groups(&daemon), parents(&daemon));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_rehearsal_is_held_when_it_pays() {
    const LOOKS: Duration = Duration::from_secs(6);
    let daemon = Daemon::start(plain()).await;
    let mut client = daemon.client().await;
    let before = parents(&daemon);
    for number in 0..50 {
        assert_eq!(
            run(&mut client, python(&format!("def handler(e): return {number}"))).await.value(),
            number
        );
    }
    tokio::time::sleep(LOOKS).await;
    assert!(
        !parents(&daemon).iter().any(is_rehearsed) && before.iter().all(|pid| parents(&daemon).contains(pid))
    );
    assert!(wear_out(&mut client).await > 50);
}

#[tokio::test]
async fn python_that_is_used_much_keeps_its_memory_where_no_execution_can_change_it() {
    let daemon = Daemon::start(plain()).await;
    let mut client = daemon.client().await;
    wear_out(&mut client).await;
    let file = memory_file(&daemon);
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap();
    let all =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    assert!(SealFlag::from_bits_truncate(seals).contains(all), "{seals:x}");
    let blocks = file.metadata().unwrap().blocks();
    assert_eq!(blocks * 512, file.metadata().unwrap().len(), "no page is missing, so that none can be added");
    let poison = "
import ctypes, mmap, re
def handler(event):
    text = re.__doc__
    place = id(text) + text.__sizeof__() - len(text) - 1
    before = text[:7]
    ctypes.memset(place, ord('X'), 7)
    after = text[:7]
    page, libc = ctypes.c_void_p(place // mmap.PAGESIZE * mmap.PAGESIZE), ctypes.CDLL(None)
    discarded = libc.madvise(page, ctypes.c_size_t(mmap.PAGESIZE), mmap.MADV_DONTNEED)
    removed = libc.madvise(page, ctypes.c_size_t(mmap.PAGESIZE), mmap.MADV_REMOVE)
    return [before, after, discarded, text[:7], removed]
";
    for _ in 0..5 {
        let said = run(&mut client, python(poison)).await;
        let expected = serde_json::json!(["Support", "XXXXXXX", 0, "Support", -1]);
        assert_eq!(said.value(), expected, "{}", said.err());
    }
    assert_eq!(file.metadata().unwrap().blocks(), blocks);
}

/// The file that the memory of the rehearsed parent is in, as only who may do everything gets it.
fn memory_file(daemon: &Daemon) -> std::fs::File {
    let areas = parents(daemon).into_iter().filter_map(|pid| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        let line = maps.lines().find(|line| line.contains("memfd:interpreter"))?;
        Some((pid, line.split_whitespace().next()?.to_owned()))
    });
    let (parent, area) = areas.min().unwrap();
    let (begin, end) = area.split_once('-').unwrap();
    // Without the zeros that `maps` begins with.
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    std::fs::File::open(format!("/proc/{parent}/map_files/{:x}-{:x}", number(begin), number(end))).unwrap()
}

/// What children of such a parent share is no more than what those of another do.
#[tokio::test]
async fn children_of_a_python_that_held_a_rehearsal_are_as_others() {
    let daemon = Daemon::start(plain()).await;
    let mut client = daemon.client().await;
    wear_out(&mut client).await;
    let text = "
import asyncio, os, random, subprocess, sys, threading, uuid
def handler(event, context):
    thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
    pid = os.fork()
    if pid == 0: os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    again = subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout
    large = sum(len(bytes(1 << 20)) for _ in range(16))
    return [status, again, large, asyncio.run(asyncio.sleep(0, 'slept')), str(uuid.uuid4()), random.random()]
";
    let mut seen = HashSet::new();
    for _ in 0..8 {
        let said = run(&mut client, python(text)).await;
        assert_eq!(said.out(), "thread\n", "{}", said.err());
        let value = said.value();
        assert_eq!(
            value.as_array().unwrap()[..4],
            serde_json::json!([7, "42\n", 16 << 20, "slept"]).as_array().unwrap()[..]
        );
        assert!(seen.insert(value[4].to_string()) && seen.insert(value[5].to_string()), "{value} came twice");
    }
    let failed = run(&mut client, python("def handler(e):\n    raise KeyError('lost')")).await;
    assert!(
        failed.err().contains("line 2, in handler") && failed.err().contains("KeyError: 'lost'"),
        "{}",
        failed.err()
    );
}

fn send(pid: u32, signal: Signal) {
    try_send(pid, signal).unwrap();
}

fn try_send(pid: u32, signal: Signal) -> nix::Result<()> {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal)
}

/// The groups of executions and spares.
fn groups(daemon: &Daemon) -> Vec<std::path::PathBuf> {
    let memory = daemon.cgroups().into_iter().find(|group| group.to_string_lossy().contains("memory"));
    let runs = memory.unwrap_or_else(|| daemon.cgroups().remove(0)).join(&daemon.sandbox_id).join("runs");
    let entries = std::fs::read_dir(runs).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
