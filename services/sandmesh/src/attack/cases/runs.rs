//! Cases 31 to 36: what one run leaves for the next, or does to the one beside it.

use futures::future::try_join_all;
use sandmesh_proto::{
    executor::{Language, Mode},
    session::{ExecutionSpec, Session, execution::State},
};
use serde_json::json;

use super::{interactive, prepare};
use crate::attack::{
    arena::{Arena, Outcome, Wish, with_env, within},
    host::nothing_left,
    judge::{self, ABSENT, Said},
    own_server::random,
    verdict::{Evidence, Witness},
};

const LOOK: &str = include_str!("../programs/look.py");
const POISON: &str = include_str!("../programs/poison.py");
const IMPORTS: &str = include_str!("../programs/imports.py");
const SIBLINGS: &str = include_str!("../programs/siblings.py");
const VICTIM: &str = include_str!("../programs/victim.py");
const SECRETS: &str = include_str!("../programs/secrets.py");
const DRAW_PYTHON: &str = include_str!("../programs/draw.py");
const DRAW_JAVASCRIPT: &str = include_str!("../programs/draw.js");
const DRAW_SHELL: &str = include_str!("../programs/draw.sh");
const FORGE: &str = include_str!("../programs/forge.py");

/// A script without the prelude.
fn script(arena: &Arena, language: Language, code: &str) -> ExecutionSpec {
    ExecutionSpec { mode: Mode::Script.into(), ..arena.code(language, code) }
}

/// Nothing that was planted spoke up.
fn clean(evidence: &mut Evidence, what: &str, outcome: &Outcome, ends_well: bool) {
    let all = [outcome.stdout.as_slice(), &outcome.stderr].concat();
    let poisoned = judge::contains(&all, b"POISONED");
    let value = outcome.result.return_value_json.clone().unwrap_or_default();
    let well = (outcome.result.state() == State::Completed) == ends_well;
    let held = !poisoned && well && !value.contains("POISONED");
    let told = if poisoned { "planted code ran".to_owned() } else { outcome.ending() };
    evidence.client(what, held, told);
}

pub(super) async fn poisoned_session(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let look = || script(arena, Language::Python, LOOK);
    // Twice: the first look may itself have been the first run of a warm interpreter.
    arena.run(&session, look()).await?;
    let before = arena.run(&session, look()).await?;
    let planted = arena.run(&session, arena.python(POISON)).await?;
    let well = planted.result.exit_code == Some(0) && judge::contains(&planted.stdout, b"planted ");
    evidence.client("the poison is planted", well, format!("{} {}", planted.ending(), planted.complaint()));
    for round in 1..=3 {
        let after = arena.run(&session, look()).await?;
        clean(&mut evidence, &format!("run {round} after the poison"), &after, true);
        judge::unchanged(&mut evidence, &before.stdout, &after.stdout);
    }
    other_languages(arena, &session, &mut evidence).await?;
    if sandbox.is_some() {
        nothing_left(&mut evidence, &arena.mark).await;
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

/// What the runners import late, and the other languages, with impostors all around them.
async fn other_languages(arena: &Arena, session: &Session, evidence: &mut Evidence) -> anyhow::Result<()> {
    let handler = arena.code(Language::Python, IMPORTS);
    let outcome = arena.run(session, handler.clone()).await?;
    clean(evidence, "an asynchronous handler", &outcome, true);
    let value = outcome.result.return_value_json.clone().unwrap_or_default();
    evidence.client("its value", value == "{\"answer\":42,\"value\":null}", value);
    let outcome =
        arena.run(session, ExecutionSpec { event_json: "{\"fail\": 1}".to_owned(), ..handler }).await?;
    clean(evidence, "a handler that raises", &outcome, false);
    let kind = outcome.result.error.as_ref().map(|error| error.r#type.clone()).unwrap_or_default();
    evidence.client("its error", kind == "ValueError", kind);
    let partial = arena.code(
        Language::Python,
        "import functools\nclass H:\n def __call__(self, event): return 5\nhandler = functools.partial(H())",
    );
    clean(evidence, "a handler that has to be inspected", &arena.run(session, partial).await?, true);
    let javascript = arena.code(
        Language::Javascript,
        "const fs = require('fs'); exports.handler = async () => fs.existsSync('/usr')",
    );
    clean(evidence, "a handler in JavaScript", &arena.run(session, javascript).await?, true);
    let shell = arena.code(Language::Shell, "ls / >/dev/null; true; echo ~; cat </dev/null; env >/dev/null; python3 -I -S -c 'print(1)'; sh -c true");
    clean(evidence, "a shell script", &arena.run(session, shell).await?, true);
    let command =
        ExecutionSpec { command: vec!["ls".to_owned(), "/".to_owned()], ..ExecutionSpec::default() };
    clean(evidence, "a command", &arena.run(session, command).await?, true);
    Ok(())
}

pub(super) async fn siblings(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let secret = random("victim");
    let spec = with_env(interactive(arena.python(VICTIM)), &[("VICTIM_SECRET", &secret)]);
    let mut victim = arena.open(&session, spec).await?;
    victim.stage("here").await?;
    let turned: String = secret.chars().rev().collect();
    let attack = with_env(arena.python(SIBLINGS), &[("ATTACK_SECRET", &turned)]);
    let outcome = arena.run(&session, attack).await?;
    let mut answers = ABSENT.to_vec();
    answers.extend(["not found", "ENOSYS"]);
    judge::attempts(&mut evidence, &outcome.stdout, 20, &answers);
    let same = outcome.result.exit_code == Some(3) && outcome.result.state() == State::Failed;
    evidence.client("its own end after all signals", same, outcome.ending());
    judge::absent(&mut evidence, "the other's secret in its output", &outcome.stdout, &secret);
    victim.go_on().await?;
    let victim = victim.end().await?;
    judge::exactly(&mut evidence, &victim.stdout, &[("nothing happened", "undisturbed")]);
    evidence.client("the end of the other", victim.result.exit_code == Some(17), victim.ending());
    evidence.note("executions of one session share its workspace, by design");
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn host_secrets(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let outcome = arena.run(&session, arena.python(SECRETS)).await?;
    let said = Said::read(&outcome.stdout);
    for attempt in said.attempts.iter().filter(|attempt| attempt.what.starts_with('/')) {
        let held = ABSENT.contains(&attempt.got.as_str());
        evidence.saw(Witness::Attacker, &attempt.what, held, &attempt.got);
    }
    evidence.saw(Witness::Attacker, "the search comes to its end", said.done.is_some(), outcome.ending());
    let mut secrets = arena.target.api_key.iter().map(|key| key.expose().to_owned()).collect::<Vec<_>>();
    if let Some(host) = &arena.host {
        secrets.extend(host.local.secrets.clone());
        secrets.push(host.local.data_dir.display().to_string());
    }
    if let Some(pid) = sandbox.as_ref().and_then(|sandbox| sandbox.executor) {
        secrets.extend(environment(pid));
    }
    for (n, secret) in secrets.iter().enumerate() {
        // The secret itself is not for the table.
        judge::absent(&mut evidence, &format!("secret {} of the host", n + 1), &outcome.stdout, secret);
    }
    Ok(evidence)
}

/// The variables of a process that say something about the host, as `NAME=value`.
fn environment(pid: u32) -> Vec<String> {
    const USUAL: &[&str] = &["PATH=", "HOME=", "LANG=", "TMPDIR=", "PWD="];
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let entries = String::from_utf8_lossy(&bytes).into_owned();
    let telling = |entry: &&str| entry.len() > 8 && !USUAL.iter().any(|usual| entry.starts_with(usual));
    entries.split('\0').filter(telling).map(str::to_owned).collect()
}

pub(super) async fn random_numbers(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) =
        prepare(arena, Wish { processes: 256, memory_mib: 1024, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    for (language, program) in [
        (Language::Python, arena.python(DRAW_PYTHON)),
        (Language::Javascript, script(arena, Language::Javascript, DRAW_JAVASCRIPT)),
        (Language::Shell, arena.code(Language::Shell, DRAW_SHELL)),
    ] {
        let mut outcomes = try_join_all((0..8).map(|_| arena.run(&session, program.clone()))).await?;
        // And one after the other, with pauses in which somebody could prepare the next.
        for _ in 0..4 {
            tokio::time::sleep(std::time::Duration::from_millis(120)).await;
            outcomes.push(arena.run(&session, program.clone()).await?);
        }
        let mut drawn = Vec::new();
        for outcome in &outcomes {
            let said = Said::read(&outcome.stdout);
            let whole = said.done == Some(said.attempts.len()) && said.done > Some(0);
            evidence.saw(Witness::Attacker, format!("{language:?} draws"), whole, outcome.ending());
            drawn.extend(said.attempts.into_iter().map(|attempt| (attempt.what, attempt.got)));
        }
        evidence.checks.extend(judge::distinct(&drawn));
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn former_tenant(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence::default();
    let id = format!("former-{}", arena.mark);
    let first = arena.session(Wish { id, ..Wish::default() }).await?;
    let before = arena.sandbox(&first)?;
    // Made in the sandbox, so that no record of the request holds it.
    let code = "v=secret-$(od -An -N16 -tx8 /dev/urandom | tr -d ' \\n'); for d in /workspace /workspace/.cache /tmp /dev/shm; do mkdir -p $d; echo $v > $d/left; done; chmod 000 /workspace/.cache; echo -n $v";
    let outcome = arena.run(&first, arena.code(Language::Shell, code)).await?;
    let secret = String::from_utf8_lossy(&outcome.stdout).into_owned();
    evidence.client("the secret is written", secret.len() > 30, outcome.ending());
    arena.terminate(&first.session_id).await?;
    if let (Some(before), Some(host)) = (&before, &arena.host) {
        let gone = !before.dir.exists();
        evidence.host("the sandbox's directory", gone, if gone { "gone" } else { "still there" });
        let left = files_with(&host.local.data_dir.join("sandboxes"), &secret);
        evidence.host("files of sandboxes with the secret", left == 0, left.to_string());
    }
    let turned: String = secret.chars().rev().collect();
    for round in 1..=3 {
        let next = arena.session(Wish::default()).await?;
        let spec = with_env(arena.python(SECRETS), &[("ATTACK_HIDDEN", &turned)]);
        let outcome = arena.run(&next, spec).await?;
        judge::exactly(&mut evidence, &outcome.stdout, &[("what a former session wrote", "not found")]);
        judge::absent(&mut evidence, &format!("the secret in session {round}"), &outcome.stdout, &secret);
    }
    Ok(evidence)
}

/// How many files below a directory hold a text.
fn files_with(dir: &std::path::Path, text: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let mut count = 0;
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => count += files_with(&entry.path(), text),
            Ok(kind) if kind.is_file() => {
                let content = std::fs::read(entry.path()).unwrap_or_default();
                count += usize::from(judge::contains(&content, text.as_bytes()));
            }
            _ => {}
        }
    }
    count
}

pub(super) async fn forged_end(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    for way in [
        "exit 7",
        "exit 263",
        "exit 7 after closing everything",
        "exit 7 with heirs",
        "exit 7 after fork, child exits 0",
        "exit 7 of another program",
        "exit 7 in a thread",
        "exit 7 with the first process short of everything",
        "the parent killed, then exit 7",
        "signal 9",
        "signal 11",
    ] {
        let spec = within(with_env(arena.python(FORGE), &[("ATTACK_WAY", way)]), 20);
        let outcome = arena.run(&session, spec.clone()).await?;
        told_truly(&mut evidence, way, &outcome);
        // The same from a handler, whose runner has more to say.
        let code = format!("def handler(event):\n    exec({}, {{}})", json!(spec.code));
        let handler = ExecutionSpec { mode: Mode::Handler.into(), code, ..spec };
        let outcome = arena.run(&session, handler).await?;
        told_truly(&mut evidence, &format!("{way}, as a handler"), &outcome);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

fn told_truly(evidence: &mut Evidence, way: &str, outcome: &Outcome) {
    let signal = way.strip_prefix("signal ").and_then(|rest| rest.split(',').next()?.parse::<i32>().ok());
    let ended = match signal {
        Some(signal) => outcome.result.signal == Some(signal) && outcome.result.exit_code.is_none(),
        None => outcome.result.exit_code == Some(7) && outcome.result.signal.is_none(),
    };
    let held = ended && outcome.result.state() == State::Failed && outcome.stdout == b"trying\n";
    evidence.client(way, held, outcome.ending());
}
