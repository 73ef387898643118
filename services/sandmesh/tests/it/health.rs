//! Health: followed, measured now, and readiness that means it.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sandmesh_proto::health::{
    Condition, ListNodeHealthRequest, ListSandboxHealthRequest, WatchHealthRequest,
    watch_health_response::Subject,
};
use serde_json::json;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{
    Server, Wiring, eventually,
    process::{Launch, Process, SANDMESH, signal},
};

in_both_wirings!(
    health_of_sandboxes_nodes_and_dependencies_can_be_followed,
    a_killed_executor_ends_its_executions_within_two_seconds,
);

/// What must be told of, whatever else is.
const DEPENDENCIES: [&str; 3] = ["database/session", "database/template", "object_store"];

async fn health_of_sandboxes_nodes_and_dependencies_can_be_followed(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_HEALTH_PROBE__SANDBOX_PROBE_INTERVAL", "200ms")]).await;
    let session = server.api.session().await;
    let mut grpc = server.grpc().await;
    let mut events = grpc.health.watch_health(WatchHealthRequest {}).await.unwrap().into_inner();
    let (mut sandbox, mut node, mut dependencies) = (None, None, Vec::<String>::new());
    let all = async {
        let known = |dependencies: &[String]| {
            DEPENDENCIES.iter().all(|name| dependencies.iter().any(|known| known == name))
        };
        while sandbox.is_none() || node.is_none() || !known(&dependencies) {
            match events.message().await.unwrap().unwrap().subject.unwrap() {
                Subject::Sandbox(health) if health.measured_at.is_some() => sandbox = Some(health),
                Subject::Sandbox(_) => {}
                Subject::Node(health) => node = Some(health),
                Subject::Dependency(health) => dependencies.push(health.probe.unwrap_or_default().name),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    let (sandbox, node) = (sandbox.unwrap(), node.unwrap());
    assert_eq!((sandbox.session_id.as_str(), sandbox.condition()), (session.as_str(), Condition::Healthy));
    assert!(sandbox.latency_us > 0 && sandbox.usage.is_some(), "{sandbox:?}");
    assert_eq!((node.condition(), node.draining), (Condition::Healthy, false));
    let request = ListSandboxHealthRequest::default();
    let listed = grpc.health.list_sandbox_health(request).await.unwrap().into_inner();
    assert_eq!(listed.sandboxes.len(), 1);
    let nodes = grpc.health.list_node_health(ListNodeHealthRequest {}).await.unwrap().into_inner();
    assert_eq!(nodes.nodes[0].node_id, node.node_id);

    signal(server.only_executor(), Signal::KILL);
    let told = async {
        loop {
            if let Some(Subject::Sandbox(health)) = events.message().await.unwrap().unwrap().subject
                && health.sandbox_id == sandbox.sandbox_id
                && health.condition() != Condition::Healthy
            {
                return health;
            }
        }
    };
    let dead = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    assert!(!dead.reason.is_empty() || dead.condition() == Condition::Gone, "{dead:?}");
}

async fn a_killed_executor_ends_its_executions_within_two_seconds(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_SESSION__MAX_RECOVERIES", "0")]).await;
    let api = &server.api;
    let id = api.session().await;
    let code = json!({"language": "shell", "code": "echo begun; sleep 100", "timeout": 120});
    let execution = api.start(&id, code).await;
    api.wrote(&execution, "begun").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    signal(server.only_executor(), Signal::KILL);
    let killed = Instant::now();
    let run = api.ended(&execution).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("crashed"), &json!("executor_lost")), "{run}");
    let took = killed.elapsed();
    println!("{wiring:?}: noticed after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

async fn serving(server: &Server, service: &str) -> ServingStatus {
    let mut health = HealthClient::new(server.grpc().await.channel);
    let request = HealthCheckRequest { service: service.to_owned() };
    health.check(request).await.unwrap().into_inner().status()
}

/// A mesh that lacks the session role serves the rest, and says what it cannot do.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_the_session_role_the_gateway_is_not_ready_and_health_tells_why() {
    let mut server = Wiring::Split.start().await;
    let ready = async |server: &Server| server.api.get("/health/ready").await.status;
    assert_eq!(ready(&server).await, 200);
    for service in ["", "sandmesh.session.v1.SessionService", "sandmesh.scheduler.v1.NodeService"] {
        assert_eq!(serving(&server, service).await, ServingStatus::Serving, "{service}");
    }
    server.process("session").kill();
    eventually("it is not ready", Duration::from_secs(10), async || ready(&server).await == 503).await;
    server.api.get("/health/ready").await.refused(503, "Sandbox.NotReady");
    for (service, expected) in [
        ("", ServingStatus::NotServing),
        ("sandmesh.session.v1.SessionService", ServingStatus::NotServing),
        ("sandmesh.template.v1.TemplateService", ServingStatus::Serving),
        ("sandmesh.scheduler.v1.NodeService", ServingStatus::Serving),
    ] {
        assert_eq!(serving(&server, service).await, expected, "{service}");
    }
    assert_eq!(server.api.get("/health").await.status, 200, "the process itself is up");
    let detailed = server.api.get("/health/detailed").await.is(200);
    assert_eq!(detailed["status"], "unhealthy", "{detailed}");
    assert_eq!(detailed["dependencies"]["session"]["status"], "unhealthy", "{detailed}");
    server.start_again().await;
    assert_eq!(ready(&server).await, 200);
}

/// What a container engine or a supervisor asks of each process: the same settings, another word.
fn told_by(process: &Process) -> (i32, String) {
    let Launch { args, env, .. } = &process.launch;
    assert_eq!(args[0], "serve");
    let mut command = Command::new(SANDMESH);
    command.arg("health").args(&args[1..]).envs(env.iter().map(|(key, value)| (key, value)));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_process_tells_whether_it_can_work_to_who_has_its_settings() {
    let mut server = Wiring::Split.start().await;
    for process in &server.processes {
        let (code, said) = told_by(process);
        assert!(code == 0 && said.contains("serving"), "{}: {code} {said}", process.launch.name);
    }
    server.process("session").kill();
    let (code, said) = told_by(server.process("session"));
    assert!(code == 1 && said.contains("Unavailable"), "{code} {said}");
    // It lives, and cannot do what it is for.
    let (code, said) = told_by(server.process("gateway"));
    assert!(code == 1 && said.contains("lacks something"), "{code} {said}");
    assert_eq!(told_by(server.process("control")).0, 0);
    let nobody = Command::new(SANDMESH).args(["health", "--data-dir", "/x", "--roles", "session"]).output();
    let nobody = nobody.unwrap();
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert!(nobody.status.code() == Some(2) && said.contains("mesh.listen"), "{said}");
}

/// Something that is not essential: the mesh goes on, and is not called well.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_the_state_sync_role_the_mesh_is_ready_and_degraded() {
    let mut server = Wiring::Split.start().await;
    server.process("watch").kill();
    eventually("it is degraded", Duration::from_secs(10), async || {
        server.api.get("/health/detailed").await.is(200)["status"] == "degraded"
    })
    .await;
    assert_eq!(server.api.get("/health/ready").await.status, 200);
    assert_eq!(server.api.run(&server.api.session().await, "shell", "echo on").await["stdout"], "on\n");
    assert_eq!(server.api.get("/containers").await.is(200)["items"][0]["usage"], json!(null));
}
