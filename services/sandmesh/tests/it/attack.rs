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

/// Runs the cases of these numbers; none may fail.
async fn holds(target: &Target, numbers: &[u8]) {
    none_fails(target, |case| numbers.contains(&case.number)).await;
}

async fn none_fails(target: &Target, chosen: impl Fn(&Case) -> bool) {
    let rows = run(target, CASES.iter().filter(|case| chosen(case))).await;
    assert!(rows.iter().any(|row| row.verdict == Verdict::Held), "nothing was attacked");
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| row.verdict.is_failure())
        .map(|row| format!("{} {}: {} {}", row.number, row.case, row.verdict, row.got))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The same against a server with a key and everything in one process.
pub(crate) async fn holds_embedded(numbers: &[u8]) {
    let (name, key) = with_key();
    let (_server, target) = prepare(Wiring::Embedded, &[(name, &key)]).await;
    holds(&target, numbers).await;
}

/// The same for one case that takes its time.
async fn holds_alone(name: &str) {
    let (_server, target) = prepare(Wiring::Embedded, &[]).await;
    none_fails(&target, |case| case.name == name).await;
}

#[tokio::test]
async fn files_of_tenants_lead_nowhere() {
    holds_embedded(&[1, 2, 3, 4, 5, 6, 7]).await;
}

#[tokio::test]
async fn the_kernel_is_out_of_reach() {
    holds_embedded(&[9, 10, 11, 12, 13, 14, 15, 16, 17, 18]).await;
}

#[tokio::test]
async fn nothing_is_reached_over_a_network() {
    holds_embedded(&[19, 20, 21]).await;
}

#[tokio::test]
async fn fork_bombs_are_bounded() {
    holds_alone("fork bomb").await;
}

#[tokio::test]
async fn pools_of_the_whole_machine_are_not_emptied() {
    holds_alone("pools of the whole machine").await;
}

#[tokio::test]
async fn endless_output_is_bounded() {
    holds_embedded(&[24]).await;
}

#[tokio::test]
async fn memory_of_every_kind_is_bounded() {
    holds_embedded(&[23]).await;
}

#[tokio::test]
async fn disks_are_not_filled() {
    holds_alone("disk, inodes, holes").await;
}

#[tokio::test]
async fn disks_are_not_filled_out_of_sight() {
    holds_alone("disk, out of sight").await;
}

#[tokio::test]
async fn what_does_not_want_to_end_ends() {
    holds_embedded(&[26, 27, 28, 29]).await;
}

#[tokio::test]
async fn huge_requests_and_slow_readers_are_bounded() {
    holds_embedded(&[30]).await;
}

#[tokio::test]
async fn a_run_neither_harms_the_next_nor_the_one_beside() {
    holds_embedded(&[31, 32, 33, 34, 35, 36]).await;
}

#[tokio::test]
async fn only_who_may_gets_in() {
    holds_embedded(&[37, 38, 39, 40, 41, 42, 43, 44]).await;
}

/// A mesh of several processes has more to break into; a gateway without keys has less to show.
#[tokio::test]
async fn a_mesh_of_processes_without_keys_holds_too() {
    let (_server, target) = prepare(Wiring::Split, &[]).await;
    holds(&target, &[4, 21, 33, 39, 42, 43, 44]).await;
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

/// `sandmesh doctor` with these settings: its exit code and its document.
fn doctor(settings: &[(&str, &str)], data_dir: &str) -> (Option<i32>, serde_json::Value) {
    let mut command = std::process::Command::new(process::SANDMESH);
    command.args(["doctor", "-o", "json", "--data-dir", data_dir]).envs(settings.iter().copied());
    let output = command.output().unwrap();
    let document = serde_json::from_slice(&output.stdout);
    (output.status.code(), document.unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

#[test]
fn the_doctor_says_that_a_machine_that_runs_these_tests_is_well() {
    process::executor();
    let dir = tempfile::tempdir().unwrap();
    let (code, document) = doctor(&[], dir.path().to_str().unwrap());
    assert_eq!((code, &document["ok"]), (Some(0), &true.into()), "{document:#}");
    assert_eq!(document["runtimes"], serde_json::json!(["process"]));
    assert_eq!(document["isolation"]["jail"], "bubblewrap");
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
        let finding = document["findings"].as_array().unwrap().iter().find(|f| f["what"] == what).unwrap();
        assert_eq!(finding["level"], "problem", "{finding}");
        assert!(finding["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{finding}");
    }
}
