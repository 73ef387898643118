//! Statements whose texts are made once.

use sea_orm::{ActiveValue::Set, DbBackend, StatementBuilder};

use super::*;
use crate::lifecycle::{Cause, execution_sources};

/// Twice: the first may make the text, the second finds it.
fn is_as_made(remembered: &impl StatementBuilder, made: &impl StatementBuilder) {
    for backend in [DbBackend::Sqlite, DbBackend::MySql] {
        for _ in 0..2 {
            assert_eq!(remembered.build(&backend), made.build(&backend));
        }
    }
}

#[test]
fn values_of_an_insert_are_those_of_its_text() {
    let run = execution("e", "s");
    for owner in ["", "replica"] {
        let session = session::Model { owner: owner.into(), ..session("s") };
        is_as_made(&execution::insert(&run, &session, 7), &execution::made_insert(&(&run, &session, 7)));
    }
}

#[test]
fn values_of_an_end_are_those_of_its_text() {
    let exited = |cause, success| ExecutionEvent::Exited { cause, success };
    let events = [
        exited(None, true),
        exited(None, false),
        exited(Some(Cause::Timeout), false),
        ExecutionEvent::StartFailed,
        ExecutionEvent::Cancelled,
        ExecutionEvent::SandboxLost,
    ];
    for event in events {
        for started_at in [None, Some(now())] {
            let ending = Ending { exit_code: Some(3), started_at, ..Ending::default() };
            let mut complete = execution::columns(ending.clone(), now());
            complete.state = Set(execution_sources(event).1.unwrap());
            let remembered = execution::ended("e", event, ending, now()).unwrap();
            is_as_made(&remembered, &execution::made_end(&("e".into(), event, complete)));
        }
    }
}
