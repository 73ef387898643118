//! The daemon itself: how it begins, reports, ends, and is destroyed.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sandmesh_proto::executor::{self as pb, execute_request::Frame as Input};
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn executor_tells_who_it_is() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let us = client.get_executor(pb::GetExecutorRequest {}).await.unwrap().into_inner();
    assert_eq!(us.sandbox_id, daemon.sandbox_id);
    let isolation = us.isolation.unwrap();
    assert_eq!((isolation.sandbox.as_str(), isolation.jail.as_str()), ("process", "bubblewrap"));
    assert_eq!((isolation.seccomp.as_str(), isolation.network.as_str()), ("strict", "none"));
    assert_eq!(isolation.user, "dedicated");
    assert!(isolation.limits.starts_with("cgroup-v"));
    let languages: Vec<_> = us.languages.iter().map(|l| (l.language(), l.version.is_empty())).collect();
    assert_eq!(
        languages,
        [(pb::Language::Python, false), (pb::Language::Javascript, false), (pb::Language::Shell, false)]
    );
    run(&mut client, script("x = bytearray(50 << 20)")).await;
    let usage = client.get_executor(pb::GetExecutorRequest {}).await.unwrap().into_inner().usage.unwrap();
    assert!(usage.cpu_time_ns > 0 && usage.peak_memory_bytes > 50 << 20 && usage.processes <= 4, "{usage:?}");
}

#[tokio::test]
async fn executor_has_no_privileges_left() {
    let daemon = Daemon::start(Settings::default()).await;
    // Its socket is there before it gives up its privileges; it answers only afterwards.
    daemon.client().await.list_executions(pb::ListExecutionsRequest {}).await.unwrap();
    let pid = daemon.child.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
    let uid = uid().to_string();
    assert_eq!(field("Uid:").split_whitespace().collect::<Vec<_>>(), vec![uid.as_str(); 4]);
    assert_eq!(field("Gid:").split_whitespace().collect::<Vec<_>>(), vec![uid.as_str(); 4]);
    assert_eq!(field("Groups:"), "");
    for caps in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(caps).trim_start_matches('0'), "", "{caps}");
    }
    assert_eq!((field("NoNewPrivs:").as_str(), field("Umask:").as_str()), ("1", "0077"));
    let socket = std::fs::metadata(daemon.dir.join("executor.sock")).unwrap();
    assert_eq!((socket.mode() & 0o777, socket.uid()), (0o600, 0));
    assert_eq!(std::fs::metadata(&daemon.dir).unwrap().permissions().mode() & 0o777, 0o700);
    let recorded = std::fs::read_to_string(daemon.dir.join("executor.pid")).unwrap();
    assert!(recorded.starts_with(&format!("{pid} ")), "{recorded}");
    let session = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert_eq!(session.split(' ').nth(5), Some(pid.to_string().as_str()), "a session of its own");
}

#[tokio::test]
async fn sigterm_ends_executions_with_their_cause_and_then_the_executor() {
    let mut daemon = Daemon::start(Settings { max_executions: 1, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let mut running =
        Talk::open(&mut client, Input::Start(script("print('up')\nwhile True: pass"))).await.unwrap();
    let mut said = Said::default();
    running.until_stdout(&mut said, "up").await;
    let queued = Talk::open(&mut client, Input::Start(script("pass"))).await.unwrap();
    terminate(daemon.child.id());
    let said = running.rest(said, (0, 0)).await.unwrap();
    assert_eq!(
        (said.signal(), said.cause(), said.out().as_str()),
        (Some(9), pb::Cause::SessionEnded, "up\n")
    );
    let queued = queued.rest(Said::default(), (0, 0)).await.unwrap();
    assert_eq!(queued.failed.unwrap().kind(), pb::FailureKind::Cancelled);
    drop(client);
    assert!(wait_for_exit(&mut daemon).success());
    assert!(daemon.running().is_empty());
}

#[tokio::test]
async fn executor_ends_by_itself_when_it_expires() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let more = vec!["--expires-at".to_owned(), (now + 2).to_string()];
    let mut daemon = Daemon::start(Settings { more, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let said = run(&mut client, script("import time; time.sleep(20)")).await;
    assert_eq!(said.cause(), pb::Cause::SessionEnded);
    drop(client);
    assert!(wait_for_exit(&mut daemon).success());
}

#[tokio::test]
async fn executor_sleeps_while_nobody_needs_it() {
    const SECONDS: u64 = 2;
    let daemon = Daemon::start(Settings { disk_bytes: 64 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    assert_eq!(run(&mut client, script("pass")).await.code(), Some(0));
    let woken = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    let mut fewest = u64::MAX;
    // At first it looks at the disk once more, and every few seconds at what it has ready.
    for _ in 0..4 {
        let before = woken();
        tokio::time::sleep(Duration::from_secs(SECONDS)).await;
        fewest = fewest.min(woken() - before);
    }
    assert!(fewest <= SECONDS, "it was woken {fewest} times in {SECONDS} s");
}

#[tokio::test]
async fn death_of_the_executor_takes_its_jails_with_it() {
    let mut daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let mut talk =
        Talk::open(&mut client, Input::Start(script("print('up')\nwhile True: pass"))).await.unwrap();
    talk.until_stdout(&mut Said::default(), "up").await;
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !daemon.running().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", daemon.running());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn destroy_leaves_no_process_group_or_directory_and_can_be_repeated() {
    let mut daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import os, time
os.makedirs('a/b/c'); os.symlink('/etc', 'a/link'); os.mkfifo('a/fifo'); os.chmod('a/b', 0)
for n in range(1500): os.mkdir('d'); os.chdir('d')
print('up', flush=True)
while True: time.sleep(1)
";
    let mut talk = Talk::open(&mut client, Input::Start(script(text))).await.unwrap();
    talk.until_stdout(&mut Said::default(), "up").await;
    let output = daemon.destroy();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.child.wait().unwrap();
    assert!(!daemon.dir.exists() && Path::new("/etc/passwd").exists());
    for group in daemon.cgroups() {
        assert_eq!(std::fs::read_dir(&group).unwrap().flatten().filter(|e| e.path().is_dir()).count(), 0);
    }
    assert!(daemon.destroy().status.success());
}

#[tokio::test]
async fn stale_socket_is_replaced_and_the_workspace_kept() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("box");
    std::fs::create_dir_all(dir.join("workspace")).unwrap();
    std::fs::write(dir.join("workspace/kept"), "x").unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.join("executor.sock")).unwrap());
    let daemon = Daemon::start_in(Settings::default(), Some(dir)).await;
    let said = run(&mut daemon.client().await, shell("ls /workspace")).await;
    assert_eq!(said.out(), "kept\n");
}

#[tokio::test]
async fn second_executor_of_a_sandbox_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start(Settings::default()).await;
    let output = serve_in(&daemon.dir, &daemon.sandbox_id, &[]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("already"), "{message}");
    assert_eq!(run(&mut daemon.client().await, shell("echo on")).await.out(), "on\n");
}

#[tokio::test]
async fn weaker_isolation_is_had_only_by_asking_and_is_told() {
    let more = ["--jail", "off", "--seccomp", "off"].map(str::to_owned).to_vec();
    let daemon = Daemon::start(Settings { more, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let isolation =
        client.get_executor(pb::GetExecutorRequest {}).await.unwrap().into_inner().isolation.unwrap();
    assert_eq!(
        (isolation.jail.as_str(), isolation.seccomp.as_str(), isolation.network.as_str()),
        ("none", "none", "host")
    );
    let said = run(&mut client, python("def handler(e): return 5")).await;
    assert_eq!(said.value(), serde_json::json!(5), "{said:?}");
    let said = run(
        &mut client,
        shell("(setsid sleep 60 &) ; sleep 60 & echo started; echo 1 > $RESULT_FILE; exit 3"),
    )
    .await;
    assert_eq!((said.out().as_str(), said.code()), ("started\n", Some(3)));
    assert!(daemon.running().is_empty());
    let start = pb::ExecutionStart { timeout: seconds(0.5), ..shell("(setsid sleep 60 &); sleep 60") };
    assert_eq!(run(&mut client, start).await.cause(), pb::Cause::Timeout);
    assert!(daemon.running().is_empty());

    let more = ["--cgroups", "off"].map(str::to_owned).to_vec();
    let daemon = Daemon::start(Settings { more, memory_bytes: 256 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let isolation =
        client.get_executor(pb::GetExecutorRequest {}).await.unwrap().into_inner().isolation.unwrap();
    assert_eq!(isolation.limits, "rlimits");
    let said = run(&mut client, script("x = bytearray(300 << 20)")).await;
    assert_eq!((said.code(), said.error().r#type.as_str()), (Some(1), "MemoryError"));
    let metrics = said.exited().metrics.unwrap();
    assert!(metrics.peak_memory_bytes > 0 && metrics.cpu_time.unwrap().nanos > 0);
    let start = pb::ExecutionStart { timeout: seconds(0.5), ..shell("(setsid sleep 60 &); sleep 60") };
    assert_eq!(run(&mut client, start).await.cause(), pb::Cause::Timeout);
}

#[tokio::test]
async fn executor_of_a_user_isolates_without_root() {
    let more = ["--cgroups", "off"].map(str::to_owned).to_vec();
    let daemon = Daemon::start(Settings { user: Some(uid()), more, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let isolation =
        client.get_executor(pb::GetExecutorRequest {}).await.unwrap().into_inner().isolation.unwrap();
    assert_eq!((isolation.jail.as_str(), isolation.user.as_str()), ("bubblewrap", "service"));
    let said = run(&mut client, python("import os\ndef handler(e): return [os.getuid(), os.getcwd()]")).await;
    assert_eq!(said.value(), serde_json::json!([1000, "/workspace"]));
    let start = pb::ExecutionStart { timeout: seconds(0.5), ..shell("(setsid sleep 60 &); sleep 60") };
    assert_eq!(run(&mut client, start).await.cause(), pb::Cause::Timeout);
}

#[tokio::test]
async fn configured_interpreter_is_shown_with_its_prefix_and_nothing_else() {
    // Below a directory that only root can enter.
    let temp = tempfile::tempdir_in("/var/tmp").unwrap();
    let venv = temp.path().join("venv");
    let made =
        Command::new("/usr/bin/python3").args(["-m", "venv", "--without-pip"]).arg(&venv).status().unwrap();
    assert!(made.success());
    std::fs::write(temp.path().join("beside"), "x").unwrap();
    let find = "import site; print(site.getsitepackages()[0])";
    let output = Command::new(venv.join("bin/python3")).args(["-c", find]).output().unwrap();
    let packages = String::from_utf8(output.stdout).unwrap();
    std::fs::write(Path::new(packages.trim()).join("installed.py"), "VALUE = 42").unwrap();
    let more = vec!["--python".to_owned(), venv.join("bin/python3").display().to_string()];
    let daemon = Daemon::start(Settings { more, ..Settings::default() }).await;
    let text = "import installed, os, sys\ndef handler(e): return [installed.VALUE, os.listdir(os.path.dirname(sys.prefix)), os.access(sys.prefix, os.W_OK)]";
    let said = run(&mut daemon.client().await, python(text)).await;
    assert_eq!(said.value(), serde_json::json!([42, ["venv"], false]), "{said:?}");
}

#[tokio::test]
async fn missing_interpreter_is_a_failure_to_start() {
    let more = vec!["--python".to_owned(), "/usr/bin/env".to_owned()];
    let daemon = Daemon::start(Settings { more, ..Settings::default() }).await;
    let said = run(&mut daemon.client().await, python("def handler(e): return 1")).await;
    assert_ne!(said.code(), Some(0), "env is no Python");
    let temp = tempfile::tempdir().unwrap();
    let output = serve_in(temp.path(), "short", &["--python", "/no/such/python"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("/no/such/python does not exist"), "{message}");
}

#[test]
fn socket_path_that_is_too_long_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let output = serve_in(&temp.path().join("d".repeat(120)), "long", &[]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("use a shorter data directory"), "{message}");
}

#[test]
fn check_reports_what_this_host_can_do() {
    let output = Command::new(EXECUTOR)
        .args(["check", "--uid", "300000", "--cgroup-parent", "sandmesh-test-check"])
        .output()
        .unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{found}");
    assert_eq!(found["ok"], true);
    assert_eq!(found["isolation"]["jail"], "bubblewrap");
    assert_eq!(found["isolation"]["user"], "dedicated");
    assert_eq!(found["languages"][0]["language"], "python");
    // Sandboxes that start while it runs make their groups in this one.
    let groups = cgroups_named("sandmesh-test-check");
    assert!(!groups.is_empty(), "the group of sandboxes was removed");
    for group in groups {
        std::fs::remove_dir(group).expect("nothing is left in it");
    }
    let output = Command::new(EXECUTOR).args(["check", "--node", "/no/such/node"]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), found["ok"].as_bool()), (Some(1), Some(false)));
    assert!(found["problems"][0]["missing"].as_str().unwrap().contains("/no/such/node"), "{found}");
}

#[tokio::test]
async fn ended_executor_refuses_and_unfinished_streams_do_not_keep_it() {
    let mut daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    // A client that started a lot of output and never reads it.
    let start = script("import sys\nwhile True: sys.stdout.write('x' * 65536)");
    let _unread = Talk::open(&mut client, Input::Start(start)).await.unwrap();
    terminate(daemon.child.id());
    assert!(wait_for_exit(&mut daemon).success());
    let refused = Talk::open(&mut client, Input::Start(script("pass"))).await.err().unwrap();
    assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{refused:?}");
}

/// Runs `serve` where it is expected to fail.
fn serve_in(dir: &Path, sandbox_id: &str, more: &[&str]) -> std::process::Output {
    Command::new(EXECUTOR)
        .args(["serve", "--dir", dir.to_str().unwrap(), "--sandbox-id", sandbox_id, "--memory-bytes", "0"])
        .args(["--cpu-millis", "0", "--max-processes", "0", "--disk-bytes", "0", "--max-executions", "1"])
        .args(["--max-queued", "0", "--max-output-bytes", "1000", "--cgroups", "off"])
        .args(more)
        .output()
        .unwrap()
}

fn terminate(pid: u32) {
    // The shell's own: a small system has no program of this name.
    let status = Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status().unwrap();
    assert!(status.success());
}

fn wait_for_exit(daemon: &mut Daemon) -> std::process::ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(status) = daemon.child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
