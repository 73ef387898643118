//! Several processes that write to one database server at once.

use std::time::Duration;

use futures::future::join_all;
use sandmesh_mesh::on_databases;

use super::*;

macro_rules! on_every_server {
    ($($body:ident),+ $(,)?) => {
        on_databases!(mariadb: MariaDb, $($body),+);
        on_databases!(postgres: Postgres, $($body),+);
    };
}

on_every_server!(
    quota_holds_however_many_create_sessions_at_once,
    limit_of_executions_holds_however_many_start_them_at_once,
    execution_that_was_accepted_is_not_in_a_session_that_ended_or_went_before,
    request_that_is_made_everywhere_at_once_makes_one,
    of_ends_by_several_processes_one_wins,
    use_that_all_write_at_once_is_written,
    sessions_of_who_does_not_say_that_it_lives_are_taken_over_once,
    writes_of_who_lost_a_session_come_to_nothing,
);

/// Several processes on one database.
async fn replicas(kind: Kind) -> (Vec<Store>, TestDatabase) {
    let database = TestDatabase::create(kind).await;
    (join_all((0..4).map(|_| open(&database))).await, database)
}

async fn quota_holds_however_many_create_sessions_at_once(kind: Kind) {
    let (stores, _database) = replicas(kind).await;
    let creates = (0..40).map(|number| {
        let store = &stores[number % stores.len()];
        store.insert_session(session(&format!("s{number}")), 10)
    });
    let mut new = 0;
    for inserted in join_all(creates).await {
        match inserted.unwrap() {
            session::Inserted::New => new += 1,
            session::Inserted::QuotaExceeded => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(new, 10);
}

async fn limit_of_executions_holds_however_many_start_them_at_once(kind: Kind) {
    let (stores, _database) = replicas(kind).await;
    stores[0].insert_session(session("s"), 9).await.unwrap();
    let owner = session("s");
    let rows: Vec<_> = (0..40).map(|number| execution(&format!("e{number}"), "s")).collect();
    let inserts = rows.iter().zip(stores.iter().cycle());
    let inserts = inserts.map(|(row, store)| store.insert_execution(row, &owner, 10));
    let inserted = join_all(inserts).await;
    let new = inserted.iter().filter(|one| matches!(one, Ok(execution::Inserted::New))).count();
    assert_eq!((new, stores[1].count_active("s").await.unwrap()), (10, 10), "{inserted:?}");
}

/// Whoever ends or discards a session while another starts something in it: one of the two has its way.
async fn execution_that_was_accepted_is_not_in_a_session_that_ended_or_went_before(kind: Kind) {
    let (stores, _database) = replicas(kind).await;
    let (one, other) = (&stores[0], &stores[1]);
    for round in 0..20 {
        let id = format!("s{round}");
        let row = session(&id);
        one.insert_session(row.clone(), 99).await.unwrap();
        let (run, limit) = (execution(&format!("e{round}"), &id), 9);
        let accepted = if round % 2 == 0 {
            let (accepted, discarded) =
                tokio::join!(one.insert_execution(&run, &row, limit), other.discard_session(&id));
            let accepted = matches!(accepted.unwrap(), execution::Inserted::New);
            assert!(accepted ^ discarded.unwrap(), "round {round}");
            accepted
        } else {
            one.session_ready(&row, placement(), now()).await.unwrap();
            let (accepted, idle) = tokio::join!(
                one.insert_execution(&run, &row, limit),
                other.end_session(&row, SessionEvent::IdleReached, "", now())
            );
            let accepted = matches!(accepted.unwrap(), execution::Inserted::New);
            assert!(accepted ^ idle.unwrap(), "round {round}");
            accepted
        };
        assert_eq!(other.execution(&run.id).await.unwrap().is_some(), accepted);
    }
}

fn placement() -> super::super::placement::Placement {
    super::super::placement::Placement {
        endpoint: "unix:/e".into(),
        node_id: "n".into(),
        runtime_type: "process".into(),
        language_runtime: String::new(),
        workspace_path: "/w".into(),
        isolation: crate::values::Isolation::default(),
        was_warm: false,
        packages: None,
    }
}

async fn request_that_is_made_everywhere_at_once_makes_one(kind: Kind) {
    let (stores, _database) = replicas(kind).await;
    let creates = stores.iter().enumerate().map(|(number, store)| {
        let row = session::Model { request_id: Some("r".into()), ..session(&format!("s{number}")) };
        store.insert_session(row, 9)
    });
    let created = join_all(creates).await;
    let new = created.iter().filter(|one| matches!(one, Ok(session::Inserted::New))).count();
    let repeats = created.iter().filter(|one| matches!(one, Ok(session::Inserted::Repeat(_)))).count();
    assert_eq!((new, repeats), (1, stores.len() - 1), "{created:?}");
    let owner = stores[0].session_of_request("r").await.unwrap().unwrap();
    let rows: Vec<_> = (0..stores.len())
        .map(|number| execution::Model {
            request_id: Some("r".into()),
            ..execution(&format!("e{number}"), &owner.id)
        })
        .collect();
    let starts = rows.iter().zip(&stores).map(|(row, store)| store.insert_execution(row, &owner, 9));
    let started = join_all(starts).await;
    let new = started.iter().filter(|one| matches!(one, Ok(execution::Inserted::New))).count();
    let repeats = started.iter().filter(|one| matches!(one, Ok(execution::Inserted::Repeat(_)))).count();
    assert_eq!((new, repeats), (1, stores.len() - 1), "{started:?}");
}

async fn of_ends_by_several_processes_one_wins(kind: Kind) {
    let (stores, _database) = replicas(kind).await;
    stores[0].insert_session(session("s"), 9).await.unwrap();
    for number in 0..10 {
        let row = execution(&format!("e{number}"), "s");
        stores[0].insert_execution(&row, &session("s"), 99).await.unwrap();
        let ending = Ending::default();
        let ends = stores.iter().map(|s| s.end_execution(&row, ExecutionEvent::Cancelled, &ending, now()));
        let won = join_all(ends).await.into_iter().filter(|won| *won.as_ref().unwrap()).count();
        assert_eq!(won, 1);
    }
}

async fn use_that_all_write_at_once_is_written(kind: Kind) {
    let (stores, _database) = replicas(kind).await;
    for number in 0..30 {
        stores[0].insert_session(session(&format!("s{number}")), 99).await.unwrap();
    }
    let later = now() + chrono::TimeDelta::seconds(5);
    for round in 0..5 {
        for (store, number) in stores.iter().flat_map(|store| (0..30).map(move |number| (store, number))) {
            store.used(&format!("s{number}"), later + chrono::TimeDelta::seconds(round));
        }
        for written in join_all(stores.iter().map(Store::write_use)).await {
            written.unwrap();
        }
    }
    let read = stores[0].session("s7").await.unwrap().unwrap();
    assert_eq!(read.last_activity_at.utc(), later + chrono::TimeDelta::seconds(4));
}

const LONG: Duration = Duration::from_secs(600);

/// Processes with names and as many sessions of each as said.
async fn owners(kind: Kind, each: usize) -> (Vec<Store>, TestDatabase) {
    let (stores, database) = replicas(kind).await;
    let names = ["p0", "p1", "p2", "p3"];
    let stores: Vec<_> = stores.into_iter().zip(names).map(|(store, name)| store.owned_by(name)).collect();
    for (store, name) in stores.iter().zip(names) {
        store.register_replica(name, &format!("unix:/{name}"), LONG).await.unwrap();
        for number in 0..each {
            let row = session::Model { owner: name.into(), ..session(&format!("{name}-{number}")) };
            store.insert_session(row, 999).await.unwrap();
        }
    }
    (stores, database)
}

async fn sessions_of_who_does_not_say_that_it_lives_are_taken_over_once(kind: Kind) {
    let (stores, _database) = owners(kind, 20).await;
    for store in &stores {
        assert!(store.take_over("p1").await.unwrap().is_empty(), "all live");
        assert_eq!(store.running_sessions().await.unwrap().len(), 0);
        assert_eq!(store.sessions_to_check(now()).await.unwrap().len(), 20, "its own, all of them");
    }
    let before = stores[1].owner_of_session("p0-7").await.unwrap().unwrap();
    assert_eq!((before.id.as_str(), before.endpoint.as_str(), before.lives), ("p0", "unix:/p0", true));
    assert!(stores[0].renew_replica("p0", Duration::ZERO).await.unwrap());
    assert!(!stores[1].replica_lives("p0").await.unwrap());
    let takers = [(1, "p1"), (2, "p2"), (3, "p3")];
    let taken = join_all(takers.map(|(number, name)| stores[number].take_over(name))).await;
    assert!(taken.iter().any(|taken| taken.as_ref().unwrap() == &["p0"]), "{taken:?}");
    let mut all = 0;
    for (number, _) in takers {
        all += stores[number].sessions_to_check(now()).await.unwrap().len();
    }
    assert_eq!(all, 80, "each has one owner");
    assert!(!stores[0].renew_replica("p0", LONG).await.unwrap(), "it is told");
    let after = stores[0].owner_of_session("p0-7").await.unwrap().unwrap();
    assert!(after.lives && after.id != "p0", "{after:?}");
    // What it wrote after that, as it did not know yet, is found too.
    let late = session::Model { owner: "p0".into(), ..session("late") };
    stores[0].insert_session(late, 999).await.unwrap();
    assert_eq!(stores[1].take_over("p1").await.unwrap(), ["p0"]);
    assert_eq!(stores[1].owner_of_session("late").await.unwrap().unwrap().id, "p1");
    for nothing in ["none", "", "\0"] {
        assert!(stores[1].owner_of_session(nothing).await.unwrap().is_none());
        assert!(stores[1].owner_of_execution(nothing).await.unwrap().is_none());
    }
}

async fn writes_of_who_lost_a_session_come_to_nothing(kind: Kind) {
    let (stores, _database) = owners(kind, 1).await;
    let (old, new) = (&stores[0], &stores[1]);
    let stale = old.session("p0-0").await.unwrap().unwrap();
    let before = old.insert_execution(&execution("before", "p0-0"), &stale, 9).await.unwrap();
    assert!(matches!(before, execution::Inserted::New), "{before:?}");
    assert_eq!(new.owner_of_execution("before").await.unwrap().unwrap().id, "p0");
    old.renew_replica("p0", Duration::ZERO).await.unwrap();
    new.take_over("p1").await.unwrap();
    let late = old.insert_execution(&execution("late", "p0-0"), &stale, 9).await.unwrap();
    assert!(matches!(late, execution::Inserted::NotActive), "{late:?}");
    assert!(!old.session_ready(&stale, placement(), now()).await.unwrap());
    assert!(!old.end_session(&stale, SessionEvent::Ended, "late", now()).await.unwrap());
    assert!(!old.delete_session(&stale, "late", now()).await.unwrap());
    assert!(!old.set_workspace(&stale, "", "late").await.unwrap());
    assert_eq!(old.active_executions().await.unwrap(), [], "it drives nothing more");
    let mine = new.session("p0-0").await.unwrap().unwrap();
    assert_eq!((mine.owner.as_str(), mine.state), ("p1", SessionState::Creating));
    assert!(new.session_ready(&mine, placement(), now()).await.unwrap());
    assert_eq!(new.active_executions().await.unwrap(), [("before".to_owned(), "p0-0".to_owned())]);
}
