//! A bucket as the object store: files and artifacts in it, its secrets nowhere else, and life without it.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{
    Api, Bucket, HOST_SECRET, Server, Wiring,
    bucket::{KEY, SECRET},
    eventually,
    process::SANDMESH,
    twofold::settings_of_bucket,
};

in_both_wirings!(
    files_and_artifacts_of_a_bucket_outlast_session_and_server,
    large_output_code_and_values_are_in_the_bucket,
    a_url_of_a_file_works_for_anybody_and_not_for_long,
    no_secret_of_the_bucket_is_seen_anywhere,
    while_the_bucket_is_away_code_runs_and_nothing_is_lost,
    a_session_that_ends_while_the_bucket_is_away_keeps_what_it_wrote,
);

/// How long things may take to be as they were once the bucket is back.
const BACK: Duration = Duration::from_secs(30);

async fn start(wiring: Wiring, bucket: &Bucket, more: &[(&str, &str)]) -> Server {
    let own = settings_of_bucket(bucket);
    let own = own.iter().map(|(name, value)| (*name, value.as_str()));
    let all: Vec<(&str, &str)> = own.chain(more.iter().copied()).collect();
    wiring.start_with(&all).await
}

async fn terminate(api: &Api, session: &str) {
    api.post(&format!("/sessions/{session}/terminate"), json!({})).await.is(200);
}

fn artifact(run: &Value, path: &str) -> String {
    format!("/executions/{}/artifacts/{path}", run["id"].as_str().unwrap())
}

async fn files_and_artifacts_of_a_bucket_outlast_session_and_server(wiring: Wiring) {
    let bucket = Bucket::start();
    let mut server = start(wiring, &bucket, &[]).await;
    let api = &server.api;
    let (session, neighbour) = (api.session().await, api.session().await);
    // In several parts, by the rules of S3.
    let large: Vec<u8> = (0..11_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    api.upload(&session, "größe/large.bin", large.clone()).await.is(200);
    api.upload(&neighbour, "own", "of the neighbour").await.is(200);
    let run = api.run(&session, "shell", "cp größe/large.bin copy; echo first > made").await;
    assert_eq!(run["status"], "completed", "{run}");
    let later = api.run(&session, "shell", "echo second > made").await;
    assert_eq!(later["status"], "completed", "{later}");
    assert!(!bucket.keys().is_empty() && bucket.keys().iter().all(|key| key.starts_with("sandmesh/")));
    assert!(!server.data_dir().join("objects").exists(), "nothing is kept beside the bucket");
    terminate(api, &session).await;
    server.stop();
    server.start_again().await;
    let api = &server.api;
    assert_eq!(api.content(&artifact(&run, "made")).await, b"first\n");
    assert_eq!(api.content(&artifact(&later, "made")).await, b"second\n");
    assert!(api.content(&artifact(&run, "copy")).await == large);
    let path = format!("/sessions/{session}/files/größe/large.bin");
    assert!(api.content(&path).await == large);
    let part = api.request("GET", &path).header("Range", "bytes=5242870-5242889").send().await.unwrap();
    assert_eq!(
        (part.status().as_u16(), part.headers()["content-range"].to_str().unwrap()),
        (206, "bytes 5242870-5242889/11000000")
    );
    assert_eq!(part.bytes().await.unwrap(), large[5_242_870..5_242_890]);
    api.delete(&format!("/sessions/{session}")).await.is(204);
    let left = bucket.keys();
    assert!(!left.iter().any(|key| key.contains(&session)), "{left:?}");
    assert_eq!(api.content(&format!("/sessions/{neighbour}/files/own")).await, b"of the neighbour");
    api.delete(&format!("/sessions/{neighbour}")).await.is(204);
    assert_eq!((bucket.keys(), bucket.unfinished()), (Vec::new(), Vec::new()));
}

async fn large_output_code_and_values_are_in_the_bucket(wiring: Wiring) {
    let bucket = Bucket::start();
    let mut server = start(wiring, &bucket, &[]).await;
    let session = server.api.session().await;
    let code = format!(
        "def handler(event):\n    print('x' * 300000)\n    return 'y' * 100000\n#{}",
        "z".repeat(50_000)
    );
    let run = server.api.python(&session, &code).await;
    assert_eq!(run["status"], "completed", "{run}");
    let names = |name: &str| bucket.keys().iter().filter(|key| key.ends_with(name)).count();
    assert_eq!(["/stdout", "/return_value", "/code"].map(names), [1; 3], "{:?}", bucket.keys());
    server.kill();
    server.start_again().await;
    let again = server.api.get(&format!("/executions/{}", run["id"].as_str().unwrap())).await.is(200);
    for field in ["stdout", "return_value", "code"] {
        assert!(again[field] == run[field], "{field}");
    }
    assert_eq!(again["stdout"].as_str().unwrap().len(), 300_001);
}

async fn a_url_of_a_file_works_for_anybody_and_not_for_long(wiring: Wiring) {
    let bucket = Bucket::start();
    let server = start(wiring, &bucket, &[("SANDMESH_SESSION__OBJECT_STORE__PRESIGN_FOR", "3s")]).await;
    let api = &server.api;
    let session = api.session().await;
    // Written by code, and asked for while it is only in the sandbox.
    assert_eq!(api.run(&session, "shell", "printf content > 'a name.txt'").await["status"], "completed");
    let url = async || {
        let path = format!("/sessions/{session}/files/a%20name.txt?presigned=true");
        let answer = api.get(&path).await.is(200);
        assert_eq!(answer["size"], 7, "{answer}");
        assert!(answer["expires_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{answer}");
        answer["presigned_url"].as_str().unwrap().to_owned()
    };
    let first = url().await;
    assert!(first.starts_with(&bucket.endpoint()) && !first.contains(SECRET), "{first}");
    let fetch = async |url: &str| {
        let answer = reqwest::get(url).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(fetch(&first).await, (200, "content".to_owned()));
    terminate(api, &session).await;
    assert_eq!(fetch(&url().await).await, (200, "content".to_owned()), "also of a session that ended");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(fetch(&first).await.0, 403, "its time is over");
    let missing = format!("/sessions/{session}/files/none?presigned=true");
    api.get(&missing).await.refused(404, "Sandbox.FileNotFound");
}

async fn no_secret_of_the_bucket_is_seen_anywhere(wiring: Wiring) {
    let bucket = Bucket::start();
    let server = start(wiring, &bucket, &[("SANDMESH_MESH__LOG_FILTER", "trace")]).await;
    let api = &server.api;
    let session = api.session().await;
    api.upload(&session, "file", "x").await.is(200);
    let look = "env; cat /proc/self/environ /proc/1/environ /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; \
                echo made > made; true";
    let python = "import os\ndef handler(event):\n    found = dict(os.environ)\n    \
                  found['own'] = open('/proc/self/environ', 'rb').read().decode('latin-1')\n    return found";
    let mut seen = vec![
        ("shell", api.run(&session, "shell", look).await.to_string()),
        ("python", api.python(&session, python).await.to_string()),
        ("session", api.get(&format!("/sessions/{session}")).await.text),
        ("health", api.get("/health/detailed").await.text),
        ("metrics", api.send(api.request_root("GET", "/metrics")).await.text),
    ];
    assert!(seen[0].1.contains("PATH=") && seen[1].1.contains("PATH"), "{seen:?}");
    for pid in server.executors() {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
        seen.push(("executor", String::from_utf8_lossy(&environ).into_owned()));
    }
    let mut dump = Command::new(SANDMESH);
    dump.args(["serve", "--dump-config"]).envs(settings_of_bucket(&bucket));
    let dump = dump.output().unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(dump.contains(&bucket.endpoint()) && dump.contains("***"), "{dump}");
    seen.push(("--dump-config", dump));
    for process in &server.processes {
        let log = fs::read_to_string(&process.launch.log).unwrap();
        assert!(log.contains("DEBUG"), "the log of `{}` tells much", process.launch.name);
        seen.push(("log", log));
    }
    for (place, text) in &seen {
        for secret in [SECRET, HOST_SECRET.1] {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "in {place}: {line:?}");
        }
        assert!(*place == "log" || !text.contains(KEY), "the key is in {place}");
    }
}

/// Health says so, and the mesh works on.
async fn expect_degraded(api: &Api) {
    eventually("health tells of the bucket", Duration::from_secs(10), async || {
        // Of a server that has just been started, the parts that it cannot work without may not be up yet.
        let health = api.get("/health/detailed").await.body;
        health["dependencies"]["object_store"]["status"] == "unhealthy" && health["status"] == "degraded"
    })
    .await;
    assert_eq!(api.get("/health/ready").await.status, 200, "most of what it does needs no bucket");
}

async fn expect_healthy(api: &Api) {
    eventually("health tells that it is back", BACK, async || {
        api.get("/health/detailed").await.is(200)["status"] == "healthy"
    })
    .await;
}

async fn while_the_bucket_is_away_code_runs_and_nothing_is_lost(wiring: Wiring) {
    let mut bucket = Bucket::start();
    let server = start(wiring, &bucket, &[]).await;
    let api = &server.api;
    let session = api.session().await;
    api.upload(&session, "before", "kept").await.is(200);
    let earlier =
        api.run(&session, "shell", "echo earlier > earlier; head -c 200000 /dev/zero | tr '\\0' y").await;
    assert_eq!(earlier["status"], "completed", "{earlier}");
    let begun = "echo begun; while [ ! -e go ]; do sleep 0.1; done; echo made > made; head -c 200000 /dev/zero | tr '\\0' x";
    let running = api.start(&session, json!({"language": "shell", "code": begun, "timeout": 120})).await;
    api.wrote(&running, "begun").await;
    bucket.stop();
    expect_degraded(api).await;

    let start = Instant::now();
    let refused = api.upload(&session, "during", "not kept").await;
    assert_eq!(refused.header("retry-after"), "1");
    refused.refused(503, "Sandbox.ObjectStoreUnavailable");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let unread = [artifact(&earlier, "earlier"), format!("/executions/{}", earlier["id"].as_str().unwrap())];
    for path in &unread {
        api.get(path).await.refused(503, "Sandbox.ObjectStoreUnavailable");
    }
    let small = api.python(&session, "def handler(event):\n    print('on')\n    return 42").await;
    assert_eq!(
        (&small["status"], &small["return_value"], &small["stdout"]),
        (&json!("completed"), &json!(42), &json!("on\n"))
    );
    let other = api.session().await;
    assert_eq!(api.run(&other, "shell", "echo new").await["stdout"], "new\n", "new sessions work");
    assert_eq!(
        api.content(&format!("/sessions/{session}/files/before")).await,
        b"kept",
        "it is in the sandbox"
    );
    let large =
        json!({"language": "python", "code": format!("def handler(event): pass\n#{}", "x".repeat(50_000))});
    let refused = api.post(&format!("/sessions/{session}/execute"), large).await;
    refused.refused(503, "Sandbox.ObjectStoreUnavailable");

    // It ends while the bucket is away, with more than a row holds, and what it made.
    assert_eq!(api.run(&other, "shell", "true").await["status"], "completed");
    touch(api, &session).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = api.get(&format!("/executions/{running}")).await.is(200);
    assert_eq!(now["status"], "running", "what it made is not safe yet: {now}");

    bucket.start_again();
    let ended = api.ended(&running).await;
    assert_eq!((&ended["status"], &ended["exit_code"]), (&json!("completed"), &json!(0)), "{ended}");
    assert_eq!(ended["stdout"].as_str().unwrap().len(), "begun\n".len() + 200_000);
    assert_eq!(api.content(&artifact(&ended, "made")).await, b"made\n");
    expect_healthy(api).await;
    assert_eq!(api.content(&artifact(&earlier, "earlier")).await, b"earlier\n");
    assert_eq!(api.get(&unread[1]).await.is(200)["stdout"], earlier["stdout"]);
    api.upload(&session, "after", "kept").await.is(200);
    terminate(api, &session).await;
    let mut files = api.files(&session, "").await;
    // It is where its caller sent it, and was saved later: the answer did not promise that.
    files.retain(|name| name != "during" && name != "go");
    assert_eq!(files, ["after", "before", "earlier", "made"]);
}

/// Lets an execution go on that waits for a file: by another, as an upload would be refused.
async fn touch(api: &Api, session: &str) {
    api.start(session, json!({"language": "shell", "code": "touch go"})).await;
}

async fn a_session_that_ends_while_the_bucket_is_away_keeps_what_it_wrote(wiring: Wiring) {
    let mut bucket = Bucket::start();
    let short = [("SANDMESH_SESSION__TERMINATE_WAIT", "2s"), ("SANDMESH_STATE_SYNC__INTERVAL", "1s")];
    let server = start(wiring, &bucket, &short).await;
    let api = &server.api;
    let (session, deleted) = (api.session().await, api.session().await);
    bucket.stop();
    let code = json!({"language": "shell", "code": "echo done; echo made > made"});
    let run = api.start(&session, code.clone()).await;
    api.start(&deleted, code).await;
    api.wrote(&run, "done").await;
    // Its process has yet to end: what is ended before that is cancelled.
    tokio::time::sleep(Duration::from_millis(500)).await;
    terminate(api, &session).await;
    api.delete(&format!("/sessions/{deleted}")).await.is(204);
    api.get(&format!("/sessions/{deleted}")).await.refused(404, "Sandbox.SessionNotFound");
    // Long enough for others to look for sandboxes that nobody needs.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(api.get(&format!("/executions/{run}")).await.is(200)["status"], "running");
    bucket.start_again();
    let ended = api.ended(&run).await;
    assert_eq!((&ended["status"], &ended["stdout"]), (&json!("completed"), &json!("done\n")), "{ended}");
    assert_eq!(api.content(&artifact(&ended, "made")).await, b"made\n");
    assert_eq!(api.content(&format!("/sessions/{session}/files/made")).await, b"made\n");
    server.expect_nothing_left(Duration::from_secs(60)).await;
    eventually("nothing of the deleted session is left", BACK, async || {
        !bucket.keys().iter().any(|key| key.contains(&deleted))
    })
    .await;
}

/// A server may be started while its bucket is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_starts_without_its_bucket_and_finds_it_later() {
    let mut bucket = Bucket::start();
    bucket.stop();
    let own = settings_of_bucket(&bucket);
    let own: Vec<_> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Wiring::Embedded.start_unready(&own).await;
    expect_degraded(&server.api).await;
    let session = server.api.session().await;
    assert_eq!(server.api.run(&session, "shell", "echo on").await["stdout"], "on\n");
    bucket.start_again();
    expect_healthy(&server.api).await;
    server.api.upload(&session, "file", "x").await.is(200);
}
