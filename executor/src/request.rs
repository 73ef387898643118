//! The start frame, parsed into a value that cannot be wrong.

use std::time::Duration;

use bytes::Bytes;
use sandmesh_proto::executor as pb;

use crate::{runner::is_json, status::Error};

const MAX_CODE_BYTES: usize = 1 << 20;
const MAX_EVENT_BYTES: usize = 6 << 20;
const MAX_STDIN_BYTES: usize = 16 << 20;
const MAX_ENV_BYTES: usize = 1 << 20;
const MAX_ARGUMENTS: usize = 1024;
/// The kernel takes 128 KiB per argument and variable, with its name and final NUL.
const MAX_STRING_BYTES: usize = (128 << 10) - 1;
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
const MAX_NAME: usize = 64;

/// A request to run something.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) id: String,
    pub(crate) session_id: String,
    pub(crate) program: Program,
    /// JSON text.
    pub(crate) event: Bytes,
    /// Sorted by name. May hold secrets.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) timeout: Duration,
    pub(crate) stdin: Bytes,
    pub(crate) keep_stdin_open: bool,
}

/// What to run.
#[derive(Debug, Clone)]
pub(crate) enum Program {
    /// Source text of a language; `entry` is the handler's name, `None` a script.
    Code { language: pb::Language, code: Bytes, entry: Option<String> },
    /// A program and its arguments, at least the program.
    Command(Vec<String>),
}

impl TryFrom<pb::ExecutionStart> for Start {
    type Error = Error;

    fn try_from(start: pb::ExecutionStart) -> Result<Self, Error> {
        let program = program(&start)?;
        check_id("start.execution_id", &start.execution_id)?;
        if !start.session_id.is_empty() {
            check_id("start.session_id", &start.session_id)?;
        }
        let event = if start.event_json.is_empty() { Bytes::from_static(b"{}") } else { start.event_json };
        at_most("start.event_json", event.len(), MAX_EVENT_BYTES)?;
        if !is_json(&event) {
            return Err(Error::invalid("start.event_json", "must be JSON text"));
        }
        at_most("start.stdin", start.stdin.len(), MAX_STDIN_BYTES)?;
        Ok(Self {
            program,
            event,
            env: env(start.env)?,
            timeout: timeout(start.timeout)?,
            stdin: start.stdin,
            keep_stdin_open: start.keep_stdin_open,
            id: start.execution_id,
            session_id: start.session_id,
        })
    }
}

fn program(start: &pb::ExecutionStart) -> Result<Program, Error> {
    if !start.command.is_empty() {
        return command(start);
    }
    let language = pb::Language::try_from(start.language).unwrap_or_default();
    if language == pb::Language::Unspecified {
        return Err(Error::invalid("start.language", "must be python, javascript or shell"));
    }
    if start.code.is_empty() {
        return Err(Error::invalid("start.code", "must not be empty"));
    }
    at_most("start.code", start.code.len(), MAX_CODE_BYTES)?;
    if std::str::from_utf8(&start.code).is_err() {
        return Err(Error::invalid("start.code", "must be UTF-8"));
    }
    let mode = pb::Mode::try_from(start.mode)
        .map_err(|_| Error::invalid("start.mode", "must be handler or script"))?;
    let entry = match (mode, language) {
        (pb::Mode::Script, _) | (pb::Mode::Unspecified, pb::Language::Shell) => None,
        (pb::Mode::Handler, pb::Language::Shell) => {
            return Err(Error::invalid("start.mode", "shell code is a script and has no handler"));
        }
        _ => Some(entrypoint(&start.entrypoint)?),
    };
    Ok(Program::Code { language, code: start.code.clone(), entry })
}

fn command(start: &pb::ExecutionStart) -> Result<Program, Error> {
    if !start.code.is_empty() {
        return Err(Error::invalid("start.command", "excludes start.code"));
    }
    at_most("start.command", start.command.len(), MAX_ARGUMENTS)?;
    for (index, word) in start.command.iter().enumerate() {
        let field = format!("start.command[{index}]");
        at_most(&field, word.len(), MAX_STRING_BYTES)?;
        if word.contains('\0') || (index == 0 && word.is_empty()) {
            return Err(Error::invalid(field, "must not be empty or hold a NUL byte"));
        }
    }
    at_most("start.command", start.command.iter().map(String::len).sum(), MAX_ENV_BYTES)?;
    Ok(Program::Command(start.command.clone()))
}

fn entrypoint(name: &str) -> Result<String, Error> {
    let name = if name.is_empty() { "handler" } else { name };
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    if name.len() > MAX_NAME || !name.chars().all(legal) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Error::invalid("start.entrypoint", "must be the name of a function"));
    }
    Ok(name.to_owned())
}

fn env(given: impl IntoIterator<Item = (String, String)>) -> Result<Vec<(String, String)>, Error> {
    let mut env: Vec<_> = given.into_iter().collect();
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::invalid("start.env", "a name must not be empty or hold `=` or a NUL byte"));
        }
        if value.contains('\0') || name.len() + value.len() >= MAX_STRING_BYTES {
            let problem = format!("`{name}` is longer than {MAX_STRING_BYTES} bytes or holds a NUL byte");
            return Err(Error::invalid("start.env", problem));
        }
    }
    at_most("start.env", env.iter().map(|(name, value)| name.len() + value.len()).sum(), MAX_ENV_BYTES)?;
    env.sort();
    Ok(env)
}

fn timeout(given: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let problem = || Error::invalid("start.timeout", "must be more than 0 and at most 24 hours");
    // The conversion overflows at the least number of seconds.
    let given = given.filter(|given| given.seconds >= 0).ok_or_else(problem)?;
    let timeout = Duration::try_from(given).map_err(|_| problem())?;
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        return Err(problem());
    }
    Ok(timeout)
}

/// Checks an id: [1..64] of letters, digits, `_` and `-`.
pub(crate) fn check_id(field: &str, id: &str) -> Result<(), Error> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if id.is_empty() || id.len() > MAX_NAME || !id.bytes().all(legal) {
        return Err(Error::invalid(field, "must be 1 to 64 letters, digits, `_` or `-`"));
    }
    Ok(())
}

fn at_most(field: &str, size: usize, most: usize) -> Result<(), Error> {
    if size > most { Err(Error::invalid(field, format!("{size} is more than {most}"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> pb::ExecutionStart {
        pb::ExecutionStart {
            execution_id: "exec_1".into(),
            language: pb::Language::Python.into(),
            code: "pass".into(),
            timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        }
    }

    fn field_of(change: impl FnOnce(&mut pb::ExecutionStart)) -> String {
        let mut start = good();
        change(&mut start);
        match Start::try_from(start) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        assert_eq!(field_of(|s| s.execution_id = String::new()), "start.execution_id");
        assert_eq!(field_of(|s| s.execution_id = "../x".into()), "start.execution_id");
        assert_eq!(field_of(|s| s.session_id = "a b".into()), "start.session_id");
        assert_eq!(field_of(|s| s.language = 0), "start.language");
        assert_eq!(field_of(|s| s.language = 99), "start.language");
        assert_eq!(field_of(|s| s.code = Bytes::new()), "start.code");
        assert_eq!(field_of(|s| s.code = vec![0xff].into()), "start.code");
        assert_eq!(field_of(|s| s.code = vec![b' '; MAX_CODE_BYTES + 1].into()), "start.code");
        assert_eq!(field_of(|s| s.mode = 9), "start.mode");
        assert_eq!(field_of(|s| s.entrypoint = "a-b".into()), "start.entrypoint");
        assert_eq!(field_of(|s| s.event_json = "{".into()), "start.event_json");
        assert_eq!(field_of(|s| s.timeout = None), "start.timeout");
        assert_eq!(field_of(|s| s.timeout = Some(prost_types::Duration::default())), "start.timeout");
        assert_eq!(
            field_of(|s| s.timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
            "start.timeout"
        );
        assert_eq!(
            field_of(|s| s.timeout = Some(prost_types::Duration { seconds: i64::MIN, nanos: i32::MIN })),
            "start.timeout"
        );
        assert_eq!(field_of(|s| drop(s.env.insert("a=b".into(), String::new()))), "start.env");
        assert_eq!(field_of(|s| drop(s.env.insert("a".into(), "x".repeat(MAX_STRING_BYTES)))), "start.env");
        assert_eq!(field_of(|s| s.command = vec!["x".into()]), "start.command");
    }

    #[test]
    fn handler_is_the_default_of_code_and_script_that_of_shell() {
        let entry = |language: pb::Language| {
            let start = pb::ExecutionStart { language: language.into(), ..good() };
            match Start::try_from(start).unwrap().program {
                Program::Code { entry, .. } => entry,
                Program::Command(_) => None,
            }
        };
        assert_eq!(entry(pb::Language::Python).as_deref(), Some("handler"));
        assert_eq!(entry(pb::Language::Javascript).as_deref(), Some("handler"));
        assert_eq!(entry(pb::Language::Shell), None);
    }

    #[test]
    fn empty_event_is_an_empty_object() {
        assert_eq!(&Start::try_from(good()).unwrap().event[..], b"{}");
    }
}
