//! The rules of the service that hold over every runtime; see `runtime/contract.rs`.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use futures::future::join_all;
use sandmesh_mesh::{Link, SystemClock};
use sandmesh_proto::executor::{MakeDirectoryRequest, workspace_service_client::WorkspaceServiceClient};

use super::*;
use crate::{
    layers::{Keep, Layers},
    runtime::contract::{Bench, id, spec},
    sandbox::Language,
};

fn layers(bench: &impl Bench) -> Layers {
    let keep = Keep { bytes: 1 << 30, unused: Duration::from_secs(3600) };
    let layers = Layers::new(bench.data_dir(), keep);
    layers.load().unwrap();
    layers
}

/// An agent over the runtime of a bench.
struct Agent {
    tasks: Tasks,
    service: Arc<Service>,
    _dir: tempfile::TempDir,
}

impl Agent {
    async fn start(bench: &impl Bench, max_sandboxes: u32, on_shutdown: OnShutdown) -> Self {
        let runtime = bench.runtime();
        let identity = Identity {
            node_id: "bench".to_owned(),
            labels: BTreeMap::new(),
            limits: Limits { max_sandboxes, cpu_millis: None, memory_bytes: 1 << 40 },
            ability: runtime.check().await.unwrap(),
        };
        let tasks = Tasks::new();
        let dir = tempfile::tempdir().unwrap();
        let kept = (Drain::load(dir.path()), Installs::new(layers(bench), 2));
        let service = Arc::new(Service::new(identity, runtime, kept, Arc::new(SystemClock), tasks.clone()));
        let half_made = service.adopt().await.unwrap();
        service.start(half_made, on_shutdown);
        Self { tasks, service, _dir: dir }
    }

    async fn new(bench: &impl Bench) -> Self {
        Self::start(bench, 10, OnShutdown::Keep).await
    }

    async fn stop(self) {
        assert_eq!(self.tasks.shut_down(Duration::from_secs(10)).await, 0);
    }

    async fn create(&self, n: u32, spec: &Spec) -> Result<Sandbox, Error> {
        self.service.create(id(n), spec.clone()).await
    }

    async fn until(&self, n: u32, state: State) -> Sandbox {
        let found = async {
            loop {
                match self.service.get(&id(n)) {
                    Ok(sandbox) if sandbox.state == state => return sandbox,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), found).await.unwrap()
    }
}

pub(crate) async fn concurrent_creates_of_one_id_make_one_sandbox(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    let made = join_all((0..8).map(|_| agent.create(1, &spec))).await;
    let first = made[0].clone().unwrap();
    assert_eq!(first.state, State::Running);
    for sandbox in made {
        assert_eq!(sandbox.unwrap(), first);
    }
    assert_eq!(agent.create(1, &spec).await.unwrap(), first, "nor does a later one make another");
}

pub(crate) async fn an_id_with_another_spec_is_refused(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    agent.create(1, &spec).await.unwrap();
    let other = Spec { template_id: "other".to_owned(), ..spec };
    assert!(matches!(agent.create(1, &other).await, Err(Error::Exists(_))));
}

pub(crate) async fn a_full_node_refuses_whatever_comes_at_once(bench: &impl Bench) {
    let (agent, spec) = (Agent::start(bench, 2, OnShutdown::Keep).await, spec());
    let made = join_all((1..=6).map(|n| agent.create(n, &spec))).await;
    assert_eq!(made.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    assert!(made.iter().all(|outcome| matches!(outcome, Ok(_) | Err(Error::Full { .. }))), "{made:?}");
    let refused = (1..=6).find(|n| agent.service.get(&id(*n)).is_err()).unwrap();
    assert_eq!(bench.traces(&id(refused)), [""; 0]);
    let taken = (1..=6).find(|n| agent.service.get(&id(*n)).is_ok()).unwrap();
    agent.service.delete(&id(taken)).await.unwrap();
    agent.create(refused, &spec).await.unwrap();
}

pub(crate) async fn a_creation_goes_on_when_its_caller_goes_away(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    let impatient = tokio::time::timeout(Duration::from_millis(1), agent.create(1, &spec)).await;
    assert!(impatient.is_err());
    agent.until(1, State::Running).await;
}

pub(crate) async fn a_delete_during_a_creation_leaves_nothing(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    let delete = async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        agent.service.delete(&id(1)).await
    };
    let (created, deleted) = tokio::join!(agent.create(1, &spec), delete);
    assert!(created.is_ok() && deleted.is_ok());
    assert!(matches!(agent.service.get(&id(1)), Err(Error::NotFound(_))));
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

pub(crate) async fn watchers_see_what_exists_and_every_change(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    agent.create(1, &spec).await.unwrap();
    let mut seen = pin!(agent.service.watch());
    let mut next = async || {
        let sandbox =
            tokio::time::timeout(Duration::from_secs(2), seen.next()).await.unwrap().unwrap().unwrap();
        (sandbox.id, sandbox.state)
    };
    assert_eq!(next().await, (id(1), State::Running));
    agent.create(2, &spec).await.unwrap();
    assert_eq!(next().await, (id(2), State::Creating));
    assert_eq!(next().await, (id(2), State::Running));
    bench.kill(&id(1)).await;
    assert_eq!(next().await, (id(1), State::Dead));
    agent.service.delete(&id(1)).await.unwrap();
    assert_eq!(next().await, (id(1), State::Deleted));
    agent.stop().await;
    assert!(seen.next().await.is_none(), "the watch ends with the agent");
}

pub(crate) async fn a_dead_sandbox_keeps_its_id_until_it_is_deleted(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    agent.create(1, &spec).await.unwrap();
    bench.kill(&id(1)).await;
    let dead = agent.until(1, State::Dead).await;
    assert!(dead.reason.contains("signal 9"), "{}", dead.reason);
    assert!(matches!(agent.create(1, &spec).await, Err(Error::Dead(..))));
    agent.service.delete(&id(1)).await.unwrap();
    assert_eq!(agent.create(1, &spec).await.unwrap().state, State::Running);
}

pub(crate) async fn sandboxes_outlive_an_agent_that_keeps_them(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    let made = agent.create(1, &spec).await.unwrap();
    agent.stop().await;
    let next = Agent::new(bench).await;
    assert_eq!(next.create(1, &spec).await.unwrap(), made, "a repeat of the creation gets the first");
    bench.kill(&id(1)).await;
    next.until(1, State::Dead).await;
    next.stop().await;
    let last = Agent::start(bench, 1, OnShutdown::Keep).await;
    assert_eq!(last.service.get(&id(1)).unwrap().state, State::Dead);
    let full = last.create(2, &Spec { language: Language::Shell, ..spec }).await;
    assert!(matches!(full, Err(Error::Full { .. })), "what is not deleted takes a place");
}

pub(crate) async fn an_agent_that_destroys_leaves_nothing(bench: &impl Bench) {
    let (agent, spec) = (Agent::start(bench, 10, OnShutdown::Destroy).await, spec());
    agent.create(1, &spec).await.unwrap();
    agent.create(2, &spec).await.unwrap();
    agent.stop().await;
    assert_eq!(bench.traces(&id(1)), [""; 0]);
    assert_eq!(bench.traces(&id(2)), [""; 0]);
}

pub(crate) async fn a_draining_node_keeps_what_it_has_and_takes_nothing_new(bench: &impl Bench) {
    let agent = Agent::new(bench).await;
    let spec = spec();
    agent.create(1, &spec).await.unwrap();
    agent.service.set_draining(true).unwrap();
    assert!(agent.service.load().await.draining);
    assert!(matches!(agent.create(2, &spec).await, Err(Error::Full { .. })));
    assert_eq!(agent.create(1, &spec).await.unwrap().state, State::Running, "a repeat is nothing new");
    agent.service.set_draining(false).unwrap();
    agent.create(2, &spec).await.unwrap();
    for n in [1, 2] {
        agent.service.delete(&id(n)).await.unwrap();
    }
    agent.stop().await;
}

pub(crate) async fn a_log_is_followed_until_its_sandbox_is_gone(bench: &impl Bench) {
    let agent = Agent::new(bench).await;
    assert!(matches!(agent.service.read_log(&id(1), 100, false), Err(Error::NotFound(_))));
    agent.create(1, &spec()).await.unwrap();
    let once = agent.service.read_log(&id(1), 1 << 20, false).unwrap();
    assert!(once.collect::<Vec<_>>().await.into_iter().all(|part| part.is_ok()));
    let followed = agent.service.read_log(&id(1), 1 << 20, true).unwrap().collect::<Vec<_>>();
    let followed = tokio::time::timeout(Duration::from_secs(10), followed);
    let gone = id(1);
    let (ended, deleted) = futures::join!(followed, agent.service.delete(&gone));
    deleted.unwrap();
    ended.expect("it ends with its sandbox");
    agent.stop().await;
}

/// What a pool keeps of what [`spec`] is.
fn warm_spec() -> Spec {
    Spec { session_id: String::new(), labels: BTreeMap::new(), ..spec() }
}

pub(crate) async fn a_warm_sandbox_becomes_that_of_its_session(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    let warm = agent.create(1, &warm_spec()).await.unwrap();
    let mut seen = pin!(agent.service.watch());
    let claimed = agent.service.claim(&id(1), id(2), spec.clone()).await.unwrap();
    assert_eq!(claimed.facts, warm.facts, "it is the same");
    assert!(claimed.created_at > warm.created_at, "and is as new as its use");
    assert_eq!((&claimed.spec, claimed.was_claimed()), (&spec, true));
    for expected in [(1, State::Running), (1, State::Deleted), (2, State::Creating), (2, State::Running)] {
        let next = tokio::time::timeout(Duration::from_secs(2), seen.next()).await.unwrap();
        let next = next.unwrap().unwrap();
        assert_eq!((next.id, next.state), (id(expected.0), expected.1));
    }
    assert!(matches!(agent.service.get(&id(1)), Err(Error::NotFound(_))));
    assert_eq!(agent.service.claim(&id(1), id(2), spec.clone()).await.unwrap(), claimed, "once more");
    assert_eq!(agent.create(2, &spec).await.unwrap(), claimed, "a repeat of the creation gets it, too");
    agent.stop().await;
    let next = Agent::new(bench).await;
    assert_eq!(next.service.get(&id(2)).unwrap(), claimed, "the next agent knows it by its new id");
    bench.kill(&id(1)).await;
    next.until(2, State::Dead).await;
    next.service.delete(&id(2)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
    next.stop().await;
}

pub(crate) async fn of_many_who_claim_a_warm_sandbox_one_gets_it(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    agent.create(1, &warm_spec()).await.unwrap();
    let warm = id(1);
    let claims = (2..10).map(|n| agent.service.claim(&warm, id(n), spec.clone()));
    let outcomes = join_all(claims).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(Error::NotFound(_)))),
        "{outcomes:?}"
    );
    let other = Spec { template_id: "other".to_owned(), ..spec };
    agent.create(11, &warm_spec()).await.unwrap();
    let unlike = agent.service.claim(&id(11), id(12), other).await;
    assert!(matches!(unlike, Err(Error::Unsupported { .. })), "{unlike:?}");
    assert_eq!(agent.service.get(&id(11)).unwrap().state, State::Running, "it waits for another");
}

pub(crate) async fn a_warm_sandbox_that_was_used_is_destroyed_when_it_is_claimed(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    let warm = agent.create(1, &warm_spec()).await.unwrap();
    let mut workspace = WorkspaceServiceClient::new(Link::dial(&warm.facts.endpoint).unwrap());
    workspace
        .make_directory(MakeDirectoryRequest { path: "left".into(), ..MakeDirectoryRequest::default() })
        .await
        .unwrap();
    let refused = agent.service.claim(&id(1), id(2), spec.clone()).await;
    assert!(
        matches!(&refused, Err(Error::NotClaimed { why, .. }) if why.contains("not empty")),
        "{refused:?}"
    );
    let gone = async {
        while agent.service.get(&id(1)).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    assert!(matches!(agent.service.get(&id(2)), Err(Error::NotFound(_))));
    assert_eq!(bench.traces(&id(1)), [""; 0]);
    agent.create(2, &spec).await.unwrap();
}

pub(crate) async fn a_sandbox_that_is_being_given_packages_is_nobodys_yet(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    agent.create(1, &warm_spec()).await.unwrap();
    let giving = agent.service.installs.begin_for(&id(1));
    let early = agent.service.claim(&id(1), id(2), spec.clone()).await;
    assert!(matches!(early, Err(Error::NotFound(_))), "{early:?}");
    drop(giving);
    agent.service.claim(&id(1), id(2), spec).await.unwrap();
}

pub(crate) async fn a_claimed_sandbox_ends_at_the_time_of_its_session(bench: &impl Bench) {
    let agent = Agent::new(bench).await;
    agent.create(1, &warm_spec()).await.unwrap();
    let soon = Spec { expires_at: Some(SystemClock.now() + Duration::from_secs(2)), ..spec() };
    agent.service.claim(&id(1), id(2), soon).await.unwrap();
    assert_eq!(agent.until(2, State::Dead).await.reason, "expired");
}

pub(crate) async fn what_is_asked_of_a_warm_sandbox_too_late_does_no_harm(bench: &impl Bench) {
    let (agent, spec) = (Agent::new(bench).await, spec());
    agent.create(1, &warm_spec()).await.unwrap();
    agent.service.claim(&id(1), id(2), spec.clone()).await.unwrap();
    agent.service.delete(&id(1)).await.unwrap();
    assert!(matches!(agent.create(1, &warm_spec()).await, Err(Error::Exists(_))));
    let other = agent.service.claim(&id(1), id(3), spec.clone()).await;
    assert!(matches!(other, Err(Error::NotFound(_))), "{other:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let claimed = agent.service.get(&id(2)).unwrap();
    assert_eq!(claimed.state, State::Running);
    let mut workspace = WorkspaceServiceClient::new(Link::dial(&claimed.facts.endpoint).unwrap());
    let directory = MakeDirectoryRequest { path: "works".into(), ..MakeDirectoryRequest::default() };
    workspace.make_directory(directory).await.unwrap();
    agent.service.delete(&id(2)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
    assert_eq!(agent.create(1, &warm_spec()).await.unwrap().state, State::Running, "the id is free again");
}
