//! Warm sandboxes: who gets them, and what becomes of them when their place is wanted.

use futures::future::join_all;

use super::*;
use crate::{pool::Profile, registry::Used, view};

const WARM: &str = "sbx_00000000000000a1";

fn warm_spec() -> SandboxSpec {
    SandboxSpec { template_id: "t".to_owned(), ..spec() }
}

fn profile() -> Profile {
    view::profile(&warm_spec())
}

/// The same template with other limits.
fn larger() -> SandboxSpec {
    let resources = Resources { memory_bytes: 2, ..spec().resources.unwrap() };
    SandboxSpec { resources: Some(resources), ..warm_spec() }
}

fn wanted(session: &str) -> SandboxSpec {
    SandboxSpec {
        session_id: session.to_owned(),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        expires_at: Some(prost_types::Timestamp { seconds: 2_000_000_100, nanos: 0 }),
        ..warm_spec()
    }
}

impl Bench {
    /// Makes a warm sandbox, and waits until it is known.
    async fn warm(&self, id: &str) -> Sandbox {
        let made = self.service.create_warm(id, &warm_spec()).await.unwrap();
        self.until(|| self.service.registry().warm_profiles() == [profile()]).await;
        made
    }

    async fn session(&self, id: &str) -> Result<Sandbox, Error> {
        self.service.create(id, &wanted(id), false).await
    }
}

#[tokio::test]
async fn a_session_gets_a_warm_sandbox_of_its_kind_and_no_other() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 10).await;
    bench.warm(WARM).await;
    let unlike = [
        SandboxSpec { template_id: "other".to_owned(), ..wanted("s") },
        SandboxSpec { resources: larger().resources, ..wanted("s") },
        SandboxSpec { image: "other".to_owned(), ..wanted("s") },
        SandboxSpec { labels: [("node/zone".to_owned(), "b".to_owned())].into(), ..wanted("s") },
    ];
    for (n, spec) in unlike.iter().enumerate() {
        let made = bench.service.create(&format!("sbx_c{n:015x}"), spec, false).await;
        assert!(made.is_err() || !made.unwrap().claimed, "{spec:?}");
    }
    let claimed = bench.session(ID).await.unwrap();
    assert!(claimed.claimed && a.ids().contains(&ID.to_owned()) && !a.ids().contains(&WARM.to_owned()));
    assert_eq!(bench.session(ID).await.unwrap(), claimed, "a repeat gets the same");
    assert!(!bench.session("sbx_00000000000000ff").await.unwrap().claimed, "there is no other");
}

#[tokio::test]
async fn what_a_profile_has_counts_for_no_other_of_its_template() {
    let bench = Bench::new();
    let (_agent, _a) = bench.node("a", 10).await;
    bench.warm(WARM).await;
    let other = "sbx_00000000000000a2";
    bench.service.create_warm(other, &larger()).await.unwrap();
    let registry = bench.service.registry();
    let profiles = [profile(), view::profile(&larger())];
    bench.until(|| registry.warm_profiles() == profiles).await;
    for (spec, id) in [(warm_spec(), WARM), (larger(), other)] {
        let warm = registry.warm(&view::profile(&spec), &spec, 75);
        let told: Vec<_> = warm.iter().map(|one| (one.place.0.as_str(), one.current)).collect();
        assert_eq!(
            told,
            [(id, true)],
            "those of the other are not of an older template: they are not its own"
        );
    }
    let spec = SandboxSpec { resources: larger().resources, ..wanted("s") };
    assert!(bench.service.create(ID, &spec, false).await.unwrap().claimed);
    bench.until(|| registry.used().len() == 1 && registry.warm_profiles() == profiles[..1]).await;
    assert_eq!(registry.used()[&profiles[1]], Used { claimed: 1, cold: 0 });
}

#[tokio::test]
async fn of_many_sessions_at_once_each_warm_sandbox_goes_to_one() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 100).await;
    for n in 0..3 {
        bench.warm(&format!("sbx_a{n:015x}")).await;
    }
    bench.until(|| bench.service.registry().warm(&profile(), &warm_spec(), 75).len() == 3).await;
    let ids: Vec<String> = (0..20).map(|n| format!("sbx_b{n:015x}")).collect();
    let made = join_all(ids.iter().map(|id| bench.session(id))).await;
    let claimed = made.iter().filter(|made| made.as_ref().unwrap().claimed).count();
    assert_eq!((claimed, a.ids().len()), (3, 20));
}

#[tokio::test]
async fn where_a_warm_sandbox_is_gone_the_next_is_taken_or_one_is_made() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 10).await;
    bench.warm(WARM).await;
    a.lose_silently(WARM);
    let made = bench.session(ID).await.unwrap();
    assert_eq!((made.claimed, a.ids()), (false, vec![ID.to_owned()]));
}

#[tokio::test]
async fn a_lost_answer_to_a_claim_is_settled_on_the_same_node() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 10).await;
    let (b, _b) = bench.node("b", 10).await;
    let warm = bench.warm(WARM).await;
    let (has, other) = if warm.node_id == "a" { (a, b) } else { (b, a) };
    let before = (has.creations(), other.creations());
    has.lose_answers(1);
    let claimed = bench.session(ID).await.unwrap();
    assert!(claimed.claimed, "it had been claimed, and that was found out");
    assert_eq!((has.creations(), other.creations()), before);
}

#[tokio::test]
async fn a_warm_sandbox_makes_room_for_what_a_session_wants() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 2).await;
    bench.warm(WARM).await;
    let other =
        |n: u32| (format!("sbx_{n:016x}"), SandboxSpec { template_id: "u".to_owned(), ..wanted("s") });
    for n in 0..2 {
        let (id, spec) = other(n);
        bench.service.create(&id, &spec, false).await.unwrap();
    }
    assert!(!a.ids().contains(&WARM.to_owned()));
    let (id, spec) = other(2);
    assert_eq!(bench.service.create(&id, &spec, false).await.unwrap_err().reason(), "NO_CAPACITY");
}

#[tokio::test]
async fn warm_sandboxes_leave_room_on_every_node_and_spread() {
    let bench = Bench::new();
    let (a, _a) = bench.node("a", 4).await;
    let (b, _b) = bench.node("b", 4).await;
    let mut refused = 0;
    for n in 0..8 {
        match bench.service.create_warm(&format!("sbx_{n:016x}"), &warm_spec()).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.reason(), "NO_CAPACITY");
                refused += 1;
            }
        }
        bench
            .until(|| {
                bench.service.registry().warm(&profile(), &warm_spec(), 75).len()
                    == a.ids().len() + b.ids().len()
            })
            .await;
    }
    assert_eq!((a.ids().len(), b.ids().len(), refused), (3, 3, 2), "at 75 percent of four");
}

#[tokio::test]
async fn warm_sandboxes_on_a_node_that_drains_are_of_no_use() {
    let bench = Bench::new();
    let (_agent, _a) = bench.node("a", 10).await;
    bench.warm(WARM).await;
    let current = || {
        bench.service.registry().warm(&profile(), &warm_spec(), 75).iter().filter(|one| one.current).count()
    };
    assert_eq!(current(), 1);
    bench.service.set_draining("a", true).await.unwrap();
    assert_eq!(current(), 0);
    let refused = bench.session(ID).await.unwrap_err();
    assert_eq!(refused.reason(), "NO_CAPACITY", "nor is one claimed there");
}

#[tokio::test]
async fn warm_sandboxes_stay_where_their_place_would_not_be_enough() {
    let bench = Bench::new();
    let agent = bench.limited_node("a", 10).await;
    bench.warm(WARM).await;
    let most = |memory_bytes| {
        let resources = Some(Resources { memory_bytes, ..spec().resources.unwrap() });
        SandboxSpec { template_id: "u".to_owned(), resources, ..wanted("s") }
    };
    bench.service.create("sbx_00000000000000b1", &most(5), false).await.unwrap();
    bench.until(|| bench.service.registry().used().contains_key(&view::profile(&most(5)))).await;
    let refused = bench.service.create("sbx_00000000000000b2", &most(8), false).await.unwrap_err();
    assert_eq!(refused.reason(), "NO_CAPACITY");
    assert!(agent.ids().contains(&WARM.to_owned()), "it would have been in vain");
    bench.service.create("sbx_00000000000000b3", &most(5), false).await.unwrap();
    assert!(!agent.ids().contains(&WARM.to_owned()), "it made room");
}
