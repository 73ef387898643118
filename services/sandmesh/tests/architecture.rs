//! The rules of the house that a compiler does not check: who may depend on whom, and how long a file is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The most lines a source file may have.
const MAX_LINES: usize = 500;

/// What each crate of the workspace may use of the others. The roles come first.
const MAY_USE: [(&str, &[&str]); 11] = [
    ("sandmesh-session", &["proto", "mesh"]),
    ("sandmesh-template", &["proto", "mesh"]),
    ("sandmesh-scheduler", &["proto", "mesh"]),
    ("sandmesh-agent", &["proto", "mesh"]),
    ("sandmesh-health-probe", &["proto", "mesh"]),
    ("sandmesh-state-sync", &["proto", "mesh"]),
    ("sandmesh-gateway", &["proto", "mesh"]),
    ("sandmesh-executor", &["proto"]),
    ("sandmesh-mesh", &["proto"]),
    ("sandmesh-proto", &[]),
    (
        "sandmesh",
        &[
            "proto",
            "mesh",
            "session",
            "template",
            "scheduler",
            "agent",
            "health-probe",
            "state-sync",
            "gateway",
        ],
    ),
];

/// Who may use a library that decides something: a database, a container engine, a web framework.
const USED_BY: [(&str, &[&str]); 16] = [
    ("sea-orm", &["session", "template", "scheduler", "mesh"]),
    ("sea-orm-migration", &["session", "template", "scheduler", "mesh"]),
    ("sqlx", &[]),
    ("rusqlite", &["session"]),
    ("object_store", &["session"]),
    ("figment", &["mesh"]),
    ("opentelemetry", &["mesh"]),
    ("opentelemetry-otlp", &["mesh"]),
    ("opentelemetry_sdk", &["mesh"]),
    ("tracing-opentelemetry", &["mesh"]),
    ("bollard", &["agent"]),
    ("protox", &["proto", "agent"]),
    ("tonic-prost-build", &["proto", "agent"]),
    ("kube", &["scheduler"]),
    ("k8s-openapi", &["scheduler"]),
    ("axum", &["gateway", "mesh"]),
];

/// The files of the domain: pure functions of values, which do not know the wire.
const DOMAIN: [&str; 11] = [
    "lifecycle.rs",
    "placement.rs",
    "index.rs",
    "index/query.rs",
    "index/tree.rs",
    "index/features.rs",
    "shelf.rs",
    "tally.rs",
    "reconcile.rs",
    "pool.rs",
    "plan.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Each crate with the names of what it depends on, for users and for builds; tests may use more.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let used = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| dependency["kind"] != "dev").map(name).collect()
    };
    metadata["packages"].as_array().unwrap().iter().map(|package| (name(package), used(package))).collect()
}

fn crate_name(short: &str) -> String {
    format!("sandmesh-{short}")
}

#[test]
fn crates_depend_on_each_other_only_as_the_house_allows() {
    let dependencies = dependencies();
    let known: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let mut wrong = Vec::new();
    for (name, used) in &dependencies {
        let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| known == name) else {
            wrong.push(format!("`{name}` has no rule: say in this test what it may use"));
            continue;
        };
        let allowed: BTreeSet<String> = allowed.iter().copied().map(crate_name).collect();
        let ours = used.iter().filter(|used| known.contains(used.as_str()));
        wrong.extend(
            ours.filter(|used| !allowed.contains(*used)).map(|used| format!("`{name}` uses `{used}`")),
        );
    }
    assert!(wrong.is_empty(), "not allowed:\n{}", wrong.join("\n"));
    assert_eq!(dependencies.len(), MAY_USE.len(), "a crate of the rules is gone: {:?}", dependencies.keys());
}

#[test]
fn libraries_that_decide_something_stay_behind_one_door() {
    let mut wrong = Vec::new();
    for (name, used) in &dependencies() {
        for (library, users) in USED_BY {
            if used.contains(library) && !users.iter().any(|user| crate_name(user) == *name) {
                wrong.push(format!("`{name}` uses `{library}`, which is for {users:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "not allowed:\n{}", wrong.join("\n"));
}

/// Every Rust file of the project.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let generated = name == "target" || name == "node_modules" || name.starts_with('.');
            if entry.file_type().unwrap().is_dir() && !generated {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "the project has more than {} files", found.len());
    found
}

#[test]
fn source_file_fits_in_its_limit() {
    let lines = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<String> = sources()
        .iter()
        .map(|path| (lines(path), path))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn domain_does_not_know_the_wire_the_database_or_the_clock() {
    let foreign = ["sandmesh_proto", "pb::", "sea_orm", "tonic::", "tokio::", "Utc::now", "SystemTime"];
    let mut wrong = Vec::new();
    let is_domain = |path: &PathBuf| DOMAIN.iter().any(|name| path.ends_with(Path::new("src").join(name)));
    let domain: Vec<PathBuf> = sources().into_iter().filter(is_domain).collect();
    assert!(domain.len() >= 3, "sessions, placement and reconciling have one: {domain:?}");
    for path in &domain {
        let text = fs::read_to_string(path).unwrap();
        let used = foreign.into_iter().filter(|word| text.contains(word));
        wrong.extend(used.map(|word| format!("{} has `{word}`", path.display())));
    }
    assert!(wrong.is_empty(), "not allowed:\n{}", wrong.join("\n"));
}

#[test]
fn lint_is_switched_off_only_with_a_reason() {
    let mut wrong = Vec::new();
    let of_the_program = |path: &&PathBuf| path.components().any(|part| part.as_os_str() == "src");
    for path in sources().iter().filter(of_the_program) {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().enumerate();
        let silent = lines.filter(|(_, line)| line.contains("allow(clippy::") && !line.contains("reason"));
        wrong.extend(silent.map(|(number, _)| format!("{}:{}", path.display(), number + 1)));
    }
    wrong.retain(|place| !place.contains("proto/src/lib.rs"));
    assert!(wrong.is_empty(), "a lint is switched off without a reason:\n{}", wrong.join("\n"));
}
