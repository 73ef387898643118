//! How code of a language gets to run: what its process is, what it reads, what it returns.
//!
//! A [`Runner`] is a small thing: it tells the [`Kind`] of process it wants, and
//! [`prepare`](Runner::prepare) writes the request that makes such a process run an execution.

mod javascript;
mod python;
mod shell;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use sandmesh_proto::executor as pb;
use serde::Deserialize;

use crate::{
    cli::Language,
    clock,
    isolation::{Sandbox, cgroup::Limits, jail::Scene, layer::PACKAGES, process::Keeper},
    parent::Spec,
    request::{Program, Start},
};

/// The largest return value, in bytes of JSON.
pub(crate) const MAX_RESULT_BYTES: u64 = 6 << 20;

/// The runner that a warm parent is an interpreter of, too.
pub(crate) const PYTHON_RUNNER: &str = python::SOURCE.0;

/// Beginnings of the names of variables that an interpreter looks at when it starts: an execution
/// that is given one needs an interpreter of its own.
const START_UP_VARIABLES: [&str; 9] =
    ["PYTHON", "NODE_", "UV_", "LD_", "GLIBC_", "MALLOC_", "LC_", "LANG", "OPENSSL_"];

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

/// What is there before the request of an execution comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A child of the warm Python.
    Python,
    /// A Node.js that was started for one execution.
    Node,
    /// A process that executes a program.
    Program,
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

    /// The kind of process that can run this.
    pub(crate) fn kind(&self, start: &Start, sandbox: &Sandbox) -> Kind {
        let special =
            |(name, _): &(String, String)| START_UP_VARIABLES.iter().any(|start| name.starts_with(start));
        if !sandbox.is_warm() || start.env.iter().any(special) {
            return Kind::Program;
        }
        match self {
            // Without a jail its children could reach into it.
            Self::Python(_) if sandbox.has_jail() => Kind::Python,
            Self::JavaScript(_) => Kind::Node,
            Self::Python(_) | Self::Shell(_) | Self::Command => Kind::Program,
        }
    }

    /// The request that makes a process of this kind run an execution.
    pub(crate) fn prepare(&self, kind: Kind, start: &Start, limits: Limits, scene: &Scene) -> Vec<Bytes> {
        // Where modules are, our own runner in Python is told in another way, so that it finds its own first.
        let leads = !matches!(self, Self::Python(_));
        let env = |runners: Vec<(String, String)>| environment(runners, &start.env, scene, leads);
        let whole = |spec: Spec, request: Vec<Bytes>| {
            let spec = Spec { env: env(spec.env), workdir: scene.workspace.display().to_string(), ..spec };
            [vec![spec.encode().into()], request].concat()
        };
        match (self, kind, &start.program) {
            (
                Self::Python(_) | Self::JavaScript(_),
                Kind::Python | Kind::Node,
                Program::Code { code, entry, .. },
            ) => Request::new(start, entry.as_deref(), code, limits).into_parts(&start.env),
            (Self::Python(path), _, Program::Code { code, entry, .. }) => whole(
                python::spec(path, scene),
                Request::new(start, entry.as_deref(), code, limits).into_parts(&[]),
            ),
            (Self::JavaScript(path), _, Program::Code { code, entry, .. }) => whole(
                javascript::spec(path, scene),
                Request::new(start, entry.as_deref(), code, limits).into_parts(&[]),
            ),
            (Self::Shell(path), _, Program::Code { code, .. }) => {
                whole(shell::spec(path, scene, start, code), Vec::new())
            }
            (_, _, Program::Command(argv)) => {
                whole(Spec { argv: argv.clone(), ..Spec::default() }, Vec::new())
            }
            (Self::Command, _, Program::Code { .. }) => Vec::new(),
        }
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

/// The first part of the request of a Node.js that is to be warm before its execution is known.
pub(crate) fn warm_node(interpreter: &Path, scene: &Scene, keeper: Keeper) -> Bytes {
    let env = environment(Vec::new(), &[], scene, true);
    let workdir = scene.workspace.display().to_string();
    let mut spec = Spec { env, workdir, ..javascript::spec(interpreter, scene) };
    if keeper == Keeper::Child {
        spec.argv.push(javascript::WITH_KEEPER.to_owned());
    }
    spec.encode().into()
}

/// What every process finds in its environment unless the caller says otherwise.
pub(crate) fn base_environment(scene: &Scene) -> [(&'static str, String); 4] {
    let programs = scene.layer.as_ref().map(|layer| format!("{}:", layer.programs())).unwrap_or_default();
    [
        ("PATH", format!("{programs}/usr/local/bin:/usr/bin:/bin")),
        ("HOME", scene.workspace.display().to_string()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TMPDIR", scene.tmp.display().to_string()),
    ]
}

/// The whole environment: ours, the caller's over it, the runner's over both. `leads` tells whether it is to
/// lead a Python that is started in it to the packages of the session.
fn environment(
    runner: Vec<(String, String)>,
    given: &[(String, String)],
    scene: &Scene,
    leads: bool,
) -> Vec<(String, String)> {
    let base = base_environment(scene).map(|(name, value)| (name.to_owned(), value));
    let packages = scene.layer.as_ref().filter(|layer| leads && layer.is_for(Language::Python));
    let packages = packages.map(|_| ("PYTHONPATH".to_owned(), PACKAGES.to_owned()));
    let all = base.into_iter().chain(packages).chain(given.iter().cloned()).chain(runner);
    all.collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// What the runners in Python and JavaScript read: ten lines, the code, the event.
#[derive(Debug)]
struct Request<'a> {
    start: &'a Start,
    /// The handler; empty for a script.
    entry: &'a str,
    code: &'a Bytes,
    memory_mb: u64,
}

impl<'a> Request<'a> {
    fn new(start: &'a Start, entry: Option<&'a str>, code: &'a Bytes, limits: Limits) -> Self {
        Self { start, entry: entry.unwrap_or_default(), code, memory_mb: limits.memory_bytes >> 20 }
    }

    /// With variables for an interpreter that was started without them.
    fn into_parts(self, env: &[(String, String)]) -> Vec<Bytes> {
        let Self { start, entry, code, memory_mb } = self;
        let (code_bytes, event_bytes) = (code.len(), start.event.len());
        // Since 1970, in seconds: from then on the remaining time is counted.
        let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let env = if env.is_empty() { String::new() } else { serde_json::to_string(env).unwrap_or_default() };
        let head = format!(
            "{}\n{}\n{entry}\n{code_bytes}\n{event_bytes}\n{MAX_RESULT_BYTES}\n{memory_mb}\n{}\n{now}\n{env}\n",
            start.id,
            start.session_id,
            start.timeout.as_millis(),
        );
        vec![head.into(), code.clone(), start.event.clone()]
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
