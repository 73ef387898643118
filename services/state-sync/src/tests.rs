//! The role against a session role and a scheduler of the test's own, over real gRPC.

mod world;

use std::{sync::Mutex, time::Duration};

use axum::{Router, extract::Request as HttpRequest};
use chrono::{DateTime, TimeDelta};
use sandmesh_mesh::{HumanDuration, Link, ManualClock, grpc_router, timestamp};
use sandmesh_proto::{
    agent::{Sandbox, SandboxSpec, sandbox},
    session::{Session, session::State},
    statesync::{ReconcileRequest, ReconcileResponse, state_sync_service_client::StateSyncServiceClient},
};
use tokio::{sync::Notify, time::timeout};
use tonic::{Code, Response, Status, service::Routes};

use self::world::{Shared, World, lock, others};
use super::*;

/// Long enough for a busy machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    world: Shared,
    client: StateSyncServiceClient<Link>,
    reconciler: Arc<Reconciler>,
    clock: ManualClock,
    tasks: Tasks,
}

fn start() -> DateTime<chrono::Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn bench(world: World) -> Bench {
    let world = Arc::new(Mutex::new(world));
    let link = others(&world);
    bench_over(world, link)
}

fn bench_over(world: Shared, link: Link) -> Bench {
    let clock = ManualClock::new(start());
    let tasks = Tasks::new();
    let config = Config { interval: HumanDuration(Duration::from_millis(100)), ..Config::default() };
    let reconciler = Reconciler::new(link.clone(), link, Arc::new(clock.clone()), tasks.clone(), config);
    let reconciler = Arc::new(reconciler);
    let service = StateSyncServiceServer::new(Grpc(Arc::clone(&reconciler)));
    let client = StateSyncServiceClient::new(Link::local(grpc_router(Routes::new(service))));
    Bench { world, client, reconciler, clock, tasks }
}

impl Bench {
    async fn reconcile(&mut self) -> Result<ReconcileResponse, Status> {
        self.client.reconcile(ReconcileRequest {}).await.map(Response::into_inner)
    }

    /// Makes passes by itself, while it has the lease.
    fn run(&self) {
        self.tasks.spawn("lease", Arc::clone(&self.reconciler).keep_lease());
        self.tasks.spawn("loop", Arc::clone(&self.reconciler).run());
    }

    fn done(&self) -> Vec<String> {
        lock(&self.world).done.clone()
    }
}

fn session(number: usize, state: State) -> Session {
    Session {
        session_id: format!("s{number}"),
        sandbox_id: format!("b{number}"),
        node_id: "n".to_owned(),
        state: state.into(),
        ..Session::default()
    }
}

/// A sandbox of session `number`, created at the start of the clock.
fn sandbox(number: usize, state: sandbox::State) -> Sandbox {
    Sandbox {
        sandbox_id: format!("b{number}"),
        spec: Some(SandboxSpec { session_id: format!("s{number}"), ..SandboxSpec::default() }),
        state: state.into(),
        node_id: "n".to_owned(),
        created_at: Some(timestamp(start())),
        ..Sandbox::default()
    }
}

fn world(sessions: Vec<Session>, sandboxes: Vec<Sandbox>) -> World {
    World { sessions, sandboxes, nodes: vec!["n"], ..World::default() }
}

#[tokio::test]
async fn a_world_over_many_pages_that_matches_is_left_alone() {
    let sessions = (0..7).map(|number| session(number, State::Running)).collect();
    let sandboxes = (0..7).map(|number| sandbox(number, sandbox::State::Running)).collect();
    let mut bench = bench(world(sessions, sandboxes));
    bench.clock.advance(Duration::from_secs(3600));
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.checked, report.healthy, report.unhealthy, report.recovered), (7, 7, 0, 0));
    assert_eq!((report.errors.len(), bench.done().len()), (0, 0));
    assert_eq!(report.completed_at, Some(timestamp(start() + TimeDelta::seconds(3600))));
}

#[tokio::test]
async fn a_dead_sandbox_is_reported_and_then_removed() {
    let dead = Sandbox { reason: "out of memory".to_owned(), ..sandbox(1, sandbox::State::Dead) };
    let mut bench = bench(world(vec![session(1, State::Running)], vec![dead]));
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.checked, report.unhealthy, report.failed, report.orphans_removed), (1, 1, 1, 0));
    assert_eq!(bench.done(), ["lost s1 b1: out of memory", "delete b1"]);
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.checked, report.failed, bench.done().len()), (0, 0, 2));
}

#[tokio::test]
async fn a_dead_sandbox_is_kept_until_its_session_was_told() {
    let mut bench = bench(world(vec![session(1, State::Running)], vec![sandbox(1, sandbox::State::Dead)]));
    lock(&bench.world).failing.insert("ReportSandboxLost");
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.failed, report.errors.len(), bench.done().len()), (0, 1, 0));
    lock(&bench.world).failing.clear();
    assert_eq!(bench.reconcile().await.unwrap().failed, 1);
    assert_eq!(bench.done().len(), 2);
}

#[tokio::test]
async fn a_sandbox_that_is_gone_is_reported_after_its_node_said_so() {
    let mut bench = bench(world(vec![session(1, State::Running)], vec![]));
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.unhealthy, report.failed), (1, 1));
    assert_eq!(bench.done(), ["lost s1 b1: sandbox is gone"]);
}

#[tokio::test]
async fn a_sandbox_that_only_the_list_does_not_have_is_not_lost() {
    let mut world = world(vec![session(1, State::Running)], vec![sandbox(1, sandbox::State::Running)]);
    world.unlisted.insert("b1".to_owned());
    let mut bench = bench(world);
    assert_eq!(bench.reconcile().await.unwrap().failed, 0);
    lock(&bench.world).failing.insert("GetSandbox");
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.failed, report.errors.len(), bench.done().len()), (0, 1, 0));
}

#[tokio::test]
async fn a_sandbox_on_a_node_that_cannot_be_asked_is_not_lost() {
    for (nodes, unreachable) in [(vec!["n", "other"], vec!["n"]), (vec!["other"], vec![]), (vec![], vec![])] {
        let world = World { nodes, unreachable, ..world(vec![session(1, State::Running)], vec![]) };
        let mut bench = bench(world);
        let report = bench.reconcile().await.unwrap();
        assert_eq!((report.failed, report.errors.len(), bench.done().len()), (0, 1, 0));
    }
}

#[tokio::test]
async fn the_sandbox_of_an_ended_session_goes_at_once_and_that_of_an_unknown_one_after_the_grace() {
    let sandboxes = vec![sandbox(1, sandbox::State::Running), sandbox(2, sandbox::State::Running)];
    let mut bench = bench(world(vec![session(1, State::Terminated)], sandboxes));
    assert_eq!(bench.reconcile().await.unwrap().orphans_removed, 1);
    assert_eq!(bench.done(), ["delete b1"]);
    bench.clock.advance(Duration::from_secs(31));
    assert_eq!(bench.reconcile().await.unwrap().orphans_removed, 1);
    assert_eq!(bench.done(), ["delete b1", "delete b2"]);
}

#[tokio::test]
async fn the_sandbox_of_a_session_that_is_being_created_stays() {
    let creating = Session { sandbox_id: String::new(), ..session(1, State::Creating) };
    let mut bench = bench(world(vec![creating], vec![sandbox(1, sandbox::State::Running)]));
    bench.clock.advance(Duration::from_secs(3600));
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.checked, report.orphans_removed, bench.done().len()), (1, 0, 0));
}

#[tokio::test]
async fn nothing_is_done_when_anything_cannot_be_listed_to_its_end() {
    for method in ["ListSessions", "GetSession", "ListSandboxes", "ListSandboxes#", "ListNodes"] {
        let sessions = vec![session(1, State::Running), session(2, State::Running)];
        let orphans = (3..9).map(|number| sandbox(number, sandbox::State::Running)).collect();
        let mut bench = bench(world(sessions, orphans));
        bench.clock.advance(Duration::from_secs(3600));
        lock(&bench.world).failing.insert(method);
        let status = bench.reconcile().await.unwrap_err();
        assert_eq!((status.code(), bench.done().len()), (Code::Unavailable, 0), "{method}");
        assert_eq!(sandmesh_mesh::reason_of(&status).as_deref(), Some("UNAVAILABLE"));
        lock(&bench.world).failing.clear();
        let report = bench.reconcile().await.unwrap();
        assert_eq!((report.failed, report.orphans_removed), (2, 6), "{method}");
    }
}

#[tokio::test]
async fn a_removal_that_fails_is_told_and_tried_again() {
    let mut bench = bench(world(vec![session(1, State::Failed)], vec![sandbox(1, sandbox::State::Running)]));
    lock(&bench.world).failing.insert("DeleteSandbox");
    let report = bench.reconcile().await.unwrap();
    assert_eq!(report.orphans_removed, 0);
    assert!(report.errors[0].contains("sandbox `b1`"), "{:?}", report.errors);
    lock(&bench.world).failing.clear();
    assert_eq!(bench.reconcile().await.unwrap().orphans_removed, 1);
}

/// A link whose calls wait for the gate, so that a pass lasts as long as the test wants.
fn gated(world: &Shared, gate: &Arc<Notify>) -> Link {
    let (inner, gate) = (others(world), Arc::clone(gate));
    let handler = move |request: HttpRequest| {
        let (mut inner, gate) = (inner.clone(), Arc::clone(&gate));
        async move {
            gate.notified().await;
            gate.notify_one();
            let answer = tower::Service::call(&mut inner, request.map(tonic::body::Body::new)).await;
            answer.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http())
        }
    };
    Link::local(Router::new().fallback(handler))
}

#[tokio::test]
async fn calls_during_a_pass_share_its_report_and_a_later_one_gets_a_new_pass() {
    let world = Arc::new(Mutex::new(world(vec![], vec![])));
    let gate = Arc::new(Notify::new());
    let mut bench = bench_over(Arc::clone(&world), gated(&world, &gate));
    let calls = (0..5).map(|_| {
        let mut client = bench.client.clone();
        async move { client.reconcile(ReconcileRequest {}).await.unwrap() }
    });
    let (_, ()) = tokio::join!(futures::future::join_all(calls), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.notify_one();
    });
    assert_eq!(lock(&world).passes, 1);
    bench.reconcile().await.unwrap();
    assert_eq!(lock(&world).passes, 2);
}

#[tokio::test]
async fn a_pass_goes_on_when_its_caller_is_gone() {
    let sandboxes = vec![sandbox(1, sandbox::State::Running)];
    let world = Arc::new(Mutex::new(world(vec![session(1, State::Failed)], sandboxes)));
    let gate = Arc::new(Notify::new());
    let mut bench = bench_over(Arc::clone(&world), gated(&world, &gate));
    assert!(timeout(Duration::from_millis(50), bench.reconcile()).await.is_err());
    gate.notify_one();
    assert_eq!(bench.reconcile().await.unwrap().orphans_removed, 1);
    assert_eq!(lock(&world).passes, 1);
}

#[tokio::test]
async fn the_loop_reconciles_at_the_start_and_again_and_ends_when_told_to() {
    let bench = bench(world(vec![session(1, State::Failed)], vec![sandbox(1, sandbox::State::Running)]));
    bench.run();
    timeout(PATIENCE, async {
        while lock(&bench.world).passes < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(bench.done(), ["delete b1"]);
    assert_eq!(bench.tasks.shut_down(PATIENCE).await, 0);
    assert_eq!(bench.done(), ["delete b1", "release state-sync"], "nobody waits for the end of its term");
}

#[tokio::test]
async fn while_another_has_the_lease_passes_are_only_made_when_asked_for() {
    let mut bench = bench(World { holder: "another".to_owned(), ..world(vec![], vec![]) });
    bench.run();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(lock(&bench.world).passes, 0);
    bench.reconcile().await.unwrap();
    assert_eq!(lock(&bench.world).passes, 1);
    lock(&bench.world).holder.clear();
    timeout(PATIENCE, async {
        while lock(&bench.world).passes < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(bench.tasks.shut_down(PATIENCE).await, 0);
}

#[tokio::test]
async fn a_pass_that_the_shutdown_cuts_short_is_unavailable() {
    let world = Arc::new(Mutex::new(world(vec![], vec![])));
    let mut bench = bench_over(Arc::clone(&world), gated(&world, &Arc::new(Notify::new())));
    let tasks = bench.tasks.clone();
    let (answer, late) = tokio::join!(bench.reconcile(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        tasks.shut_down(PATIENCE).await
    });
    assert_eq!((answer.unwrap_err().code(), late), (Code::Unavailable, 0));
}

#[tokio::test]
async fn a_role_without_a_link_to_the_scheduler_is_not_made() {
    let mesh = Mesh::builder("/nowhere").link(RoleName::Session, Link::local(Router::new())).build();
    let error = create(&Config::default(), &mesh).await.unwrap_err();
    assert!(error.to_string().contains("mesh.links.scheduler"), "{error}");
}

#[tokio::test]
async fn a_session_that_may_recover_gets_another_sandbox_and_its_old_one_is_removed() {
    let recovers = Session { recoveries_left: 1, ..session(1, State::Running) };
    let mut bench = bench(world(vec![recovers], vec![sandbox(1, sandbox::State::Dead)]));
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.unhealthy, report.recovered, report.failed), (1, 1, 0));
    assert_eq!(bench.done(), ["lost s1 b1: sandbox died", "delete b1"]);
    // The next one comes up, dies too, and that was one too many.
    {
        let mut world = lock(&bench.world);
        world.sessions[0].set_state(State::Running);
        let next = Sandbox { sandbox_id: "b1+".to_owned(), ..sandbox(1, sandbox::State::Running) };
        world.sandboxes.push(next);
    }
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.healthy, report.recovered, report.failed), (1, 0, 0));
    lock(&bench.world).sandboxes[0].set_state(sandbox::State::Dead);
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.unhealthy, report.recovered, report.failed), (1, 0, 1));
}

#[tokio::test]
async fn ten_thousand_sessions_are_compared_page_by_page_and_only_what_differs_is_touched() {
    const COUNT: usize = 10_000;
    let sessions = (0..COUNT).map(|n| Session { recoveries_left: 3, ..session(n, State::Running) }).collect();
    let state = |n: usize| if n % 100 == 7 { sandbox::State::Dead } else { sandbox::State::Running };
    // Some are dead, some are gone, and some are nobody's.
    let with = (0..COUNT).filter(|n| n % 100 != 13).map(|n| sandbox(n, state(n)));
    let orphans = (COUNT..COUNT + 50).map(|n| sandbox(n, sandbox::State::Running));
    let world = World { page: 200, ..world(sessions, with.chain(orphans).collect()) };
    let mut bench = bench(world);
    bench.clock.advance(Duration::from_secs(3600));
    let report = bench.reconcile().await.unwrap();
    assert_eq!((report.checked, report.healthy, report.unhealthy), (10_000, 9_800, 200));
    assert_eq!((report.recovered, report.failed, report.orphans_removed), (200, 0, 50));
    assert_eq!(report.errors, Vec::<String>::new());
    let again = bench.reconcile().await.unwrap();
    assert_eq!((again.checked, again.unhealthy, again.orphans_removed), (10_000, 0, 0), "nothing twice");
}
