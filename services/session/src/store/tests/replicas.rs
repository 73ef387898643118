//! Several processes that write to one database server at once.

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

fn placement() -> session::Placement {
    session::Placement {
        endpoint: "unix:/e".into(),
        node_id: "n".into(),
        runtime_type: "process".into(),
        language_runtime: String::new(),
        workspace_path: "/w".into(),
        isolation: crate::values::Isolation::default(),
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
