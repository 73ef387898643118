//! Behaviour 40: packages of sessions, from an index of the test's own.

use std::time::{Duration, Instant};

use sandmesh_mesh::database::testing::Kind;
use sandmesh_proto::session::{
    Dependency, InstallDependenciesRequest, dependency_service_client::DependencyServiceClient,
};
use serde_json::{Value, json};

use crate::harness::{Api, Index, Server, Wiring, eventually, twofold::Twofold};

in_both_wirings!(
    packages_are_installed_when_a_session_is_created,
    packages_are_added_to_a_session_and_those_that_are_there_stay,
    packages_that_cannot_be_installed_fail_the_session_with_the_installers_words,
    sessions_that_want_the_same_share_one_installation,
    packages_of_node_are_installed_by_npm,
    a_session_role_that_is_killed_in_the_middle_goes_on_afterwards,
    an_agent_that_is_killed_in_the_middle_starts_over,
);

const VERSION: &str = "import alpha\ndef handler(event): return alpha.version";

async fn start(wiring: Wiring, more: &[(&str, &str)]) -> (Index, Server) {
    let index = Index::start(1);
    let server = wiring.start_with(&index.settings(more)).await;
    (index, server)
}

fn body(dependencies: &Value) -> Value {
    json!({"template_id": "python-basic", "dependencies": dependencies, "timeout": 600})
}

/// Waits for the end of what is being installed.
async fn settled(api: &Api, id: &str) -> Value {
    let mut session = Value::Null;
    eventually("nothing is being installed", Duration::from_secs(90), async || {
        session = api.get(&format!("/sessions/{id}")).await.is(200);
        let installing =
            ["pending", "installing"].map(Value::from).contains(&session["dependency_install_status"]);
        !installing && session["status"] != "creating"
    })
    .await;
    session
}

async fn created(api: &Api, dependencies: &Value) -> (String, Value) {
    let session = api.post("/sessions", body(dependencies)).await.is(201);
    let id = session["id"].as_str().unwrap().to_owned();
    let session = settled(api, &id).await;
    (id, session)
}

async fn install(api: &Api, id: &str, dependencies: &Value) -> crate::harness::Reply {
    api.post(&format!("/sessions/{id}/dependencies/install"), json!({"dependencies": dependencies})).await
}

fn versions(session: &Value) -> Vec<(&str, &str)> {
    let all = session["installed_dependencies"].as_array().unwrap();
    all.iter().map(|one| (one["name"].as_str().unwrap(), one["version"].as_str().unwrap())).collect()
}

pub(crate) async fn packages_are_installed_when_a_session_is_created(wiring: Wiring) {
    let (_index, server) = start(wiring, &[]).await;
    let api = &server.api;
    let asked = json!([{"name": "alpha", "version": "==1.0"}, {"name": "beta"}, {"name": "nativepkg"}]);
    let session = api.post("/sessions", body(&asked)).await.is(201);
    let id = session["id"].as_str().unwrap();
    assert!(session["dependency_install_status"].is_string(), "{session}");
    // Accepted while it is being created, it waits.
    let waiting = api.start(id, json!({"language": "python", "code": VERSION})).await;
    let session = settled(api, id).await;
    assert_eq!(session["status"], "running", "{session}");
    assert_eq!(session["dependency_install_status"], "completed", "{session}");
    assert_eq!(versions(&session), [("alpha", "1.0"), ("beta", "1.0"), ("nativepkg", "1.0")]);
    assert_eq!(session["requested_dependencies"].as_array().unwrap().len(), 3, "{session}");
    for installed in session["installed_dependencies"].as_array().unwrap() {
        assert_eq!(installed["install_location"], "/packages", "{installed}");
        assert_eq!(installed["is_from_template"], false, "{installed}");
        assert!(installed["install_time"].is_string(), "{installed}");
    }
    for time in ["dependency_install_started_at", "dependency_install_completed_at"] {
        assert!(session[time].is_string(), "{session}");
    }
    assert_eq!(api.ended(&waiting).await["return_value"], "1.0");
    let all = "import importlib.metadata, subprocess, sys, alpha, beta, nativepkg\ndef handler(event):\n    tool = subprocess.run(['alpha-tool'], capture_output=True, text=True)\n    child = subprocess.run([sys.executable, '-c', 'import beta; print(beta.uses)'], capture_output=True, text=True)\n    return [importlib.metadata.version('alpha'), beta.uses, nativepkg.answer(), tool.stdout, child.stdout]";
    let run = api.python(id, all).await;
    assert_eq!(run["return_value"], json!(["1.0", "1.0", 42, "alpha 1.0\n", "1.0\n"]), "{run}");
    let spoil = "def handler(event):\n    open('/packages/alpha.py', 'a').write('x')";
    assert_eq!(api.python(id, spoil).await["status"], "failed");
    assert_eq!(api.python(id, VERSION).await["return_value"], "1.0");
    // Without dependencies there is nothing of it.
    let bare = api.session().await;
    let bare = api.get(&format!("/sessions/{bare}")).await.is(200);
    assert_eq!(bare["dependency_install_status"], Value::Null);
    assert_eq!(api.python(bare["id"].as_str().unwrap(), VERSION).await["status"], "failed");
}

async fn packages_are_added_to_a_session_and_those_that_are_there_stay(wiring: Wiring) {
    let (_index, server) = start(wiring, &[]).await;
    let api = &server.api;
    let (id, _) = created(api, &json!([{"name": "alpha", "version": "==1.0"}])).await;
    let id = id.as_str();
    // What runs keeps what it has.
    let long = "import time, alpha, sys\ndef handler(event):\n    print('begun', flush=True)\n    time.sleep(6)\n    import alpha\n    return alpha.version";
    let long = api.start(id, json!({"language": "python", "code": long})).await;
    api.wrote(&long, "begun").await;
    install(api, id, &json!([{"name": "beta"}])).await.is(200);
    let session = settled(api, id).await;
    assert_eq!(versions(&session), [("alpha", "1.0"), ("beta", "1.0")], "{session}");
    assert_eq!(api.python(id, "import beta\ndef handler(e): return beta.uses").await["return_value"], "1.0");
    assert_eq!(api.ended(&long).await["return_value"], "1.0");
    // The last word on a version counts.
    install(api, id, &json!([{"name": "Alpha", "version": ">=2"}])).await.is(200);
    let session = settled(api, id).await;
    assert_eq!(versions(&session), [("alpha", "2.0"), ("beta", "1.0")], "{session}");
    assert_eq!(api.python(id, VERSION).await["return_value"], "2.0");
    // One that fails leaves what is there.
    install(api, id, &json!([{"name": "nosuchpackage"}])).await.is(200);
    let session = settled(api, id).await;
    assert_eq!(
        (&session["dependency_install_status"], &session["status"]),
        (&json!("failed"), &json!("running"))
    );
    let error = session["dependency_install_error"].as_str().unwrap();
    assert!(error.contains("nosuchpackage"), "{error}");
    assert_eq!(versions(&session), [("alpha", "2.0"), ("beta", "1.0")], "{session}");
    assert_eq!(api.python(id, VERSION).await["return_value"], "2.0");
    // It is not tried again with the next.
    install(api, id, &json!([{"name": "nativepkg"}])).await.is(200);
    assert_eq!(settled(api, id).await["dependency_install_status"], "completed");
    // One at a time.
    install(api, id, &json!([{"name": "pause"}])).await.is(200);
    install(api, id, &json!([{"name": "beta"}])).await.refused(409, "Sandbox.InstallRunning");
    assert_eq!(settled(api, id).await["dependency_install_status"], "completed");
    install(api, id, &json!([])).await.names("body.dependencies");
    install(api, id, &json!([{"name": "pandas2.3.3"}])).await.names("body.dependencies.0.name");
    install(api, "sess_20200101_00000000", &json!([{"name": "beta"}]))
        .await
        .refused(404, "Sandbox.SessionNotFound");
    api.post(&format!("/sessions/{id}/terminate"), json!({})).await.is(200);
    install(api, id, &json!([{"name": "beta"}])).await.refused(409, "Sandbox.SessionNotActive");
}

async fn packages_that_cannot_be_installed_fail_the_session_with_the_installers_words(wiring: Wiring) {
    let (_index, server) = start(wiring, &[]).await;
    let api = &server.api;
    for (name, word) in
        [("nosuchpackage", "No matching distribution"), ("broken", "this build script is broken")]
    {
        let (_, session) = created(api, &json!([{"name": name}])).await;
        assert_eq!(
            (&session["status"], &session["dependency_install_status"]),
            (&json!("failed"), &json!("failed"))
        );
        let error = session["dependency_install_error"].as_str().unwrap();
        assert!(error.contains(word), "{error}");
        let reason = session["status_reason"].as_str().unwrap();
        assert!(reason.contains(word), "{reason}");
    }
    server.expect_nothing_left(Duration::from_secs(10)).await;
    let mut kept = body(&json!([{"name": "nosuchpackage"}]));
    kept["fail_on_dependency_error"] = json!(false);
    let session = api.post("/sessions", kept).await.is(201);
    let session = settled(api, session["id"].as_str().unwrap()).await;
    assert_eq!(
        (&session["status"], &session["dependency_install_status"]),
        (&json!("running"), &json!("failed"))
    );
    let id = session["id"].as_str().unwrap();
    install(api, id, &json!([{"name": "alpha"}])).await.is(200);
    assert_eq!(settled(api, id).await["dependency_install_status"], "completed");
    assert_eq!(api.python(id, VERSION).await["return_value"], "2.0");
    for (dependencies, loc) in [
        (json!([{"name": "pandas2.3.3"}]), "body.dependencies.0.name"),
        (json!([{"name": "alpha", "version": "latest"}]), "body.dependencies.0.version"),
        (json!([{"name": "-r"}]), "body.dependencies.0.name"),
        (json!([{"name": "alpha @ http://127.0.0.1/x.whl"}]), "body.dependencies.0.name"),
        (json!([{"name": "@scope/left"}]), "body.dependencies.0.name"),
    ] {
        api.post("/sessions", body(&dependencies)).await.names(loc);
    }
    let mut elsewhere = body(&json!([{"name": "alpha"}]));
    elsewhere["python_package_index_url"] = json!("http://169.254.169.254/simple");
    api.post("/sessions", elsewhere).await.names("body.python_package_index_url");
    let shell = json!({"template_id": "shell-basic", "dependencies": [{"name": "alpha"}]});
    api.post("/sessions", shell).await.names("body.dependencies");
}

async fn sessions_that_want_the_same_share_one_installation(wiring: Wiring) {
    let (index, server) = start(wiring, &[]).await;
    let api = &server.api;
    let asked = json!([{"name": "pause"}, {"name": "alpha"}]);
    let begin = Instant::now();
    let all = futures::future::join_all((0..4).map(|_| created(api, &asked))).await;
    let first = begin.elapsed();
    for (id, session) in &all {
        assert_eq!(session["dependency_install_status"], "completed", "{session}");
        assert_eq!(api.python(id, VERSION).await["return_value"], "2.0");
    }
    assert_eq!(index.asked("/files/pause"), 1, "it was installed once");
    let begin = Instant::now();
    // Written in another way, it is the same.
    let again = json!([{"name": "ALPHA"}, {"name": "Pause"}]);
    let session = api.post("/sessions", body(&again)).await.is(201);
    let second = begin.elapsed();
    assert_eq!(session["status"], "running", "it starts without installing: {session}");
    assert_eq!(session["dependency_install_status"], "completed", "{session}");
    let begin = Instant::now();
    api.post("/sessions", json!({"template_id": "python-basic"})).await.is(201);
    println!(
        "{wiring:?}: four with an installation {first:?}, with the layer {second:?}, without {:?}",
        begin.elapsed()
    );
    assert_eq!(index.asked("/files/pause"), 1);
    assert!(second < Duration::from_secs(3), "{second:?}");
}

async fn packages_of_node_are_installed_by_npm(wiring: Wiring) {
    let (_index, server) = start(wiring, &[]).await;
    let api = &server.api;
    let asked =
        json!({"template_id": "nodejs-basic", "dependencies": [{"name": "left", "version": "^1.0.0"}]});
    let session = api.post("/sessions", asked).await.is(201);
    let id = session["id"].as_str().unwrap();
    let session = settled(api, id).await;
    assert_eq!(session["dependency_install_status"], "completed", "{session}");
    assert_eq!(versions(&session), [("left", "1.2.3")]);
    for code in [
        "const { left } = require('left'); exports.handler = () => left('x');",
        "import { left } from 'left'; export const handler = () => left('x');",
    ] {
        let run = api.run(id, "javascript", code).await;
        assert_eq!(run["return_value"], "<x", "{run}");
    }
    assert_eq!(api.run(id, "shell", "left-tool").await["stdout"], "left tool\n");
    install(api, id, &json!([{"name": "nosuchpackage"}])).await.is(200);
    let session = settled(api, id).await;
    let error = session["dependency_install_error"].as_str().unwrap();
    assert!(error.contains("nosuchpackage"), "{error}");
    let bad = json!({"template_id": "nodejs-basic", "dependencies": [{"name": "left", "version": "git+https://x/y"}]});
    api.post("/sessions", bad).await.names("body.dependencies.0.version");
}

async fn a_session_role_that_is_killed_in_the_middle_goes_on_afterwards(wiring: Wiring) {
    let keep = [("SANDMESH_AGENT__ON_SHUTDOWN", "keep")];
    let (index, mut server) = start(wiring, &keep).await;
    let role = if wiring == Wiring::Embedded { "sandmesh" } else { "session" };
    let session =
        server.api.post("/sessions", body(&json!([{"name": "pause"}, {"name": "alpha"}]))).await.is(201);
    let id = session["id"].as_str().unwrap().to_owned();
    eventually("it installs", Duration::from_secs(20), async || index.asked("/files/pause") > 0).await;
    server.process(role).kill();
    server.start_again().await;
    let session = settled(&server.api, &id).await;
    assert_eq!(
        (&session["status"], &session["dependency_install_status"]),
        (&json!("running"), &json!("completed")),
        "{session}"
    );
    assert_eq!(server.api.python(&id, VERSION).await["return_value"], "2.0");
    if wiring == Wiring::Split {
        assert_eq!(index.asked("/files/pause"), 1, "the installation went on meanwhile");
    }
    install(&server.api, &id, &json!([{"name": "beta"}, {"name": "pause", "version": "==1.0"}]))
        .await
        .is(200);
    server.process(role).kill();
    server.start_again().await;
    assert_eq!(settled(&server.api, &id).await["dependency_install_status"], "completed");
    let both = "import alpha, beta\ndef handler(e): return beta.uses";
    assert_eq!(server.api.python(&id, both).await["return_value"], "2.0");
}

async fn an_agent_that_is_killed_in_the_middle_starts_over(wiring: Wiring) {
    let keep = [("SANDMESH_AGENT__ON_SHUTDOWN", "keep")];
    let (index, mut server) = start(wiring, &keep).await;
    let role = if wiring == Wiring::Embedded { "sandmesh" } else { "agent" };
    let (id, _) = created(&server.api, &json!([{"name": "alpha", "version": "==1.0"}])).await;
    install(&server.api, &id, &json!([{"name": "pause"}])).await.is(200);
    eventually("it installs", Duration::from_secs(20), async || index.asked("/files/pause") > 0).await;
    server.process(role).kill();
    server.start_again().await;
    let session = settled(&server.api, &id).await;
    assert_eq!(session["dependency_install_status"], "completed", "{session}");
    assert_eq!(versions(&session), [("alpha", "1.0"), ("pause", "1.0")]);
    assert_eq!(server.api.python(&id, VERSION).await["return_value"], "1.0");
    let data = server.data_dir();
    let count = |name: &str| std::fs::read_dir(data.join(name)).map_or(0, Iterator::count);
    assert_eq!((count("installs"), count("layers")), (0, 2), "what was half made is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn build_scripts_reach_nothing_but_the_index() {
    // The gateway's port is known only when it listens: one that is near enough in what it is.
    let victim = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let index = Index::start(victim.local_addr().unwrap().port());
    let server = Wiring::Embedded.start_with(&index.settings(&[])).await;
    let api = &server.api;
    let (id, session) = created(api, &json!([{"name": "hostile"}])).await;
    assert_eq!(session["dependency_install_status"], "completed", "{session}");
    let found =
        api.python(&id, "import hostile\ndef handler(e): return hostile.found").await["return_value"].clone();
    for attack in ["network", "metadata", "gateway", "names", "shadow", "home", "house", "write system"] {
        assert!(found[attack].as_str().unwrap().starts_with("refused: "), "{attack}: {found}");
    }
    for attack in ["gateway by proxy", "elsewhere by proxy"] {
        assert!(found[attack].as_str().unwrap().contains("403 Forbidden"), "{attack}: {found}");
    }
    assert!(found["gateway by http"].as_str().unwrap().contains("403"), "{found}");
    assert_eq!((&found["environment"], &found["uid"]), (&json!(false), &json!(1000)), "{found}");
    let foreign = |name: &Value| {
        name.as_str().is_some_and(|name| name.contains("sandmesh") && name != "sandmesh-execut")
    };
    assert!(!found["processes"].as_array().unwrap().iter().any(foreign), "{found}");
    let reached = tokio::time::timeout(Duration::from_millis(100), victim.accept()).await;
    assert!(reached.is_err(), "nobody came through");
    // Another session without it is none the wiser.
    assert_eq!(api.python(&api.session().await, "import hostile").await["status"], "failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fork_bomb_in_a_build_script_ends_its_own_installation_only() {
    let index = Index::start(1);
    let server = Wiring::Embedded
        .start_with(&index.settings(&[("SANDMESH_AGENT__PACKAGES__MAX_PROCESSES", "64")]))
        .await;
    let api = &server.api;
    let other = api.session().await;
    let session = api.post("/sessions", body(&json!([{"name": "bomb"}]))).await.is(201);
    assert_eq!(api.run(&other, "shell", "echo well").await["stdout"], "well\n");
    let mut short = body(&json!([{"name": "bomb"}]));
    short["install_timeout"] = json!(30);
    let begin = Instant::now();
    let timed = api.post("/sessions", short).await.is(201);
    let id = session["id"].as_str().unwrap();
    api.post(&format!("/sessions/{id}/terminate"), json!({})).await.is(200);
    let timed = settled(api, timed["id"].as_str().unwrap()).await;
    assert_eq!(timed["status"], "failed", "{timed}");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_installation_ends_at_its_time_limit_with_all_that_runs() {
    let index = Index::start(1);
    let server = Wiring::Embedded.start_with(&index.settings(&[])).await;
    let api = &server.api;
    let mut slow = body(&json!([{"name": "slow"}]));
    slow["install_timeout"] = json!(30);
    let begin = Instant::now();
    let session = api.post("/sessions", slow).await.is(201);
    let session = settled(api, session["id"].as_str().unwrap()).await;
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(30) && took < Duration::from_secs(40), "{took:?}");
    assert_eq!(
        (&session["status"], &session["dependency_install_status"]),
        (&json!("failed"), &json!("failed"))
    );
    let error = session["dependency_install_error"].as_str().unwrap();
    assert!(error.contains("time limit"), "{error}");
    server.expect_nothing_left(Duration::from_secs(10)).await;
    assert_eq!(std::fs::read_dir(server.data_dir().join("installs")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(server.data_dir().join("layers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn packages_of_a_template_come_with_its_sessions() {
    let index = Index::start(1);
    let server = Wiring::Embedded.start_with(&index.settings(&[])).await;
    let api = &server.api;
    let template = json!({"id": "furnished", "name": "furnished", "image_url": "python", "runtime_type": "python3.11",
        "pre_installed_packages": ["alpha==1.0"]});
    api.post("/templates", template).await.is(201);
    let asked = json!({"template_id": "furnished", "dependencies": [{"name": "beta"}]});
    let session = api.post("/sessions", asked).await.is(201);
    let session = settled(api, session["id"].as_str().unwrap()).await;
    assert_eq!(versions(&session), [("alpha", "1.0"), ("beta", "1.0")], "{session}");
    let of_template: Vec<&Value> = session["installed_dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["is_from_template"])
        .collect();
    assert_eq!(of_template, [true, false]);
    assert_eq!(session["requested_dependencies"], json!([{"name": "beta", "version": null}]), "{session}");
}

/// One of a template goes where others of it are, unless what it is to have is elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_go_to_the_node_that_has_their_packages() {
    let index = Index::start(1);
    let mesh = Twofold::start(Kind::Postgres, &index.settings(&[])).await;
    let api = &mesh.server.api;
    let asked = json!([{"name": "alpha"}]);
    let (_, session) = created(api, &asked).await;
    let node = session["runtime_node"].as_str().unwrap().to_owned();
    let of = |labels: Value, dependencies: &Value| json!({"template_id": "other", "labels": labels, "dependencies": dependencies, "timeout": 600});
    let other = json!({"id": "other", "name": "other", "image_url": "python", "runtime_type": "python3.11"});
    api.post("/templates", other).await.is(201);
    let names = api.get("/nodes").await.is(200)["items"].clone();
    let names = names.as_array().unwrap().iter().map(|item| item["labels"]["name"].clone());
    let elsewhere = names.into_iter().find(|name| *name != node.as_str()).unwrap();
    let label = json!({"node/name": elsewhere, "node/runtime": "process", "node/isolation": "process"});
    let session = api.post("/sessions", of(label, &json!([]))).await.is(201);
    assert_eq!(session["runtime_node"], elsewhere, "it is where its label says: {session}");
    eventually("a session goes where the packages are", Duration::from_secs(15), async || {
        let session = api.post("/sessions", of(json!({}), &asked)).await.is(201);
        let there = session["runtime_node"] == node.as_str();
        assert!(!there || session["status"] == "running", "it has them from the start: {session}");
        there
    })
    .await;
    let label = json!({"node/isolation": "container"});
    let refused = api.post("/sessions", of(label, &json!([]))).await;
    assert!(refused.text.contains("`isolation`"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn packages_are_installed_over_grpc() {
    let index = Index::start(1);
    let server = Wiring::Embedded.start_with(&index.settings(&[])).await;
    let id = server.api.session().await;
    let mut client =
        DependencyServiceClient::connect(format!("http://127.0.0.1:{}", server.port)).await.unwrap();
    let dependencies = vec![Dependency { name: "alpha".into(), version: "1.0".into() }];
    let request = InstallDependenciesRequest { session_id: id.clone(), dependencies, ..Default::default() };
    let session = client.install_dependencies(request).await.unwrap().into_inner().session.unwrap();
    assert_eq!(session.requested_dependencies[0].version, "==1.0");
    settled(&server.api, &id).await;
    assert_eq!(server.api.python(&id, VERSION).await["return_value"], "1.0");
}
