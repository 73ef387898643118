//! The limits of `Execute` and `StartExecution`.

use bytes::Bytes;
use sandmesh_proto::{executor, session as pb};
use serde::de::IgnoredAny;

use super::check::{Check, is_identifier};
use crate::{
    encode,
    error::Error,
    values::{Language, Mode, Pairs},
};

/// The source text may be this long.
const MAX_CODE: usize = 1 << 20;

/// The event may be this long.
const MAX_EVENT: usize = 6 << 20;

/// What is sent to the standard input at the start may be this long.
const MAX_STDIN: usize = 8 << 20;

/// The words of a command together may be this long.
const MAX_COMMAND: usize = 1 << 20;

/// One word of a command may be this long: the kernel takes 128 KiB with the final NUL.
const MAX_WORD: usize = (128 << 10) - 1;

/// The time limit of an execution that does not say, in seconds.
const DEFAULT_TIMEOUT: u32 = 30;

/// How often an execution may be started again.
const MAX_RETRIES: u32 = 10;

/// An execution to start.
#[derive(Debug)]
pub(crate) struct NewExecution {
    pub(crate) session_id: String,
    pub(crate) execution_id: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) code: String,
    /// Unset for a command.
    pub(crate) language: Option<Language>,
    /// Unset for a command.
    pub(crate) mode: Option<Mode>,
    pub(crate) timeout_seconds: u32,
    pub(crate) event: String,
    pub(crate) env: Pairs,
    pub(crate) stdin: Bytes,
    pub(crate) keep_stdin_open: bool,
    pub(crate) entrypoint: String,
    pub(crate) command: Vec<String>,
    pub(crate) max_retries: u32,
}

/// Checks a request to run something.
///
/// # Errors
/// Names every field that is wrong.
pub(crate) fn new_execution(request: pb::StartExecutionRequest) -> Result<NewExecution, Error> {
    let mut check = Check::default();
    check.length("session_id", &request.session_id, 1..=64);
    let execution_id = check.id("execution_id", request.execution_id);
    let request_id = check.request_id(request.request_id);
    let Some(spec) = request.spec else {
        check.fail("spec", "missing", "is required");
        return Err(check.refused());
    };
    let timeout_seconds = spec.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT);
    check.number("spec.timeout_seconds", timeout_seconds, 1..=3600);
    let language = check_program(&mut check, &spec);
    let mode = check_mode(&mut check, &spec, language);
    check_event(&mut check, &spec.event_json);
    check_entrypoint(&mut check, &spec.entrypoint);
    if spec.stdin.len() > MAX_STDIN {
        check.fail("spec.stdin", "too_long", &format!("must be at most {MAX_STDIN} bytes long"));
    }
    check.number("spec.max_retries", spec.max_retries, 0..=MAX_RETRIES);
    if spec.max_retries > 0 && spec.keep_stdin_open {
        let problem = "must be 0 with `keep_stdin_open`: what was sent to a lost run cannot be sent again";
        check.fail("spec.max_retries", "value_error", problem);
    }
    let env = check.env("spec.env", spec.env);
    check.done()?;
    Ok(NewExecution {
        session_id: request.session_id,
        execution_id,
        request_id,
        code: spec.code,
        language,
        mode,
        timeout_seconds,
        event: spec.event_json,
        env,
        stdin: spec.stdin,
        keep_stdin_open: spec.keep_stdin_open,
        entrypoint: spec.entrypoint,
        command: spec.command,
        max_retries: spec.max_retries,
    })
}

/// Checks what is to run: code in a language, or a command.
fn check_program(check: &mut Check, spec: &pb::ExecutionSpec) -> Option<Language> {
    if !spec.command.is_empty() {
        check_command(check, spec);
        return None;
    }
    check.length("spec.code", &spec.code, 1..=MAX_CODE);
    let language = executor::Language::try_from(spec.language).ok().map(encode::language_from);
    match language {
        Some(Some(language)) => return Some(language),
        Some(None) => check.fail("spec.language", "missing", "is required"),
        None => check.fail("spec.language", "enum", "must be python, javascript or shell"),
    }
    None
}

fn check_command(check: &mut Check, spec: &pb::ExecutionSpec) {
    check.count("spec.command", spec.command.len(), 1024);
    if !spec.code.is_empty() {
        check.fail("spec.code", "value_error", "must be empty when a command is given");
    }
    if spec.command.iter().map(|word| word.len() + 1).sum::<usize>() > MAX_COMMAND {
        check.fail("spec.command", "too_long", &format!("must be at most {MAX_COMMAND} bytes long in all"));
    }
    if spec.command.iter().any(|word| word.len() > MAX_WORD) {
        check.fail(
            "spec.command",
            "string_too_long",
            &format!("must have words of at most {MAX_WORD} bytes"),
        );
    }
    if spec.command.first().is_some_and(String::is_empty)
        || spec.command.iter().any(|word| word.contains('\0'))
    {
        check.fail("spec.command", "value_error", "must begin with a program and have no NUL character");
    }
}

fn check_mode(check: &mut Check, spec: &pb::ExecutionSpec, language: Option<Language>) -> Option<Mode> {
    let mode = match executor::Mode::try_from(spec.mode) {
        Ok(executor::Mode::Unspecified) => None,
        Ok(executor::Mode::Handler) => Some(Mode::Handler),
        Ok(executor::Mode::Script) => Some(Mode::Script),
        Err(_) => {
            check.fail("spec.mode", "enum", "must be handler or script");
            None
        }
    };
    match (language?, mode) {
        (Language::Shell, Some(Mode::Handler)) => {
            check.fail("spec.mode", "value_error", "must be script for shell, which has no handler");
            None
        }
        (Language::Shell, None) => Some(Mode::Script),
        (Language::Python | Language::JavaScript, None) => Some(Mode::Handler),
        (_, given) => given,
    }
}

fn check_event(check: &mut Check, event: &str) {
    let field = "spec.event_json";
    if event.len() > MAX_EVENT {
        check.fail(field, "too_long", &format!("must be at most {MAX_EVENT} bytes long"));
    } else if event.is_empty() {
        // Means {}.
    } else if let Err(error) = serde_json::from_str::<IgnoredAny>(event) {
        check.fail(field, "json_invalid", &format!("must be JSON: {error}"));
    } else if !event.trim_start().starts_with('{') {
        check.fail(field, "value_error", "must be a JSON object");
    }
}

fn check_entrypoint(check: &mut Check, entrypoint: &str) {
    check.length("spec.entrypoint", entrypoint, 0..=64);
    if !entrypoint.is_empty() && !is_identifier(entrypoint, true) {
        check.fail("spec.entrypoint", "string_pattern_mismatch", "must be the name of a function");
    }
}
