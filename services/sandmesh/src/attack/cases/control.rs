//! Cases 37 to 41: who may ask for what.

use std::time::Duration;

use sandmesh_mesh::{Link, RoleName, Secret};
use sandmesh_proto::{
    session::{
        CreateSessionRequest, Dependency, ExecuteRequest, ListSessionsRequest,
        session_service_client::SessionServiceClient,
    },
    template::{ListTemplatesRequest, template_service_client::TemplateServiceClient},
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::{Code, service::interceptor::InterceptedService};

use super::names::refused;
use crate::attack::{
    arena::{Arena, Key, timed},
    own_server::{below, clean, ending, random},
    verdict::Evidence,
};

/// How long a server that is to refuse may take to do so.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn keys(arena: &Arena) -> anyhow::Result<Evidence> {
    let Some(key) = &arena.target.api_key else {
        return Ok(Evidence::not_run("no key was given; a gateway on loopback needs none"));
    };
    let key = key.expose();
    let door = arena.door()?;
    if door.send("GET /api/v1/sessions", &["Authorization: none"], "").await?.status == 200 {
        return Ok(Evidence::not_run("this gateway has no keys"));
    }
    let mut evidence = Evidence::default();
    let right = door.send("GET /api/v1/sessions", &[], "").await?.status;
    evidence.client("the right key", right == 200, right.to_string());
    let most = key.get(..key.len() - 1).unwrap_or_default();
    let wrong = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Bearer {most}"),
        format!("Bearer {key}x"),
        format!("Bearer x{key}"),
        format!("Bearer {}", key.to_uppercase()),
        format!("Bearer {key},{key}"),
        format!("Basic {key}"),
        key.to_owned(),
        "Bearer null".to_owned(),
        "Bearer *".to_owned(),
    ];
    for (n, value) in wrong.iter().enumerate() {
        let header = format!("Authorization: {value}");
        for path in ["/api/v1/sessions", "/api/v1/templates", "/api/v1/health/detailed", "/metrics"] {
            let reply = door.send(&format!("GET {path}"), &[&header], "").await?;
            let held = reply.status == 401 || (path == "/metrics" && reply.status == 404);
            evidence.client(format!("{path} with wrong key {n}"), held, reply.status.to_string());
        }
    }
    detours(arena, key, &mut evidence).await?;
    grpc_without_key(arena, most, &mut evidence).await?;
    Ok(evidence)
}

/// Other ways to the same place, and other places for the key.
async fn detours(arena: &Arena, key: &str, evidence: &mut Evidence) -> anyhow::Result<()> {
    let door = arena.door()?;
    for path in [
        "//api/v1/sessions",
        "/api/v1/sessions/",
        "/api/v1/health/../sessions",
        "/docs/../api/v1/sessions",
        "/docs/%2e%2e/api/v1/sessions",
        "/API/v1/sessions",
        "/api/v1/sessions;x=/docs/",
        "/api/v1/sessions#/docs/",
        "/openapi.json/../api/v1/sessions",
        "/api/v1/%73essions",
        "/docs//api/v1/sessions",
    ] {
        let reply = door.send(&format!("GET {path}"), &["Authorization: none"], "").await?;
        let lists = reply.status == 200 && reply.body().contains("\"items\"");
        evidence.client(format!("a detour by {path}"), !lists, reply.status.to_string());
    }
    let places = [
        (format!("GET /api/v1/sessions?api_key={key}"), "X-None: x".to_owned()),
        (format!("GET /api/v1/sessions?access_token={key}"), "X-None: x".to_owned()),
        ("GET /api/v1/sessions".to_owned(), format!("Cookie: api_key={key}; authorization=Bearer {key}")),
        ("GET /api/v1/sessions".to_owned(), format!("X-API-Key: {key}")),
    ];
    for (line, header) in &places {
        let reply = door.send(line, &["Authorization: none", header], "").await?;
        let what = header.split(':').next().unwrap_or_default();
        evidence.client(format!("the key elsewhere: {what}"), reply.status == 401, reply.status.to_string());
    }
    Ok(())
}

async fn grpc_without_key(arena: &Arena, wrong: &str, evidence: &mut Evidence) -> anyhow::Result<()> {
    for (what, key) in [("no key", None), ("a wrong key", Some(wrong))] {
        let service = InterceptedService::new(arena.own_link()?, Key::new(key)?);
        let mut sessions = SessionServiceClient::new(service.clone());
        let mut templates = TemplateServiceClient::new(service);
        let create =
            CreateSessionRequest { template_id: arena.target.template.clone(), ..Default::default() };
        let codes = [
            ("ListSessions", sessions.list_sessions(timed(ListSessionsRequest::default())).await.err()),
            ("CreateSession", sessions.create_session(timed(create)).await.err()),
            ("Execute", sessions.execute(timed(ExecuteRequest::default())).await.err()),
            ("ListTemplates", templates.list_templates(timed(ListTemplatesRequest::default())).await.err()),
        ];
        for (call, error) in codes {
            let code = error.map_or(Code::Ok, |status| status.code());
            evidence.client(
                format!("{call} with {what}"),
                code == Code::Unauthenticated,
                format!("{code:?}"),
            );
        }
    }
    Ok(())
}

/// A start of a server: what it would be, its flags, its settings.
type Start<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)]);

/// Servers that would be open to everybody.
pub(super) async fn exposed_servers(arena: &Arena) -> anyhow::Result<Evidence> {
    let Some(program) = &arena.target.program else {
        return Ok(Evidence::not_run("the program is not on this machine"));
    };
    let mut evidence = Evidence::default();
    let key = ("SANDMESH_GATEWAY__API_KEYS", "[\"0123456789abcdef-attack\"]");
    let short = ("SANDMESH_GATEWAY__API_KEYS", "[\"short\"]");
    let tries: &[Start<'_>] = &[
        ("every address, no key", &["--listen", "0.0.0.0:0"], &[]),
        ("every IPv6 address, no key", &["--listen", "[::]:0"], &[]),
        ("every address, a key, no TLS", &["--listen", "0.0.0.0:0"], &[key]),
        (
            "every address, a short key",
            &["--listen", "0.0.0.0:0"],
            &[short, ("SANDMESH_GATEWAY__ALLOW_PLAINTEXT", "true")],
        ),
        (
            "every address, plaintext, no key",
            &["--listen", "0.0.0.0:0"],
            &[("SANDMESH_GATEWAY__ALLOW_PLAINTEXT", "true")],
        ),
        ("roles over TCP, no credential", &["--listen", "127.0.0.1:0", "--mesh-listen", "127.0.0.1:0"], &[]),
        (
            "roles at every address, no credential",
            &["--listen", "127.0.0.1:0", "--mesh-listen", "0.0.0.0:0"],
            &[],
        ),
        (
            "roles over TCP, an empty credential",
            &["--listen", "127.0.0.1:0", "--mesh-listen", "0.0.0.0:0"],
            &[("SANDMESH_MESH__TOKEN", "")],
        ),
    ];
    for (what, arguments, settings) in tries {
        let dir = tempfile::Builder::new().prefix("sma-").tempdir()?;
        let mut command = clean(program);
        command.arg("serve").arg("--data-dir").arg(below(&dir, "data")).args(*arguments);
        command.envs(settings.iter().copied());
        // Should it start after all, then where it disturbs nobody.
        command.env("SANDMESH_AGENT__CGROUP_PARENT", format!("sandmesh-attack-{}", arena.mark));
        command.env("SANDMESH_AGENT__ON_SHUTDOWN", "destroy");
        let (code, printed) = ending(command, PATIENCE).await?;
        let line = printed.lines().last().unwrap_or_default().to_owned();
        evidence.host(*what, code == Some(2), format!("exit code {code:?}: {line}"));
    }
    Ok(evidence)
}

/// What only the roles of the mesh may call.
const INTERNAL: &[&str] = &[
    "agent.v1.AgentService/CreateSandbox",
    "agent.v1.AgentService/DeleteSandbox",
    "agent.v1.AgentService/ListSandboxes",
    "agent.v1.AgentService/GetNode",
    "scheduler.v1.SchedulerService/CreateSandbox",
    "scheduler.v1.SchedulerService/DeleteSandbox",
    "scheduler.v1.SchedulerService/ListNodes",
    "scheduler.v1.SchedulerService/RegisterNode",
    "executor.v1.ExecutorService/GetExecutor",
    "executor.v1.ExecutorService/ListExecutions",
    "statesync.v1.StateSyncService/Reconcile",
    "health.v1.RoleHealthService/CheckRole",
    "session.v1.SessionEventService/ReportSandboxLost",
    "session.v1.LeaseService/HoldLease",
];

pub(super) async fn internal_services(arena: &Arena) -> anyhow::Result<Evidence> {
    const UNIMPLEMENTED: &str = "12";
    let mut evidence = Evidence::default();
    let door = arena.door()?;
    for path in INTERNAL {
        let mut request = format!(
            "POST /sandmesh.{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/grpc-web+proto\r\nContent-Length: 5\r\n",
            door.address
        );
        if let Some(key) = &arena.target.api_key {
            request.push_str(&format!("Authorization: Bearer {}\r\n", key.expose()));
        }
        let reply = door.raw(format!("{request}\r\n\0\0\0\0\0").as_bytes()).await?;
        let status = reply.header("grpc-status").map(str::to_owned);
        let told = format!("status {}, grpc-status {status:?}", reply.status);
        let held = status.as_deref() == Some(UNIMPLEMENTED) || [404, 405].contains(&reply.status);
        evidence.client(format!("{path} at the gateway"), held, told);
    }
    match &arena.target.program {
        Some(program) => mesh_port(program, &mut evidence).await?,
        None => evidence.note("the mesh's own port was not tried: the program is not on this machine"),
    }
    Ok(evidence)
}

/// A role that serves others over TCP, without the right credential.
async fn mesh_port(program: &std::path::Path, evidence: &mut Evidence) -> anyhow::Result<()> {
    let dir = TempDir::new()?;
    let token = random("mesh");
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut command = clean(program);
    command
        .args(["serve", "--roles", "template", "--mesh-listen", &address, "--data-dir"])
        .arg(below(&dir, "data"));
    for role in RoleName::ALL.into_iter().filter(|role| *role != RoleName::Template) {
        command.args(["--link", &format!("{role}=unix:{}", below(&dir, "nobody").display())]);
    }
    command.env("SANDMESH_MESH__TOKEN", &token);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let mut server = command.spawn()?;
    let ask = |credential: Option<String>| {
        let address = format!("http://{address}");
        async move {
            let link = Link::dial_with(&address, credential.map(Secret::new))?;
            let answer =
                TemplateServiceClient::new(link).list_templates(timed(ListTemplatesRequest::default())).await;
            anyhow::Ok(answer.map_or_else(|status| status.code(), |_| Code::Ok))
        }
    };
    let up = timeout(PATIENCE, async {
        while ask(Some(token.clone())).await? != Code::Ok {
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    });
    evidence.host("a role with the right credential", matches!(up.await, Ok(Ok(()))), "answers");
    let most = token.get(1..).map(str::to_owned);
    for (what, credential) in [
        ("no credential", None),
        ("an empty one", Some(String::new())),
        ("a wrong one", Some(random("mesh"))),
        ("a part of it", most),
    ] {
        let code = ask(credential).await?;
        let held = [Code::Unauthenticated, Code::PermissionDenied].contains(&code);
        evidence.host(format!("a role with {what}"), held, format!("{code:?}"));
    }
    server.kill().await?;
    Ok(())
}

/// Packages that would be options, addresses, paths or commands of an installer.
pub(super) async fn dependencies(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence::default();
    for (name, version) in [
        ("--index-url=http://evil.example", ""),
        ("-r/etc/passwd", ""),
        ("-e .", ""),
        ("git+https://evil.example/x.git", ""),
        ("http://evil.example/x.tar.gz", ""),
        ("file:///etc/passwd", ""),
        ("../../etc", ""),
        ("/workspace/evil", ""),
        ("x @ http://evil.example/x.whl", ""),
        ("x; touch /tmp/pwned", ""),
        ("x\n--index-url http://evil.example", ""),
        ("requests", "==1.0 --index-url http://evil.example"),
        ("requests", "$(touch /tmp/pwned)"),
        ("requests", "@ file:///etc/passwd"),
        ("@evil/../../x", ""),
        ("x\0y", ""),
        ("", ""),
    ] {
        let request = CreateSessionRequest {
            template_id: arena.target.template.clone(),
            dependencies: vec![Dependency { name: name.to_owned(), version: version.to_owned() }],
            ..CreateSessionRequest::default()
        };
        let answer = arena.sessions()?.create_session(timed(request)).await;
        refused(&mut evidence, format!("package {:?}", (name, version)), &answer);
    }
    for index in [
        "file:///etc",
        "http://evil.example/\n--extra",
        "--trusted-host evil",
        "ftp://evil.example",
        "http://169.254.169.254/simple",
        "https://127.0.0.1/simple",
        "https://pypi.org.evil.example/simple",
        "https://pypi.org@evil.example/simple",
    ] {
        let request = CreateSessionRequest {
            template_id: arena.target.template.clone(),
            dependencies: vec![Dependency { name: "requests".to_owned(), version: String::new() }],
            python_package_index_url: index.to_owned(),
            ..CreateSessionRequest::default()
        };
        let answer = arena.sessions()?.create_session(timed(request)).await;
        refused(&mut evidence, format!("index {index:?}"), &answer);
    }
    if arena.host.is_some() {
        let pwned = std::path::Path::new("/tmp/pwned").exists();
        evidence.host("files that names could have made", !pwned, if pwned { "/tmp/pwned" } else { "none" });
    }
    Ok(evidence)
}

/// The settings as the program prints them.
pub(super) async fn dumped_settings(arena: &Arena, evidence: &mut Evidence) -> anyhow::Result<()> {
    let Some(program) = &arena.target.program else { return Ok(()) };
    let dir = TempDir::new()?;
    let (key, token) = (random("key"), random("token"));
    let mut command = clean(program);
    command.args(["serve", "--dump-config", "--data-dir"]).arg(below(&dir, "data"));
    command.env("SANDMESH_GATEWAY__API_KEYS", format!("[\"{key}\"]")).env("SANDMESH_MESH__TOKEN", &token);
    let (code, printed) = ending(command, PATIENCE).await?;
    let shown = printed.contains(&key) || printed.contains(&token);
    let told = format!("exit code {code:?}, {} bytes", printed.len());
    evidence.host(
        "secrets in --dump-config",
        code == Some(0) && !shown && printed.contains("api_keys"),
        told,
    );
    // A setting that cannot be read is named, and its value is not.
    let mut command = clean(program);
    command.args(["serve", "--data-dir"]).arg(below(&dir, "data"));
    command
        .env("SANDMESH_GATEWAY__API_KEYS", format!("[\"{key}\""))
        .env("SANDMESH_GATEWAY__LISTEN", "nowhere");
    let (code, printed) = ending(command, PATIENCE).await?;
    evidence.host(
        "secrets in an error at start",
        code == Some(2) && !printed.contains(&key),
        format!("exit code {code:?}"),
    );
    Ok(())
}
