//! How the program is configured and wired: what it refuses at its start, and what it tells.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::json;
use tonic::Code;

use crate::harness::{
    TOKEN, Wiring, free_port,
    process::{SANDMESH, executor},
};

/// `sandmesh serve` with no settings but these; it must end by itself, soon.
fn serve(args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new("/usr/bin/timeout");
    command.args(["-k", "5", "20", SANDMESH, "serve"]).args(args).env_clear();
    command.env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").envs(env.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// It does not start, and says all of `words`.
#[track_caller]
fn refuses(args: &[&str], env: &[(&str, &str)], words: &[&str]) {
    let (code, stdout, stderr) = serve(args, env);
    assert!([1, 2].contains(&code), "{args:?}: exit code {code}\n{stdout}{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: no `{word}` in\n{stderr}");
    }
}

#[test]
fn setting_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = ["--data-dir", dir.path().to_str().unwrap()];
    let with = |args: &[&'static str]| [&data[..], args].concat();
    refuses(&with(&["--roles", "session,cook"]), &[], &["cook", "roles are"]);
    refuses(&with(&["--link", "session"]), &[], &["ROLE=ADDRESS"]);
    refuses(&with(&["--listen", "somewhere"]), &[], &["--listen"]);
    refuses(&with(&["--listen", "0.0.0.0:0"]), &[], &["gateway.api_keys"]);
    refuses(&with(&["--roles", "session"]), &[], &["mesh.links."]);
    refuses(&with(&["--roles", "template", "--mesh-listen", "127.0.0.1:0"]), &[], &["mesh.token"]);
    refuses(&with(&[]), &[("SANDMESH_AGENT__MAX_SANDBOXES", "0")], &["agent.max_sandboxes"]);
    refuses(&with(&[]), &[("SANDMESH_AGENT__NO_SUCH_SETTING", "1")], &["no_such_setting"]);
    refuses(&with(&[]), &[("SANDMESH_SESSION__SWEEP_INTERVAL", "soon")], &["soon"]);
    refuses(&with(&["--config", "/does/not/exist.toml"]), &[], &["exist.toml"]);
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[gateway]\ncolour = \"red\"\n").unwrap();
    refuses(&[&data[..], &["--config", file.to_str().unwrap()]].concat(), &[], &["colour"]);
    let long = format!("{}/{}", dir.path().display(), "d".repeat(100));
    refuses(&["--data-dir", &long], &[], &["--data-dir"]);
}

#[test]
fn password_of_a_database_is_shown_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let data = ["--data-dir", dir.path().to_str().unwrap()];
    let url = "postgres://me:hunter2@127.0.0.1:1/x";
    for setting in ["SANDMESH_SESSION__DATABASE_URL", "SANDMESH_TEMPLATE__DATABASE_URL"] {
        let (code, stdout, stderr) = serve(&[&data[..], &["--dump-config"]].concat(), &[(setting, url)]);
        assert!(code == 0 && stdout.contains("postgres://***@127.0.0.1:1/x"), "{stdout}{stderr}");
        assert!(!stdout.contains("hunter2") && !stderr.contains("hunter2"));
        let wrong = "postgres://me:hunter2@db:port/x";
        for (url, word) in [(url, "cannot"), (wrong, "database_url"), ("hunter2", "database_url")] {
            let (code, stdout, stderr) = serve(&data, &[(setting, url)]);
            assert!(code != 0 && stderr.contains(word), "{stdout}{stderr}");
            assert!(!stdout.contains("hunter2") && !stderr.contains("hunter2"), "{stdout}{stderr}");
        }
    }
}

/// `sandmesh serve` where `hide`, a shell command, was run in a mount namespace of its own before.
fn serve_where(hide: &str) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().display();
    let serve = format!("{SANDMESH} serve --data-dir {data_dir} --listen 127.0.0.1:{}", free_port());
    let mut command = Command::new("/usr/bin/unshare");
    command.args([
        "--map-root-user",
        "--mount",
        "sh",
        "-ec",
        &format!("{hide}; exec timeout -k 5 20 {serve}"),
    ]);
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn isolation_that_cannot_be_had_is_told_with_its_remedy_and_never_silently_weakened() {
    for (hide, words) in [
        ("mount --bind /dev/null /usr/bin/bwrap", ["bwrap", "agent.isolation.jail", "allow"]),
        ("mount -t tmpfs none /sys/fs/cgroup", ["control groups", "agent.isolation.cgroups", "Delegate=yes"]),
    ] {
        let (code, stderr) = serve_where(hide);
        assert_eq!(code, 1, "{hide}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{hide}: no `{word}` in\n{stderr}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn weaker_isolation_is_had_by_configuration_and_every_session_tells() {
    let settings =
        [("SANDMESH_AGENT__ISOLATION__CGROUPS", "off"), ("SANDMESH_AGENT__ISOLATION__SECCOMP", "off")];
    let server = Wiring::Embedded.start_with(&settings).await;
    let session = server.api.create(json!({"template_id": "shell-basic"})).await;
    let isolation = &session["effective_isolation"];
    assert_eq!(
        (&isolation["jail"], &isolation["seccomp"]),
        (&json!("bubblewrap"), &json!("none")),
        "{isolation}"
    );
    assert!(!isolation["limits"].as_str().unwrap().contains("cgroup"), "{isolation}");
    let id = session["id"].as_str().unwrap();
    assert_eq!(server.api.run(id, "shell", "echo on").await["stdout"], "on\n");
    let slow = json!({"language": "shell", "code": "setsid sleep 100 & sleep 100", "timeout": 1});
    assert_eq!(server.api.execute(id, slow).await["status"], "timeout");
    server.api.send(server.api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

#[test]
fn dumped_configuration_is_complete_and_hides_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[agent]\nmax_sandboxes = 7\nmax_queued = 8\n[mesh]\ndata_dir = \"/from/file\"\n")
        .unwrap();
    let args = ["--dump-config", "--config", file.to_str().unwrap(), "--listen", "127.0.0.1:4321"];
    let env = [
        ("SANDMESH_AGENT__MAX_QUEUED", "9"),
        ("SANDMESH_MESH__TOKEN", "0123456789-hunter2"),
        ("SANDMESH_GATEWAY__API_KEYS", "[\"0123456789-hunter2\"]"),
    ];
    let (code, stdout, stderr) = serve(&args, &env);
    assert_eq!(code, 0, "{stderr}");
    let config: toml::Table = stdout.parse().unwrap();
    for section in
        ["mesh", "gateway", "session", "template", "scheduler", "agent", "health_probe", "state_sync"]
    {
        assert!(config.contains_key(section), "no [{section}] in\n{stdout}");
    }
    assert_eq!(config["agent"]["max_sandboxes"].as_integer(), Some(7), "the file wins over the default");
    assert_eq!(config["agent"]["max_queued"].as_integer(), Some(9), "the environment wins over the file");
    assert_eq!(config["gateway"]["listen"].as_str(), Some("127.0.0.1:4321"), "a flag wins over all");
    assert_eq!(config["mesh"]["data_dir"].as_str(), Some("/from/file"));
    assert!(!stdout.contains("hunter2"), "{stdout}");
    let (code, defaults, _) = serve(&["--dump-config", "--data-dir", "/x"], &[]);
    assert!(code == 0 && defaults.contains("127.0.0.1:8000"), "{defaults}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn second_server_on_a_data_directory_or_port_is_refused() {
    let server = Wiring::Embedded.start().await;
    let data = server.data_dir().display().to_string();
    let other_port = format!("127.0.0.1:{}", free_port());
    refuses(&["--data-dir", &data, "--listen", &other_port], &[], &["another process", "--data-dir"]);
    let dir = tempfile::tempdir().unwrap();
    let same_port = format!("127.0.0.1:{}", server.port);
    let parent = [("SANDMESH_AGENT__CGROUP_PARENT", server.cgroup_parent())];
    refuses(
        &["--data-dir", dir.path().to_str().unwrap(), "--listen", &same_port],
        &parent,
        &["cannot listen", &same_port],
    );
    assert_eq!(server.api.get("/health").await.is(200)["status"], "healthy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn session_can_be_created_as_soon_as_health_answers() {
    let start = Instant::now();
    let mut server = Wiring::Embedded.start().await;
    println!("started in {:?}", start.elapsed());
    let id = server.api.session().await;
    server.kill();
    let start = Instant::now();
    for process in &mut server.processes {
        *process = process.launch.spawn();
    }
    while server.api.try_get("/health").await.is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "does not answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.api.post("/sessions", json!({"template_id": "python-basic"})).await.is(201);
    assert_eq!(server.api.run(&id, "shell", "echo on").await["stdout"], "on\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn role_on_tcp_serves_only_those_who_show_the_credential() {
    let server = Wiring::Split.start().await;
    let control =
        &server.processes.iter().find(|process| process.launch.name == "control").unwrap().launch.args;
    let position = control.iter().position(|arg| arg == "--mesh-listen").unwrap();
    let address = format!("http://{}", control[position + 1]);
    let channel = tonic::transport::Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut client = sandmesh_proto::template::template_service_client::TemplateServiceClient::new(channel);
    let list = |token: Option<&str>| {
        let mut request = tonic::Request::new(sandmesh_proto::template::ListTemplatesRequest::default());
        if let Some(token) = token {
            request.metadata_mut().insert("x-sandmesh-token", token.parse().unwrap());
        }
        request
    };
    for wrong in [None, Some("wrong"), Some("")] {
        let status = client.list_templates(list(wrong)).await.expect_err("no credential");
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong:?}");
    }
    client.list_templates(list(Some(TOKEN))).await.unwrap();
    let socket = server.data_dir().join("session.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(socket).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "a unix socket is for its owner only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn gateway_with_keys_asks_for_one() {
    let key = "0123456789abcdef-key";
    let keys = format!("[\"{key}\"]");
    // Health must be seen without a key, or nobody could tell that the server runs.
    let server = Wiring::Embedded.start_unready(&[("SANDMESH_GATEWAY__API_KEYS", &keys)]).await;
    let api = &server.api;
    assert_eq!(api.get("/health").await.is(200)["status"], "healthy");
    for path in ["/sessions", "/templates", "/executions/x", "/health/detailed"] {
        let with = |value: &str| api.request("GET", path).header("authorization", value);
        for request in [api.request("GET", path), with("Bearer wrong"), with(key), with("Basic x")] {
            api.send(request).await.refused(401, "Sandbox.Unauthenticated");
        }
        assert!([200, 404].contains(&api.send(with(&format!("Bearer {key}"))).await.status), "{path}");
    }
    let mut grpc = server.grpc().await;
    let list = || tonic::Request::new(sandmesh_proto::session::ListSessionsRequest::default());
    let status = grpc.sessions.list_sessions(list()).await.expect_err("no key");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let mut request = list();
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    grpc.sessions.list_sessions(request).await.unwrap();
}

/// Where this machine has large pages for files, and elsewhere with the interpreter of the system.
#[tokio::test]
async fn sandboxes_of_a_node_show_its_copy_of_python() {
    let server = Wiring::Embedded.start().await;
    // On the same file system, by hand: whether there is to be one at all.
    let by_hand = server.scratch().join("by-hand");
    assert!(Command::new(executor()).arg("copy").arg("--into").arg(&by_hand).status().unwrap().success());
    let copies = server.data_dir().join("interpreters");
    let files = |dir: &Path| -> Vec<PathBuf> {
        let all = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_none_or(|ending| ending != "snapshot")).collect()
    };
    let made = files(&copies);
    assert_eq!(made.len(), files(&by_hand).len());
    let expected = made.first().cloned().unwrap_or_else(|| "/usr/bin/python3".into());
    let session = server.api.session().await;
    let code = "import os, sys\ndef handler(event): return os.stat(sys.executable).st_ino";
    let ran = server.api.run(&session, "python", code).await;
    assert_eq!(ran["return_value"], expected.metadata().unwrap().ino(), "{ran}");
}
