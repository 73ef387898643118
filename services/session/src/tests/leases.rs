//! Leases: one at a time, by the clock of the database.

use sandmesh_proto::session::lease_service_client::LeaseServiceClient;
use tonic_types::StatusExt;

use super::*;

on_every_database!(
    lease_has_one_holder_until_it_is_given_back,
    lease_that_is_not_held_on_to_goes_to_another_with_a_larger_token,
    of_many_who_ask_at_once_one_gets_the_lease,
    lease_that_cannot_be_is_refused_by_field,
);

async fn hold(leases: &LeaseServiceClient<Link>, holder: &str, seconds: i64) -> pb::HoldLeaseResponse {
    let term = prost_types::Duration { seconds, nanos: 0 };
    let request = pb::HoldLeaseRequest { name: "work".into(), holder: holder.into(), term: Some(term) };
    leases.clone().hold_lease(request).await.unwrap().into_inner()
}

async fn lease_has_one_holder_until_it_is_given_back() {
    let bench = Bench::new().await;
    let leases = &bench.leases;
    let first = hold(leases, "a", 60).await;
    assert!(first.held && first.holder == "a");
    assert_eq!(hold(leases, "a", 60).await, first, "held on to");
    let other = hold(leases, "b", 60).await;
    assert_eq!((other.held, other.holder.as_str(), other.token), (false, "a", first.token));
    let release = async |holder: &str| {
        let request = pb::ReleaseLeaseRequest { name: "work".into(), holder: holder.into() };
        leases.clone().release_lease(request).await.unwrap();
    };
    release("b").await;
    assert!(!hold(leases, "b", 60).await.held, "what another has stays");
    release("a").await;
    release("a").await;
    let other = hold(leases, "b", 60).await;
    assert!(other.held && other.token > first.token, "{other:?}");
}

async fn lease_that_is_not_held_on_to_goes_to_another_with_a_larger_token() {
    let bench = Bench::new().await;
    let leases = &bench.leases;
    let first = hold(leases, "a", 1).await;
    assert!(first.held);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = hold(leases, "b", 60).await;
    assert!(second.held && second.token > first.token, "{second:?}");
    let late = hold(leases, "a", 60).await;
    assert_eq!((late.held, late.holder.as_str()), (false, "b"));
}

async fn of_many_who_ask_at_once_one_gets_the_lease() {
    let bench = Bench::new().await;
    let leases = &bench.leases;
    for round in 0..5_i64 {
        let names: Vec<String> = (0..8).map(|number| format!("{round}-{number}")).collect();
        let asked = futures::future::join_all(names.iter().map(|name| hold(leases, name, 60))).await;
        let held = asked.iter().filter(|answer| answer.held).count();
        assert_eq!(held, 1, "{asked:?}");
        assert!(asked.iter().all(|answer| answer.holder == asked[0].holder), "{asked:?}");
        let holder = asked[0].holder.clone();
        leases.clone().release_lease(pb::ReleaseLeaseRequest { name: "work".into(), holder }).await.unwrap();
    }
}

async fn lease_that_cannot_be_is_refused_by_field() {
    let bench = Bench::new().await;
    let leases = &bench.leases;
    let term = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let good = pb::HoldLeaseRequest { name: "work".into(), holder: "a".into(), term: term(9) };
    for (field, request) in [
        ("name", pb::HoldLeaseRequest { name: String::new(), ..good.clone() }),
        ("name", pb::HoldLeaseRequest { name: "n".repeat(65), ..good.clone() }),
        ("holder", pb::HoldLeaseRequest { holder: "a\0".into(), ..good.clone() }),
        ("term", pb::HoldLeaseRequest { term: None, ..good.clone() }),
        ("term", pb::HoldLeaseRequest { term: term(0), ..good.clone() }),
        ("term", pb::HoldLeaseRequest { term: term(61), ..good }),
    ] {
        let status = leases.clone().hold_lease(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
    }
}
