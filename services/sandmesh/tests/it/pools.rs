//! Pools: sandboxes are warm before they are asked for, sessions get them clean, and whatever dies, there are
//! as many again as there are to be.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Api, Index, Server, Wiring, eventually, leftovers::sandbox_dirs, process::signal};

in_both_wirings!(
    a_session_gets_a_warm_sandbox_and_another_takes_its_place,
    a_warm_sandbox_is_all_that_a_cold_one_is,
    a_burst_of_more_than_the_pool_fails_nobody,
    a_burst_of_more_than_there_is_room_for_waits_its_turn,
    of_forty_at_once_on_three_places_three_are_created,
    a_changed_template_drains_its_pool,
    a_pool_that_is_ended_leaves_nothing,
    whatever_dies_a_pool_fills_again,
    a_claimed_sandbox_outlives_a_killed_server,
    packages_of_a_template_are_there_at_once,
    a_wrong_pool_is_refused_by_name,
);

/// How long a pool may take to be as it is to be.
const FILLS: Duration = Duration::from_secs(30);

async fn set(api: &Api, template: &str, pool: Value) -> Value {
    api.put(&format!("/pools/{template}"), pool).await.is(200)
}

async fn pool(api: &Api, template: &str) -> Value {
    api.get(&format!("/pools/{template}")).await.is(200)
}

/// Waits until so many are warm, and none is on its way.
async fn warm(api: &Api, template: &str, count: u32) {
    eventually(&format!("{count} of `{template}` are warm"), FILLS, async || {
        let pool = pool(api, template).await;
        pool["warm"] == count && pool["starting"] == 0
    })
    .await;
}

async fn create(api: &Api, template: &str) -> Value {
    api.create(json!({"template_id": template})).await
}

fn id(session: &Value) -> &str {
    session["id"].as_str().unwrap()
}

async fn a_session_gets_a_warm_sandbox_and_another_takes_its_place(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let nothing = pool(api, "python-basic").await;
    assert_eq!((&nothing["max"], &nothing["warm"]), (&json!(0), &json!(0)));
    assert_eq!(create(api, "python-basic").await["start_type"], "cold");
    let told = set(api, "python-basic", json!({"min": 2, "max": 4})).await;
    assert_eq!((&told["min"], &told["max"]), (&json!(2), &json!(4)));
    let template = api.get("/templates/python-basic").await.is(200);
    assert_eq!(template["pool"], json!({"min": 2, "max": 4, "buffer": 0, "profiles": []}));
    warm(api, "python-basic", 2).await;
    let session = create(api, "python-basic").await;
    assert_eq!((&session["status"], &session["start_type"]), (&json!("running"), &json!("warm")));
    let run = api.python(id(&session), "def handler(event):\n    return 6 * 7").await;
    assert_eq!((&run["status"], &run["return_value"]), (&json!("completed"), &json!(42)), "{run}");
    let other = api.create(json!({"template_id": "python-basic", "memory": "300Mi"})).await;
    assert_eq!(other["start_type"], "cold", "none is warm that has so much memory");
    eventually("another one is warm", FILLS, async || pool(api, "python-basic").await["warm"] == 2).await;
    let pools = api.get("/pools").await.is(200);
    assert_eq!((&pools["total"], &pools["items"][0]["claimed"]), (&json!(1), &json!(1)), "{pools}");
    assert_eq!(pools["items"][0]["cold"], 2);
    let metrics = api.send(api.request_root("GET", "/metrics")).await.text;
    for line in
        [r#"sandmesh_session_starts_total{start="warm"} 1"#, r#"sandmesh_pool_sandboxes{state="warm"} 2"#]
    {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let synced = api.post("/health/sync", json!({})).await.is(200);
    assert_eq!(pool(api, "python-basic").await["warm"], 2, "they are nobody's and stay: {synced}");
}

pub(crate) async fn a_warm_sandbox_is_all_that_a_cold_one_is(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let body = json!({"template_id": "python-basic", "timeout": 3, "env_vars": {"WHO": "me"},
                      "labels": {"team": "a"}});
    let cold = api.create(body.clone()).await;
    set(api, "python-basic", json!({"min": 1, "max": 1})).await;
    warm(api, "python-basic", 1).await;
    let warm = api.create(body).await;
    assert_eq!((&cold["start_type"], &warm["start_type"]), (&json!("cold"), &json!("warm")));
    for field in
        ["resource_limit", "effective_isolation", "language_runtime", "workspace_path", "runtime_type"]
    {
        assert_eq!(cold[field], warm[field], "{field}");
    }
    let code = "import os\ndef handler(event):\n    return [os.environ['WHO'], os.getcwd(), sorted(os.listdir('.'))]";
    let run = api.python(id(&warm), code).await;
    assert_eq!(run["return_value"], json!(["me", "/workspace", []]), "{run}");
    api.upload(id(&warm), "file", "x").await.is(200);
    assert_eq!(api.files(id(&warm), "").await, ["file"]);
    let listed = api.get(&format!("/containers?session_id={}", id(&warm))).await.is(200);
    let container = listed["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&format!("/containers/{container}/logs")).await.status, 200);
    api.session_is(id(&warm), "timeout").await;
}

async fn a_burst_of_more_than_the_pool_fails_nobody(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    set(api, "shell-basic", json!({"min": 4, "max": 8})).await;
    warm(api, "shell-basic", 4).await;
    let sessions = futures::future::join_all((0..10).map(|_| create(api, "shell-basic"))).await;
    let starts = |word: &str| sessions.iter().filter(|session| session["start_type"] == word).count();
    assert!(starts("warm") >= 4, "{sessions:?}");
    for session in &sessions {
        api.session_is(id(session), "running").await;
    }
    let runs = sessions.iter().map(|session| api.run(id(session), "shell", "ls | wc -l"));
    for run in futures::future::join_all(runs).await {
        assert_eq!(run["stdout"], "0\n", "each has a sandbox of its own: {run}");
    }
}

async fn a_burst_of_more_than_there_is_room_for_waits_its_turn(wiring: Wiring) {
    let settings = [("SANDMESH_AGENT__MAX_SANDBOXES", "3"), ("SANDMESH_SCHEDULER__QUEUE__MAX_WAIT", "15s")];
    let server = wiring.start_with(&settings).await;
    let api = &server.api;
    let use_one = async || {
        let session = create(api, "shell-basic").await;
        let id = id(&session);
        api.session_is(id, "running").await;
        let run = api.run(id, "shell", "echo on").await;
        api.delete(&format!("/sessions/{id}")).await.is(204);
        run["stdout"].as_str().unwrap().to_owned()
    };
    let all = futures::future::join_all((0..12).map(|_| use_one())).await;
    assert_eq!(all, ["on\n"; 12], "nobody is refused where there is room in time");
    server.expect_nothing_left(FILLS).await;
}

async fn of_forty_at_once_on_three_places_three_are_created(wiring: Wiring) {
    let settings = [("SANDMESH_AGENT__MAX_SANDBOXES", "3"), ("SANDMESH_SESSION__CREATE_WAIT", "20s")];
    let server = wiring.start_with(&settings).await;
    let api = &server.api;
    let ask = || api.post("/sessions", json!({"template_id": "shell-basic"}));
    let answers = futures::future::join_all((0..40).map(|_| ask())).await;
    let (created, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(created.len(), 3, "{created:?}");
    for answer in refused {
        assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{answer:?}");
        let position = answer.body["queue_position"].as_u64().unwrap();
        assert!((1..=37).contains(&position), "{answer:?}");
        answer.refused(503, "Sandbox.NoCapacity");
    }
    for session in &created {
        api.session_is(id(&session.body), "running").await;
    }
    assert_eq!(server.executors().len(), 3);
}

async fn a_changed_template_drains_its_pool(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    set(api, "shell-basic", json!({"min": 2, "max": 2})).await;
    warm(api, "shell-basic", 2).await;
    let before = server.executors();
    api.put("/templates/shell-basic", json!({"default_memory_mb": 300})).await.is(200);
    eventually("the old ones are gone", FILLS, async || {
        server.executors().iter().all(|pid| !before.contains(pid))
    })
    .await;
    warm(api, "shell-basic", 2).await;
    let session = create(api, "shell-basic").await;
    assert_eq!(
        (&session["start_type"], &session["resource_limit"]["memory"]),
        (&json!("warm"), &json!("300Mi"))
    );
}

async fn a_pool_that_is_ended_leaves_nothing(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    set(api, "shell-basic", json!({"min": 2, "max": 2})).await;
    warm(api, "shell-basic", 2).await;
    set(api, "shell-basic", json!({"max": 0})).await;
    server.expect_nothing_left(FILLS).await;
    set(api, "shell-basic", json!({"min": 1, "max": 2})).await;
    warm(api, "shell-basic", 1).await;
    api.put("/templates/shell-basic", json!({"is_active": false})).await.is(200);
    server.expect_nothing_left(FILLS).await;
}

/// Kills what is warm, and each process of the mesh that has to do with it.
async fn whatever_dies_a_pool_fills_again(wiring: Wiring) {
    let mut server = wiring.start_with(&[("SANDMESH_AGENT__ON_SHUTDOWN", "keep")]).await;
    set(&server.api, "shell-basic", json!({"min": 2, "max": 2})).await;
    warm(&server.api, "shell-basic", 2).await;
    for pid in server.executors() {
        signal(pid, Signal::KILL);
    }
    // The dead are seen at once, and their number is right again a moment later.
    eventually("two others are warm", FILLS, async || {
        pool(&server.api, "shell-basic").await["warm"] == 2 && server.executors().len() == 2
    })
    .await;
    let names: Vec<String> = server.processes.iter().map(|process| process.launch.name.clone()).collect();
    for name in names.iter().filter(|name| *name != "gateway" && *name != "watch") {
        let process = server.process(name);
        process.kill();
        *process = process.launch.spawn();
        server.ready().await;
        let session = eventually_warm(&server.api).await;
        let run = server.api.run(id(&session), "shell", "echo on").await;
        assert_eq!(run["stdout"], "on\n", "after {name} was killed: {run}");
    }
    server.api.put("/pools/shell-basic", json!({"max": 0})).await.is(200);
    server.kill_sessions().await;
    server.expect_nothing_left(FILLS).await;
}

/// A session that got a warm sandbox, once there is one again.
async fn eventually_warm(api: &Api) -> Value {
    warm(api, "shell-basic", 2).await;
    let session = create(api, "shell-basic").await;
    assert_eq!(session["start_type"], "warm", "{session}");
    session
}

impl Server {
    /// Deletes every session.
    async fn kill_sessions(&self) {
        let listed = self.api.get("/sessions?limit=200").await.is(200);
        for session in listed["items"].as_array().unwrap() {
            self.api.delete(&format!("/sessions/{}", id(session))).await.is(204);
        }
    }
}

pub(crate) async fn a_claimed_sandbox_outlives_a_killed_server(wiring: Wiring) {
    let mut server = wiring.start_with(&[("SANDMESH_AGENT__ON_SHUTDOWN", "keep")]).await;
    set(&server.api, "shell-basic", json!({"min": 1, "max": 1})).await;
    let session = {
        warm(&server.api, "shell-basic", 1).await;
        create(&server.api, "shell-basic").await
    };
    assert_eq!(session["start_type"], "warm");
    server.api.run(id(&session), "shell", "echo kept > file").await;
    warm(&server.api, "shell-basic", 1).await;
    server.kill();
    server.start_again().await;
    let api = &server.api;
    let run = api.run(id(&session), "shell", "cat file").await;
    assert_eq!(run["stdout"], "kept\n", "{run}");
    assert_eq!(api.get(&format!("/sessions/{}", id(&session))).await.is(200)["recovery_count"], 0);
    warm(api, "shell-basic", 1).await;
    assert_eq!(sandbox_dirs(&server.data_dir()).len(), 2, "what was warm is warm still");
    set(api, "shell-basic", json!({"max": 0})).await;
    api.delete(&format!("/sessions/{}", id(&session))).await.is(204);
    server.expect_nothing_left(FILLS).await;
}

async fn packages_of_a_template_are_there_at_once(wiring: Wiring) {
    let index = Index::start(1);
    let server = wiring.start_with(&index.settings(&[])).await;
    let api = &server.api;
    let template = json!({"id": "packed", "name": "packed", "image_url": "none", "runtime_type": "python3.11",
        "pre_installed_packages": ["alpha==1.0"], "pool": {"min": 1, "max": 1}});
    api.post("/templates", template).await.is(201);
    warm(api, "packed", 1).await;
    let session = create(api, "packed").await;
    assert_eq!(
        (&session["status"], &session["start_type"]),
        (&json!("running"), &json!("warm")),
        "{session}"
    );
    assert_eq!(session["dependency_install_status"], "completed", "{session}");
    let run = api.python(id(&session), "import alpha\ndef handler(event): return alpha.version").await;
    assert_eq!(run["return_value"], "1.0", "{run}");
}

async fn a_wrong_pool_is_refused_by_name(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    api.put("/pools/shell-basic", json!({"min": 3, "max": 2})).await.names("body.max");
    api.put("/pools/shell-basic", json!({"min": 3})).await.names("body.max");
    api.put("/pools/shell-basic", json!({"max": -1})).await.is(422);
    api.put("/pools/unknown", json!({"max": 1})).await.refused(404, "Sandbox.TemplateNotFound");
    api.get("/pools/unknown").await.refused(404, "Sandbox.TemplateNotFound");
}
