//! The runtimes of this machine: the one that is chosen whole, of the others a line each. What there is of an engine
//! of containers is asked of the agent, which looks as it does at its start.

use std::path::{Path, PathBuf};

use sandmesh_agent::{Inspection, config::RuntimeKind, inspect};
use serde_json::Value;
use tokio::process::Command;

use super::{
    Failure, facts,
    finding::{Finding, Level},
    machine::{Answer, output},
};
use crate::settings::Settings;

/// What was found of all runtimes.
#[derive(Debug)]
pub(super) struct Engines {
    pub(super) findings: Vec<Finding>,
    /// The isolation in containers, where they are chosen and one could be made.
    pub(super) isolation: Option<Value>,
    /// Those that can be used.
    pub(super) usable: Vec<&'static str>,
}

/// Looks at each; `answer` is what the executor says of processes.
pub(super) async fn look(settings: &Settings, answer: &Answer) -> Result<Engines, Failure> {
    let chosen = settings.agent.runtime;
    let mut engines = Engines {
        findings: vec![of_processes(answer, chosen == RuntimeKind::Process)],
        isolation: None,
        usable: if answer.ok { vec!["process"] } else { Vec::new() },
    };
    let images = sandmesh_template::first_images();
    let kinds = [
        (RuntimeKind::Docker, "docker", "runtime docker"),
        (RuntimeKind::Containerd, "containerd", "runtime containerd"),
    ];
    for (kind, word, what) in kinds {
        let scratch = (kind == chosen).then(|| scratch(&settings.mesh.data_dir)).transpose()?;
        let scratch = scratch.as_ref().map(tempfile::TempDir::path);
        let Some(mut found) = inspect(&settings.agent, kind, &images, scratch).await else { continue };
        if kind == RuntimeKind::Containerd && found.is_there {
            found.about.extend(runc().await);
        }
        if found.problems.is_empty() {
            engines.usable.push(word);
        }
        if kind == chosen {
            engines.findings.extend(of_chosen(what, &found));
            engines.isolation = Some(found.isolation).filter(|isolation| !isolation.is_null());
        } else {
            engines.findings.push(of_other(what, &found));
        }
    }
    Ok(engines)
}

/// A directory for a container that is made to find out: near the data directory, so that it is on a file system
/// like it, and not in it, where an agent may be at work.
fn scratch(data_dir: &Path) -> Result<tempfile::TempDir, Failure> {
    let near =
        data_dir.ancestors().skip(1).find(|dir| dir.is_dir()).map_or_else(std::env::temp_dir, PathBuf::from);
    let made = tempfile::Builder::new().prefix(".sd-").tempdir_in(&near).or_else(|_| tempfile::tempdir());
    made.map_err(|error| Failure::broken(format!("cannot make a directory in `{}`: {error}", near.display())))
}

/// The program by which containerd's shim runs containers. The shim looks for it itself, in the `PATH` of containerd.
async fn runc() -> Option<(&'static str, String)> {
    let mut command = Command::new("runc");
    command.arg("--version");
    let said = output(command).await.ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Some(("its runc", said.lines().next()?.trim().to_owned()))
}

fn of_processes(answer: &Answer, is_chosen: bool) -> Finding {
    let first = answer.problems.first().map(|missing| format!("{}: {}", missing.what, missing.missing));
    let found = match (answer.ok, first) {
        (true, _) => "can be used".to_owned(),
        (false, Some(first)) => format!("cannot be used: {first}"),
        (false, None) => "not known".to_owned(),
    };
    let found = if is_chosen { format!("chosen; {found}") } else { found };
    // What is missing is told by the executor's own findings, where it matters.
    Finding::ok("runtime process", found, "sandboxes are jailed processes of this machine")
}

/// A runtime that the settings do not choose: nothing about it is a problem.
fn of_other(what: &'static str, found: &Inspection) -> Finding {
    let socket = found.socket.display();
    let told = match (found.is_there, found.problems.first()) {
        (false, _) => format!("not here: there is no `{socket}`"),
        (true, Some(problem)) => format!("cannot be used: {}", parts(problem).0),
        (true, None) => format!("can be used: {} at `{socket}`", engine(found)),
    };
    Finding::ok(what, told, "sandboxes are containers of this engine, where it is chosen in `agent.runtime`")
}

/// The runtime that the settings choose, with all that is known of it.
fn of_chosen(what: &'static str, found: &Inspection) -> Vec<Finding> {
    let socket = found.socket.display();
    let told = match (found.is_there, found.problems.is_empty()) {
        (false, _) => format!("chosen, and not here: there is no `{socket}`"),
        (true, false) => format!("chosen, and cannot be used as it is at `{socket}`"),
        (true, true) => format!("chosen: {} at `{socket}`", engine(found)),
    };
    let line = Finding::ok(what, told, "sandboxes are containers of this engine");
    let mut findings = match found.problems.split_first() {
        None => vec![line],
        Some((first, _)) => vec![not_well(line, Level::Problem, first)],
    };
    for more in found.problems.iter().skip(1) {
        findings.push(not_well(Finding::ok(what, "more is missing", ""), Level::Problem, more));
    }
    let about = found.about.iter().filter(|(about, _)| *about != "engine");
    findings
        .extend(about.map(|(about, is)| Finding::ok(about, is.clone(), "what the engine says of itself")));
    // Those of bubblewrap's version are told by themselves.
    let warnings = found.warnings.iter().filter(|warning| !warning.starts_with("bubblewrap"));
    findings.extend(warnings.map(|warning| {
        not_well(Finding::ok("engine as configured", "could be better", ""), Level::Warning, warning)
    }));
    if !found.isolation.is_null() {
        findings.push(facts::isolation(&found.isolation));
    }
    if !found.images.is_empty() {
        findings.push(images(found));
    }
    findings
}

fn engine(found: &Inspection) -> &str {
    found.about.iter().find(|(about, _)| *about == "engine").map_or("an engine", |(_, is)| is)
}

/// The same finding with what is missing, or, where there is nothing to do about it, as a remark.
fn not_well(finding: Finding, level: Level, told: &str) -> Finding {
    match parts(told) {
        (what, Some(fix)) => finding.but(level, what, fix),
        (what, None) if level == Level::Problem => finding.but(level, what, "see what the engine logs"),
        (what, None) => Finding::ok(finding.what, what, ""),
    }
}

/// What an agent tells: what there is, and what to do about it.
fn parts(told: &str) -> (&str, Option<&str>) {
    told.split_once("; ").map_or((told, None), |(what, fix)| (what, Some(fix)))
}

/// The images of the templates that a new server has.
fn images(found: &Inspection) -> Finding {
    let named = |there: bool| {
        let names =
            found.images.iter().filter(|(_, is_there)| *is_there == there).map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let (there, missing) = (named(true), named(false));
    let what = "images";
    if missing.is_empty() {
        return Finding::ok(what, there, "the templates of a new server name these");
    }
    let told = format!("missing: {missing}");
    match &found.bring {
        None => Finding::ok(
            what,
            format!("{told}; pulled when first needed"),
            "a first session waits for the pull",
        ),
        Some(bring) => {
            let meaning = "sessions of the new server's templates that name them fail";
            Finding::ok(what, told, "").but(Level::Warning, meaning, bring.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Inspection {
        Inspection {
            socket: "/run/engine.sock".into(),
            is_there: true,
            about: vec![("engine", "Engine 1.2".to_owned()), ("its security", "seccomp".to_owned())],
            problems: Vec::new(),
            warnings: Vec::new(),
            images: vec![("a:1".to_owned(), true), ("b:1".to_owned(), false)],
            bring: None,
            isolation: Value::Null,
        }
    }

    #[test]
    fn an_engine_that_is_not_there_is_a_problem_only_where_it_is_chosen() {
        let problems = vec!["the engine cannot be reached; start it".to_owned()];
        let away = Inspection { is_there: false, about: Vec::new(), images: Vec::new(), problems, ..found() };
        let other = of_other("runtime docker", &away);
        assert!(other.level == Level::Ok && other.found.contains("not here"), "{other:?}");
        let chosen = of_chosen("runtime docker", &away);
        assert_eq!(chosen.len(), 1, "{chosen:?}");
        assert_eq!((chosen[0].level, chosen[0].fix.as_str()), (Level::Problem, "start it"));
        let unfit = Inspection { is_there: true, ..away };
        assert!(of_other("runtime docker", &unfit).found.contains("cannot be reached"));
    }

    #[test]
    fn an_engine_that_is_chosen_is_told_whole() {
        let warnings = ["x could be better; do y", "bubblewrap: old; newer", "z is so"].map(str::to_owned);
        let well = of_chosen("runtime docker", &Inspection { warnings: warnings.into(), ..found() });
        let told: Vec<_> = well.iter().map(|finding| (finding.level, finding.found.as_str())).collect();
        let (ok, warning) = (Level::Ok, Level::Warning);
        let expected = [
            (ok, "chosen: Engine 1.2 at `/run/engine.sock`"),
            (ok, "seccomp"),
            (warning, "could be better"),
            (ok, "z is so"),
            (ok, "missing: b:1; pulled when first needed"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn an_image_that_nobody_brings_is_a_warning_with_how() {
        let brought = images(&Inspection { bring: Some("bring it with `x`".to_owned()), ..found() });
        assert_eq!((brought.level, brought.fix.as_str()), (Level::Warning, "bring it with `x`"));
        let all = images(&Inspection { images: vec![("a:1".to_owned(), true)], ..found() });
        assert_eq!((all.level, all.found.as_str()), (Level::Ok, "a:1"));
    }
}
