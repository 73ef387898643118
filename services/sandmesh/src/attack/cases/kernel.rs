//! Cases 9 to 18: the kernel, as user code can reach it.

use sandmesh_proto::session::execution::State;

use super::{interactive, prepare};
use crate::attack::{
    arena::{Arena, Outcome, Wish, with_env},
    host::{self, Process, Sandbox, marked, namespaces},
    judge::{self, ABSENT, DENIED},
    verdict::{Evidence, Witness},
};

const NAMESPACES: &str = include_str!("../programs/namespaces.py");
const KERNEL: &str = include_str!("../programs/kernel.py");
const SOCKETS: &str = include_str!("../programs/sockets.py");
const FOREIGN: &str = include_str!("../programs/foreign_calls.py");
const SETUID: &str = include_str!("../programs/setuid.py");
const TERMINAL: &str = include_str!("../programs/terminal.py");
const DESCRIPTORS: &str = include_str!("../programs/descriptors.py");
const EXECUTABLE: &str = include_str!("../programs/executable.py");
const DEVICES: &str = include_str!("../programs/devices.py");
const CGROUPS: &str = include_str!("../programs/cgroups.py");

/// What sockets that there are none of may answer.
const NO_SOCKET: &[&str] = &[
    "EPERM",
    "ENOSYS",
    "EACCES",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "EOPNOTSUPP",
    "EINVAL",
    "EPROTOTYPE",
];

/// Runs a program whose every attempt must fail in one of these ways.
async fn refused(arena: &Arena, program: &str, least: usize, answers: &[&str]) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let outcome = arena.run(&session, arena.python(program)).await?;
    judge::attempts(&mut evidence, &outcome.stdout, least, answers);
    ended_well(&mut evidence, &outcome);
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

/// The program itself ran to its end: it neither failed nor was it killed.
fn ended_well(evidence: &mut Evidence, outcome: &Outcome) {
    let well = outcome.result.state() == State::Completed;
    evidence.client("the attack program ends", well, format!("{} {}", outcome.ending(), outcome.complaint()));
}

pub(super) async fn namespaces_and_mounts(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let mut live = arena.open(&session, interactive(arena.python(NAMESPACES))).await?;
    live.stage("before").await?;
    let before = all_namespaces(arena);
    live.go_on().await?;
    live.stage("after").await?;
    if arena.host.is_some() {
        let after = all_namespaces(arena);
        let new: Vec<_> = after.iter().filter(|found| !before.contains(found)).cloned().collect();
        let told = if new.is_empty() { format!("the same {}", before.len()) } else { new.join(", ") };
        evidence.host("namespaces of its processes", new.is_empty() && !before.is_empty(), told);
    }
    live.go_on().await?;
    let outcome = live.end().await?;
    judge::attempts(&mut evidence, &outcome.stdout, 80, DENIED);
    ended_well(&mut evidence, &outcome);
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

fn all_namespaces(arena: &Arena) -> Vec<String> {
    let mut all: Vec<String> =
        marked(&arena.mark).iter().flat_map(|process| namespaces(process.pid)).collect();
    all.sort();
    all.dedup();
    all
}

pub(super) async fn dangerous_calls(arena: &Arena) -> anyhow::Result<Evidence> {
    refused(arena, KERNEL, 170, DENIED).await
}

pub(super) async fn strange_sockets(arena: &Arena) -> anyhow::Result<Evidence> {
    refused(arena, SOCKETS, 200, NO_SOCKET).await
}

pub(super) async fn foreign_calls(arena: &Arena) -> anyhow::Result<Evidence> {
    const SIGSYS: i32 = 31;
    if !cfg!(target_arch = "x86_64") {
        return Ok(Evidence::not_run("this processor has no other kind of system calls"));
    }
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    for way in [
        "int80 getpid",
        "int80 setuid",
        "int80 execve",
        "int80 in a thread",
        "x32 getpid",
        "x32 mount",
        "x32 ptrace",
        "x32 unshare",
        "x32 number with high bits",
    ] {
        let spec = with_env(arena.python(FOREIGN), &[("ATTACK_WAY", way)]);
        let outcome = arena.run(&session, spec).await?;
        let killed = outcome.result.signal == Some(SIGSYS) && outcome.stdout == b"trying\n";
        // The kernel looks at 32 bits of the number; the rest makes no other call of it.
        evidence.client(way, killed, outcome.ending());
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn setuid_programs(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let mut live = arena.open(&session, interactive(arena.python(SETUID))).await?;
    live.stage("running").await?;
    if let Some(sandbox) = &sandbox {
        let attackers = marked(&arena.mark);
        for process in attackers.iter().chain(&children_of(&attackers)) {
            unprivileged(&mut evidence, process, sandbox.uid);
        }
    }
    live.go_on().await?;
    let outcome = live.end().await?;
    let said = judge::Said::read(&outcome.stdout);
    for attempt in &said.attempts {
        let held = match attempt.what.as_str() {
            "copy with the bit" => attempt.got == "as before",
            "NoNewPrivs" => attempt.got == "1",
            "programs with the bit" => true,
            what if what.starts_with("Cap") => attempt.got == "none",
            _ => ["EPERM", "EINVAL", "EACCES", "ENOSYS"].contains(&attempt.got.as_str()),
        };
        evidence.saw(Witness::Attacker, &attempt.what, held, &attempt.got);
    }
    ended_well(&mut evidence, &outcome);
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

fn unprivileged(evidence: &mut Evidence, process: &Process, uid: u32) {
    let nobody = process.uids.iter().all(|found| *found == uid) && uid != 0;
    let told = format!("uids {:?}, of the sandbox {uid}", process.uids);
    evidence.host(format!("identity of process {}", process.pid), nobody, told);
    let powerless =
        process.capabilities.chars().all(|digit| digit == '0') && process.no_new_privs && process.seccomp;
    let told = format!(
        "capabilities {}, no_new_privs {}, seccomp filter {}",
        process.capabilities, process.no_new_privs, process.seccomp
    );
    evidence.host(format!("powers of process {}", process.pid), powerless, told);
}

/// The processes that these started, whoever they are now.
fn children_of(parents: &[Process]) -> Vec<Process> {
    let is_child = |process: &Process| parents.iter().any(|parent| parent.pid == process.parent);
    host::all().into_iter().filter(is_child).collect()
}

pub(super) async fn terminals(arena: &Arena) -> anyhow::Result<Evidence> {
    const NO_TERMINAL: &[&str] = &["EPERM", "ENXIO", "ENOENT", "EACCES", "EIO", "ENODEV", "ENOTTY"];
    refused(arena, TERMINAL, 24, NO_TERMINAL).await
}

pub(super) async fn descriptors(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let outcome = arena.run(&session, arena.python(DESCRIPTORS)).await?;
    let mut answers = ABSENT.to_vec();
    // Its streams and its result; "ours" are those of a program that lists a directory.
    answers.extend(["pipe", "socket", "ours"]);
    judge::attempts(&mut evidence, &outcome.stdout, 40, &answers);
    ended_well(&mut evidence, &outcome);
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn own_executable(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let before = sandbox.as_ref().and_then(executor_file);
    let outcome = arena.run(&session, arena.python(EXECUTABLE)).await?;
    judge::attempts(&mut evidence, &outcome.stdout, 60, ABSENT);
    ended_well(&mut evidence, &outcome);
    if let Some(sandbox) = &sandbox {
        let after = executor_file(sandbox);
        let told = if before == after { "unchanged" } else { "changed" };
        evidence.host("the executor's program", before.is_some() && before == after, told);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

/// Size, time of change and a sum of the program that a sandbox's executor runs.
fn executor_file(sandbox: &host::Sandbox) -> Option<(u64, std::time::SystemTime, u64)> {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let path = format!("/proc/{}/exe", sandbox.executor_pid()?);
    let meta = std::fs::metadata(&path).ok()?;
    let mut hasher = DefaultHasher::new();
    std::fs::read(&path).ok()?.hash(&mut hasher);
    Some((meta.len(), meta.modified().ok()?, hasher.finish()))
}

pub(super) async fn devices(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let before = knobs();
    let outcome = arena.run(&session, arena.python(DEVICES)).await?;
    let mut answers = ABSENT.to_vec();
    answers.push("none");
    judge::attempts(&mut evidence, &outcome.stdout, 150, &answers);
    ended_well(&mut evidence, &outcome);
    if arena.host.is_some() {
        let after = knobs();
        let changed: Vec<_> =
            after.iter().filter(|knob| !before.contains(knob)).map(|(name, _)| name.as_str()).collect();
        let told =
            if changed.is_empty() { format!("{} unchanged", before.len()) } else { changed.join(", ") };
        evidence.host("the kernel's knobs", changed.is_empty() && !before.is_empty(), told);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn control_groups(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let mut live = arena.open(&session, interactive(arena.python(CGROUPS))).await?;
    live.stage("look").await?;
    if let Some(sandbox) = &sandbox {
        stays_in_its_group(&mut evidence, arena, sandbox);
    }
    live.go_on().await?;
    let outcome = live.end().await?;
    judge::attempts(&mut evidence, &outcome.stdout, 6, &["0", "EPERM", "ENOSYS"]);
    judge::absent(
        &mut evidence,
        "the sandbox's name in paths of groups",
        &outcome.stdout,
        &session.sandbox_id,
    );
    ended_well(&mut evidence, &outcome);
    Ok(evidence)
}

fn stays_in_its_group(evidence: &mut Evidence, arena: &Arena, sandbox: &Sandbox) {
    let attackers = marked(&arena.mark);
    let groups_of = |pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // That of executions is beside the executor's own, whatever the runtime calls what both are in.
    let own = sandbox.executor_pid().map(groups_of).unwrap_or_default();
    let place = own.lines().find_map(|line| line.rsplit(':').next()?.strip_suffix("/executor"));
    let place = place.map(|place| format!("{place}/runs/"));
    let outside: Vec<_> = attackers
        .iter()
        .filter(|process| place.as_ref().is_none_or(|place| !groups_of(process.pid).contains(place)))
        .collect();
    let told = format!("{} of {} processes are outside", outside.len(), attackers.len());
    evidence.host("its place in the control groups", outside.is_empty() && !attackers.is_empty(), told);
}

/// The settings of this machine's kernel that user code could wish to change.
fn knobs() -> Vec<(String, String)> {
    // These change by themselves.
    const LIVELY: &[&str] = &["ns_last_pid", "cad_pid", "random"];
    let mut knobs = Vec::new();
    for dir in ["/proc/sys/kernel", "/proc/sys/fs/mqueue", "/proc/sys/vm"] {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for entry in entries.flatten().filter(|entry| !LIVELY.iter().any(|name| entry.file_name() == *name)) {
            if let Ok(value) = std::fs::read_to_string(entry.path()) {
                knobs.push((entry.path().display().to_string(), value));
            }
        }
    }
    knobs
}
