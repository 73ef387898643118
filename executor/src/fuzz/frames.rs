//! The first frame of a stream, from its bytes to the request that a process reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bolero::{TypeGenerator, check};
use bytes::Bytes;
use prost::Message as _;
use sandmesh_proto::executor::{self as pb, execute_request::Frame};

use super::{BUDGET, Mutant, kept};
use crate::{
    isolation::{cgroup::Limits, jail::Scene},
    parent::Spec,
    request::{Program, Start},
    runner::{Kind, Runner},
    status::Error,
};

/// More than any request takes.
const MOST: usize = 64 << 20;

#[test]
fn bytes_of_a_frame_are_refused_by_field_or_become_a_request() {
    check!(name = "frame").with_test_time(BUDGET).for_each(judge);
}

#[test]
fn kept_frame_with_changes_is_refused_by_field_or_becomes_a_request() {
    let kept = kept("frame");
    let mutants = check!(name = "frame_mutant").with_type::<Mutant>();
    mutants.with_test_time(BUDGET).for_each(|mutant| judge(&mutant.of(&kept)));
}

#[test]
fn start_of_any_fields_is_refused_by_field_or_becomes_a_request() {
    let fields = check!(name = "start").with_type::<Fields>();
    fields.with_test_time(BUDGET).for_each(|fields| {
        let frame = Some(Frame::Start(fields.start()));
        judge(&pb::ExecuteRequest { frame }.encode_to_vec());
    });
}

/// A word of a list, or any.
#[derive(Debug, TypeGenerator)]
struct Word {
    choice: u8,
    any: String,
}

impl Word {
    fn of(&self, words: &[&str]) -> String {
        let any = || self.any.clone();
        words.get(usize::from(self.choice) % (words.len() + 1)).map_or_else(any, |word| (*word).to_owned())
    }
}

/// Fields of a start, most of them near what is legal.
#[derive(Debug, TypeGenerator)]
struct Fields {
    id: Word,
    session: Word,
    #[generator(-1..5)]
    language: i32,
    #[generator(-1..4)]
    mode: i32,
    code: Word,
    raw_code: Option<Vec<u8>>,
    event: Word,
    env: Vec<(Word, Word)>,
    entrypoint: Word,
    timeout: Option<(i64, i32)>,
    plain_timeout: bool,
    command: Option<[Word; 3]>,
    stdin: Vec<u8>,
    keep_stdin_open: bool,
}

impl Fields {
    fn start(&self) -> pb::ExecutionStart {
        let timeout = match self.timeout {
            _ if self.plain_timeout => Some((60, 0)),
            timeout => timeout,
        };
        let code = || self.code.of(&["", "pass", "\0", "echo\r\n", "\u{2028}"]).into_bytes();
        let events =
            ["", "{}", "[1,\n2]", "{\"a\":\"\u{2028}\"}", "nul", "\u{feff}{}", "\"\\u0000\"", "1e999"];
        let pair = |(name, value): &(Word, Word)| {
            let name = name.of(&["A", "B", "PATH", "HOME", "EVENT_FILE", "PYTHONPATH", "", "A=B"]);
            (name, value.of(&["", "1", "\0", "a\nb"]))
        };
        pb::ExecutionStart {
            execution_id: self.id.of(&["exec_1", "e", "a-B_9", "", "../x"]),
            session_id: self.session.of(&["", "sess_1", "a b"]),
            language: self.language,
            code: self.raw_code.clone().unwrap_or_else(code).into(),
            event_json: self.event.of(&events).into(),
            env: self.env.iter().take(8).map(pair).collect(),
            mode: self.mode,
            entrypoint: self.entrypoint.of(&["", "main", "$", "9", "a.b"]),
            timeout: timeout.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }),
            stdin: self.stdin.clone().into(),
            keep_stdin_open: self.keep_stdin_open,
            command: self.command.iter().flatten().map(|word| word.of(&["ls", "", "-l", "\0"])).collect(),
        }
    }
}

/// What has to hold for every first frame.
fn judge(bytes: &[u8]) {
    let Ok(request) = pb::ExecuteRequest::decode(bytes) else { return };
    let Some(Frame::Start(given)) = request.frame else { return };
    match Start::try_from(given.clone()) {
        Ok(start) => accepted(&given, &start),
        Err(Error::Invalid { field, problem }) => {
            let named = field.strip_prefix("start.").is_some_and(|name| !name.is_empty());
            assert!(named && !problem.is_empty(), "`{field}`: `{problem}`");
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn accepted(given: &pb::ExecutionStart, start: &Start) {
    assert!((1..=64).contains(&start.id.len()) && !start.id.contains(['/', '.', '\0']), "{start:?}");
    assert!(!start.timeout.is_zero() && start.timeout <= Duration::from_secs(24 * 3600), "{start:?}");
    let env: BTreeMap<_, _> = given.env.clone().into_iter().collect();
    assert_eq!(start.env.iter().cloned().collect::<BTreeMap<_, _>>(), env);
    for (runner, kind) in ways(&start.program) {
        let limits = Limits { memory_bytes: 512 << 20, cpu_millis: 1000, max_processes: 64 };
        let request = runner.prepare(kind, start, limits, &Scene::inside(None)).concat();
        assert!(request.len() <= MOST, "{} bytes", request.len());
        check_request(&runner, kind, start, &request);
    }
}

/// Every way to run a program.
fn ways(program: &Program) -> Vec<(Runner, Kind)> {
    let at = || "/usr/bin/interpreter".into();
    match program {
        Program::Command(_) => vec![(Runner::Command, Kind::Program)],
        Program::Code { language, .. } => match language {
            pb::Language::Python => {
                vec![(Runner::Python(at()), Kind::Python), (Runner::Python(at()), Kind::Program)]
            }
            pb::Language::Javascript => {
                vec![(Runner::JavaScript(at()), Kind::Node), (Runner::JavaScript(at()), Kind::Program)]
            }
            pb::Language::Shell => vec![(Runner::Shell(at()), Kind::Program)],
            pb::Language::Unspecified => panic!("accepted without a language"),
        },
    }
}

fn check_request(runner: &Runner, kind: Kind, start: &Start, request: &[u8]) {
    let mut rest = request;
    let has_spec = kind == Kind::Program;
    if has_spec {
        let spec = Spec::read(&mut rest).unwrap();
        check_spec(start, &spec);
        assert_eq!(spec.has_request, !rest.is_empty());
    }
    match (runner, &start.program) {
        (Runner::Python(_) | Runner::JavaScript(_), Program::Code { code, .. }) => {
            check_head(start, code, rest, !has_spec);
        }
        _ => assert_eq!(rest, b"", "nobody reads more than the spec"),
    }
}

/// The head is ten lines that say how what follows is cut.
fn check_head(start: &Start, code: &Bytes, request: &[u8], takes_env: bool) {
    let parts: Vec<_> = request.splitn(11, |byte| *byte == b'\n').collect();
    let text = |line: usize| std::str::from_utf8(parts[line]).unwrap();
    let (found_code, found_event) = parts[10].split_at(text(3).parse().unwrap());
    assert_eq!((found_code, found_event), (&code[..], &start.event[..]));
    assert_eq!(text(4).parse(), Ok(found_event.len()));
    assert_eq!((text(0), text(1)), (start.id.as_str(), start.session_id.as_str()));
    let has_env = takes_env && !start.env.is_empty();
    let env = has_env.then(|| serde_json::from_str::<Vec<(String, String)>>(text(9)).unwrap());
    assert_eq!(env.unwrap_or_default(), if has_env { start.env.clone() } else { Vec::new() });
}

fn check_spec(start: &Start, spec: &Spec) {
    let words = spec.argv.iter().chain(spec.env.iter().flat_map(|(name, value)| [name, value]));
    assert!(words.clone().all(|word| !word.contains('\0')), "the kernel does not take {spec:?}");
    assert!(spec.argv.first().is_some_and(|program| !program.is_empty()), "{spec:?}");
    let names: BTreeSet<_> = spec.env.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), spec.env.len(), "a variable twice: {spec:?}");
    let ours = ["EVENT_FILE", "EVENT_JSON", "RESULT_FILE"];
    for given in start.env.iter().filter(|(name, _)| !ours.contains(&name.as_str())) {
        assert!(spec.env.contains(given), "{given:?} is not in {spec:?}");
    }
    if let Program::Command(argv) = &start.program {
        assert_eq!(&spec.argv, argv);
    }
}

/// So many that comparing each with each does not end.
#[test]
fn very_many_variables_become_a_request() {
    let env = (0..200_000).map(|number| (format!("{number:05x}"), String::new())).collect();
    let start = pb::ExecutionStart {
        execution_id: "exec_1".into(),
        command: vec!["true".into()],
        timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        env,
        ..pb::ExecutionStart::default()
    };
    let start = Start::try_from(start).unwrap();
    let request = Runner::Command.prepare(Kind::Program, &start, Limits::default(), &Scene::inside(None));
    let spec = Spec::read(&mut request.concat().as_slice()).unwrap();
    assert_eq!(spec.env.len(), 200_004);
}
