//! Profiles of a pool: sandboxes with other limits than the template's are warm, too, and each profile is on its
//! own.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cli::run,
    harness::{Api, Server, Wiring, eventually},
};

in_both_wirings!(
    a_session_that_asks_for_just_these_limits_gets_a_warm_sandbox,
    a_profile_that_is_taken_off_the_list_drains_and_the_others_stay,
    a_changed_template_drains_its_profiles_too,
    a_profile_whose_sandboxes_cannot_be_made_stops_no_other,
    profiles_alone_make_a_pool_and_survive_a_restart,
    a_wrong_profile_is_refused_by_name,
    profiles_are_set_and_shown_on_the_command_line,
);

/// How long a pool may take to be as it is to be.
const FILLS: Duration = Duration::from_secs(30);

async fn set(api: &Api, pool: Value) -> Value {
    api.put("/pools/shell-basic", pool).await.is(200)
}

async fn pool(api: &Api) -> Value {
    api.get("/pools/shell-basic").await.is(200)
}

/// A profile with so much memory of which so many are warm, no more and no fewer.
fn of_memory(memory: &str, count: u32) -> Value {
    json!({"resources": {"memory": memory}, "min": count, "max": count})
}

/// Waits until so many are warm with the template's limits, and of each profile, and none is on its way.
async fn warm(api: &Api, own: u32, profiles: &[u32]) {
    eventually(&format!("{own} and {profiles:?} are warm"), FILLS, async || {
        let pool = pool(api).await;
        let is = |status: &Value, count: u32| status["warm"] == count && status["starting"] == 0;
        let told = pool["profiles"].as_array().unwrap();
        assert_eq!(told.len(), profiles.len(), "{pool}");
        is(&pool, own) && told.iter().zip(profiles).all(|(profile, count)| is(profile, *count))
    })
    .await;
}

async fn create(api: &Api, limits: Value) -> Value {
    let mut body = limits;
    body["template_id"] = json!("shell-basic");
    api.create(body).await
}

fn start(session: &Value) -> (&str, &str) {
    (session["start_type"].as_str().unwrap(), session["resource_limit"]["memory"].as_str().unwrap())
}

/// Waits until the node has so many sandboxes.
async fn sandboxes(server: &Server, count: usize) {
    eventually(&format!("there are {count} sandboxes"), FILLS, async || server.executors().len() == count)
        .await;
}

async fn a_session_that_asks_for_just_these_limits_gets_a_warm_sandbox(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let profile = json!({"resources": {"cpu": "1", "memory": "300Mi"}, "min": 1, "max": 3});
    let told = set(api, json!({"min": 1, "max": 2, "profiles": [profile, of_memory("400Mi", 1)]})).await;
    let expected = json!({"cpu": "1", "memory": "300Mi", "disk": null, "max_processes": null});
    assert_eq!(told["profiles"][0]["resources"], expected, "{told}");
    warm(api, 1, &[1, 1]).await;
    let before = server.executors();
    let session = create(api, json!({"cpu": "1", "memory": "300Mi"})).await;
    assert_eq!(start(&session), ("warm", "300Mi"), "{session}");
    assert_eq!((&session["status"], &session["resource_limit"]["cpu"]), (&json!("running"), &json!("1")));
    let id = session["id"].as_str().unwrap();
    assert_eq!(api.run(id, "shell", "echo on").await["stdout"], "on\n");
    // One that differs in one limit from all of them has one made, and has none of theirs.
    assert_eq!(start(&create(api, json!({"memory": "300Mi"})).await), ("cold", "300Mi"));
    warm(api, 1, &[1, 1]).await;
    assert!(before.iter().all(|pid| server.executors().contains(pid)), "nothing of the others was replaced");
    assert_eq!(start(&create(api, json!({})).await), ("warm", "512Mi"));
    assert_eq!(start(&create(api, json!({"resources": {"memory": "400Mi"}})).await), ("warm", "400Mi"));
    warm(api, 1, &[1, 1]).await;
    let pool = pool(api).await;
    let used = |of: &Value| (of["claimed"].clone(), of["cold"].clone());
    assert_eq!(used(&pool["profiles"][0]), (json!(1), json!(0)), "{pool}");
    assert_eq!(used(&pool["profiles"][1]), (json!(1), json!(0)), "{pool}");
    assert_eq!(used(&pool), (json!(1), json!(1)), "what is of no profile is told here: {pool}");
    let listed = api.get("/pools").await.is(200);
    assert_eq!((&listed["total"], &listed["items"][0]["profiles"][0]["warm"]), (&json!(1), &json!(1)));
    let metrics = api.send(api.request_root("GET", "/metrics")).await.text;
    for line in
        [r#"sandmesh_pool_sandboxes{state="warm"} 3"#, r#"sandmesh_pool_sandboxes{state="claimed"} 3"#]
    {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

async fn a_profile_that_is_taken_off_the_list_drains_and_the_others_stay(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    set(api, json!({"min": 1, "max": 1, "profiles": [of_memory("300Mi", 2)]})).await;
    warm(api, 1, &[2]).await;
    set(api, json!({"min": 1, "max": 1, "profiles": [of_memory("400Mi", 1), of_memory("300Mi", 1)]})).await;
    warm(api, 1, &[1, 1]).await;
    sandboxes(&server, 3).await;
    let before = server.executors();
    set(api, json!({"max": 0, "profiles": [of_memory("300Mi", 1)]})).await;
    sandboxes(&server, 1).await;
    warm(api, 0, &[1]).await;
    assert!(before.contains(&server.executors()[0]), "the one that is wanted stayed");
    assert_eq!(start(&create(api, json!({"memory": "400Mi"})).await), ("cold", "400Mi"));
    assert_eq!(start(&create(api, json!({"memory": "300Mi"})).await), ("warm", "300Mi"));
    set(api, json!({"max": 0})).await;
    assert_eq!(api.get("/pools").await.is(200)["total"], 0);
    // What the two sessions have stays, and the last warm one goes.
    sandboxes(&server, 2).await;
}

async fn a_changed_template_drains_its_profiles_too(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    set(api, json!({"min": 1, "max": 1, "profiles": [of_memory("300Mi", 1)]})).await;
    warm(api, 1, &[1]).await;
    let before = server.executors();
    api.put("/templates/shell-basic", json!({"default_cpu_cores": 1.0})).await.is(200);
    eventually("the old ones are gone", FILLS, async || {
        server.executors().iter().all(|pid| !before.contains(pid))
    })
    .await;
    warm(api, 1, &[1]).await;
    sandboxes(&server, 2).await;
    let session = create(api, json!({"memory": "300Mi"})).await;
    assert_eq!(start(&session), ("warm", "300Mi"));
    assert_eq!(session["resource_limit"]["cpu"], "1", "what a profile leaves out is the template's");
    let alike = json!({"default_memory_mb": 300});
    api.put("/templates/shell-basic", alike).await.names("body.pool.profiles.0.resources");
}

async fn a_profile_whose_sandboxes_cannot_be_made_stops_no_other(wiring: Wiring) {
    // The session role takes no session of so much memory.
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_MEMORY", "1GiB")]).await;
    let api = &server.api;
    set(api, json!({"min": 1, "max": 1, "profiles": [of_memory("2Gi", 1), of_memory("300Mi", 1)]})).await;
    warm(api, 1, &[0, 1]).await;
    let pool = pool(api).await;
    let why = pool["profiles"][0]["last_error"].as_str().unwrap_or_else(|| panic!("{pool}"));
    assert!(why.contains("resources.memory_bytes"), "{why}");
    assert_eq!((&pool["last_error"], &pool["profiles"][1]["last_error"]), (&Value::Null, &Value::Null));
    let metrics = api.send(api.request_root("GET", "/metrics")).await.text;
    assert!(metrics.contains("sandmesh_pools_failing 1"), "{metrics}");
    assert_eq!(start(&create(api, json!({"memory": "300Mi"})).await), ("warm", "300Mi"));
}

async fn profiles_alone_make_a_pool_and_survive_a_restart(wiring: Wiring) {
    let mut server = wiring.start_with(&[("SANDMESH_AGENT__ON_SHUTDOWN", "keep")]).await;
    set(&server.api, json!({"max": 0, "profiles": [of_memory("300Mi", 2)]})).await;
    warm(&server.api, 0, &[2]).await;
    let before = server.executors();
    server.kill();
    server.start_again().await;
    let api = &server.api;
    warm(api, 0, &[2]).await;
    assert!(server.executors().iter().all(|pid| before.contains(pid)), "what was warm is warm still");
    assert_eq!(start(&create(api, json!({"memory": "300Mi"})).await), ("warm", "300Mi"));
    set(api, json!({"max": 0})).await;
    let listed = api.get("/sessions").await.is(200);
    let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
    api.delete(&format!("/sessions/{id}")).await.is(204);
    server.expect_nothing_left(FILLS).await;
}

async fn a_wrong_profile_is_refused_by_name(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    for (profiles, name) in [
        (json!([of_memory("512Mi", 1)]), "body.profiles.0.resources"),
        (json!([{"resources": {}, "max": 1}]), "body.profiles.0.resources"),
        (json!([of_memory("300Mi", 1), of_memory("307200Ki", 2)]), "body.profiles.1.resources"),
        (json!([of_memory("1Mi", 1)]), "body.profiles.0.resources.memory"),
        (json!([{"resources": {"cpu": 9}, "max": 1}]), "body.profiles.0.resources.cpu"),
        (json!([{"resources": {"cpu": 2}, "min": 2, "max": 1}]), "body.profiles.0.max"),
        (json!([{"resources": {"cpu": 2}, "max": 0}]), "body.profiles.0.max"),
        (json!([{"resources": {"cpu": 2}}]), "body.profiles.0.max"),
        (json!([{"max": 1}]), "body.profiles.0.resources"),
        (
            (1..=9).map(|n| of_memory(&format!("{}Mi", 300 + n), 1)).collect::<Vec<_>>().into(),
            "body.profiles",
        ),
    ] {
        api.put("/pools/shell-basic", json!({"max": 1, "profiles": profiles})).await.names(name);
    }
    assert_eq!(pool(api).await["max"], 0, "what is refused changes nothing");
    let template = json!({"pool": {"profiles": [of_memory("512Mi", 1)]}});
    api.put("/templates/shell-basic", template).await.names("body.pool.profiles.0.resources");
    let taken = api.put("/templates/shell-basic", json!({"pool": {"profiles": [of_memory("300Mi", 1)]}}));
    assert_eq!(taken.await.is(200)["pool"]["profiles"][0]["resources"]["memory"], "300Mi");
    warm(api, 0, &[1]).await;
}

async fn profiles_are_set_and_shown_on_the_command_line(wiring: Wiring) {
    let server = wiring.start().await;
    let set =
        ["pools", "set", "shell-basic", "--max", "1", "--profile", "memory=300Mi,processes=64,min=1,max=2"];
    let (code, stdout, stderr) = run(&server, &set);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("memory=300Mi,processes=64"), "{stdout}");
    warm(&server.api, 0, &[1]).await;
    let (_, listed, _) = run(&server, &["pools"]);
    assert!(listed.lines().any(|line| line.contains("memory=300Mi") && line.contains("1 of 1")), "{listed}");
    let (_, shown, _) = run(&server, &["pools", "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown, server.api.get("/pools").await.is(200)["items"], "the same as over REST");
    let (_, template, _) = run(&server, &["template", "get", "shell-basic"]);
    assert!(template.contains("memory=300Mi,processes=64: min 1, max 2, buffer 0"), "{template}");
    let (code, _, stderr) =
        run(&server, &["pools", "set", "shell-basic", "--max", "1", "--profile", "cpu=2"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("template.pool.profiles.0.max"), "{stderr}");
}
