//! The rules that every runtime keeps: one function for each, over a [`Bench`] that a runtime provides.
//!
//! A runtime joins with `contract_suite!(make_bench())`. The rules of the service that need a runtime are
//! in `service/contract.rs` and join with it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::stream;
use sandmesh_mesh::{Clock, Link, SystemClock};
use sandmesh_proto::executor::{
    self, ExecuteRequest, ExecutionStart, GetExecutorRequest, execute_request, execute_response,
    executor_service_client::ExecutorServiceClient,
};

use super::{Found, Order, Runtime};
use crate::{
    convert::isolation_from_pb,
    sandbox::{Language, Resources, Sandbox, SandboxId, Spec, State},
};

/// What the rules need of a runtime's test bed. Dropping it destroys what a test has left.
#[async_trait]
pub(crate) trait Bench: Send + Sync {
    /// The runtime, as a new agent on this machine would make it.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// Where the agent keeps its data.
    fn data_dir(&self) -> &std::path::Path;

    /// Within which time a death must be seen, with how it came.
    fn death_is_seen_within(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// Kills a sandbox behind the runtime's back.
    async fn kill(&self, id: &SandboxId);

    /// Everything that is on the machine of a sandbox: processes, files, groups. For a person.
    fn traces(&self, id: &SandboxId) -> Vec<String>;
}

/// Makes a test of each rule; `$bench` makes a new bench.
macro_rules! contract_suite {
    ($bench:expr) => {
        mod contract {
            use super::*;
            use crate::{runtime::contract as runtime, service::contract as service};

            $crate::runtime::contract::contract_suite!(@tests $bench, runtime: [
                a_check_tells_what_there_is
                a_created_sandbox_answers_with_what_was_told
                a_death_is_seen_at_once_and_says_how
                a_sandbox_ends_at_its_time_and_says_so
                the_next_agent_takes_a_sandbox_over
                a_death_while_no_agent_ran_is_found
                a_delete_leaves_nothing_and_may_be_repeated
                a_delete_ends_what_runs_inside
                a_delete_of_an_unknown_id_is_done_already
            ]);
            $crate::runtime::contract::contract_suite!(@tests $bench, service: [
                concurrent_creates_of_one_id_make_one_sandbox
                an_id_with_another_spec_is_refused
                a_full_node_refuses_whatever_comes_at_once
                a_creation_goes_on_when_its_caller_goes_away
                a_delete_during_a_creation_leaves_nothing
                watchers_see_what_exists_and_every_change
                a_dead_sandbox_keeps_its_id_until_it_is_deleted
                sandboxes_outlive_an_agent_that_keeps_them
                an_agent_that_destroys_leaves_nothing
                a_draining_node_keeps_what_it_has_and_takes_nothing_new
                a_log_is_followed_until_its_sandbox_is_gone
                a_warm_sandbox_becomes_that_of_its_session
                of_many_who_claim_a_warm_sandbox_one_gets_it
                a_warm_sandbox_that_was_used_is_destroyed_when_it_is_claimed
                a_sandbox_that_is_being_given_packages_is_nobodys_yet
                a_claimed_sandbox_ends_at_the_time_of_its_session
                what_is_asked_of_a_warm_sandbox_too_late_does_no_harm
            ]);
        }
    };
    (@tests $bench:expr, $rules:ident: [$($rule:ident)*]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                $rules::$rule(&$bench).await;
            }
        )*
    };
}
pub(crate) use contract_suite;

/// The `n`th id.
pub(crate) fn id(n: u32) -> SandboxId {
    format!("sbx_{n:016x}").parse().unwrap()
}

/// A small sandbox that ends soon, whatever becomes of its test.
pub(crate) fn spec() -> Spec {
    Spec {
        image: String::new(),
        resources: Resources {
            cpu_millis: 1000,
            memory_bytes: 128 << 20,
            disk_bytes: 16 << 20,
            max_processes: 64,
        },
        language: Language::Shell,
        labels: [("purpose".to_owned(), "contract".to_owned())].into(),
        session_id: "sess_20261122_00000001".to_owned(),
        template_id: "shell-basic".to_owned(),
        max_concurrent_executions: 2,
        expires_at: Some(SystemClock.now() + Duration::from_secs(120)),
        restarts: 0,
        packages: None,
    }
}

/// What makes the `n`th sandbox.
pub(crate) fn order(n: u32) -> Order {
    Order {
        id: id(n),
        spec: spec(),
        created_at: SystemClock.now(),
        layer: None,
        progress: Default::default(),
    }
}

fn executor(endpoint: &str) -> ExecutorServiceClient<Link> {
    ExecutorServiceClient::new(Link::dial(endpoint).unwrap())
}

async fn adopted(runtime: &Arc<dyn Runtime>) -> Vec<Sandbox> {
    let whole = |found| match found {
        Found::Whole(sandbox) => *sandbox,
        Found::HalfMade(id) => panic!("{id} is half made"),
    };
    runtime.adopt().await.unwrap().into_iter().map(whole).collect()
}

pub(crate) async fn a_check_tells_what_there_is(bench: &impl Bench) {
    let ability = bench.runtime().check().await.unwrap();
    assert!(ability.languages.contains(&Language::Shell), "{ability:?}");
    assert!(!ability.isolation.sandbox.is_empty(), "{ability:?}");
}

pub(crate) async fn a_created_sandbox_answers_with_what_was_told(bench: &impl Bench) {
    let runtime = bench.runtime();
    let ability = runtime.check().await.unwrap();
    let facts = runtime.create(&order(1)).await.unwrap();
    let answer = executor(&facts.endpoint).get_executor(GetExecutorRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.sandbox_id, id(1).as_str());
    assert_eq!(isolation_from_pb(answer.isolation.unwrap()), facts.isolation);
    assert_eq!(facts.isolation, ability.isolation, "what the check says is what a sandbox gets");
    assert!(!facts.language_runtime.is_empty());
}

pub(crate) async fn a_death_is_seen_at_once_and_says_how(bench: &impl Bench) {
    let runtime = bench.runtime();
    runtime.create(&order(1)).await.unwrap();
    let (id, watching) = (id(1), Arc::clone(&runtime));
    let seen = async {
        let reason = watching.wait(&id).await;
        (reason, Instant::now())
    };
    let kill = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.kill(&id).await;
        Instant::now()
    };
    let ((reason, seen), killed) = tokio::join!(seen, kill);
    assert!(seen.saturating_duration_since(killed) < bench.death_is_seen_within());
    assert!(reason.contains("signal 9"), "{reason}");
}

pub(crate) async fn a_sandbox_ends_at_its_time_and_says_so(bench: &impl Bench) {
    let runtime = bench.runtime();
    let mut order = order(1);
    order.spec.expires_at = Some(SystemClock.now() + Duration::from_secs(2));
    runtime.create(&order).await.unwrap();
    let reason = tokio::time::timeout(Duration::from_secs(10), runtime.wait(&id(1))).await.unwrap();
    assert_eq!(reason, "expired");
}

pub(crate) async fn the_next_agent_takes_a_sandbox_over(bench: &impl Bench) {
    let order = order(1);
    let facts = bench.runtime().create(&order).await.unwrap();
    let next = bench.runtime();
    let found = adopted(&next).await;
    let Order { id, spec, created_at, .. } = order;
    let reason = String::new();
    let home = id.clone();
    let id_there = id.clone();
    assert_eq!(
        found,
        [Sandbox { id: id_there, home, spec, state: State::Running, reason, created_at, facts }]
    );
    bench.kill(&id).await;
    tokio::time::timeout(Duration::from_secs(1), next.wait(&id)).await.unwrap();
    next.delete(&id).await.unwrap();
    assert_eq!(bench.traces(&id), [""; 0]);
}

pub(crate) async fn a_death_while_no_agent_ran_is_found(bench: &impl Bench) {
    bench.runtime().create(&order(1)).await.unwrap();
    bench.kill(&id(1)).await;
    let next = bench.runtime();
    let found = adopted(&next).await;
    assert_eq!((found.len(), found[0].state), (1, State::Dead));
    assert!(!found[0].reason.is_empty());
    next.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

pub(crate) async fn a_delete_leaves_nothing_and_may_be_repeated(bench: &impl Bench) {
    let runtime = bench.runtime();
    runtime.create(&order(1)).await.unwrap();
    runtime.create(&order(2)).await.unwrap();
    assert!(!bench.traces(&id(1)).is_empty());
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
    assert!(!bench.traces(&id(2)).is_empty(), "the other one is left alone");
    runtime.delete(&id(1)).await.unwrap();
    runtime.create(&order(1)).await.unwrap();
}

pub(crate) async fn a_delete_ends_what_runs_inside(bench: &impl Bench) {
    let runtime = bench.runtime();
    let facts = runtime.create(&order(1)).await.unwrap();
    let start = ExecutionStart {
        execution_id: "exec_20261122000000_00000001".to_owned(),
        language: executor::Language::Shell.into(),
        mode: executor::Mode::Script.into(),
        code: "trap '' TERM; setsid sleep 600 & sleep 600".into(),
        timeout: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..ExecutionStart::default()
    };
    let frame = ExecuteRequest { frame: Some(execute_request::Frame::Start(start)) };
    let mut run = executor(&facts.endpoint).execute(stream::iter([frame])).await.unwrap().into_inner();
    let mut started = false;
    while !started {
        let frame = run.message().await.unwrap().unwrap().frame.unwrap();
        let ended = matches!(frame, execute_response::Frame::Exited(_) | execute_response::Frame::Failed(_));
        assert!(!ended, "{frame:?}");
        started = matches!(frame, execute_response::Frame::Started(_));
    }
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

pub(crate) async fn a_delete_of_an_unknown_id_is_done_already(bench: &impl Bench) {
    bench.runtime().delete(&id(9)).await.unwrap();
    assert_eq!(bench.traces(&id(9)), [""; 0]);
}
