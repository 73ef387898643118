use sandmesh_proto::{
    executor::Cause,
    session::{
        attach_execution_response::Event as Attached, execution::State, session::State as SessionState,
    },
};
use sea_orm::{ConnectionTrait, Database};

use super::*;

on_every_database!(
    what_ran_before_a_restart_is_found_again_and_ran_once,
    what_ended_while_nobody_looked_is_recorded,
    what_was_pending_at_a_restart_is_started_once,
    what_was_recorded_and_not_acknowledged_is_acknowledged_after_a_restart,
    a_sandbox_that_died_while_nobody_looked_is_noticed,
    output_that_was_lost_while_somebody_follows_is_an_expired_cursor_and_no_result,
    output_of_a_run_survives_a_session_that_ended_in_the_last_moment_of_a_process,
    a_removal_that_was_cut_short_is_finished,
    the_role_says_how_its_database_and_its_objects_are,
);

async fn what_ran_before_a_restart_is_found_again_and_ran_once() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let mut running = Vec::new();
    for number in 0..20 {
        running
            .push(bench.start_in(&session, &format!("out:{number}- fill:50000 gate out:end exit:0")).await);
    }
    bench.running(&running[0]).await;
    let mut bench = bench.restart().await;
    bench.executor(&session).open_gate();
    for (number, execution) in running.iter().enumerate() {
        let ended = bench.ended(execution).await;
        assert_eq!((ended.state(), ended.exit_code), (State::Completed, Some(0)));
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(text.starts_with(&format!("{number}-")) && text.ends_with("end"), "its output is whole");
        assert_eq!(ended.stdout.len(), 50_000 + format!("{number}-end").len());
    }
    let executor = bench.executor(&session);
    assert!(executor.lock().started.values().all(|times| *times == 1), "none ran twice");
    assert_eq!(executor.lock().started.len(), 20, "none was lost");
}

async fn what_ended_while_nobody_looked_is_recorded() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.start_in(&session, "out:a gate out:b value:7").await;
    bench.running(&execution).await;
    let executor = bench.executor(&session);
    let stopped = bench.stop().await;
    executor.open_gate();
    eventually("it ended", || executor.has_ended(&execution.execution_id)).await;
    let mut bench = stopped.start_again().await;
    let ended = bench.ended(&execution).await;
    assert_eq!((ended.stdout.as_ref(), ended.return_value_json.as_deref()), (&b"ab"[..], Some("7")));
}

async fn what_was_pending_at_a_restart_is_started_once() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().create_delay = Duration::from_millis(600);
    let session = bench.session().await;
    let pending = bench.start_in(&session, "out:late").await;
    let mut bench = bench.restart().await;
    assert_eq!(bench.ended(&pending).await.stdout, "late");
    let running = bench.get(&session.session_id).await.unwrap();
    assert_eq!(running.state(), SessionState::Running);
    assert_eq!(running.sandbox_id, session.sandbox_id, "the creation went on with the same sandbox");
    assert_eq!(bench.world.lock().sandboxes.len(), 1);
    assert_eq!(bench.executor(&session).lock().started[&pending.execution_id], 1);
}

async fn what_was_recorded_and_not_acknowledged_is_acknowledged_after_a_restart() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.run(&session, "out:x").await;
    let executor = bench.executor(&session);
    eventually("it is acknowledged", || executor.lock().acknowledged.len() == 1).await;
    // As if the former process had died between the record and the acknowledgement.
    executor.keep_ended(&execution.execution_id);
    let bench = bench.restart().await;
    eventually("it is acknowledged again", || executor.lock().acknowledged.len() == 2).await;
    drop(bench);
}

async fn a_sandbox_that_died_while_nobody_looked_is_noticed() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.start_in(&session, "out:x forever").await;
    bench.running(&execution).await;
    let stopped = bench.stop().await;
    stopped.world.kill(&session.sandbox_id);
    let mut bench = stopped.start_again().await;
    assert_eq!(bench.ended(&execution).await.state(), State::Crashed);
    assert_eq!(bench.get(&session.session_id).await.unwrap().state(), SessionState::Failed);
}

async fn output_that_was_lost_while_somebody_follows_is_an_expired_cursor_and_no_result() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.start_in(&session, "fill:1000 forever").await;
    bench.running(&execution).await;
    let stopped = bench.stop().await;
    stopped.world.lock().scheduler_down = true;
    stopped.world.kill(&session.sandbox_id);
    let mut bench = stopped.start_again().await;
    let attach = pb::AttachExecutionRequest {
        execution_id: execution.execution_id.clone(),
        stdout_offset: 1000,
        stderr_offset: 0,
    };
    // Nobody knows yet what became of it.
    let mut stream = bench.client.attach_execution(attach).await.unwrap().into_inner();
    bench.world.lock().scheduler_down = false;
    let lost = loop {
        match stream.message().await {
            Ok(Some(event)) => {
                assert!(!matches!(event.event, Some(Attached::Result(_))), "told as if nothing was missing");
            }
            end => break end,
        }
    };
    refused(lost, Code::OutOfRange, "CURSOR_EXPIRED");
    assert_eq!(bench.ended(&execution).await.state(), State::Crashed);
}

async fn output_of_a_run_survives_a_session_that_ended_in_the_last_moment_of_a_process() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let execution = bench.start_in(&session, "fill:50000 forever").await;
    bench.running(&execution).await;
    let stopped = bench.stop().await;
    let database = Database::connect(stopped.database.url().expose()).await.unwrap();
    let end = "UPDATE sessions SET state = 'terminated', completed_at = updated_at";
    database.execute_unprepared(end).await.unwrap();
    let mut bench = stopped.start_again().await;
    let ended = bench.ended(&execution).await;
    assert_eq!((ended.state(), ended.cause()), (State::Cancelled, Cause::SessionEnded));
    assert_eq!((ended.stdout.len(), ended.stdout_truncated), (50_000, false));
    eventually("the sandbox is removed", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn a_removal_that_was_cut_short_is_finished() {
    let mut bench = Bench::with(Config { terminate_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    let session = bench.session().await;
    bench.world.lock().scheduler_down = true;
    bench
        .client
        .delete_session(pb::DeleteSessionRequest { session_id: session.session_id.clone() })
        .await
        .unwrap();
    refused(bench.get(&session.session_id).await, Code::NotFound, "SESSION_NOT_FOUND");
    let stopped = bench.stop().await;
    stopped.world.lock().scheduler_down = false;
    let bench = stopped.start_again().await;
    eventually("the sandbox is removed", || bench.world.lock().sandboxes.is_empty()).await;
}

async fn the_role_says_how_its_database_and_its_objects_are() {
    let bench = Bench::new().await;
    let role = crate::Session(Arc::clone(&bench.service));
    let probes = sandmesh_mesh::Role::probe(&role).await;
    assert_eq!(
        probes.iter().map(|p| (p.name.as_str(), p.healthy)).collect::<Vec<_>>(),
        [("database/session", true), ("object_store", true)]
    );
    let objects = bench.directory.path().join("objects");
    std::fs::remove_dir_all(&objects).unwrap();
    std::fs::write(&objects, "not a directory").unwrap();
    let probes = sandmesh_mesh::Role::probe(&role).await;
    assert!(!probes[1].healthy && !probes[1].message.is_empty(), "{probes:?}");
}
