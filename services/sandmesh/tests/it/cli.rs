//! The commands for people, run as people run them, against a real server.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::harness::{Index, Server, Wiring, process::SANDMESH, tools};

in_both_wirings!(
    run_prints_output_and_value_and_exits_with_the_code,
    sessions_are_managed_from_the_command_line,
    exec_runs_a_command_in_a_session,
);

/// The program with the address of the server in its environment.
pub(crate) fn sandmesh(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(SANDMESH);
    command.args(args).env("SANDMESH_URL", format!("http://127.0.0.1:{}", server.port)).stdin(Stdio::null());
    command
}

/// Runs the program; gives its exit code, standard output and standard error.
pub(crate) fn run(server: &Server, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = sandmesh(server, args).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn json_of(server: &Server, args: &[&str]) -> Value {
    let text = tools::succeed(&mut sandmesh(server, &[args, &["-o", "json"]].concat()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Writes a file and gives its path.
fn file(server: &Server, name: &str, text: &str) -> String {
    let path = server.scratch().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn packages_are_installed_from_the_command_line() {
    let index = Index::start(1);
    let server = Wiring::Embedded.start_with(&index.settings(&[])).await;
    let code = "import alpha\ndef handler(event): return alpha.version";
    let program = file(&server, "uses.py", code);
    let (code, stdout, stderr) = run(&server, &["run", &program, "--dep", "alpha==1.0"]);
    assert_eq!((code, stdout.as_str()), (0, "\"1.0\"\n"), "{stderr}");
    let (code, _, stderr) = run(&server, &["run", &program, "--dep", "nosuchpackage"]);
    assert_eq!(code, 125);
    assert!(stderr.contains("nosuchpackage"), "{stderr}");
    let id = server.api.session().await;
    let (code, stdout, stderr) = run(&server, &["session", "install", &id, "alpha>=2", "beta"]);
    assert_eq!((code, stdout.as_str()), (0, "alpha 2.0\nbeta 1.0\n"), "{stderr}");
    let (code, _, stderr) = run(&server, &["session", "install", &id, "nosuchpackage"]);
    assert_eq!(code, 125, "{stderr}");
    assert!(stderr.contains("nosuchpackage"), "{stderr}");
}

async fn run_prints_output_and_value_and_exits_with_the_code(wiring: Wiring) {
    let server = wiring.start().await;
    let hello = "import os, sys\ndef handler(event):\n    print('hello', event.get('name'))\n    print('note', file=sys.stderr)\n    return {'name': event.get('name'), 'mode': os.environ.get('MODE')}";
    let hello = file(&server, "hello.py", hello);
    let (code, stdout, stderr) =
        run(&server, &["run", &hello, "--event", r#"{"name":"x"}"#, "--env", "MODE=fast"]);
    assert_eq!((code, stdout.lines().next()), (0, Some("hello x")), "{stdout}{stderr}");
    let value: Value = serde_json::from_str(stdout.strip_prefix("hello x\n").unwrap()).unwrap();
    assert_eq!(value, json!({"name": "x", "mode": "fast"}));
    assert!(stderr.contains("note\n"), "{stderr}");
    let sessions = server.api.get("/sessions").await.is(200);
    assert_eq!(
        (&sessions["total"], &sessions["items"][0]["status"]),
        (&json!(1), &json!("terminated")),
        "its session is ended"
    );

    let fails = file(&server, "fails.py", "def handler(event): raise ValueError('no luck')");
    let (code, stdout, stderr) = run(&server, &["run", &fails]);
    assert!(
        code == 1 && stdout.is_empty() && stderr.contains("ValueError: no luck"),
        "{code} {stdout}{stderr}"
    );
    let exits = file(&server, "exits.sh", "echo out; exit 7");
    assert_eq!((run(&server, &["run", &exits]).0, run(&server, &["run", &exits]).1), (7, "out\n".into()));
    let slow =
        file(&server, "slow.js", "exports.handler = () => new Promise(() => setInterval(() => {}, 1000))");
    assert_eq!(run(&server, &["run", &slow, "--timeout", "1s"]).0, 124);
    let (code, _, stderr) = run(&server, &["run", "/does/not/exist.py"]);
    assert!(code == 2 && stderr.contains("exist.py"), "{code} {stderr}");
    assert_eq!(run(&server, &["run", &hello, "--event", "[1]"]).0, 2);

    let kept = json_of(&server, &["run", &hello, "--keep"]);
    let id = kept["session_id"].as_str().unwrap_or_else(|| panic!("{kept}")).to_owned();
    assert_eq!((&kept["status"], &kept["stdout"]), (&json!("completed"), &json!("hello None\n")), "{kept}");
    assert_eq!(server.api.get(&format!("/sessions/{id}")).await.is(200)["status"], "running");
    let again = json_of(&server, &["run", &hello, "--session", &id]);
    assert_eq!(again["session_id"], id.as_str());
}

async fn sessions_are_managed_from_the_command_line(wiring: Wiring) {
    let server = wiring.start().await;
    let (code, id, stderr) =
        run(&server, &["session", "create", "--template", "python-basic", "--timeout", "2m"]);
    assert_eq!(code, 0, "{stderr}");
    let id = id.trim();
    assert!(id.starts_with("sess_"), "{id}");
    assert_eq!(server.api.get(&format!("/sessions/{id}")).await.is(200)["timeout"], 120);
    let listed = json_of(&server, &["session", "list"]);
    assert_eq!(listed["items"][0]["id"], id, "{listed}");
    let (code, table, _) = run(&server, &["session", "list", "--status", "running"]);
    assert!(code == 0 && table.contains(id) && table.contains("python-basic"), "{table}");
    let shown = json_of(&server, &["session", "get", id]);
    assert_eq!((&shown["id"], &shown["status"]), (&json!(id), &json!("running")));
    assert_eq!(run(&server, &["session", "terminate", id]).0, 0);
    assert_eq!(json_of(&server, &["session", "get", id])["status"], "terminated");
    let (code, stdout, stderr) = run(&server, &["session", "get", "none"]);
    assert!(
        code == 125 && stdout.is_empty() && stderr.contains("session `none` not found"),
        "{code} {stderr}"
    );

    let templates = json_of(&server, &["template", "list"]).to_string();
    assert!(templates.contains("python-basic") && templates.contains("shell-basic"), "{templates}");
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(&server, &["completions", shell]);
        assert!(code == 0 && script.contains("sandmesh") && script.contains("terminate"), "{shell}");
    }
    let mut elsewhere = sandmesh(&server, &["session", "list"]);
    let output = elsewhere.env("SANDMESH_URL", "http://127.0.0.1:1").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && stderr.contains("SANDMESH_URL"), "{stderr}");
}

async fn exec_runs_a_command_in_a_session(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let (code, stdout, _) =
        run(&server, &["exec", &id, "--", "sh", "-c", "echo $0 in $(pwd); exit 3", "a b"]);
    assert_eq!((code, stdout.as_str()), (3, "a b in /workspace\n"));
    let mut piped = sandmesh(&server, &["exec", &id, "--", "tr", "a-z", "A-Z"]);
    let mut child = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all("through a pipe\n".repeat(10_000).as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "THROUGH A PIPE\n".repeat(10_000));
    let (code, _, stderr) = run(&server, &["exec", &id, "--", "no-such-program"]);
    assert!(code != 0 && stderr.contains("no-such-program"), "{code} {stderr}");
    let (code, _, stderr) = run(&server, &["exec", "none", "--", "true"]);
    assert!(code == 125 && stderr.contains("session `none` not found"), "{code} {stderr}");
    assert_eq!(
        server.api.get(&format!("/sessions/{id}")).await.is(200)["status"],
        "running",
        "exec ends no session"
    );
}
