//! The same calls, inside the process and across a socket, must behave alike.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use sandmesh_mesh::{
    CancellationToken, Link, MeshConfig, Node, Probe, Role, RoleName, Secret, ServerBuilder, Tasks,
};
use sandmesh_proto::{
    health::{CheckRoleRequest, role_health_service_client::RoleHealthServiceClient},
    statesync::{
        ReconcileRequest, ReconcileResponse,
        state_sync_service_client::StateSyncServiceClient,
        state_sync_service_server::{StateSyncService, StateSyncServiceServer},
    },
};
use tonic::{Code, Request, Response, Status};
use tower::Service;

/// A role whose one rpc does what the metadata key `do` says.
#[derive(Debug, Clone)]
struct Puppet;

#[tonic::async_trait]
impl StateSyncService for Puppet {
    async fn reconcile(
        &self,
        request: Request<ReconcileRequest>,
    ) -> Result<Response<ReconcileResponse>, Status> {
        match request.metadata().get("do").map(|value| value.to_str().unwrap()) {
            Some("panic") => panic!("the puppet was told to"),
            Some("sleep") => tokio::time::sleep(Duration::from_secs(20)).await,
            _ => {}
        }
        Ok(Response::new(ReconcileResponse { checked: 7, ..Default::default() }))
    }
}

impl Role for Puppet {
    fn name(&self) -> RoleName {
        RoleName::StateSync
    }
    fn register(self: Arc<Self>, server: &mut ServerBuilder) {
        server.add(StateSyncServiceServer::new(Self::clone(&self)));
    }
    fn start(self: Arc<Self>, _: &Tasks) {}
    fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
        Box::pin(async { vec![Probe { name: "strings".into(), healthy: true, ..Probe::default() }] })
    }
}

struct Running {
    local: Link,
    stop: CancellationToken,
    node: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn start(dir: &Path, listen: &str, token: Option<&str>) -> Running {
    let config = MeshConfig {
        data_dir: dir.to_owned(),
        roles: vec![RoleName::StateSync],
        listen: listen.to_owned(),
        token: token.map(Secret::new),
        ..MeshConfig::default()
    };
    let mut node = Node::bind(&config).await.unwrap();
    let local = node.mesh().link(RoleName::StateSync).unwrap();
    node.add(Arc::new(Puppet));
    let stop = CancellationToken::new();
    let node = tokio::spawn(node.run(stop.clone().cancelled_owned()));
    Running { local, stop, node }
}

async fn eventually_up(link: &Link) {
    let mut client = RoleHealthServiceClient::new(link.clone());
    for _ in 0..200 {
        if client.check_role(CheckRoleRequest { role: "state-sync".into() }).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{link:?} did not come up");
}

fn told(what: &'static str) -> Request<ReconcileRequest> {
    let mut request = Request::new(ReconcileRequest {});
    request.metadata_mut().insert("do", what.parse().unwrap());
    request
}

/// Calls with bytes that are no message.
async fn broken_frame(mut link: Link) -> Status {
    let frame = bytes::Bytes::from_static(&[0, 0, 0, 0, 2, 0xff, 0xff]);
    let body = tonic::body::Body::new(http_body_util::Full::new(frame));
    let request = http::Request::post("http://localhost/sandmesh.statesync.v1.StateSyncService/Reconcile")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let response = link.call(request).await.unwrap();
    Status::from_header_map(response.headers()).unwrap()
}

async fn calls_behave(link: Link) {
    eventually_up(&link).await;
    let client_link = link.clone();
    let mut client = StateSyncServiceClient::new(link);
    assert_eq!(client.reconcile(ReconcileRequest {}).await.unwrap().into_inner().checked, 7);

    let panicked = client.reconcile(told("panic")).await.unwrap_err();
    assert_eq!(panicked.code(), Code::Internal);
    assert!(!panicked.message().contains("puppet"), "a panic's text stays inside");

    assert_eq!(broken_frame(client_link).await.code(), Code::InvalidArgument);

    let begun = Instant::now();
    let mut slow = told("sleep");
    slow.set_timeout(Duration::from_millis(100));
    assert_eq!(client.reconcile(slow).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(begun.elapsed() < Duration::from_secs(10), "the deadline was enforced");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_behave_alike_in_process_and_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:{}/mesh.sock", dir.path().display());
    let running = start(dir.path(), &address, None).await;
    calls_behave(running.local.clone()).await;
    calls_behave(Link::dial(&address).unwrap()).await;
    running.stop.cancel();
    running.node.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_only_the_credential_opens_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let running = start(dir.path(), &format!("127.0.0.1:{port}"), Some("s3cret-of-the-mesh")).await;
    let address = format!("http://127.0.0.1:{port}");
    calls_behave(Link::dial_with(&address, Some(Secret::new("s3cret-of-the-mesh"))).unwrap()).await;
    for link in [Link::dial(&address), Link::dial_with(&address, Some(Secret::new("s3creT-of-the-mesh")))] {
        let mut client = StateSyncServiceClient::new(link.unwrap());
        let refused = client.reconcile(ReconcileRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    running.stop.cancel();
    running.node.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_with_the_same_role_and_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path(), "", None).await;
    let config = MeshConfig {
        data_dir: dir.path().to_owned(),
        roles: vec![RoleName::StateSync],
        ..MeshConfig::default()
    };
    let error = Node::bind(&config).await.unwrap_err().to_string();
    assert!(error.contains("state-sync") && error.contains("--data-dir"), "{error}");
    running.stop.cancel();
    running.node.await.unwrap().unwrap();
    assert!(Node::bind(&config).await.is_ok(), "the directory is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_answers_unavailable_and_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path(), "", None).await;
    eventually_up(&running.local).await;
    running.stop.cancel();
    running.node.await.unwrap().unwrap();
    let refused =
        StateSyncServiceClient::new(running.local).reconcile(ReconcileRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[test]
fn a_link_to_a_nonsense_address_is_refused() {
    for address in ["", "unix:", "127.0.0.1:80", "ftp://x"] {
        assert!(Link::dial(address).is_err(), "{address}");
    }
}
