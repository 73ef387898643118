//! The attack suite against a real server, one test for each group of cases; `just attack` prints the table.

use sandmesh::attack::{self, CASES, Case, Local, Row, Target, Verdict};
use sandmesh_mesh::Secret;

use crate::harness::{HOST_SECRET, Server, Wiring, process};

const KEY: &str = "0123456789-key-of-the-attack-tests";

/// A server with a key, and how to attack it.
async fn prepare(wiring: Wiring, settings: &[(&str, &str)]) -> (Server, Target) {
    let server = wiring.start_unready(settings).await;
    let local = Local {
        data_dir: server.data_dir(),
        pids: server.processes.iter().map(|process| process.pid().unsigned_abs()).collect(),
        logs: server.processes.iter().map(|process| process.launch.log.clone()).collect(),
        secrets: vec![HOST_SECRET.1.to_owned(), KEY.to_owned()],
    };
    let keyed = settings.iter().any(|(name, _)| name.contains("API_KEYS"));
    let target = Target {
        url: format!("http://127.0.0.1:{}", server.port),
        api_key: keyed.then(|| Secret::new(KEY)),
        template: "python-basic".to_owned(),
        local: Some(local),
        program: Some(process::SANDMESH.into()),
    };
    (server, target)
}

fn with_key() -> (&'static str, String) {
    ("SANDMESH_GATEWAY__API_KEYS", format!("[\"{KEY}\"]"))
}

async fn run(target: &Target, cases: impl Iterator<Item = &'static Case>) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in cases {
        let row = attack::run(case, target).await.unwrap();
        println!("{:>2} {}: {} in {:.1} s: {}", row.number, row.case, row.verdict, row.seconds, row.got);
        rows.push(row);
    }
    rows
}

/// A part of the suite.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// The cases of these numbers.
    Numbers(&'static [u8]),
    /// One case that takes its time.
    Name(&'static str),
}

impl Part {
    fn has(self, case: &Case) -> bool {
        match self {
            Self::Numbers(numbers) => numbers.contains(&case.number),
            Self::Name(name) => case.name == name,
        }
    }
}

/// Runs the cases of a part; none may fail. Those that are attacked are attacked in this runtime.
async fn holds(target: &Target, part: Part, runtime: &str) {
    let rows = run(target, CASES.iter().filter(|case| part.has(case))).await;
    assert!(rows.iter().any(|row| row.verdict == Verdict::Held), "nothing was attacked");
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| row.verdict.is_failure() || ![runtime, "-"].contains(&row.runtime.as_str()))
        .map(|row| format!("{} {} ({}): {} {}", row.number, row.case, row.runtime, row.verdict, row.got))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The same against a server with a key and everything in one process.
pub(crate) async fn holds_embedded(part: Part) {
    let (name, key) = with_key();
    let (server, target) = prepare(Wiring::Embedded, &[(name, &key)]).await;
    holds(&target, part, server.runtime()).await;
}

/// These parts are the whole suite, but for what is never run.
pub(crate) fn expect_all_of(parts: &[Part]) {
    const NEVER_RUN: [u8; 2] = [8, 45];
    let mut rest = CASES.iter().filter(|case| !parts.iter().any(|part| part.has(case)));
    assert!(rest.all(|case| NEVER_RUN.contains(&case.number)), "no part has one of the cases");
}

async fn as_processes(attack: impl Future<Output = ()>) {
    attack.await;
}

attack_suite!(as_processes);

/// A mesh of several processes has more to break into; a gateway without keys has less to show.
#[tokio::test]
async fn a_mesh_of_processes_without_keys_holds_too() {
    let (server, target) = prepare(Wiring::Split, &[]).await;
    holds(&target, Part::Numbers(&[4, 21, 33, 39, 42, 43, 44]), server.runtime()).await;
}

/// The suite has teeth: without walls the same attacks succeed, and the table says so.
#[tokio::test]
async fn a_server_without_walls_fails() {
    let settings = [
        ("SANDMESH_AGENT__ISOLATION__JAIL", "off"),
        ("SANDMESH_AGENT__ISOLATION__SECCOMP", "off"),
        ("SANDMESH_AGENT__ISOLATION__CGROUPS", "off"),
    ];
    let (_server, target) = prepare(Wiring::Embedded, &settings).await;
    // Those whose success leaves nothing behind on the machine that runs the tests.
    let must_fail = [
        "namespaces and mounts",
        "dangerous system calls",
        "sockets of rare families",
        "32-bit and x32 system calls",
        "devices and kernel knobs",
        "control groups",
        "any network, names",
        "control plane, host services",
    ];
    let walls = CASES.iter().filter(|case| must_fail.contains(&case.name));
    let rows = run(&target, walls).await;
    assert_eq!(rows.len(), must_fail.len(), "every one of them is a case");
    for row in rows {
        assert_eq!(row.verdict, Verdict::Breached, "{} {}: {}", row.number, row.case, row.got);
    }
}

#[test]
fn every_number_of_the_list_has_a_case() {
    let numbers: std::collections::BTreeSet<u8> = CASES.iter().map(|case| case.number).collect();
    assert_eq!(numbers, (1..=45).collect());
    let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CASES.len(), "a name means one case");
}

/// Settings by which no engine of the machine that runs the tests is seen.
const NO_ENGINES: [(&str, &str); 2] = [
    ("SANDMESH_AGENT__DOCKER__SOCKET", "/nonexistent/docker.sock"),
    ("SANDMESH_AGENT__CONTAINERD__SOCKET", "/nonexistent/containerd.sock"),
];

/// `sandmesh doctor` with these settings: its exit code and its document.
pub(crate) fn doctor(settings: &[(&str, &str)], data_dir: &str) -> (Option<i32>, serde_json::Value) {
    let mut command = std::process::Command::new(process::SANDMESH);
    command
        .args(["doctor", "-o", "json", "--data-dir", data_dir])
        .envs(NO_ENGINES)
        .envs(settings.iter().copied());
    outcome(command)
}

/// The exit code of a command, and the document that it prints.
pub(crate) fn outcome(mut command: std::process::Command) -> (Option<i32>, serde_json::Value) {
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    let document = serde_json::from_slice(&output.stdout);
    (output.status.code(), document.unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

/// What the doctor found about a thing.
pub(crate) fn found<'a>(document: &'a serde_json::Value, what: &str) -> &'a serde_json::Value {
    let finding = document["findings"].as_array().unwrap().iter().find(|finding| finding["what"] == what);
    finding.unwrap_or_else(|| panic!("nothing about {what}: {document:#}"))
}

#[test]
fn the_doctor_says_that_a_machine_that_runs_these_tests_is_well() {
    process::executor();
    let dir = tempfile::tempdir().unwrap();
    let (code, document) = doctor(&[], dir.path().to_str().unwrap());
    assert_eq!((code, &document["ok"]), (Some(0), &true.into()), "{document:#}");
    assert_eq!(document["runtimes"], serde_json::json!(["process"]));
    assert_eq!(document["isolation"]["jail"], "bubblewrap");
    for (what, told) in [
        ("runtime process", "chosen; can be used"),
        ("runtime docker", "not here: there is no `/nonexistent/docker.sock`"),
        ("runtime containerd", "not here: there is no `/nonexistent/containerd.sock`"),
    ] {
        let finding = found(&document, what);
        assert_eq!((&finding["level"], &finding["found"]), (&"ok".into(), &told.into()), "{finding}");
    }
}

#[test]
fn the_doctor_says_what_is_wrong_with_a_runtime_that_is_chosen_and_not_here() {
    let dir = tempfile::tempdir().unwrap();
    for runtime in ["docker", "containerd"] {
        let settings = [("SANDMESH_AGENT__RUNTIME", runtime)];
        let (code, document) = doctor(&settings, dir.path().to_str().unwrap());
        assert_eq!((code, &document["runtime"]), (Some(1), &runtime.into()), "{document:#}");
        let finding = found(&document, &format!("runtime {runtime}"));
        assert_eq!(finding["level"], "problem", "{finding}");
        let setting = format!("agent.{runtime}.socket");
        assert!(finding["fix"].as_str().unwrap().contains(&setting), "{finding}");
        assert!(!document["runtimes"].as_array().unwrap().contains(&runtime.into()), "{document:#}");
    }
}

#[tokio::test]
async fn a_sandbox_that_was_warm_is_seen_on_its_host() {
    let (server, target) = prepare(Wiring::Embedded, &[]).await;
    server.api.put("/pools/python-basic", serde_json::json!({"min": 1, "max": 1})).await.is(200);
    let warm = async || server.api.get("/pools/python-basic").await.is(200)["warm"] == 1;
    crate::harness::eventually("one is warm", std::time::Duration::from_secs(30), warm).await;
    assert!(attack::is_local(&target).await.unwrap());
}

#[test]
fn the_doctor_names_each_problem_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(80));
    let (code, document) =
        doctor(&[("SANDMESH_AGENT__EXECUTOR", "/nonexistent/executor")], long.to_str().unwrap());
    assert_eq!((code, &document["ok"]), (Some(1), &false.into()), "{document:#}");
    assert_eq!(document["runtimes"], serde_json::json!([]));
    for what in ["executor", "socket paths"] {
        let finding = found(&document, what);
        assert_eq!(finding["level"], "problem", "{finding}");
        assert!(finding["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{finding}");
    }
}
