use proptest::prelude::*;

use super::*;

fn session_event() -> impl Strategy<Value = SessionEvent> {
    prop_oneof![
        Just(SessionEvent::SandboxReady),
        Just(SessionEvent::CreationFailed),
        Just(SessionEvent::SandboxLost),
        Just(SessionEvent::SandboxReplaced),
        Just(SessionEvent::LifetimeReached),
        Just(SessionEvent::IdleReached),
        Just(SessionEvent::Ended),
    ]
}

fn execution_event() -> impl Strategy<Value = ExecutionEvent> {
    let cause = proptest::option::of(proptest::sample::select(Cause::ALL.to_vec()));
    prop_oneof![
        Just(ExecutionEvent::Started),
        (cause, any::<bool>()).prop_map(|(cause, success)| ExecutionEvent::Exited { cause, success }),
        Just(ExecutionEvent::StartFailed),
        Just(ExecutionEvent::Cancelled),
        Just(ExecutionEvent::SandboxLost),
        Just(ExecutionEvent::Retried),
    ]
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn times(state: SessionState) -> SessionTimes {
    SessionTimes {
        state,
        creating_since: at(0),
        expires_at: at(300),
        last_activity_at: at(0),
        idle_timeout: Some(Duration::from_secs(60)),
        active_executions: 0,
    }
}

const CREATING: Duration = Duration::from_secs(30);

proptest! {
    #[test]
    fn nothing_leads_out_of_a_final_session_state(event in session_event()) {
        for state in SessionState::ALL.into_iter().filter(|state| state.is_final()) {
            prop_assert_eq!(next_session(state, event), None);
        }
    }

    #[test]
    fn nothing_leads_out_of_a_final_execution_state(event in execution_event()) {
        for state in ExecutionState::ALL.into_iter().filter(|state| state.is_final()) {
            prop_assert_eq!(next_execution(state, event), None);
        }
    }

    #[test]
    fn any_run_of_events_ends_in_at_most_one_final_state(events in proptest::collection::vec(execution_event(), 0..32)) {
        let mut state = ExecutionState::Pending;
        let mut ends = 0;
        for event in events {
            if let Some(next) = next_execution(state, event) {
                let back = next == ExecutionState::Pending;
                prop_assert_eq!(back, event == ExecutionEvent::Retried, "nothing else leads back");
                ends += u32::from(next.is_final());
                state = next;
            }
        }
        prop_assert!(ends <= 1);
    }

    #[test]
    fn an_event_has_one_target_whatever_state_it_leaves(session in session_event(), execution in execution_event()) {
        let (from, to) = session_sources(session);
        prop_assert!(from.into_iter().all(|state| next_session(state, session) == to));
        let (from, to) = execution_sources(execution);
        prop_assert!(from.into_iter().all(|state| next_execution(state, execution) == to));
    }

    #[test]
    fn what_is_due_is_never_refused(seconds in 0i64..1000, active in 0u64..3) {
        for state in SessionState::ALL {
            let times = SessionTimes { active_executions: active, ..times(state) };
            if let Some(event) = due(&times, CREATING, at(seconds)) {
                prop_assert!(next_session(state, event).is_some_and(SessionState::is_final));
            }
        }
    }

    #[test]
    fn what_was_due_stays_due(seconds in 0i64..1000, more in 0i64..1000) {
        for state in SessionState::ALL {
            let times = times(state);
            let before = due(&times, CREATING, at(seconds)).is_some();
            prop_assert!(!before || due(&times, CREATING, at(seconds + more)).is_some());
        }
    }
}

#[test]
fn every_active_state_can_be_ended() {
    for state in [SessionState::Creating, SessionState::Running] {
        assert_eq!(next_session(state, SessionEvent::Ended), Some(SessionState::Terminated));
    }
    for state in ExecutionState::ACTIVE {
        assert_eq!(next_execution(state, ExecutionEvent::Cancelled), Some(ExecutionState::Cancelled));
        assert_eq!(next_execution(state, ExecutionEvent::SandboxLost), Some(ExecutionState::Crashed));
    }
}

#[test]
fn lifetime_ends_at_its_very_moment() {
    assert_eq!(due(&times(SessionState::Creating), Duration::from_secs(999), at(299)), None);
    let due = due(&times(SessionState::Running), CREATING, at(300));
    assert_eq!(due, Some(SessionEvent::LifetimeReached));
}

#[test]
fn a_session_that_runs_something_is_not_idle() {
    let idle = times(SessionState::Running);
    assert_eq!(due(&idle, CREATING, at(60)), Some(SessionEvent::IdleReached));
    let busy = SessionTimes { active_executions: 1, ..idle };
    assert_eq!(due(&busy, CREATING, at(60)), None);
    let patient = SessionTimes { idle_timeout: None, ..idle };
    assert_eq!(due(&patient, CREATING, at(299)), None);
}

#[test]
fn a_session_stuck_in_creation_fails() {
    assert_eq!(due(&times(SessionState::Creating), CREATING, at(29)), None);
    assert_eq!(due(&times(SessionState::Creating), CREATING, at(30)), Some(SessionEvent::CreationFailed));
}

#[test]
fn a_limit_that_kills_is_a_crash_and_a_time_limit_is_not() {
    let exited =
        |cause| next_execution(ExecutionState::Running, ExecutionEvent::Exited { cause, success: true });
    assert_eq!(exited(Some(Cause::Oom)), Some(ExecutionState::Crashed));
    assert_eq!(exited(Some(Cause::Timeout)), Some(ExecutionState::Timeout));
    assert_eq!(exited(Some(Cause::SessionEnded)), Some(ExecutionState::Cancelled));
    assert_eq!(exited(None), Some(ExecutionState::Completed));
}

#[test]
fn a_lost_sandbox_is_replaced_as_often_as_is_allowed_and_never_after_the_end_of_the_lifetime() {
    assert_eq!(after_loss(at(300), 0, 3, at(1)), SessionEvent::SandboxReplaced);
    assert_eq!(after_loss(at(300), 2, 3, at(1)), SessionEvent::SandboxReplaced);
    assert_eq!(after_loss(at(300), 3, 3, at(1)), SessionEvent::SandboxLost);
    assert_eq!(after_loss(at(300), 0, 0, at(1)), SessionEvent::SandboxLost);
    assert_eq!(after_loss(at(300), 0, 3, at(300)), SessionEvent::LifetimeReached);
}

#[test]
fn only_the_faults_of_the_machinery_are_retried_and_ever_more_slowly() {
    for cause in Cause::ALL {
        let retried = retry_after(Some(cause), 0, 10).is_some();
        assert_eq!(retried, matches!(cause, Cause::ExecutorLost | Cause::NodeLost), "{cause:?}");
    }
    assert_eq!(retry_after(None, 0, 10), None, "it ended by itself");
    assert_eq!(retry_after(Some(Cause::ExecutorLost), 0, 0), None);
    let pauses: Vec<u128> = (0..10)
        .map_while(|n| retry_after(Some(Cause::NodeLost), n, 9))
        .map(|pause| pause.as_millis())
        .collect();
    assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
}
