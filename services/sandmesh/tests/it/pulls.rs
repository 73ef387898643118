//! Images that take long to come: their sessions wait for them and say so, for as long as a pull may take.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    Api, IN_CONTAINERS, Registry, Server, TestEngine, Wiring,
    engine::{BUSYBOX, Kind},
    eventually,
};

in_both_wirings!(
    a_session_waits_for_its_image_longer_than_for_anything_else,
    a_pull_that_takes_longer_than_it_may_ends_the_sessions_that_wait,
);

/// What a creation may take but for the pull.
const CREATING: (&str, &str) = ("SANDMESH_SESSION__CREATING_TIMEOUT", "10s");

async fn start(wiring: Wiring, settings: &[(&str, &str)]) -> (Server, Registry, Arc<TestEngine>) {
    let engine = Arc::new(TestEngine::shared(Kind::Docker, BUSYBOX));
    let server = IN_CONTAINERS.scope(Arc::clone(&engine), wiring.start_with(settings)).await;
    let registry = Registry::start().await;
    let template =
        json!({"id": "slow", "name": "slow", "image_url": registry.image(), "runtime_type": "bash"});
    server.api.post("/templates", template).await.is(201);
    (server, registry, engine)
}

async fn created(api: &Api) -> String {
    let session = api.post("/sessions", json!({"template_id": "slow"})).await.is(201);
    session["id"].as_str().unwrap().to_owned()
}

async fn session(api: &Api, id: &str) -> Value {
    api.get(&format!("/sessions/{id}")).await.is(200)
}

/// Waits until it says that some of the image is there, and not all of it.
async fn is_pulled(api: &Api, id: &str, registry: &Registry) {
    let told = format!("pulling image {}, ", registry.image());
    eventually("the session tells how far its image is", Duration::from_secs(15), async || {
        let session = session(api, id).await;
        assert_eq!(session["status"], "creating", "{session}");
        let far = session["status_reason"].as_str().and_then(|reason| reason.strip_prefix(&told));
        far.is_some_and(|far| ["1", "2", "3", "4"].iter().any(|there| far == format!("{there} of 9 MiB")))
    })
    .await;
}

async fn a_session_waits_for_its_image_longer_than_for_anything_else(wiring: Wiring) {
    let (mut server, registry, engine) = start(wiring, &[CREATING]).await;
    let (first, second) = (created(&server.api).await, created(&server.api).await);
    for id in [&first, &second] {
        is_pulled(&server.api, id, &registry).await;
    }
    // Longer than it may take otherwise.
    tokio::time::sleep(Duration::from_secs(12)).await;
    is_pulled(&server.api, &first, &registry).await;
    server.kill();
    server.start_again().await;
    is_pulled(&server.api, &first, &registry).await;
    registry.release();
    for id in [&first, &second] {
        let session = server.api.session_is(id, "running").await;
        assert_eq!(session["status_reason"], Value::Null, "{session}");
        let run =
            server.api.execute(id, json!({"language": "shell", "code": "echo here", "timeout": 20})).await;
        assert_eq!(run["stdout"], "here\n", "{run}");
    }
    for id in [&first, &second] {
        server.api.send(server.api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    }
    server.expect_nothing_left(Duration::from_secs(20)).await;
    engine.client(&["rmi", "--force", &registry.image()]);
}

async fn a_pull_that_takes_longer_than_it_may_ends_the_sessions_that_wait(wiring: Wiring) {
    // So long that it is not what all the rest may take.
    let settings = [("SANDMESH_AGENT__DOCKER__PULL_TIMEOUT", "14s"), CREATING];
    let (server, registry, _engine) = start(wiring, &settings).await;
    let id = created(&server.api).await;
    is_pulled(&server.api, &id, &registry).await;
    let session = server.api.session_is(&id, "failed").await;
    let reason = session["status_reason"].as_str().unwrap();
    assert!(reason.contains("pull_timeout") && reason.contains(&registry.image()), "{reason}");
    server.expect_nothing_left(Duration::from_secs(20)).await;
}
