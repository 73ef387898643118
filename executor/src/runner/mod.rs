//! How code of a language gets to run: what its process is, what it reads, what it returns.
//!
//! A [`Runner`] is a small thing: [`prepare`](Runner::prepare) makes a plan of an execution, and
//! [`run`](Runner::run) turns the plan into a process; today a fresh jail and a fresh interpreter.

mod javascript;
mod python;
mod shell;

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use sandmesh_proto::executor as pb;
use serde::{Deserialize, Serialize};

use crate::{
    clock,
    init::Spec,
    isolation::{Process, Sandbox, SpawnError},
    request::{Program, Start},
};

/// The largest return value, in bytes of JSON.
pub(crate) const MAX_RESULT_BYTES: u64 = 6 << 20;

/// The sources that the jail shows to the interpreters, by name.
pub(crate) const SOURCES: [(&str, &str); 2] = [python::SOURCE, javascript::SOURCE];

/// Something that can run a program.
#[derive(Debug)]
pub(crate) enum Runner {
    /// With this interpreter.
    Python(PathBuf),
    /// With this interpreter.
    JavaScript(PathBuf),
    /// With this interpreter.
    Shell(PathBuf),
    /// As it is.
    Command,
}

/// An execution that is ready to be run.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) spec: Spec,
    /// What the runner in the jail reads; empty for those that read nothing.
    pub(crate) request: Vec<Bytes>,
}

/// What user code returned.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Returned {
    /// The return value as JSON text.
    pub(crate) value: Option<Bytes>,
    /// The error that its runner told of.
    pub(crate) error: Option<pb::UserError>,
}

impl Runner {
    /// The one for a program; `Err` names the language that has no interpreter here.
    pub(crate) fn of(program: &Program, sandbox: &Sandbox) -> Result<Self, &'static str> {
        let Program::Code { language, .. } = program else { return Ok(Self::Command) };
        let path = sandbox.interpreters().of(*language).map(Path::to_owned);
        match language {
            pb::Language::Python => path.map(Self::Python).ok_or("python"),
            pb::Language::Javascript => path.map(Self::JavaScript).ok_or("javascript"),
            pb::Language::Shell => path.map(Self::Shell).ok_or("shell"),
            pb::Language::Unspecified => Err("unspecified"),
        }
    }

    /// Plans an execution.
    pub(crate) fn prepare(&self, start: &Start, sandbox: &Sandbox) -> Plan {
        let scene = sandbox.scene(&start.id);
        let mut plan = match (self, &start.program) {
            (Self::Python(path), Program::Code { code, entry, .. }) => {
                python::plan(path, &scene, Request::new(start, entry.as_deref(), code, sandbox))
            }
            (Self::JavaScript(path), Program::Code { code, entry, .. }) => {
                javascript::plan(path, &scene, Request::new(start, entry.as_deref(), code, sandbox))
            }
            (Self::Shell(path), Program::Code { code, .. }) => shell::plan(path, &scene, start, code),
            (_, Program::Command(argv)) => {
                Plan { spec: Spec { argv: argv.clone(), ..Spec::default() }, ..Plan::default() }
            }
            (Self::Command, Program::Code { .. }) => Plan::default(),
        };
        plan.spec.workdir = scene.workspace.display().to_string();
        plan.spec.env = environment(std::mem::take(&mut plan.spec.env), &start.env, &scene);
        plan
    }

    /// Starts a planned execution. Must be called on a thread that lives as long as the executor.
    pub(crate) fn run(&self, id: &str, plan: Plan, sandbox: &Sandbox) -> Result<Process, SpawnError> {
        let request: Vec<&[u8]> = plan.request.iter().map(Bytes::as_ref).collect();
        sandbox.spawn(id, plan.spec, &request)
    }

    /// Reads what came over the result descriptor. User code may have written anything to it.
    pub(crate) fn read_result(&self, raw: Vec<u8>) -> Returned {
        if raw.len() as u64 > MAX_RESULT_BYTES + 1 {
            let message = format!("at most {MAX_RESULT_BYTES} bytes of JSON can be returned");
            return Returned::error("ReturnValueTooLarge", message);
        }
        match self {
            Self::Command => Returned::default(),
            Self::Shell(_) => shell::read_result(&raw),
            Self::Python(_) | Self::JavaScript(_) => read_tagged(raw.into()),
        }
    }
}

impl Returned {
    fn value(json: Bytes) -> Self {
        if is_json(&json) {
            return Self { value: Some(json), error: None };
        }
        Self::error("ReturnValueNotJson", "what was written to the result descriptor is not JSON".to_owned())
    }

    fn error(kind: &str, message: String) -> Self {
        let error = pb::UserError { r#type: kind.to_owned(), message, traceback: String::new() };
        Self { value: None, error: Some(error) }
    }
}

/// Whether the bytes are one JSON text in UTF-8.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// "R" and a value, "E" and an error, or nothing.
fn read_tagged(mut raw: Bytes) -> Returned {
    #[derive(Deserialize)]
    struct Error {
        r#type: String,
        message: String,
        traceback: String,
    }
    if raw.is_empty() {
        return Returned::default();
    }
    let body = raw.split_off(1);
    match (raw.as_ref(), serde_json::from_slice::<Error>(&body)) {
        (b"R", _) => Returned::value(body),
        (b"E", Ok(Error { r#type, message, traceback })) => {
            Returned { value: None, error: Some(pb::UserError { r#type, message, traceback }) }
        }
        _ => Returned::value(Bytes::new()),
    }
}

/// The whole environment: ours, the caller's over it, the runner's over both.
fn environment(
    runner: Vec<(String, String)>,
    given: &[(String, String)],
    scene: &crate::isolation::jail::Scene,
) -> Vec<(String, String)> {
    let mut env = vec![
        ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("HOME".to_owned(), scene.workspace.display().to_string()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("TMPDIR".to_owned(), scene.tmp.display().to_string()),
    ];
    for (name, value) in given.iter().cloned().chain(runner) {
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => env.push((name, value)),
        }
    }
    env
}

/// What the runners in Python and JavaScript read before they load the code.
#[derive(Debug)]
struct Request {
    head: Vec<u8>,
    code: Bytes,
    event: Bytes,
}

impl Request {
    fn new(start: &Start, entry: Option<&str>, code: &Bytes, sandbox: &Sandbox) -> Self {
        #[derive(Serialize)]
        struct Head<'a> {
            execution_id: &'a str,
            session_id: &'a str,
            entry: Option<&'a str>,
            code_bytes: usize,
            event_bytes: usize,
            result_bytes: u64,
            memory_mb: u64,
            timeout_ms: u128,
            /// Seconds since 1970, from which the remaining time is counted.
            now: f64,
        }
        let head = Head {
            execution_id: &start.id,
            session_id: &start.session_id,
            entry,
            code_bytes: code.len(),
            event_bytes: start.event.len(),
            result_bytes: MAX_RESULT_BYTES,
            memory_mb: sandbox.limits().memory_bytes >> 20,
            timeout_ms: start.timeout.as_millis(),
            now: clock::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        };
        let mut head = serde_json::to_vec(&head).unwrap_or_default();
        head.push(b'\n');
        Self { head, code: code.clone(), event: start.event.clone() }
    }

    fn into_plan(self, argv: Vec<Cow<'_, str>>) -> Plan {
        let argv = argv.into_iter().map(Cow::into_owned).collect();
        Plan {
            spec: Spec { argv, has_result: true, has_request: true, ..Spec::default() },
            request: vec![self.head.into(), self.code, self.event],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python() -> Runner {
        Runner::Python(PathBuf::new())
    }

    #[test]
    fn falsy_values_are_values() {
        for json in ["null", "0", "\"\"", "[]", "{}", "false"] {
            let returned = python().read_result(format!("R{json}").into_bytes());
            assert_eq!(returned.value.as_deref(), Some(json.as_bytes()));
        }
        assert_eq!(python().read_result(Vec::new()), Returned::default());
    }

    #[test]
    fn forged_result_is_an_error_of_the_user() {
        for raw in ["R", "X1", "E1", "R{", "Rnull null", "R\u{0}"] {
            let returned = python().read_result(raw.into());
            assert_eq!(returned.error.unwrap().r#type, "ReturnValueNotJson", "{raw:?}");
            assert_eq!(returned.value, None);
        }
    }

    #[test]
    fn result_beyond_the_limit_is_named() {
        let raw = vec![b' '; usize::try_from(MAX_RESULT_BYTES).unwrap() + 2];
        assert_eq!(python().read_result(raw).error.unwrap().r#type, "ReturnValueTooLarge");
    }

    #[test]
    fn deep_json_is_accepted_without_recursion() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(is_json(deep.as_bytes()));
        assert!(!is_json(b"\"\xff\""));
    }
}
