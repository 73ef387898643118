//! What JavaScript code returns, prints, throws and sees.

use sandmesh_proto::executor as pb;
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn every_way_to_define_a_handler_works() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for text in [
        "function handler(event) { return event.n + 1; }",
        "const handler = (event) => event.n + 1; // the end",
        "let handler = async (event, context) => { await null; return event.n + 1; }",
        "exports.handler = async (event) => event.n + 1;",
        "module.exports = { handler(event) { return event.n + 1; } };",
        "module.exports = (event) => event.n + 1;",
        "export const handler = async (event) => event.n + 1;",
        "import fs from 'node:fs'; export function handler(event) { return fs.existsSync('/') ? event.n + 1 : 0; }",
        "export default { handler: (event) => event.n + 1 };",
        "const one = await Promise.resolve(1); export const handler = (event) => event.n + one;",
    ] {
        let start = pb::ExecutionStart { event_json: r#"{"n": 41}"#.into(), ..javascript(text) };
        let said = run(&mut client, start).await;
        assert_eq!(said.code(), Some(0), "{text}: {said:?}");
        assert_eq!(said.value(), json!(42), "{text}");
    }
}

#[tokio::test]
async fn values_are_json() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for (text, expected) in [
        ("undefined", json!(null)),
        ("null", json!(null)),
        ("0", json!(0)),
        ("''", json!("")),
        ("false", json!(false)),
        ("[NaN, Infinity, undefined]", json!([null, null, null])),
        ("({a: undefined, d: new Date(0)})", json!({"d": "1970-01-01T00:00:00.000Z"})),
        ("'\\ud800 \\\\ud800 😀'", json!("\u{fffd} \\ud800 😀")),
    ] {
        let said = run(&mut client, javascript(&format!("exports.handler = () => {text};"))).await;
        assert_eq!(said.value(), expected, "{text}");
    }
    for (text, place) in [
        ("({a: [1n]})", "$.a[0] is of type bigint"),
        ("{ const a = {}; a.b = a; return a; }", "$.b contains itself"),
        ("(() => 1)", "$ is of type function"),
        ("Symbol('x')", "$ is of type symbol"),
    ] {
        let said = run(&mut client, javascript(&format!("exports.handler = () => {text};"))).await;
        assert_eq!(
            (said.code(), said.error().r#type.as_str()),
            (Some(1), "ReturnValueNotSerializable"),
            "{text}"
        );
        assert!(said.error().message.contains(place), "{}", said.error().message);
    }
    let said = run(&mut client, javascript("exports.handler = () => 'x'.repeat(7 << 20)")).await;
    assert_eq!(said.error().r#type, "ReturnValueTooLarge");
    let said = run(&mut client, javascript("exports.handler = () => 'x'.repeat(5 << 20)")).await;
    assert_eq!(said.value().as_str().map(str::len), Some(5 << 20));
}

#[tokio::test]
async fn errors_exit_codes_and_lost_promises() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for (text, code, kind) in [
        ("exports.handler = () => {\n throw new TypeError('bad'); }", 1, "TypeError"),
        ("exports.handler = async () => {\n throw new TypeError('bad'); }", 1, "TypeError"),
        ("class Mine extends Error {}; exports.handler = () => { throw new Mine('bad'); }", 1, "Mine"),
        ("exports.handler = () => { throw 'bad'; }", 1, "Error"),
        (
            "exports.handler = () => { Promise.reject(new RangeError('bad')); return new Promise(() => setTimeout(() => {}, 9000)); }",
            1,
            "RangeError",
        ),
        ("function handler( {", 1, "SyntaxError"),
        ("export const handler = ;", 1, "SyntaxError"),
        ("const other = 1;", 1, "HandlerNotFound"),
        ("export const other = 1;", 1, "HandlerNotFound"),
        ("exports.handler = () => new Promise(() => {})", 1, "HandlerNotSettled"),
    ] {
        let said = run(&mut client, javascript(text)).await;
        assert_eq!((said.code(), said.error().r#type.as_str()), (Some(code), kind), "{text}: {said:?}");
        assert!(!said.err().contains("runner.js") && !said.err().contains("node:internal"), "{}", said.err());
        assert_ne!(said.err(), "");
    }
    let said =
        run(&mut client, javascript("exports.handler = () => {\n throw new TypeError('bad'); }")).await;
    // Node before 20.10 tells the file, later ones the name that the runner gives the code.
    let place = ["<code>:2", "/workspace/main.js:2"].iter().any(|place| said.err().contains(place));
    assert!(place, "{}", said.err());
    for (text, code) in [("process.exit(7)", 7), ("process.exit()", 0), ("process.exitCode = 9; return 1", 9)]
    {
        let said = run(&mut client, javascript(&format!("exports.handler = () => {{ {text} }}"))).await;
        assert_eq!(said.code(), Some(code), "{text}");
    }
}

#[tokio::test]
async fn script_mode_context_streams_and_modules() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let mode = pb::Mode::Script.into();
    let text = "process.stdin.on('data', d => console.log('in:', d.toString())); console.error('err'); setTimeout(() => console.log('later'), 50);";
    let said = run(&mut client, pb::ExecutionStart { mode, stdin: "abc".into(), ..javascript(text) }).await;
    assert_eq!(
        (said.out().as_str(), said.err().as_str(), said.code()),
        ("in: abc\nlater\n", "err\n", Some(0))
    );
    let said = run(
        &mut client,
        pb::ExecutionStart { mode, ..javascript("import os from 'node:os'; console.log(os.hostname());") },
    )
    .await;
    assert_eq!((said.out().as_str(), said.code()), ("sandbox\n", Some(0)), "{}", said.err());
    let said = run(&mut client, pb::ExecutionStart { mode, ..javascript("process.exit(5)") }).await;
    assert_eq!(said.code(), Some(5));

    let write = "const fs = require('fs'); fs.mkdirSync('node_modules/dep', {recursive: true}); fs.writeFileSync('node_modules/dep/index.js', 'module.exports = 20');
        fs.writeFileSync('lib.mjs', 'export const n = 22'); fs.writeFileSync('lib.js', 'module.exports = 22');";
    assert_eq!(run(&mut client, pb::ExecutionStart { mode, ..javascript(write) }).await.code(), Some(0));
    for text in [
        "import dep from 'dep'; import { n } from './lib.mjs'; export const handler = () => dep + n;",
        "const dep = require('dep'); const n = require('./lib'); exports.handler = () => dep + n;",
        "exports.handler = async () => require('dep') + (await import('./lib.mjs')).n;",
    ] {
        let said = run(&mut client, javascript(text)).await;
        assert_eq!(said.code(), Some(0), "{text}: {}", said.err());
        assert_eq!(said.value(), json!(42), "{text}");
    }
    let text = "exports.handler = (e, c) => [c.executionId === c.awsRequestId, c.sessionId, c.memoryLimitInMB, c.getRemainingTimeInMillis() > 15000, c.getRemainingTimeInMillis() <= 20000]";
    assert_eq!(run(&mut client, javascript(text)).await.value(), json!([true, "sess_1", 512, true, true]));
}

#[tokio::test]
async fn standard_library_works() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = r"
const assert = require('assert'), cp = require('child_process'), crypto = require('crypto'), fs = require('fs');
const http = require('http'), os = require('os'), zlib = require('zlib'), { Worker } = require('worker_threads');
exports.handler = async () => {
  assert.equal(cp.execSync('echo hi').toString(), 'hi\n');
  assert.equal(zlib.gunzipSync(zlib.gzipSync('x')).toString(), 'x');
  assert.equal(crypto.createHash('sha256').update('').digest('hex').length, 64);
  assert.ok(os.networkInterfaces() && os.cpus().length > 0 && os.userInfo().username === 'sandbox');
  fs.writeFileSync('f.txt', 'x'); await fs.promises.readFile('f.txt');
  const server = http.createServer((q, r) => r.end('ok')).listen(0, '127.0.0.1');
  await new Promise(r => server.once('listening', r));
  const text = await (await fetch(`http://127.0.0.1:${server.address().port}/`)).text();
  const n = await new Promise(r => new Worker('require(\'worker_threads\').parentPort.postMessage(5)', {eval: true}).on('message', r));
  return [text, n, process.cwd(), __dirname];
};";
    let said = run(&mut client, javascript(text)).await;
    assert_eq!(said.code(), Some(0), "{}", said.err());
    assert_eq!(said.value(), json!(["ok", 5, "/workspace", "/workspace"]));
}
