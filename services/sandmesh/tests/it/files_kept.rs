//! Files outlast what holds them: the server, its kill, the sandbox.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Wiring, process::signal};

in_both_wirings!(
    files_and_artifacts_outlast_a_kill_of_the_server,
    files_of_a_lost_sandbox_are_those_that_were_saved,
    what_does_not_fit_is_told_and_not_kept,
);

async fn files_and_artifacts_outlast_a_kill_of_the_server(wiring: Wiring) {
    let mut server = wiring.start().await;
    let session = server.api.session().await;
    server.api.upload(&session, "given", "1").await.is(200);
    let run = server.api.run(&session, "shell", "cat given > made; echo 2 >> made").await;
    let slow = json!({"language": "shell", "code": "echo begun; sleep 3; echo late > late"});
    let slow = server.api.start(&session, slow).await;
    server.api.wrote(&slow, "begun").await;
    server.kill();
    server.start_again().await;
    let api = &server.api;
    let artifact = format!("/executions/{}/artifacts/made", run["id"].as_str().unwrap());
    assert_eq!(api.content(&artifact).await, b"12\n");
    let slow = api.ended(&slow).await;
    assert_eq!(
        (&slow["status"], &slow["artifacts"][0]["path"]),
        (&json!("completed"), &json!("late")),
        "{slow}"
    );
    api.post(&format!("/sessions/{session}/terminate"), json!({})).await.is(200);
    assert_eq!(api.files(&session, "").await, ["given", "late", "made"]);
    for (name, content) in [("given", "1"), ("made", "12\n"), ("late", "late\n")] {
        assert_eq!(api.content(&format!("/sessions/{session}/files/{name}")).await, content.as_bytes());
    }
}

async fn files_of_a_lost_sandbox_are_those_that_were_saved(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_RECOVERIES", "0")]).await;
    let api = &server.api;
    let session = api.session().await;
    assert_eq!(api.run(&session, "shell", "echo saved > made").await["status"], "completed");
    signal(server.only_executor(), Signal::KILL);
    api.session_is(&session, "failed").await;
    assert_eq!(api.files(&session, "").await, ["made"]);
    assert_eq!(api.content(&format!("/sessions/{session}/files/made")).await, b"saved\n");
}

async fn what_does_not_fit_is_told_and_not_kept(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_STORED", "1MiB")]).await;
    let api = &server.api;
    let session = api.session().await;
    let run = api.run(&session, "shell", "head -c 2000000 /dev/zero > big; echo small > small").await;
    let of = |name: &str| {
        let artifacts = run["artifacts"].as_array().unwrap();
        artifacts.iter().find(|artifact| artifact["path"] == name).unwrap().clone()
    };
    assert_eq!((&of("big")["checksum"], &of("big")["size"]), (&json!(""), &json!(2_000_000)), "{run}");
    assert!(of("small")["checksum"].as_str().unwrap().starts_with("sha256:"), "{run}");
    let path = format!("/executions/{}/artifacts/big", run["id"].as_str().unwrap());
    api.get(&path).await.refused(404, "Sandbox.ArtifactNotFound");
    assert_eq!(
        api.content(&format!("/sessions/{session}/files/big")).await.len(),
        2_000_000,
        "it is in the sandbox"
    );
}
