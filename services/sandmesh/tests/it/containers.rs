//! Sandboxes as containers of real engines: what holds for processes holds for them, and what is their own. Each
//! rule is tested on each engine, and what happens to one that is killed is its own.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    attack::{doctor, found, outcome},
    harness::{
        IN_CONTAINERS, Server, TestEngine, Wiring,
        engine::{BUSYBOX, Kind, PYTHON},
        eventually,
        process::{SANDMESH, signal},
        settings_for,
    },
};

/// The images that the templates name which a new server has, made of Debian packages.
const OF_TEMPLATES: [(&str, &str); 2] = [(PYTHON, "python:3.11-slim"), (BUSYBOX, "debian:12-slim")];

/// The engine of all tests, with the images of templates.
fn engine(kind: Kind) -> Arc<TestEngine> {
    let mut engine = None;
    for (image, name) in OF_TEMPLATES {
        let have = TestEngine::shared(kind, image);
        have.tag(image, name);
        engine = Some(have);
    }
    Arc::new(engine.expect("there are images"))
}

/// An engine of the test's own, for shells only.
fn own_engine(kind: Kind, live_restore: bool) -> TestEngine {
    let engine = TestEngine::own(kind, BUSYBOX, live_restore);
    engine.tag(BUSYBOX, "debian:12-slim");
    engine
}

/// Makes tests of bodies that others have, too: in one process, with containers.
macro_rules! in_containers {
    ($kind:expr, $($module:ident::$body:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
        async fn $body() {
            let body = crate::$module::$body(Wiring::Embedded);
            IN_CONTAINERS.scope(engine($kind), body).await;
        })+
    };
}

/// Makes tests of the rules for every engine.
macro_rules! on_each {
    (@$module:ident $kind:expr, $($rule:ident),+ $(,)?) => {
        mod $module {
            use super::*;

            in_containers!(
                $kind,
                behaviours_files::file_is_uploaded_listed_read_by_code_and_downloaded_byte_for_byte,
                control::run_beyond_a_limit_ends_with_its_cause_and_the_session_goes_on,
                crash::killed_server_loses_no_execution_and_runs_none_twice,
                dependencies::packages_are_installed_when_a_session_is_created,
                pools::a_warm_sandbox_is_all_that_a_cold_one_is,
                pools::a_claimed_sandbox_outlives_a_killed_server,
            );

            async fn within(attack: impl Future<Output = ()>) {
                IN_CONTAINERS.scope(engine($kind), attack).await;
            }

            attack_suite!(within);

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn $rule() {
                super::$rule($kind).await;
            })+
        }
    };
    ($($rule:ident),+ $(,)?) => {
        on_each!(@docker Kind::Docker, $($rule),+);
        on_each!(@containerd Kind::Containerd, $($rule),+);
    };
}

on_each!(
    a_session_runs_in_a_container_of_its_image_and_says_so,
    output_of_a_container_arrives_while_it_runs,
    disk_and_time_limits_fire_in_a_container,
    a_container_that_dies_is_noticed_with_its_cause,
    an_image_that_cannot_be_had_is_the_reason_of_the_session,
    the_doctor_knows_an_engine_that_is_chosen,
    a_server_of_the_suites_own_has_the_engine_of_the_settings,
    a_deployment_is_attacked_from_its_host,
    sessions_outlive_a_killed_engine_that_keeps_its_containers,
);

async fn start(engine: &Arc<TestEngine>, wiring: Wiring, settings: &[(&str, &str)]) -> Server {
    IN_CONTAINERS.scope(Arc::clone(engine), wiring.start_with(settings)).await
}

fn shell(code: &str) -> Value {
    json!({"language": "shell", "code": code, "timeout": 60})
}

async fn a_session_runs_in_a_container_of_its_image_and_says_so(kind: Kind) {
    let engine = engine(kind);
    let server = start(&engine, Wiring::Split, &[]).await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "python-basic", "env_vars": {"NAME": "box"}})).await;
    let isolation = &session["effective_isolation"];
    for (layer, word) in [
        ("sandbox", "container"),
        ("jail", "bubblewrap"),
        ("seccomp", "strict"),
        ("network", "none"),
        ("user", "dedicated"),
        ("interpreters", "warm"),
    ] {
        assert_eq!(isolation[layer], word, "{isolation}");
    }
    assert!(isolation["limits"].as_str().is_some_and(|limits| limits.starts_with("cgroup-v")), "{isolation}");
    let id = session["id"].as_str().unwrap();
    let code = "import os, sys\ndef handler(event):\n    print('hello', event['who'])\n    return [os.getcwd(), os.environ['NAME'], os.path.exists('/run/sandmesh'), sys.version_info[0]]";
    let run = api.execute(id, json!({"language": "python", "code": code, "event": {"who": "you"}})).await;
    assert_eq!((&run["stdout"], &run["exit_code"]), (&json!("hello you\n"), &json!(0)), "{run}");
    assert_eq!(run["return_value"], json!(["/workspace", "box", false, 3]), "{run}");
    // The image is what code sees, and nothing of it can be changed.
    let run =
        api.run(id, "shell", "touch /usr/x /x /opt/x 2>&1 | wc -l; id -u; ls /proc | grep -c '^[0-9]'").await;
    assert!(run["stdout"].as_str().unwrap().starts_with("3\n1000\n"), "{run}");
    let log = api.get("/containers").await.is(200);
    let container = log["containers"][0]["id"].as_str().or_else(|| log["items"][0]["id"].as_str());
    let container = container.unwrap_or_else(|| panic!("no container in {log}"));
    let log = api.get(&format!("/containers/{container}/logs")).await;
    assert!(log.status == 200 && log.text.contains("serving"), "{}", log.text);
    api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn output_of_a_container_arrives_while_it_runs(kind: Kind) {
    let engine = engine(kind);
    let server = start(&engine, Wiring::Embedded, &[]).await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "shell-basic"})).await;
    let id = session["id"].as_str().unwrap();
    let execution =
        api.start(id, shell("echo first; while [ ! -e go ]; do sleep 0.1; done; echo second")).await;
    api.wrote(&execution, "first").await;
    assert_eq!(api.get(&format!("/executions/{execution}")).await.is(200)["status"], "running");
    api.execute(id, shell("echo > go")).await;
    assert_eq!(api.ended(&execution).await["stdout"], "first\nsecond\n");
}

async fn disk_and_time_limits_fire_in_a_container(kind: Kind) {
    let engine = engine(kind);
    let server = start(&engine, Wiring::Embedded, &[]).await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "shell-basic", "disk": "16Mi"})).await;
    let id = session["id"].as_str().unwrap();
    let fill = "i=0; while true; do dd if=/dev/zero of=f$i bs=1M count=4 2>/dev/null; i=$((i+1)); done";
    let run = api.execute(id, json!({"language": "shell", "code": fill, "timeout": 50})).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("disk_limit")), "{run}");
    let began = Instant::now();
    let run = api.execute(id, json!({"language": "shell", "code": "echo a; sleep 60", "timeout": 1})).await;
    assert_eq!((&run["status"], &run["stdout"]), (&json!("timeout"), &json!("a\n")), "{run}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

async fn a_container_that_dies_is_noticed_with_its_cause(kind: Kind) {
    let engine = engine(kind);
    let server = start(&engine, Wiring::Embedded, &[("SANDMESH_SESSION__MAX_RECOVERIES", "0")]).await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "shell-basic"})).await;
    let id = session["id"].as_str().unwrap();
    let running = api.start(id, shell("echo begun; sleep 60")).await;
    api.wrote(&running, "begun").await;
    let began = Instant::now();
    signal(engine.pid_of(&server.containers()[0]), Signal::KILL);
    let run = api.ended(&running).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("executor_lost")), "{run}");
    let session = api.session_is(id, "failed").await;
    assert!(session["status_reason"].as_str().unwrap().contains("signal 9"), "{session}");
    println!("crashed {:?} after the kill", began.elapsed());
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn an_image_that_cannot_be_had_is_the_reason_of_the_session(kind: Kind) {
    let engine = engine(kind);
    let server = start(&engine, Wiring::Embedded, &[]).await;
    let api = &server.api;
    let template = json!({"id": "gone", "name": "gone", "image_url": "127.0.0.1:1/nobody/nothing:1", "runtime_type": "bash"});
    api.post("/templates", template).await.is(201);
    let session = api.post("/sessions", json!({"template_id": "gone"})).await.is(201);
    let session = api.session_is(session["id"].as_str().unwrap(), "failed").await;
    let reason = session["status_reason"].as_str().unwrap();
    let why = match kind {
        Kind::Docker => "cannot be reached",
        Kind::Containerd => "ctr --namespace sandmesh images import",
    };
    assert!(reason.contains("127.0.0.1:1/nobody/nothing:1") && reason.contains(why), "{reason}");
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn the_doctor_knows_an_engine_that_is_chosen(kind: Kind) {
    let engine = engine(kind);
    let (dir, settings) = (tempfile::tempdir().unwrap(), settings_for(&engine));
    let mut settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (&**name, &**value)).collect();
    let data_dir = dir.path().join("data").display().to_string();
    let (code, document) = doctor(&settings, &data_dir);
    assert_eq!((code, &document["ok"]), (Some(0), &json!(true)), "{document:#}");
    assert_eq!(
        (&document["runtime"], &document["isolation"]["sandbox"]),
        (&json!(kind.name()), &json!("container"))
    );
    assert_eq!(document["isolation"]["jail"], "bubblewrap", "{document:#}");
    assert!(document["runtimes"].as_array().unwrap().contains(&json!(kind.name())), "{document:#}");
    let line = found(&document, &format!("runtime {}", kind.name()));
    assert!(line["found"].as_str().unwrap().starts_with("chosen: "), "{line}");
    let images = found(&document, "images");
    assert!(images["found"].as_str().unwrap().contains("missing: node:20-slim"), "{images}");
    let level = if kind == Kind::Docker { "ok" } else { "warning" };
    assert_eq!(images["level"], level, "one that nobody brings: {images}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "nothing is left, and no data directory is made");
    // The same without an executor that runs in every image.
    let dynamic = crate::harness::process::executor().display().to_string();
    settings.push(("SANDMESH_AGENT__EXECUTOR", &dynamic));
    let (code, document) = doctor(&settings, &data_dir);
    let line = found(&document, &format!("runtime {}", kind.name()));
    assert_eq!((code, &line["level"]), (Some(1), &json!("problem")), "{document:#}");
    assert!(line["meaning"].as_str().unwrap().contains("static"), "{line}");
}

async fn a_server_of_the_suites_own_has_the_engine_of_the_settings(kind: Kind) {
    let engine = engine(kind);
    let mut command = Command::new(SANDMESH);
    // Named by the flag, and not by the settings.
    let settings = settings_for(&engine).into_iter().filter(|(name, _)| !name.ends_with("__RUNTIME"));
    command
        .args(["doctor", "--attack", "--own-server", "--runtime", kind.name(), "--cases", "12,18"])
        .envs(settings);
    was_attacked(command, kind);
}

async fn a_deployment_is_attacked_from_its_host(kind: Kind) {
    let engine = engine(kind);
    let server = start(&engine, Wiring::Split, &[]).await;
    let mut command = Command::new(SANDMESH);
    let url = format!("http://127.0.0.1:{}", server.port);
    command
        .args(["doctor", "--attack", "--url", &url, "--cases", "12,18", "--data-dir"])
        .arg(server.data_dir());
    was_attacked(command, kind);
}

/// Cases of which the second is seen on the host held, in this runtime.
fn was_attacked(mut command: Command, kind: Kind) {
    command.args(["-o", "json"]);
    let (code, document) = outcome(command);
    assert_eq!((code, &document["ok"]), (Some(0), &json!(true)), "{document:#}");
    let rows = document["rows"].as_array().unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row["runtime"] == kind.name()), "{document:#}");
    let checks = rows[1]["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["witness"] == "host"), "{document:#}");
}

async fn sessions_outlive_a_killed_engine_that_keeps_its_containers(kind: Kind) {
    let mut own = own_engine(kind, true);
    let server = start_on(&own).await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "shell-basic"})).await;
    let id = session["id"].as_str().unwrap();
    let running = api.start(id, shell("echo begun; while [ ! -e go ]; do sleep 0.1; done; echo done")).await;
    api.wrote(&running, "begun").await;
    own.kill();
    assert_eq!(api.execute(id, shell("echo meanwhile")).await["stdout"], "meanwhile\n");
    own.start_again();
    api.execute(id, shell("echo > go")).await;
    assert_eq!(api.ended(&running).await["stdout"], "begun\ndone\n");
    end_all(&server, &[id.to_owned()]).await;
    assert_eq!(containers(&own, &server), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_of_a_killed_engine_that_keeps_nothing_recover_and_nothing_is_left() {
    let mut own = own_engine(Kind::Docker, false);
    let server = start_on(&own).await;
    let api = &server.api;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let session = api.create(json!({"template_id": "shell-basic"})).await;
        sessions.push(session["id"].as_str().unwrap().to_owned());
    }
    let mut running = Vec::new();
    for id in &sessions {
        api.upload(id, "kept", "kept").await.is(200);
        running.push(api.start(id, shell("echo begun; sleep 100")).await);
        api.wrote(&running[running.len() - 1], "begun").await;
    }
    own.kill();
    own.start_again();
    for execution in &running {
        let run = api.ended(execution).await;
        assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("executor_lost")), "{run}");
        assert_eq!(run["stdout"], "begun\n");
    }
    for id in &sessions {
        let session = api.session_is(id, "running").await;
        assert_eq!(session["recovery_count"], 1, "{session}");
        assert_eq!(api.execute(id, shell("cat kept")).await["stdout"], "kept");
    }
    assert_eq!(containers(&own, &server).len(), 3, "those that died are gone");
    end_all(&server, &sessions).await;
    assert_eq!(containers(&own, &server), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_made_while_containerd_is_killed_run_or_say_why_and_nothing_is_left() {
    let mut own = own_engine(Kind::Containerd, false);
    let server = start_on(&own).await;
    let api = &server.api;
    let first = api.create(json!({"template_id": "shell-basic"})).await["id"].as_str().unwrap().to_owned();
    let running =
        api.start(&first, shell("echo begun; while [ ! -e go ]; do sleep 0.1; done; echo done")).await;
    api.wrote(&running, "begun").await;
    let mut sessions = vec![first.clone()];
    for round in 0..3_u64 {
        // Some of them are being made when it dies, at another point each time.
        for _ in 0..3 {
            let made = api.post("/sessions", json!({"template_id": "shell-basic"})).await.is(201);
            sessions.push(made["id"].as_str().unwrap().to_owned());
        }
        tokio::time::sleep(Duration::from_millis(70 * round + 30)).await;
        own.kill();
        assert_eq!(api.execute(&first, shell("echo meanwhile")).await["stdout"], "meanwhile\n");
        own.start_again();
    }
    let mut failed = 0;
    for id in &sessions {
        let path = format!("/sessions/{id}");
        let settled = async || api.get(&path).await.is(200)["status"] != "creating";
        eventually("it is made, or is not", Duration::from_secs(60), settled).await;
        let session = api.get(&path).await.is(200);
        if session["status"] == "running" {
            assert_eq!(api.execute(id, shell("echo well")).await["stdout"], "well\n");
        } else {
            assert!(session["status_reason"].as_str().unwrap().contains("containerd"), "{session}");
            failed += 1;
        }
    }
    println!("{failed} of {} could not be made", sessions.len());
    api.execute(&first, shell("echo > go")).await;
    assert_eq!(api.ended(&running).await["stdout"], "begun\ndone\n");
    let again = api.create(json!({"template_id": "shell-basic"})).await;
    sessions.push(again["id"].as_str().unwrap().to_owned());
    for id in &sessions {
        api.send(api.request("POST", &format!("/sessions/{id}/terminate"))).await;
    }
    eventually("nothing is left", Duration::from_secs(30), async || server.leftovers().is_empty()).await;
    assert_eq!(own.remnants("sandmesh-"), [""; 0]);
}

/// A server on an engine that the test goes on to have for itself.
async fn start_on(engine: &TestEngine) -> Server {
    let same = Arc::new(TestEngine::of(engine));
    start(&same, Wiring::Embedded, &[]).await
}

fn containers(engine: &TestEngine, server: &Server) -> Vec<String> {
    engine.containers("io.sandmesh.owner", &server.data_dir().display().to_string())
}

async fn end_all(server: &Server, sessions: &[String]) {
    for id in sessions {
        server.api.send(server.api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    }
    eventually("nothing is left", Duration::from_secs(20), async || server.leftovers().is_empty()).await;
}
