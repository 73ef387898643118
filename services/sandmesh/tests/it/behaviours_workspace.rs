//! Behaviours 37, 39 and the closing line: what user code finds around itself.

use serde_json::{Value, json};

use crate::harness::{HOST_SECRET, Wiring};

in_both_wirings!(
    workspace_is_kept_between_runs_and_shared_with_no_other_session,
    environment_has_what_was_asked_for_and_nothing_of_the_host,
    python_standard_library_works,
    node_standard_library_works,
    run_cannot_reach_the_host_or_the_network,
);

// 37
async fn workspace_is_kept_between_runs_and_shared_with_no_other_session(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let (one, two) = (api.session().await, api.session().await);
    let write = "def handler(event):\n    open('/workspace/state.txt', 'w').write('kept')\n    open('/tmp/temporary', 'w').write('x')\n    import os\n    return os.getcwd()";
    assert_eq!(api.python(&one, write).await["return_value"], "/workspace");
    let read = "import os\ndef handler(event): return [open('state.txt').read() if os.path.exists('state.txt') else None, os.path.exists('/tmp/temporary')]";
    assert_eq!(
        api.python(&one, read).await["return_value"],
        json!(["kept", false]),
        "only /workspace is kept"
    );
    assert_eq!(api.python(&two, read).await["return_value"], json!([null, false]));
    let module = "open('helper.py', 'w').write('def answer(): return 42')";
    let run = api.execute(&one, json!({"language": "python", "mode": "script", "code": module})).await;
    assert_eq!(run["status"], "completed", "{run}");
    let run = api.python(&one, "import helper\ndef handler(event): return helper.answer()").await;
    assert_eq!(run["return_value"], 42, "modules in the workspace can be imported: {run}");
    let run = api
        .run(&one, "javascript", "exports.handler = () => require('fs').readFileSync('state.txt', 'utf8')")
        .await;
    assert_eq!(run["return_value"], "kept", "{run}");
}

// 39
async fn environment_has_what_was_asked_for_and_nothing_of_the_host(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let asked = json!({"template_id": "python-basic", "env_vars": {"API_KEY": "k-123", "EMPTY": "", "BOTH": "session"}});
    let session = api.create(asked).await;
    let id = session["id"].as_str().unwrap();
    assert_eq!(session["env_vars"]["API_KEY"], "***", "values may be secrets: {session}");
    let code = "import os\ndef handler(event): return dict(os.environ)";
    let body = json!({"language": "python", "code": code, "env_vars": {"BOTH": "execution", "ONLY": "1"}});
    let mut environment = api.execute(id, body).await["return_value"].clone();
    for (name, value) in [("API_KEY", "k-123"), ("EMPTY", ""), ("BOTH", "execution"), ("ONLY", "1")] {
        assert_eq!(environment[name], value, "{environment}");
        environment.as_object_mut().unwrap().remove(name);
    }
    let usual = ["PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "PWD", "SHLVL", "_"];
    let unusual: Vec<&String> =
        environment.as_object().unwrap().keys().filter(|key| !usual.contains(&key.as_str())).collect();
    assert!(unusual.is_empty(), "{unusual:?} of {environment}");
    assert_eq!(
        api.python(id, code).await["return_value"]["BOTH"],
        "session",
        "an execution's own is not kept"
    );

    let visible = "import glob\ndef handler(event):\n    found = []\n    for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n        try:\n            found.append(open(path, 'rb').read().decode('latin1'))\n        except OSError:\n            pass\n    return found";
    let seen = api.python(id, visible).await["return_value"].to_string();
    assert!(seen.contains("HOME=/workspace"), "it looks where something is to be seen: {seen}");
    for secret in [HOST_SECRET.1, "SANDMESH_AGENT", "sandmesh-executor serve"] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    let run = api.run(id, "javascript", "exports.handler = () => process.env.API_KEY").await;
    assert_eq!(run["return_value"], "k-123");
    assert_eq!(api.run(id, "shell", "echo $API_KEY").await["stdout"], "k-123\n");
}

/// Runs checks, one line of code each, and names those that fail.
fn checks(lines: &[(&str, &str)]) -> String {
    let mut code = String::from("def handler(event):\n    failed = []\n");
    for (name, line) in lines {
        code += &format!(
            "    try:\n        {line}\n    except BaseException as e:\n        failed.append('{name}: ' + repr(e))\n"
        );
    }
    code + "    return failed\n"
}

/// What each module of the standard library must be able to do.
const PYTHON_CHECKS: &[(&str, &str)] = &[
    ("json", "import json; assert json.loads(json.dumps({'a': [1]})) == {'a': [1]}"),
    ("csv", "import csv, io; assert list(csv.reader(io.StringIO('a,b\\n1,2\\n')))[1] == ['1', '2']"),
    (
        "xml",
        "import xml.etree.ElementTree as et; assert et.fromstring('<a><b>1</b></a>').find('b').text == '1'",
    ),
    ("pickle", "import pickle; assert pickle.loads(pickle.dumps({1: (2,)})) == {1: (2,)}"),
    ("zlib", "import zlib; assert zlib.decompress(zlib.compress(b'x' * 999)) == b'x' * 999"),
    (
        "zipfile",
        "import zipfile; z = zipfile.ZipFile('a.zip', 'w'); z.writestr('f', 'v'); z.close(); assert zipfile.ZipFile('a.zip').read('f') == b'v'",
    ),
    ("hashlib", "import hashlib; assert hashlib.sha256(b'').hexdigest().startswith('e3b0c442')"),
    ("secrets", "import secrets; assert len(secrets.token_hex(16)) == 32"),
    ("decimal", "from decimal import Decimal; assert Decimal('0.1') + Decimal('0.2') == Decimal('0.3')"),
    ("datetime", "from datetime import datetime, timezone; assert datetime.now(timezone.utc).year >= 2026"),
    (
        "zoneinfo",
        "import datetime; assert datetime.timezone(datetime.timedelta(hours=1)).utcoffset(None).seconds == 3600",
    ),
    (
        "subprocess",
        "import subprocess; assert subprocess.run(['sh', '-c', 'echo hi; exit 3'], capture_output=True).returncode == 3",
    ),
    (
        "threading",
        "import threading; r = []; t = [threading.Thread(target=r.append, args=(i,)) for i in range(8)]; [x.start() for x in t]; [x.join() for x in t]; assert sorted(r) == list(range(8))",
    ),
    (
        "asyncio",
        "import asyncio, threading; r = []; t = threading.Thread(target=lambda: r.append(asyncio.run(asyncio.sleep(0.01, 5)))); t.start(); t.join(); assert r == [5]",
    ),
    (
        "multiprocessing",
        "import multiprocessing as m; p = m.get_context('fork').Pool(2); assert p.map(abs, [-1, -2]) == [1, 2]; p.terminate()",
    ),
    (
        "tempfile",
        "import tempfile; f = tempfile.NamedTemporaryFile(); f.write(b'x'); f.flush(); assert open(f.name).read() == 'x'",
    ),
    (
        "sqlite3",
        "import sqlite3; c = sqlite3.connect('t.db'); c.execute('create table t(x)'); c.execute('insert into t values (7)'); c.commit(); assert c.execute('select x from t').fetchone() == (7,)",
    ),
    (
        "logging",
        "import logging, io; s = io.StringIO(); logging.basicConfig(stream=s, force=True); logging.error('seen'); assert 'seen' in s.getvalue()",
    ),
    ("socketpair", "import socket; a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'"),
    (
        "loopback",
        "import socket; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); c.close()",
    ),
    ("semaphore", "import multiprocessing as m; l = m.get_context('fork').Lock(); l.acquire(); l.release()"),
];

async fn python_standard_library_works(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let code = checks(PYTHON_CHECKS);
    let run = server.api.python(&id, &code).await;
    assert_eq!((&run["status"], &run["return_value"]), (&json!("completed"), &json!([])), "{run}");
}

async fn node_standard_library_works(wiring: Wiring) {
    let server = wiring.start().await;
    let session = server.api.create(json!({"template_id": "nodejs-basic"})).await;
    let code = r"
const assert = require('assert');
exports.handler = async () => {
  const failed = [];
  const check = async (name, f) => { try { await f(); } catch (e) { failed.push(name + ': ' + e); } };
  await check('fs', () => { const fs = require('fs'); fs.writeFileSync('f', 'v'); assert.equal(fs.readFileSync('f', 'utf8'), 'v'); });
  await check('path', () => assert.equal(require('path').resolve('x'), '/workspace/x'));
  await check('crypto', () => assert.equal(require('crypto').createHash('sha256').update('').digest('hex').slice(0, 8), 'e3b0c442'));
  await check('zlib', () => { const z = require('zlib'); assert.equal(z.gunzipSync(z.gzipSync('abc')).toString(), 'abc'); });
  await check('child_process', () => assert.equal(require('child_process').execSync('echo hi').toString(), 'hi\n'));
  await check('timers', () => require('timers/promises').setTimeout(5));
  await check('stream', async () => { let s = ''; for await (const c of require('stream').Readable.from(['a', 'b'])) s += c; assert.equal(s, 'ab'); });
  await check('url', () => assert.equal(new URL('http://a/b?c=1').searchParams.get('c'), '1'));
  await check('util', () => assert.equal(require('util').format('%d', 1), '1'));
  await check('os', () => assert.ok(require('os').cpus().length > 0));
  await check('events', () => { const e = new (require('events'))(); let n = 0; e.on('x', () => n++); e.emit('x'); assert.equal(n, 1); });
  await check('worker', () => new Promise((ok, no) => { const w = new (require('worker_threads').Worker)('require(\'worker_threads\').parentPort.postMessage(5)', { eval: true }); w.on('message', m => m === 5 ? ok() : no(m)); w.on('error', no); }));
  await check('net', () => new Promise((ok, no) => { const s = require('net').createServer(c => { c.end(); s.close(ok); }); s.on('error', no); s.listen(0, '127.0.0.1', () => require('net').connect(s.address().port, '127.0.0.1').on('error', no).resume()); }));
  return failed;
};";
    let run = server.api.run(session["id"].as_str().unwrap(), "javascript", code).await;
    assert_eq!((&run["status"], &run["return_value"]), (&json!("completed"), &json!([])), "{run}");
}

async fn run_cannot_reach_the_host_or_the_network(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let data_dir = server.data_dir().display().to_string();
    let code = format!(
        "import os, socket, subprocess\ndef attempt(f):\n    try:\n        return repr(f())\n    except BaseException as e:\n        return 'refused'\ndef handler(event):\n    return {{\n        'control plane': attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 2)),\n        'internet': attempt(lambda: socket.create_connection(('1.1.1.1', 53), 2)),\n        'data directory': attempt(lambda: os.listdir('{data_dir}')),\n        'write to the system': attempt(lambda: open('/usr/x', 'w')),\n        'write to the root': attempt(lambda: open('/x', 'w')),\n        'shadow': attempt(lambda: open('/etc/shadow').read()),\n        'home of root': attempt(lambda: os.listdir('/root')),\n        'namespaces': attempt(lambda: subprocess.run(['unshare', '-U', 'true'], check=True)),\n        'signal to others': attempt(lambda: os.kill({pid}, 0)),\n        'root': attempt(lambda: os.setuid(0)),\n    }}",
        port = server.port,
        pid = server.processes[0].pid(),
    );
    let run = server.api.python(&id, &code).await;
    let attempts = run["return_value"].as_object().unwrap_or_else(|| panic!("{run}"));
    let went: Vec<(&String, &Value)> = attempts.iter().filter(|(_, outcome)| *outcome != "refused").collect();
    assert!(went.is_empty(), "{went:?}");
    let run = server.api.run(&id, "shell", "ls /proc | grep -c '^[0-9]'; id -u").await;
    let (processes, uid) = run["stdout"].as_str().unwrap().trim().split_once('\n').unwrap();
    assert!(processes.parse::<u32>().unwrap() < 12, "only its own processes: {run}");
    assert_ne!(uid, "0");
}
