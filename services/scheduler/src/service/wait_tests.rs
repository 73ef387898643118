//! Who finds no room waits a little, in turn.

use futures::{FutureExt, future::join_all};

use super::*;

/// Longer than any test here, in milliseconds: who waits so long was not served.
const LONG: u64 = 20_000;
/// Much less than that.
const AT_ONCE: Duration = Duration::from_secs(5);

fn id(n: u32) -> String {
    format!("sbx_{n:016x}")
}

/// Of a tenant.
fn wanted(tenant: &str) -> SandboxSpec {
    let labels = [("tenant".to_owned(), tenant.to_owned())].into();
    SandboxSpec { session_id: "s".to_owned(), labels, ..spec() }
}

impl Bench {
    /// Fills a node of so many places.
    async fn full(&self, places: u32) -> FakeAgent {
        let (agent, _) = self.node("a", places).await;
        for n in 0..places {
            self.service.create(&id(n), &wanted("first"), false).await.unwrap();
        }
        self.until(|| self.service.list(&Place::default(), 10).unwrap().0.len() == places as usize).await;
        agent
    }
}

#[tokio::test]
async fn one_that_finds_no_room_gets_the_next_that_is_free() {
    let bench = Bench::with_wait(LONG);
    let agent = bench.full(1).await;
    let (late, spec) = (id(9), wanted("a"));
    let free = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.service.delete(&id(0), "a", false).await
    };
    let (made, freed) = tokio::join!(bench.service.create(&late, &spec, false), free);
    freed.unwrap();
    assert_eq!((made.unwrap().sandbox_id, agent.ids()), (late.clone(), vec![late]));
}

#[tokio::test]
async fn who_waited_in_vain_is_told_when_to_come_back_and_leaves_nothing() {
    let bench = Bench::new();
    let agent = bench.full(1).await;
    let refused = bench.service.create(&id(9), &wanted("a"), false).await.unwrap_err();
    assert_eq!((refused.reason(), refused.retry_after()), ("NO_CAPACITY", Some(Duration::from_secs(1))));
    bench.service.delete(&id(0), "a", false).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(agent.ids(), [""; 0]);
    bench.service.create(&id(8), &wanted("b"), false).await.unwrap();
}

#[tokio::test]
async fn tenants_take_turns() {
    let bench = Bench::with_wait(LONG);
    let agent = bench.full(1).await;
    let order = std::sync::Mutex::new(Vec::new());
    let waits = ["a", "a", "a", "b"].iter().zip(10..).map(async |(tenant, n)| {
        // In the order of their numbers.
        tokio::time::sleep(Duration::from_millis(u64::from(n))).await;
        if bench.service.create(&id(n), &wanted(tenant), false).await.is_ok() {
            order.lock().unwrap().push(n);
        }
    });
    let free = async {
        bench.until(|| bench.service.waiters.len() == 4).await;
        let mut last = String::new();
        for _ in 0..4 {
            bench.until(|| agent.ids().iter().any(|id| *id != last)).await;
            last = agent.ids().remove(0);
            bench.service.delete(&last, "a", false).await.unwrap();
        }
    };
    tokio::join!(join_all(waits), free);
    assert_eq!(*order.lock().unwrap(), [10, 13, 11, 12]);
}

#[tokio::test]
async fn when_as_many_wait_as_may_the_next_is_refused_at_once() {
    let bench = Bench::with_wait(LONG);
    let _agent = bench.full(1).await;
    let (ids, spec) = ((10..14).map(id).collect::<Vec<_>>(), wanted("a"));
    let mut waiting: Vec<_> = ids.iter().map(|id| Box::pin(bench.service.create(id, &spec, false))).collect();
    for one in &mut waiting {
        assert!(one.now_or_never().is_none());
    }
    let late = id(20);
    let refused = bench.service.create(&late, &spec, false);
    let refused = tokio::time::timeout(AT_ONCE, refused).await.expect("it does not wait");
    assert_eq!(refused.unwrap_err().reason(), "NO_CAPACITY");
}

#[tokio::test]
async fn room_that_was_given_to_a_caller_who_has_gone_is_given_to_the_next() {
    let bench = Bench::with_wait(LONG);
    let agent = bench.full(1).await;
    let (gone, next, spec) = (id(10), id(11), wanted("a"));
    let mut impatient = Box::pin(bench.service.create(&gone, &spec, false));
    assert!((&mut impatient).now_or_never().is_none());
    let free = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Served while its caller does not look, which then goes away.
        bench.service.delete(&id(0), "a", false).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(impatient);
    };
    let (made, ()) = tokio::join!(bench.service.create(&next, &spec, false), free);
    assert_eq!((made.unwrap().sandbox_id, agent.ids()), (next.clone(), vec![next]));
}

#[tokio::test]
async fn where_no_waiting_helps_nobody_waits() {
    let bench = Bench::with_wait(LONG);
    let agent = bench.full(1).await;
    bench.service.set_draining("a", true).await.unwrap();
    let began = Instant::now();
    let (late, spec) = (id(9), wanted("a"));
    assert_eq!(bench.service.create(&late, &spec, false).await.unwrap_err().reason(), "NO_CAPACITY");
    let elsewhere = SandboxSpec { labels: [("node/zone".to_owned(), "b".to_owned())].into(), ..wanted("a") };
    let never = bench.service.create(&late, &elsewhere, false).await.unwrap_err();
    assert_eq!(never.reason(), "NODE_UNSUITABLE", "also while others wait");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert_eq!(agent.ids().len(), 1);
}

#[tokio::test]
async fn a_creation_that_takes_long_is_told_and_its_failure_is_the_end_of_it() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 1).await;
    a.fail_after(3);
    let ask = || async { bench.service.create_some_way(ID, &spec(), true).await };
    for _ in 0..2 {
        let told = ask().await.unwrap();
        assert_eq!((told.state(), told.node_id.as_str()), (State::Creating, "a"));
    }
    let (b, _b) = bench.node("b", 1).await;
    let failed = ask().await.unwrap_err();
    assert!(
        matches!(&failed, Error::NoSuitableNode { refusals, .. } if refusals.named.len() == 1),
        "{failed:?}"
    );
    // Who wants no progress hears the end of it, too.
    bench.service.registry.unbind(ID, "a");
    bench.service.delete(ID, "", false).await.unwrap();
    a.fail_after(3);
    b.fail_after(3);
    assert!(matches!(bench.create(ID).await, Err(Error::NoSuitableNode { .. })));
    assert_eq!((a.creations(), b.creations()), (0, 0));
}
