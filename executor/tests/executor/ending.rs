//! The end of an execution: what counts until then, and that nothing of it goes on.

use std::time::Duration;

use sandmesh_proto::executor as pb;
use serde_json::json;

use crate::support::{Client, Daemon, Said, Settings, javascript, python, run, script};

#[tokio::test]
async fn nothing_of_an_execution_runs_when_its_outcome_is_known() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let busy = "import time\ndef go():\n    while True: open('busy', 'a').write('x')\n";
    let thread = format!("{busy}import threading\nthreading.Thread(target=go, daemon=True).start()");
    let raw_thread = format!("{busy}import _thread\n_thread.start_new_thread(go, ())");
    let process = format!("{busy}import os\nif os.fork() == 0: go()");
    let grandchild = "import subprocess\nsubprocess.Popen(['sh', '-c', 'while :; do echo x >> busy; done'])";
    for text in [&thread, &raw_thread, &process, grandchild] {
        let said =
            run(&mut client, script(&format!("{text}\ntime = __import__('time'); time.sleep(0.1)"))).await;
        assert_eq!(said.code(), Some(0), "{said:?}");
        let measured = daemon.dir.join("workspace/busy");
        let size = || std::fs::metadata(&measured).unwrap().len();
        let at_the_end = size();
        assert!(at_the_end > 0, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(size(), at_the_end, "{text}");
    }
}

#[tokio::test]
async fn what_the_code_forked_does_not_speak_for_it() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "import os, time
def handler(event):
    child = os.fork()
    if child == 0:
        return 'of the child'
    os.waitpid(child, 0)
    time.sleep(0.1)
    print('last')
    return 'of the parent'";
    let said = run(&mut client, python(text)).await;
    assert_eq!((said.value(), said.out().as_str(), said.code()), (json!("of the parent"), "last\n", Some(0)));
}

#[tokio::test]
async fn result_that_cannot_be_told_is_an_error() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let said =
        run(&mut client, python("import os\ndef handler(event):\n    os.close(3)\n    return 1")).await;
    assert_eq!(said.code(), Some(1), "{said:?}");
    assert!(said.err().contains("the result cannot be told"), "{}", said.err());
}

#[tokio::test]
async fn what_is_done_on_the_way_out_counts() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "import atexit, sys
def handler(event):
    atexit.register(print, 'bye')
    sys.stdout.write('no newline')
    return 1";
    let said = run(&mut client, python(text)).await;
    assert_eq!((said.out().as_str(), said.value(), said.code()), ("no newlinebye\n", json!(1), Some(0)));
    let text = "import atexit, os\natexit.register(os._exit, 6)\ndef handler(event): return 2";
    let said = run(&mut client, python(text)).await;
    assert_eq!((said.value(), said.code()), (json!(2), Some(6)));
    let text = "process.on('exit', () => { console.log('bye'); process.exitCode = 3 });
exports.handler = () => { process.stdout.write('x'.repeat(300000)); return 1 }";
    let said = run(&mut client, javascript(text)).await;
    assert_eq!((said.out().len(), said.code(), said.value()), (300_004, Some(3), json!(1)));
    let said = run(&mut client, javascript("console.log('x'.repeat(300000)); process.exit(5)")).await;
    assert_eq!((said.out().len(), said.code()), (300_001, Some(5)));
    let text = "process.on('exit', () => { throw new Error('late') })";
    let start = pb::ExecutionStart { mode: pb::Mode::Script.into(), ..javascript(text) };
    let said = run(&mut client, start).await;
    assert_eq!((said.code(), said.error().message.as_str()), (Some(1), "late"));
    let text = "exports.handler = () => { console.log('x'.repeat(300000)); throw new Error('late') }";
    let said = run(&mut client, javascript(text)).await;
    assert_eq!((said.out().len(), said.code()), (300_001, Some(1)));
    assert_eq!(said.error().message, "late");
}

#[tokio::test]
async fn figures_are_those_of_each_execution() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass";
    let cpu = |said: &crate::support::Said| {
        Duration::try_from(said.exited().metrics.unwrap().cpu_time.unwrap()).unwrap().as_secs_f64()
    };
    for _ in 0..3 {
        let said = run(&mut client, script(busy)).await;
        assert!((0.25..0.6).contains(&cpu(&said)), "{}", cpu(&said));
    }
    // With spares and without: several at once.
    for _ in 0..4 {
        let mut clients = [daemon.client().await, daemon.client().await, daemon.client().await];
        let runs = clients.iter_mut().map(|client| run(client, python("def handler(event): return 1")));
        for said in futures::future::join_all(runs).await {
            assert!(cpu(&said) < 0.2, "{}", cpu(&said));
        }
    }
    let write = "import os\nwith open('f', 'wb') as f:\n    f.write(bytes(1 << 20)); os.fsync(f.fileno())";
    let written = run(&mut client, script(write)).await.exited().metrics.unwrap().io_write_bytes;
    assert!(written >= 1 << 20, "{written}");
}

/// Waits until there is a spare, which has a keeper: one is made when nothing runs and the machine has time, or after
/// some seconds. Without control groups there is no telling.
async fn make_spare(daemon: &Daemon, client: &mut Client) {
    run(client, python("def handler(event): pass")).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    while !daemon.cgroups().is_empty() && !daemon.has_spare() {
        assert!(tokio::time::Instant::now() < deadline, "no spare is made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn keeper_leaves_when_the_code_executes_a_program() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    make_spare(&daemon, &mut client).await;
    let text = "import os
print(os.path.exists('/proc/3'), flush=True)
program = 'import os, time; time.sleep(0.3); print(os.path.exists(\"/proc/3\"))'
os.execv('/usr/bin/python3', ['python3', '-c', program])";
    let said = run(&mut client, script(text)).await;
    assert_eq!((said.out().as_str(), said.code()), ("True\nFalse\n", Some(0)), "{said:?}");
}

/// How many keepers a Node.js has.
const KEEPERS: &str =
    "const fs = require('fs'); exports.handler = () => fs.readdirSync('/proc').filter((pid) => {
    try { return fs.readFileSync(`/proc/${pid}/comm`, 'utf8') === 'keeper\\n'; } catch { return false; }
}).length";

async fn run_node(client: &mut Client, text: &str) -> Said {
    run(client, pb::ExecutionStart { mode: pb::Mode::Script.into(), ..javascript(text) }).await
}

#[tokio::test]
async fn warm_node_ends_as_it_would_by_itself() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let last_words = "process.on('exit', (code) => { console.log('left', code); process.exitCode = 3; });";
    // As packages do that are to hear of every end.
    let others_words = "const emit = process.emit; process.emit = function (name, ...args) {
        const heard = emit.call(this, name, ...args); if (name === 'exit') console.log('after'); return heard; };
        process.emit('exit'); console.log('on')";
    // As frameworks for tests do.
    let fatal =
        "process.removeAllListeners('uncaughtException'); setTimeout(() => { throw new Error('lost'); }, 1)";
    let orphan = "require('child_process').spawn('sh', ['-c', 'while :; do echo x >> busy; done'],
        { detached: true, stdio: 'ignore' }).unref(); setTimeout(() => {}, 200);";
    for _ in 0..2 {
        assert_eq!(run(&mut client, javascript(KEEPERS)).await.value(), json!(1));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let said = run_node(&mut client, last_words).await;
        assert_eq!((said.out().as_str(), said.code()), ("left 0\n", Some(3)), "{said:?}");
        let said = run_node(&mut client, others_words).await;
        assert_eq!((said.out().as_str(), said.code()), ("after\non\nafter\n", Some(0)), "{said:?}");
        let said = run_node(&mut client, fatal).await;
        assert!(said.code() == Some(1) && said.err().contains("Error: lost"), "{said:?}");
        let said = run_node(&mut client, orphan).await;
        assert_eq!(said.code(), Some(0), "{said:?}");
        let size = || std::fs::metadata(daemon.dir.join("workspace/busy")).unwrap().len();
        let at_the_end = size();
        assert!(at_the_end > 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(size(), at_the_end, "what it left behind goes on");
    }
}

/// Node.js writes the end of a trace when it takes itself apart.
#[tokio::test]
async fn success_of_a_warm_node_ends_at_once_unless_something_follows() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let trace = daemon.dir.join("workspace/node_trace.1.log");
    let wrapped = "const end = process.reallyExit; process.reallyExit = (code) => end.call(process, code);";
    for (text, is_whole) in
        [("", false), ("process.exit(0)", false), ("process.exitCode = 3", true), (wrapped, true)]
    {
        let text = format!("require('trace_events').createTracing({{ categories: ['v8'] }}).enable();{text}");
        let said = run_node(&mut client, &text).await;
        let written = std::fs::read(&trace).unwrap_or_default();
        let is_json = serde_json::from_slice::<serde_json::Value>(&written).is_ok();
        assert_eq!(is_json, is_whole, "{text}: {} of {said:?}", String::from_utf8_lossy(&written));
        let _ = std::fs::remove_file(&trace);
    }
}

#[tokio::test]
async fn where_nobody_looks_after_memory_there_is_no_keeper() {
    let more = ["--cgroups", "off"].map(str::to_owned).to_vec();
    for settings in
        [Settings { more, ..Settings::default() }, Settings { memory_bytes: 0, ..Settings::default() }]
    {
        let daemon = Daemon::start(settings).await;
        let mut client = daemon.client().await;
        make_spare(&daemon, &mut client).await;
        let said = run(&mut client, script("import os\nprint(os.path.exists('/proc/3'))")).await;
        assert_eq!(said.out(), "False\n", "{said:?}");
        assert_eq!(run(&mut client, javascript(KEEPERS)).await.value(), json!(0));
    }
}

#[tokio::test]
async fn memory_of_an_execution_is_free_for_the_next() {
    let daemon = Daemon::start(Settings { memory_bytes: 256 << 20, ..Settings::default() }).await;
    let mut client = daemon.client().await;
    let hog = "hog = bytearray(220 << 20)\nfor i in range(0, len(hog), 4096): hog[i] = 1";
    for _ in 0..5 {
        make_spare(&daemon, &mut client).await;
        for _ in 0..2 {
            let said = run(&mut client, script(hog)).await;
            assert_eq!((said.code(), said.cause()), (Some(0), pb::Cause::Unspecified), "{said:?}");
        }
    }
}

#[tokio::test]
async fn keeper_in_the_hands_of_the_code_changes_nothing() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    // Killed before the end; and stopped, so that it does not leave by itself.
    for signal in ["SIGKILL", "SIGSTOP", "SIGTERM"] {
        make_spare(&daemon, &mut client).await;
        let text =
            format!("import os, signal\nos.kill(3, signal.{signal})\ndef handler(event): return os.getpid()");
        let said = run(&mut client, python(&text)).await;
        assert_eq!((said.value(), said.code(), said.cause()), (json!(2), Some(0), pb::Cause::Unspecified));
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !daemon.running().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", daemon.running());
    }
    make_spare(&daemon, &mut client).await;
    let memory = "import os, signal\nos.kill(3, signal.SIGSTOP)\nx = bytearray(1 << 30)";
    let said = run(&mut client, script(memory)).await;
    assert_eq!(said.cause(), pb::Cause::Oom, "{said:?}");
}
