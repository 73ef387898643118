use chrono::DateTime;
use futures::StreamExt;
use sandmesh_mesh::{Fault, HumanDuration, ManualClock};
use sandmesh_proto::{
    agent::{self, install_packages_response::Outcome, sandbox::State},
    executor::{Language, Resources},
};
use tempfile::TempDir;

use self::fake_agent::FakeAgent;
use super::*;
use crate::{config, registry::Place};

#[path = "claim_tests.rs"]
mod claims;
#[path = "fake_agent.rs"]
mod fake_agent;
#[path = "wait_tests.rs"]
mod waits;

const ID: &str = "sbx_0000000000000001";

/// A scheduler whose nodes are on unix sockets in a directory.
struct Bench {
    dir: TempDir,
    clock: ManualClock,
    mesh: Mesh,
    service: Arc<Service>,
}

impl Bench {
    fn new() -> Self {
        Self::with_wait(400)
    }

    /// One where creations wait for room for so many milliseconds.
    fn with_wait(max_wait: u64) -> Self {
        let millis = |millis| HumanDuration(Duration::from_millis(millis));
        let config = Config {
            node_wait: millis(300),
            create_timeout: millis(1500),
            call_timeout: millis(500),
            queue: config::Queue { max_waiting: 4, max_wait: millis(max_wait) },
            ..Config::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(DateTime::from_timestamp(2_000_000_000, 0).unwrap());
        let mesh = Mesh::builder(dir.path()).clock(Arc::new(clock.clone())).build();
        let service = Arc::new(Service::new(config, mesh.clone()).unwrap());
        mesh.tasks().spawn("serve those who wait", Arc::clone(&service).serve_queue());
        Self { dir, clock, mesh, service }
    }

    /// A node that serves and has registered.
    async fn node(&self, id: &str, max_sandboxes: u32) -> (FakeAgent, sandmesh_mesh::CancellationToken) {
        let agent = FakeAgent::new(self.dir.path(), id, max_sandboxes);
        let stop = agent.serve(self.mesh.tasks());
        self.service.register(agent.node()).unwrap();
        self.until(|| !self.unreachable().contains(&id.to_owned())).await;
        (agent, stop)
    }

    /// A node that hands out so much memory.
    async fn limited_node(&self, id: &str, memory_bytes: u64) -> FakeAgent {
        let agent = FakeAgent::new(self.dir.path(), id, 100);
        agent.serve(self.mesh.tasks());
        let capacity = Some(Resources { memory_bytes, ..Resources::default() });
        self.service.register(Node { capacity, ..agent.node() }).unwrap();
        self.until(|| !self.unreachable().contains(&id.to_owned())).await;
        agent
    }

    fn unreachable(&self) -> Vec<String> {
        self.service.list(&Place::default(), 10).unwrap().2
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        for _ in 0..500 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("did not come to hold within 5 s");
    }

    async fn create(&self, id: &str) -> Result<Sandbox, Error> {
        self.service.create(id, &spec(), false).await
    }
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        language: Language::Python.into(),
        resources: Some(Resources { cpu_millis: 100, memory_bytes: 1, disk_bytes: 1, max_processes: 1 }),
        ..SandboxSpec::default()
    }
}

#[tokio::test]
async fn a_refusal_moves_on_to_the_next_node() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 1).await;
    let (b, _b) = bench.node("b", 1).await;
    // Made behind the scheduler's back: as far as it knows, `a` is the better one.
    a.create_sandbox_directly("sbx_000000000000000f");
    assert_eq!(bench.create(ID).await.unwrap().node_id, "b");
    assert_eq!(b.ids(), [ID]);
}

#[tokio::test]
async fn a_lost_answer_is_settled_on_the_same_node() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 10).await;
    let (b, _b) = bench.node("b", 10).await;
    a.lose_answers(2);
    assert_eq!(bench.create(ID).await.unwrap().node_id, "a");
    assert_eq!((a.creations(), b.creations()), (1, 0));
}

#[tokio::test]
async fn a_sandbox_sent_to_a_node_that_fell_silent_is_never_sent_to_another() {
    let bench = Bench::new();
    let (a, stop_a) = bench.node("a", 10).await;
    let (b, _b) = bench.node("b", 10).await;
    a.lose_answers(u32::MAX);
    assert_eq!(bench.create(ID).await.unwrap_err().reason(), "NODE_UNAVAILABLE");
    stop_a.cancel();
    assert_eq!(
        bench.create(ID).await.unwrap_err().reason(),
        "NODE_UNAVAILABLE",
        "a repeat asks the same node"
    );
    assert_eq!((a.creations(), b.creations()), (1, 0));
    a.lose_answers(0);
    let _a = a.serve(bench.mesh.tasks());
    assert_eq!(bench.create(ID).await.unwrap().node_id, "a", "once it is back, it says what became of it");
    assert_eq!((a.creations(), b.creations()), (1, 0));
}

#[tokio::test]
async fn concurrent_creates_of_one_id_make_one_sandbox() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 10).await;
    let (b, _b) = bench.node("b", 10).await;
    let made = join_all((0..10).map(|_| bench.create(ID))).await;
    let nodes: BTreeSet<String> = made.into_iter().map(|sandbox| sandbox.unwrap().node_id).collect();
    assert_eq!(nodes.len(), 1);
    assert_eq!(a.creations() + b.creations(), 1);
}

#[tokio::test]
async fn a_burst_fills_every_node_and_never_more() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 5).await;
    let (b, _b) = bench.node("b", 5).await;
    let ids: Vec<String> = (0..20).map(|n| format!("sbx_{n:016x}")).collect();
    let outcomes = join_all(ids.iter().map(|id| bench.create(id))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    assert_eq!((a.ids().len(), b.ids().len()), (5, 5));
    for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!((refused.code(), refused.reason()), (Code::ResourceExhausted, "NO_CAPACITY"));
        assert!(refused.retry_after().is_some());
    }
}

#[tokio::test]
async fn what_no_node_can_ever_run_is_refused_with_the_reason_of_each() {
    let bench = Bench::new();
    let _nodes = (bench.node("a", 5).await, bench.node("b", 5).await);
    let shell = SandboxSpec { language: Language::Shell.into(), ..spec() };
    let error = bench.service.create(ID, &shell, false).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains("`a`: ") && error.to_string().contains("`b`: "), "{error}");
}

#[tokio::test]
async fn a_creation_waits_for_the_first_node() {
    let bench = Bench::new();
    let agent = FakeAgent::new(bench.dir.path(), "late", 1);
    let _stop = agent.serve(bench.mesh.tasks());
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.service.register(agent.node()).unwrap();
    };
    let (created, ()) = tokio::join!(bench.create(ID), late);
    assert_eq!(created.unwrap().node_id, "late");
}

#[tokio::test]
async fn without_any_node_there_is_no_capacity_and_nothing_is_said_of_sandboxes() {
    let bench = Bench::new();
    assert_eq!(bench.create(ID).await.unwrap_err().reason(), "NO_CAPACITY");
    assert_eq!(bench.service.list(&Place::default(), 10).unwrap_err().code(), Code::Unavailable);
    assert_eq!(bench.service.get(ID, "").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(bench.service.delete(ID, "", false).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_node_that_is_silent_for_too_long_gets_nothing() {
    let bench = Bench::new();
    let _node = bench.node("a", 5).await;
    bench.clock.advance(Duration::from_secs(6));
    assert!(!bench.service.nodes()[0].healthy);
    assert_eq!(bench.unreachable(), ["a"]);
    assert_eq!(bench.create(ID).await.unwrap_err().reason(), "NO_CAPACITY");
}

#[tokio::test]
async fn a_sandbox_is_read_from_its_node_and_its_silence_is_not_an_answer() {
    let bench = Bench::new();
    let (agent, stop) = bench.node("a", 5).await;
    bench.create(ID).await.unwrap();
    assert_eq!(bench.service.get(ID, "").await.unwrap().sandbox_id, ID);
    agent.kill(ID);
    assert_eq!(bench.service.get(ID, "a").await.unwrap().state(), State::Dead);
    assert_eq!(bench.service.get("sbx_0000000000000002", "").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(bench.service.get(ID, "elsewhere").await.unwrap().sandbox_id, ID);
    assert_eq!(
        bench.service.get("sbx_0000000000000002", "elsewhere").await.unwrap_err().reason(),
        "NODE_UNAVAILABLE"
    );
    stop.cancel();
    assert_eq!(bench.service.get(ID, "").await.unwrap_err().reason(), "NODE_UNAVAILABLE");
}

#[tokio::test]
async fn a_sandbox_of_an_unknown_node_is_deleted_everywhere_or_not_at_all() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 5).await;
    let (_, stop_b) = bench.node("b", 5).await;
    bench.create(ID).await.unwrap();
    bench.service.delete(ID, "", false).await.unwrap();
    bench.service.delete(ID, "", false).await.unwrap();
    assert!(a.ids().is_empty());
    stop_b.cancel();
    assert_eq!(
        bench.service.delete("sbx_0000000000000002", "", false).await.unwrap_err().reason(),
        "NODE_UNAVAILABLE"
    );
    bench.service.delete("sbx_0000000000000002", "a", false).await.unwrap();
}

#[tokio::test]
async fn packages_are_installed_by_the_node_that_has_the_sandbox() {
    let bench = Bench::new();
    let (_a, _stop_a) = bench.node("a", 0).await;
    let (_b, stop_b) = bench.node("b", 5).await;
    bench.create(ID).await.unwrap();
    let install = async |id: &str, node: &str| {
        let package = agent::Package { name: "click".to_owned(), version: String::new() };
        let packages = agent::PackageSet { packages: vec![package], ..agent::PackageSet::default() };
        let (sandbox_id, packages) = (id.to_owned(), Some(packages));
        let request = agent::InstallPackagesRequest { sandbox_id, packages, timeout: None };
        bench.service.install(request, node).await
    };
    for known in ["", "b"] {
        let Some(Outcome::Layer(layer)) = install(ID, known).await.unwrap().outcome else {
            panic!("no layer")
        };
        assert_eq!((layer.key.as_str(), layer.installed[0].name.as_str()), ("b", "click"));
    }
    assert_eq!(install("sbx_0000000000000009", "").await.unwrap_err().reason(), "SANDBOX_NOT_FOUND");
    stop_b.cancel();
    assert_eq!(install(ID, "b").await.unwrap_err().reason(), "NODE_UNAVAILABLE");
}

#[tokio::test]
async fn watchers_see_what_exists_and_every_change_of_every_node() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 1).await;
    bench.create(ID).await.unwrap();
    bench.until(|| !bench.service.list(&Place::default(), 10).unwrap().0.is_empty()).await;
    let mut seen = Box::pin(bench.service.watch());
    let mut next = async || {
        let sandbox = seen.next().await.unwrap().unwrap();
        (sandbox.sandbox_id.clone(), sandbox.state())
    };
    assert_eq!(next().await, (ID.to_owned(), State::Running));
    let (b, _b) = bench.node("b", 1).await;
    bench.create("sbx_0000000000000002").await.unwrap();
    assert_eq!(next().await, ("sbx_0000000000000002".to_owned(), State::Running));
    b.kill("sbx_0000000000000002");
    assert_eq!(next().await, ("sbx_0000000000000002".to_owned(), State::Dead));
    bench.service.delete(ID, "a", false).await.unwrap();
    assert_eq!(next().await, (ID.to_owned(), State::Deleted));
    assert!(a.ids().is_empty());
}

#[tokio::test]
async fn after_a_node_is_back_its_sandboxes_are_known_as_they_are_then() {
    let bench = Bench::new();
    let (a, stop) = bench.node("a", 5).await;
    bench.create(ID).await.unwrap();
    stop.cancel();
    bench.until(|| bench.unreachable() == ["a"]).await;
    let mut seen = Box::pin(bench.service.watch());
    assert_eq!(seen.next().await.unwrap().unwrap().state(), State::Running, "as last known");
    a.kill(ID);
    let _a = a.serve(bench.mesh.tasks());
    assert_eq!(seen.next().await.unwrap().unwrap().state(), State::Dead);
    bench.until(|| bench.unreachable().is_empty()).await;
    assert_eq!(bench.service.list(&Place::default(), 10).unwrap().0[0].state(), State::Dead);
}

#[tokio::test]
async fn a_list_goes_on_where_its_page_ended() {
    let bench = Bench::new();
    let _node = bench.node("a", 5).await;
    for n in 0..3 {
        bench.create(&format!("sbx_{n:016x}")).await.unwrap();
    }
    bench.until(|| bench.service.list(&Place::default(), 10).unwrap().0.len() == 3).await;
    let (page, more, _) = bench.service.list(&Place::default(), 2).unwrap();
    assert_eq!((page.len(), more), (2, true));
    let (rest, more, _) =
        bench.service.list(&(page[1].sandbox_id.clone(), page[1].node_id.clone()), 2).unwrap();
    assert_eq!((rest.len(), more), (1, false));
}

#[tokio::test]
async fn a_draining_node_gets_no_new_sandbox_until_it_is_resumed_and_keeps_what_it_has() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 10).await;
    let first = bench.create(ID).await.unwrap();
    let drained = bench.service.set_draining("a", true).await.unwrap();
    assert!(drained.node.unwrap().draining);
    let (_b, _b_stop) = bench.node("b", 10).await;
    for n in 2..5 {
        assert_eq!(bench.create(&format!("sbx_000000000000000{n}")).await.unwrap().node_id, "b");
    }
    assert_eq!(bench.service.get(ID, "a").await.unwrap().sandbox_id, first.sandbox_id);
    // Its next report says the same.
    bench.service.register(a.node()).unwrap();
    assert!(bench.service.node("a").unwrap().node.unwrap().draining);
    assert!(!bench.service.set_draining("a", false).await.unwrap().node.unwrap().draining);
    assert_eq!(bench.service.set_draining("none", true).await.unwrap_err().reason(), "NODE_NOT_FOUND");
}

#[tokio::test]
async fn a_node_that_cannot_be_asked_is_not_said_to_drain() {
    let bench = Bench::new();
    let (_a, stop) = bench.node("a", 10).await;
    stop.cancel();
    bench.until(|| !bench.unreachable().is_empty()).await;
    assert_eq!(bench.service.set_draining("a", true).await.unwrap_err().reason(), "NODE_UNAVAILABLE");
    assert!(!bench.service.node("a").unwrap().node.unwrap().draining);
}

#[tokio::test]
async fn sandboxes_of_a_lost_node_are_dead_until_it_reports_again() {
    let bench = Bench::new();
    let (a, stop) = bench.node("a", 10).await;
    bench.create(ID).await.unwrap();
    bench.until(|| bench.service.list(&Place::default(), 10).unwrap().0.len() == 1).await;
    let mut changes = Box::pin(bench.service.watch());
    assert_eq!(changes.next().await.unwrap().unwrap().state(), State::Running);
    stop.cancel();
    bench.clock.advance(Duration::from_secs(59));
    assert!(bench.service.registry.declare_lost().is_empty(), "not yet");
    bench.clock.advance(Duration::from_secs(2));
    assert_eq!(bench.service.registry.declare_lost(), ["a"]);
    assert!(bench.service.registry.declare_lost().is_empty(), "once");
    let dead = changes.next().await.unwrap().unwrap();
    assert_eq!((dead.state(), dead.node_lost), (State::Dead, true));
    assert_eq!(dead.reason, "node `a` is lost");
    assert_eq!(bench.service.get(ID, "a").await.unwrap(), dead);
    assert_eq!(bench.service.list(&Place::default(), 10).unwrap().0, [dead]);
    assert!(bench.service.node("a").unwrap().lost);
    let other = "sbx_000000000000000f";
    assert_eq!(bench.service.get(other, "a").await.unwrap_err().reason(), "SANDBOX_NOT_FOUND");
    // Whoever gives it up is not held up by a node that is not there.
    bench.service.delete(other, "a", false).await.unwrap();

    let _a = a.serve(bench.mesh.tasks());
    bench.service.register(a.node()).unwrap();
    bench
        .until(|| {
            bench.service.list(&Place::default(), 10).unwrap().0.iter().any(|s| s.state() == State::Running)
        })
        .await;
    assert!(!bench.service.node("a").unwrap().lost);
    bench.service.delete(ID, "a", false).await.unwrap();
    assert!(a.ids().is_empty(), "what it still has can be removed");
}

#[tokio::test]
async fn operators_get_sandboxes_in_pages_by_node_and_by_session() {
    let bench = Bench::new();
    let (_a, _a_stop) = bench.node("a", 10).await;
    for n in 0..5 {
        let id = format!("sbx_000000000000000{n}");
        let session_id = format!("s{}", n % 2);
        bench.service.create(&id, &SandboxSpec { session_id, ..spec() }, false).await.unwrap();
    }
    bench.until(|| bench.service.list(&Place::default(), 10).unwrap().0.len() == 5).await;
    let page = |filter: &Filter, after: &str, offset| {
        let after = (after.to_owned(), if after.is_empty() { "" } else { "a" }.to_owned());
        let found = bench.service.list_for_operators(filter, &Page { after, offset, limit: 2 });
        let ids: Vec<String> = found.sandboxes.into_iter().map(|s| s.sandbox_id[19..].to_owned()).collect();
        (ids.concat(), found.more, found.total)
    };
    let all = Filter::default();
    assert_eq!(page(&all, "", 0), ("01".to_owned(), true, 5));
    assert_eq!(page(&all, "sbx_0000000000000001", 0), ("23".to_owned(), true, 5));
    assert_eq!(page(&all, "", 4), ("4".to_owned(), false, 5));
    let of_session = Filter { session_id: "s1".into(), ..Filter::default() };
    assert_eq!(page(&of_session, "", 0), ("13".to_owned(), false, 2));
    let elsewhere = Filter { node_id: "b".into(), ..Filter::default() };
    assert_eq!(page(&elsewhere, "", 0), (String::new(), false, 0));
}

#[tokio::test]
async fn a_log_comes_from_the_node_that_has_the_sandbox() {
    let bench = Bench::new();
    let (_a, _a_stop) = bench.node("a", 10).await;
    bench.create(ID).await.unwrap();
    let parts: Vec<_> = bench.service.read_log(ID, 0, false).await.unwrap().collect().await;
    let text: Vec<u8> = parts.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(String::from_utf8(text).unwrap(), format!("log of {ID}"));
    let none = bench.service.read_log("sbx_000000000000000f", 0, false).await.err().unwrap();
    assert_eq!(none.reason(), "SANDBOX_NOT_FOUND");
}

#[tokio::test]
async fn another_scheduler_finds_what_may_exist_and_does_not_make_it_again() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 5).await;
    let (b, _b) = bench.node("b", 5).await;
    let first = bench.create(ID).await.unwrap();
    let other = Service::new(bench.service.config.clone(), bench.mesh.clone()).unwrap();
    for node in [&a, &b] {
        other.register(node.node()).unwrap();
    }
    // Whether it follows the nodes already or not.
    let found = other.create(ID, &spec(), true).await.unwrap();
    assert_eq!(found.node_id, first.node_id);
    assert_eq!(a.creations() + b.creations(), 1);
    assert!(other.create("sbx_0000000000000002", &spec(), true).await.is_ok(), "what does not exist is made");
}

#[tokio::test]
async fn of_two_sandboxes_of_one_id_each_is_read_and_destroyed_by_its_node() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 5).await;
    bench.create(ID).await.unwrap();
    // Another scheduler, which does not know of that node.
    let other = Service::new(bench.service.config.clone(), Mesh::builder(bench.dir.path().join("b")).build())
        .unwrap();
    let b = FakeAgent::new(bench.dir.path(), "b", 5);
    let _b = b.serve(bench.mesh.tasks());
    other.register(b.node()).unwrap();
    other.create(ID, &spec(), true).await.unwrap();
    bench.service.register(b.node()).unwrap();
    bench.until(|| bench.service.list(&Place::default(), 10).unwrap().0.len() == 2).await;
    let (page, more, _) = bench.service.list(&Place::default(), 1).unwrap();
    assert_eq!((page[0].node_id.as_str(), more), ("a", true));
    let (page, more, _) = bench.service.list(&(ID.to_owned(), "a".to_owned()), 1).unwrap();
    assert_eq!((page[0].node_id.as_str(), more), ("b", false));
    bench.service.delete(ID, "a", true).await.unwrap();
    assert_eq!((a.ids().len(), b.ids().len()), (0, 1));
    assert_eq!(bench.service.get(ID, "a").await.unwrap_err().reason(), "SANDBOX_NOT_FOUND");
    assert_eq!(bench.service.get(ID, "b").await.unwrap().node_id, "b");
    bench.service.delete(ID, "", false).await.unwrap();
    assert!(b.ids().is_empty());
}

#[tokio::test]
async fn node_that_went_while_no_scheduler_watched_is_lost_to_the_next() {
    let bench = Bench::new();
    let (a, stop) = bench.node("a", 5).await;
    bench.create(ID).await.unwrap();
    stop.cancel();
    let next = Service::new(bench.service.config.clone(), bench.mesh.clone()).unwrap();
    let known = next.node("a").unwrap();
    assert!(!known.healthy && !known.lost);
    assert_eq!(next.get(ID, "a").await.unwrap_err().reason(), "NODE_UNAVAILABLE", "it may come back");
    bench.clock.advance(Duration::from_secs(61));
    assert_eq!(next.registry.declare_lost(), ["a"]);
    assert_eq!(next.get(ID, "a").await.unwrap_err().reason(), "SANDBOX_NOT_FOUND");
    next.delete(ID, "a", false).await.unwrap();
    let _a = a.serve(bench.mesh.tasks());
    next.register(a.node()).unwrap();
    bench.until(|| next.list(&Place::default(), 10).unwrap().0.len() == 1).await;
    assert!(next.node("a").unwrap().healthy, "it came back, with what it has");
}
