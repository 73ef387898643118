//! Sessions with warm sandboxes: one at a time, and a burst of more than are warm.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::{join_all, try_join_all};
use serde_json::{Value, json};

use crate::stack::Stack;

/// The templates of the two, each with a pool of its own size.
const POOLS: [(&str, u32); 2] = [("bench-warm", 4), ("bench-burst", BURST / 2)];

/// How many sessions are created at once.
const BURST: u32 = 100;

/// How long a pool may take to fill, and a session to run.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes a template with a pool, unless it is there, and waits until that is full.
async fn fill(stack: &Stack, at: usize) -> anyhow::Result<&'static str> {
    let (id, size) = POOLS[at];
    let path = format!("/pools/{id}");
    if stack.get(&path).await.is_err() {
        let template = json!({"id": id, "name": id, "image_url": "none", "runtime_type": "python3.11"});
        stack.post("/templates", &template).await?;
    }
    let size = json!({"min": size, "max": size});
    stack.put(&path, &size).await?;
    until(|pool| pool["warm"] == size["max"] && pool["starting"] == 0, || stack.get(&path)).await?;
    Ok(id)
}

/// Empties the pool, so that nothing is made for it while something else is measured.
async fn drain(stack: &Stack, id: &str) -> anyhow::Result<()> {
    let path = format!("/pools/{id}");
    stack.put(&path, &json!({"max": 0})).await?;
    until(|pool| pool["warm"] == 0 && pool["starting"] == 0, || stack.get(&path)).await.map(drop)
}

/// Asks until the answer is as it should be.
async fn until<F: Future<Output = anyhow::Result<Value>>>(
    holds: impl Fn(&Value) -> bool,
    ask: impl Fn() -> F,
) -> anyhow::Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await?;
        if holds(&answer) {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "it is not as it should be: {answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long it takes to create a session that gets a warm sandbox.
pub(crate) async fn claim(stack: &Stack) -> anyhow::Result<Duration> {
    let template_id = fill(stack, 0).await?;
    let began = Instant::now();
    let session = stack.post("/sessions", &json!({"template_id": template_id})).await?;
    let took = began.elapsed();
    let right = session["status"] == "running" && session["start_type"] == "warm";
    stack.end_session(session["id"].as_str().context("the session has no id")?).await?;
    ensure!(right, "the session has no warm sandbox: {session}");
    Ok(took)
}

/// How long the slowest but one of a hundred sessions takes that are created at once, until it runs.
pub(crate) async fn burst(stack: &Stack) -> anyhow::Result<Duration> {
    let template_id = fill(stack, 1).await?;
    let create = async || {
        let began = Instant::now();
        let session = stack.post("/sessions", &json!({"template_id": template_id})).await?;
        let path = format!("/sessions/{}", session["id"].as_str().context("the session has no id")?);
        let session = until(|session| session["status"] != "creating", || stack.get(&path)).await?;
        ensure!(session["status"] == "running", "the session does not run: {session}");
        anyhow::Ok((began.elapsed(), session["id"].as_str().unwrap_or_default().to_owned()))
    };
    let created = join_all((0..BURST).map(|_| create())).await;
    drain(stack, template_id).await?;
    let ids = created.iter().flatten().map(|(_, id)| stack.end_session(id));
    try_join_all(ids).await?;
    let mut took = created.into_iter().map(|one| Ok(one?.0)).collect::<anyhow::Result<Vec<_>>>()?;
    took.sort();
    took.iter().nth_back(1).copied().context("nothing was created")
}
