use std::collections::HashMap;

use proptest::prelude::*;
use sandmesh_proto::{
    executor::{Language, Mode, Resources},
    session::{CreateSessionRequest, Dependency, ExecutionSpec, StartExecutionRequest},
};

use super::*;
use crate::{config::Config, error::Error};

/// The fields that are refused, with the kind of each mistake.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Vec<(String, &'static str)> {
    match result {
        Err(Error::Invalid(violations)) => violations.into_iter().map(|v| (v.field, v.kind)).collect(),
        other => panic!("not refused as invalid: {other:?}"),
    }
}

fn session(change: impl FnOnce(&mut CreateSessionRequest)) -> Result<NewSession, Error> {
    let mut request = CreateSessionRequest { template_id: "t".into(), ..Default::default() };
    change(&mut request);
    new_session(request, &Config::default())
}

fn execution(change: impl FnOnce(&mut ExecutionSpec)) -> Result<NewExecution, Error> {
    let mut spec =
        ExecutionSpec { code: "x".into(), language: Language::Python.into(), ..Default::default() };
    change(&mut spec);
    new_execution(StartExecutionRequest { session_id: "s".into(), spec: Some(spec), ..Default::default() })
}

#[track_caller]
fn session_refused(field: &str, kind: &str, change: impl FnOnce(&mut CreateSessionRequest)) {
    assert_eq!(refused(session(change)), [(field.to_owned(), kind)].map(|(f, k)| (f, leak(k))));
}

#[track_caller]
fn execution_refused(field: &str, kind: &str, change: impl FnOnce(&mut ExecutionSpec)) {
    assert_eq!(refused(execution(change)), [(field.to_owned(), leak(kind))]);
}

fn leak(kind: &str) -> &'static str {
    Box::leak(kind.to_owned().into_boxed_str())
}

#[test]
fn each_limit_of_a_session_is_refused_by_its_name() {
    session_refused("template_id", "missing", |r| r.template_id = String::new());
    session_refused("template_id", "string_too_long", |r| r.template_id = "x".repeat(65));
    session_refused("session_id", "string_pattern_mismatch", |r| r.session_id = "a/b".into());
    session_refused("session_id", "string_pattern_mismatch", |r| r.session_id = "-a".into());
    session_refused("session_id", "string_too_long", |r| r.session_id = "x".repeat(65));
    session_refused("timeout_seconds", "greater_than_equal", |r| r.timeout_seconds = Some(0));
    session_refused("timeout_seconds", "less_than_equal", |r| r.timeout_seconds = Some(3601));
    session_refused("install_timeout_seconds", "greater_than_equal", |r| {
        r.install_timeout_seconds = Some(29)
    });
    session_refused("install_timeout_seconds", "less_than_equal", |r| r.install_timeout_seconds = Some(1801));
    session_refused("request_id", "string_too_long", |r| r.request_id = "x".repeat(129));
    session_refused("env", "string_pattern_mismatch", |r| r.env = [("A=B".into(), "x".into())].into());
    session_refused("env", "value_error", |r| r.env = [("A".into(), "\0".into())].into());
    session_refused("labels", "too_long", |r| {
        r.labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
    });
    session_refused("python_package_index_url", "value_error", |r| {
        r.python_package_index_url = "file:///etc".into();
    });
    let resources = |resources| move |r: &mut CreateSessionRequest| r.resources = Some(resources);
    let cpu = Resources { cpu_millis: 4001, ..Default::default() };
    session_refused("resources.cpu_millis", "less_than_equal", resources(cpu));
    let memory = Resources { memory_bytes: 1, ..Default::default() };
    session_refused("resources.memory_bytes", "greater_than_equal", resources(memory));
    let disk = Resources { disk_bytes: 1 << 60, ..Default::default() };
    session_refused("resources.disk_bytes", "less_than_equal", resources(disk));
}

#[test]
fn a_dependency_is_refused_by_its_place() {
    let with = |name: &str, version: &str| {
        let good = Dependency { name: "click".into(), version: ">=8".into() };
        let dependency = Dependency { name: name.into(), version: version.into() };
        session(|r| r.dependencies = vec![good, dependency])
    };
    for name in ["--index-url", "../x", "https://x", "a b", "pandas2.3.3", "-a"] {
        assert_eq!(
            refused(with(name, "")),
            [("dependencies[1].name".to_owned(), "string_pattern_mismatch")],
            "{name}"
        );
    }
    assert_eq!(refused(with("", "")), [("dependencies[1].name".to_owned(), "missing")]);
    let url = refused(with("a", "@ https://x"));
    assert_eq!(url, [("dependencies[1].version".to_owned(), "string_pattern_mismatch")]);
    let many =
        session(|r| r.dependencies = vec![Dependency { name: "a".into(), version: String::new() }; 51]);
    assert_eq!(refused(many), [("dependencies".to_owned(), "too_long")]);
}

#[test]
fn the_bounds_themselves_are_accepted() {
    for seconds in [1, 3600] {
        assert_eq!(session(|r| r.timeout_seconds = Some(seconds)).unwrap().timeout_seconds, Some(seconds));
        assert_eq!(execution(|s| s.timeout_seconds = Some(seconds)).unwrap().timeout_seconds, seconds);
    }
    session(|r| r.session_id = "x".repeat(64)).unwrap();
    execution(|s| s.code = "x".repeat(1 << 20)).unwrap();
}

#[test]
fn each_limit_of_an_execution_is_refused_by_its_name() {
    execution_refused("spec.code", "missing", |s| s.code = String::new());
    execution_refused("spec.code", "string_too_long", |s| s.code = "x".repeat((1 << 20) + 1));
    execution_refused("spec.language", "missing", |s| s.language = 0);
    execution_refused("spec.language", "enum", |s| s.language = 9);
    execution_refused("spec.mode", "enum", |s| s.mode = 9);
    execution_refused("spec.timeout_seconds", "greater_than_equal", |s| s.timeout_seconds = Some(0));
    execution_refused("spec.timeout_seconds", "less_than_equal", |s| s.timeout_seconds = Some(3601));
    execution_refused("spec.event_json", "json_invalid", |s| s.event_json = "{".into());
    execution_refused("spec.event_json", "value_error", |s| s.event_json = "[1]".into());
    execution_refused("spec.event_json", "too_long", |s| s.event_json = " ".repeat((6 << 20) + 1));
    execution_refused("spec.entrypoint", "string_pattern_mismatch", |s| s.entrypoint = "a.b()".into());
    execution_refused("spec.env", "string_pattern_mismatch", |s| {
        s.env = [("1A".into(), String::new())].into()
    });
    execution_refused("spec.stdin", "too_long", |s| s.stdin = vec![0; (8 << 20) + 1].into());
    execution_refused("spec.code", "value_error", |s| s.command = vec!["ls".into()]);
    let request = StartExecutionRequest { session_id: "s".into(), ..Default::default() };
    assert_eq!(refused(new_execution(request)), [("spec".to_owned(), "missing")]);
}

#[test]
fn a_command_needs_no_code_and_no_language() {
    let command = execution(|s| {
        *s = ExecutionSpec { command: vec!["ls".into(), "-l".into()], ..Default::default() };
    });
    let command = command.unwrap();
    assert_eq!((command.language, command.mode), (None, None));
}

#[test]
fn the_mode_follows_the_language_where_it_is_not_given() {
    use crate::values::Mode as Ours;
    let mode = |language: Language, mode: Mode| {
        execution(|s| (s.language, s.mode) = (language.into(), mode.into())).map(|new| new.mode)
    };
    assert_eq!(mode(Language::Python, Mode::Unspecified).unwrap(), Some(Ours::Handler));
    assert_eq!(mode(Language::Javascript, Mode::Script).unwrap(), Some(Ours::Script));
    assert_eq!(mode(Language::Shell, Mode::Unspecified).unwrap(), Some(Ours::Script));
    assert_eq!(refused(mode(Language::Shell, Mode::Handler)), [("spec.mode".to_owned(), "value_error")]);
}

#[test]
fn a_secret_is_not_in_the_refusal() {
    let env: HashMap<String, String> = [("A".to_owned(), "hunter2\0".to_owned())].into();
    let error = session(|r| r.env = env).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_accepted_or_refused_and_never_panics(text in ".{0,80}", other in ".{0,80}") {
        let _ = session(|r| {
            r.session_id = text.clone();
            r.python_package_index_url = other.clone();
            r.env = [(text.clone(), other.clone())].into();
            r.dependencies = vec![Dependency { name: text.clone(), version: other.clone() }];
        });
        let _ = execution(|s| {
            s.entrypoint = text.clone();
            s.event_json = other.clone();
        });
    }
}
