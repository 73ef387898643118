//! What Python code returns, prints, raises and sees.

use sandmesh_proto::executor as pb;
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn return_values_keep_their_types() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let values = [
        ("{'a': 1, 'b': [1, 2.5, 'x', None, True]}", json!({"a": 1, "b": [1, 2.5, "x", null, true]})),
        ("0", json!(0)),
        ("''", json!("")),
        ("[]", json!([])),
        ("{}", json!({})),
        ("False", json!(false)),
        ("None", json!(null)),
        ("0.0", json!(0.0)),
        ("(1, 2)", json!([1, 2])),
        ("{1: 'one'}", json!({"1": "one"})),
        ("'gr\\u00fc\\u00df dich \\U0001F600'", json!("grüß dich 😀")),
        ("[float('nan'), float('inf'), {'x': -float('inf')}, 1.5]", json!([null, null, {"x": null}, 1.5])),
        ("'\\ud800'", json!("\u{fffd}")),
    ];
    for (text, expected) in values {
        let said = run(&mut client, python(&format!("def handler(event):\n    return {text}"))).await;
        assert_eq!(said.code(), Some(0), "{text}: {said:?}");
        assert_eq!(said.value(), expected, "{text}");
        assert_eq!(said.stdout, b"");
    }
}

#[tokio::test]
async fn handler_gets_the_event_and_the_context() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
def handler(event, context):
    left = context.get_remaining_time_in_millis()
    return [event['name'], event['age'] + 1, context.execution_id == context.aws_request_id,
            context.session_id, context.memory_limit_in_mb, 15000 < left <= 20000, context.function_name]
";
    let start = pb::ExecutionStart { event_json: r#"{"name": "Alice", "age": 25}"#.into(), ..python(text) };
    let said = run(&mut client, start).await;
    assert_eq!(said.value(), json!(["Alice", 26, true, "sess_1", 512, true, "handler"]));

    for text in [
        "async def handler(event): return 'async'",
        "async def handler(event, context):\n    import asyncio\n    await asyncio.sleep(0.01)\n    return 'async'",
        "class H:\n    async def __call__(self, event, context): return 'async'\nhandler = H()",
        "handler = lambda event: 'async'",
        "def handler(*both): return 'async' if len(both) == 2 else both",
    ] {
        assert_eq!(run(&mut client, python(text)).await.value(), json!("async"), "{text}");
    }
    let start = pb::ExecutionStart { entrypoint: "main".into(), ..python("def main(e): return 7") };
    assert_eq!(run(&mut client, start).await.value(), json!(7));
}

#[tokio::test]
async fn print_and_return_and_warnings_do_not_mix() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import sys, warnings, subprocess
def handler(event):
    print('to stdout: é')
    subprocess.run(['echo', 'from a child'])
    print('to stderr', file=sys.stderr)
    warnings.warn('careful')
    return 'value'
";
    let said = run(&mut client, python(text)).await;
    assert_eq!(said.out(), "to stdout: é\nfrom a child\n");
    assert!(
        said.err().contains("to stderr") && said.err().contains("UserWarning: careful"),
        "{}",
        said.err()
    );
    assert_eq!(said.value(), json!("value"));
    assert_eq!(said.exited().stdout_bytes, said.stdout.len() as u64);
}

#[tokio::test]
async fn errors_are_shown_with_the_users_frames_only() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
def inner():
    raise ValueError('bad value')
def handler(event):
    try:
        inner()
    except ValueError as e:
        raise RuntimeError('outer') from e
";
    for text in [text.to_owned(), text.replace("def handler", "async def handler")] {
        let said = run(&mut client, python(&text)).await;
        assert_eq!(said.code(), Some(1));
        assert_eq!(said.cause(), pb::Cause::Unspecified);
        assert_eq!(said.exited().return_value_json, None);
        let error = said.error();
        assert_eq!((error.r#type.as_str(), error.message.as_str()), ("RuntimeError", "outer"));
        assert_eq!(error.traceback, said.err());
        assert!(said.err().contains("raise ValueError('bad value')"), "{}", said.err());
        assert!(said.err().contains("line 3, in inner"), "{}", said.err());
        assert!(!said.err().contains("runner.py") && !said.err().contains("asyncio"), "{}", said.err());
    }
    let said = run(&mut client, python("def handler(event)\n    return 1")).await;
    assert_eq!((said.code(), said.error().r#type.as_str()), (Some(1), "SyntaxError"));
    assert!(said.err().contains("SyntaxError") && said.err().contains("line 1"), "{}", said.err());
    let said = run(&mut client, python("def hander(event): pass")).await;
    assert_eq!((said.code(), said.error().r#type.as_str()), (Some(1), "HandlerNotFound"));
    assert!(said.err().contains("no function `handler`"), "{}", said.err());
    let said = run(&mut client, python("def handler(event): raise Exception('\\ud800')")).await;
    assert_eq!(said.code(), Some(1), "{said:?}");
}

#[tokio::test]
async fn value_that_is_not_json_is_named() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for (value, place) in [
        ("{'a': [1, {2, 3}]}", "$.a[1] is of type set"),
        ("object()", "$ is of type object"),
        ("{(1, 2): 3}", "$ (a key) is of type tuple"),
        ("b'bytes'", "$ is of type bytes"),
        ("[float('nan'), {1}]", "$[1] is of type set"),
    ] {
        let said = run(&mut client, python(&format!("def handler(e): return {value}"))).await;
        assert_eq!(
            (said.code(), said.error().r#type.as_str()),
            (Some(1), "ReturnValueNotSerializable"),
            "{value}"
        );
        assert!(said.error().message.contains(place), "{}", said.error().message);
        assert_eq!(said.exited().return_value_json, None);
    }
    let said = run(&mut client, python("def handler(e):\n    a = []; a.append(a); return {'x': a}")).await;
    assert!(said.error().message.contains("$.x[0] contains itself"), "{:?}", said.error());
    let said = run(&mut client, python("def handler(e): return 'x' * (7 << 20)")).await;
    assert_eq!(said.error().r#type, "ReturnValueTooLarge");
    let said = run(&mut client, python("def handler(e): return 'é' * (5 << 19)")).await;
    assert_eq!(said.value().as_str().map(str::len), Some(5 << 20), "a large value arrives whole");
}

#[tokio::test]
async fn exit_codes_are_exact() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for (text, code) in [
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit('message')", 1),
        ("import os; os._exit(250)", 250),
        ("raise SystemExit(-1)", 255),
        ("import atexit, sys; atexit.register(print, 'bye'); sys.exit(4)", 4),
    ] {
        let said = run(&mut client, script(text)).await;
        assert_eq!(said.code(), Some(code), "{text}: {said:?}");
        let said = run(&mut client, python(&format!("def handler(e): {text}"))).await;
        assert_eq!(said.code(), Some(code), "{text}: {said:?}");
        assert_eq!(said.exited().return_value_json, None);
    }
    let said =
        run(&mut client, script("import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')"))
            .await;
    assert_eq!(said.signal(), Some(libc::SIGTERM));
    let said = run(&mut client, script("import os; os.abort()")).await;
    assert_eq!(said.signal(), Some(libc::SIGABRT));
}

#[tokio::test]
async fn script_mode_runs_top_to_bottom() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import sys, threading, time, multiprocessing, os
def work(n): return n * n
if __name__ == '__main__':
    threading.Thread(target=lambda: (time.sleep(1), print('thread'))).start()
    with multiprocessing.Pool(2) as pool: print(pool.map(work, [1, 2, 3]))
    print(sys.stdin.read(), os.path.dirname(__file__), os.getcwd(), sys.path[0])
";
    let start = pb::ExecutionStart { stdin: "from stdin".into(), ..script(text) };
    let said = run(&mut client, start).await;
    assert_eq!(said.out(), "[1, 4, 9]\nfrom stdin /workspace /workspace /workspace\nthread\n", "{said:?}");
    assert_eq!((said.code(), &said.exited().return_value_json), (Some(0), &None));
    let said =
        run(&mut client, python("def handler(e): return 1\nif __name__ == '__main__': print('main')")).await;
    assert_eq!(said.out(), "");
}

#[tokio::test]
async fn standard_library_works() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import asyncio, csv, datetime, decimal, hashlib, io, json, logging, multiprocessing, os, pickle, secrets, socket
import sqlite3, ssl, subprocess, tempfile, threading, time, urllib.request, xml.etree.ElementTree as xml, zipfile, zlib
import concurrent.futures, getpass, platform, pwd, random, shutil, uuid, zoneinfo
def double(n): return 2 * n
def handler(event):
    assert pickle.loads(pickle.dumps({'a': 1})) == {'a': 1}
    assert zlib.decompress(zlib.compress(b'x' * 100)) == b'x' * 100
    assert xml.fromstring('<a><b/></a>').find('b') is not None
    assert len(secrets.token_hex(8)) == 16 and len(hashlib.sha256(b'').hexdigest()) == 64
    assert str(decimal.Decimal('0.1') + decimal.Decimal('0.2')) == '0.3'
    with sqlite3.connect('db.sqlite') as db: db.execute('create table t (x)'); db.execute('insert into t values (1)')
    with tempfile.NamedTemporaryFile() as f: f.write(b'x'); f.flush(); assert os.path.getsize(f.name) == 1
    assert subprocess.check_output('echo hi | tr a-z A-Z', shell=True, text=True) == 'HI\\n'
    with multiprocessing.Pool(2) as pool: assert pool.map(double, [1, 2]) == [2, 4]
    with concurrent.futures.ThreadPoolExecutor() as pool: assert list(pool.map(double, [1, 2])) == [2, 4]
    assert asyncio.run(asyncio.wait_for(asyncio.sleep(0.01, 'x'), 1)) == 'x'
    a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'
    server = socket.create_server(('127.0.0.1', 0))
    socket.create_connection(server.getsockname()); server.accept()
    assert pwd.getpwuid(os.getuid()).pw_name == getpass.getuser() == 'sandbox'
    os.mkfifo('fifo'); os.symlink('a', 'link'); os.chmod('db.sqlite', 0o600)
    ssl.create_default_context(); logging.warning('logged')
    assert platform.node() == socket.gethostname() == 'sandbox'
    return sorted(os.listdir('.'))
";
    let said = run(&mut client, python(text)).await;
    assert_eq!(said.code(), Some(0), "{}", said.err());
    assert_eq!(said.value(), json!(["db.sqlite", "fifo", "link"]));
    assert!(said.err().contains("WARNING:root:logged"));
}

#[tokio::test]
async fn workspace_lasts_and_can_be_imported_and_tmp_does_not() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let write = "
def handler(event):
    import os
    open('/workspace/state.txt', 'w').write('kept')
    open('/workspace/helper.py', 'w').write('VALUE = 42')
    open('/tmp/gone', 'w').write('x')
    os.makedirs('/workspace/.local/lib/python3.11/site-packages', exist_ok=True)
    open('/workspace/.local/lib/python3.11/site-packages/evil.pth', 'w').write('import sys; print(\"evil\")')
";
    assert_eq!(run(&mut client, python(write)).await.code(), Some(0));
    let read = "
import helper, os
def handler(event): return [open('state.txt').read(), helper.VALUE, os.listdir('/tmp'), os.listdir('/dev/shm'), os.path.exists('__pycache__')]
";
    let said = run(&mut client, python(read)).await;
    assert_eq!(said.value(), json!(["kept", 42, [], [], false]), "{said:?}");
    assert_eq!(said.out(), "");
    assert_eq!(std::fs::read_to_string(daemon.dir.join("workspace/state.txt")).unwrap(), "kept");
}

#[tokio::test]
async fn large_code_and_event_arrive_whole() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let padding = "#".repeat((1 << 20) - 100);
    let event = serde_json::to_vec(&json!({"big": "y".repeat(5 << 20)})).unwrap();
    let text = format!("def handler(e): return len(e['big'])\n{padding}");
    let said = run(&mut client, pb::ExecutionStart { event_json: event.into(), ..python(&text) }).await;
    assert_eq!(said.value(), json!(5 << 20));
}
