//! What is said at the end of an execution, and the exit code it becomes.

use sandmesh_proto::{executor::Cause, session::Execution, session::execution::State};

use super::{
    failure::{INFRASTRUCTURE, INTERRUPTED},
    view,
};

/// The exit code of an execution that reached its time limit.
const TIMED_OUT: u8 = 124;

/// The exit code of this program for an execution that ended.
pub(super) fn exit_code(execution: &Execution) -> u8 {
    match execution.state() {
        State::Completed => own_code(execution).unwrap_or(0),
        // A failure never looks like a success.
        State::Failed | State::Crashed => own_code(execution).map_or(INFRASTRUCTURE, |code| code.max(1)),
        State::Timeout => TIMED_OUT,
        State::Cancelled => INTERRUPTED,
        State::Unspecified | State::Pending | State::Running => INFRASTRUCTURE,
    }
}

/// How the process itself ended, as a shell would say it.
fn own_code(execution: &Execution) -> Option<u8> {
    let code = execution.signal.map(|signal| signal.saturating_add(128)).or(execution.exit_code)?;
    Some(u8::try_from(code).unwrap_or(u8::MAX))
}

/// What to tell the person, beyond what the execution wrote itself; `stderr` is the end of that.
pub(super) fn verdict(execution: &Execution, stderr: &[u8]) -> Option<String> {
    let id = &execution.execution_id;
    let text = match execution.state() {
        State::Completed => return None,
        State::Failed => return failed(execution, stderr),
        State::Timeout => format!("execution {id} reached its time limit of {} s", execution.timeout_seconds),
        State::Cancelled if execution.cause() == Cause::SessionEnded => {
            format!("execution {id} was cancelled: its session ended")
        }
        State::Cancelled => format!("execution {id} was cancelled"),
        State::Crashed => format!("execution {id} crashed: {}", cause(execution)),
        State::Unspecified | State::Pending | State::Running => {
            format!("the server sent a result of execution {id} before it ended")
        }
    };
    Some(text)
}

fn failed(execution: &Execution, stderr: &[u8]) -> Option<String> {
    if let Some(error) = &execution.error {
        let told = !error.message.is_empty() && String::from_utf8_lossy(stderr).contains(&error.message);
        return (!told).then(|| format!("{}: {}", error.r#type, error.message));
    }
    execution
        .signal
        .map(|signal| format!("execution {} was killed by signal {signal}", execution.execution_id))
}

fn cause(execution: &Execution) -> String {
    let what = match execution.cause() {
        Cause::Oom => "it was out of memory".to_owned(),
        Cause::PidsLimit => "it reached its limit of processes".to_owned(),
        Cause::OutputLimit => "it wrote more output than is allowed".to_owned(),
        Cause::DiskLimit => "it reached its limit of disk space".to_owned(),
        Cause::ExecutorLost => "its sandbox was lost".to_owned(),
        Cause::NodeLost => "its node was lost".to_owned(),
        Cause::SessionEnded => "its session ended".to_owned(),
        cause => view::word(cause.as_str_name(), "CAUSE_"),
    };
    match execution.cause_detail.as_str() {
        "" => what,
        detail => format!("{what} ({detail})"),
    }
}

/// What to do about an error of the user's code.
pub(super) fn hint(execution: &Execution) -> Option<&'static str> {
    let error = execution.error.as_ref()?;
    (error.r#type == "HandlerNotFound").then_some("use --script to run the file from top to bottom")
}

#[cfg(test)]
mod tests {
    use sandmesh_proto::executor::UserError;

    use super::*;

    fn ended(state: State, exit_code: Option<i32>, signal: Option<i32>) -> Execution {
        Execution { state: state.into(), exit_code, signal, ..Execution::default() }
    }

    #[test]
    fn the_exit_code_is_that_of_the_execution() {
        for (state, code, signal, expected) in [
            (State::Completed, Some(0), None, 0),
            (State::Completed, None, None, 0),
            (State::Failed, Some(3), None, 3),
            (State::Failed, None, Some(15), 143),
            (State::Failed, None, None, 125),
            (State::Failed, Some(0), None, 1),
            (State::Timeout, None, Some(9), 124),
            (State::Cancelled, None, Some(9), 130),
            (State::Crashed, None, Some(9), 137),
            (State::Crashed, None, None, 125),
            (State::Running, None, None, 125),
            (State::Failed, Some(4096), None, 255),
        ] {
            assert_eq!(exit_code(&ended(state, code, signal)), expected, "{state:?} {code:?} {signal:?}");
        }
    }

    #[test]
    fn an_error_that_is_on_the_standard_error_is_not_said_again() {
        let error =
            UserError { r#type: "ValueError".to_owned(), message: "no".to_owned(), traceback: String::new() };
        let execution = Execution { error: Some(error), ..ended(State::Failed, Some(1), None) };
        assert_eq!(verdict(&execution, b"ValueError: no\n"), None);
        assert_eq!(verdict(&execution, b"").as_deref(), Some("ValueError: no"));
    }

    #[test]
    fn a_crash_says_its_cause() {
        let execution = Execution {
            execution_id: "e1".to_owned(),
            cause: Cause::Oom.into(),
            cause_detail: "limit 64 MiB, peak 64 MiB".to_owned(),
            ..ended(State::Crashed, None, Some(9))
        };
        assert_eq!(
            verdict(&execution, b"").as_deref(),
            Some("execution e1 crashed: it was out of memory (limit 64 MiB, peak 64 MiB)")
        );
    }

    #[test]
    fn a_missing_handler_brings_the_hint() {
        let error = UserError { r#type: "HandlerNotFound".to_owned(), ..UserError::default() };
        let execution = Execution { error: Some(error), ..ended(State::Failed, Some(1), None) };
        assert!(hint(&execution).is_some_and(|hint| hint.contains("--script")));
        assert_eq!(hint(&ended(State::Failed, Some(1), None)), None);
    }
}
