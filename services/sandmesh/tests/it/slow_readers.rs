//! Readers that do not read hold up nobody else.

use std::time::Duration;

use serde_json::json;

use crate::harness::Wiring;

in_both_wirings!(readers_that_stall_do_not_hold_up_other_calls);

/// More than the windows of a connection hold, for each of more readers than its streams would allow.
const OUTPUT_BYTES: usize = 6 << 20;
const READERS: usize = 12;

async fn readers_that_stall_do_not_hold_up_other_calls(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let code = format!("head -c {OUTPUT_BYTES} /dev/zero | tr '\\0' x; sleep 6");
    let execution = api.start(&id, json!({"language": "shell", "code": code})).await;
    let mut stalled = Vec::new();
    for _ in 0..READERS {
        let path = format!("/executions/{execution}/stream");
        stalled.push(api.request("GET", &path).send().await.unwrap());
    }
    // Long enough for every window to fill up, and the run still goes on.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let others = async {
        api.get(&format!("/sessions/{id}")).await.is(200);
        api.get("/sessions").await.is(200);
        let quick = json!({"language": "shell", "code": "echo quick"});
        let done = api.post(&format!("/sessions/{id}/execute-sync"), quick).await.is(200);
        assert_eq!(done["stdout"], "quick\n");
    };
    tokio::time::timeout(Duration::from_secs(5), others).await.expect("others are served meanwhile");
    drop(stalled);
}
