//! Cases 22 to 25: more processes, memory, output and disk than there is.

use std::time::Instant;

use futures::future::try_join_all;
use sandmesh_proto::{
    executor::{Cause, Language},
    session::{Session, execution::State},
};

use super::{interactive, prepare};
use crate::attack::{
    arena::{Arena, Outcome, Wish, with_env, within},
    host::{Sandbox, group_figure, marked, nothing_left},
    judge::{Said, contains, percentile},
    verdict::{Evidence, Witness},
};

const BOMB: &str = include_str!("../programs/bomb.py");
const POOLS: &str = include_str!("../programs/pools.py");
const USE_POOLS: &str = include_str!("../programs/use_pools.py");
const HOG: &str = include_str!("../programs/hog.py");
const NOISE: &str = include_str!("../programs/noise.py");
const FILLER: &str = include_str!("../programs/filler.py");

/// Milliseconds of executions of somebody else, each of which must be right.
async fn latencies(
    arena: &Arena,
    session: &Session,
    count: usize,
    wrong: &mut usize,
) -> anyhow::Result<Vec<f64>> {
    let mut taken = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let outcome = arena.run(session, arena.code(Language::Shell, "echo $((6 * 7))")).await?;
        *wrong += usize::from(outcome.stdout != b"42\n");
        taken.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(taken)
}

pub(super) async fn fork_bomb(arena: &Arena) -> anyhow::Result<Evidence> {
    const PROCESSES: u32 = 60;
    let (session, sandbox) =
        prepare(arena, Wish { processes: PROCESSES, cpu_millis: 1000, ..Wish::default() }).await?;
    let other = arena.session(Wish::default()).await?;
    let mut evidence = Evidence::default();
    let mut wrong = 0;
    let mut quiet = latencies(arena, &other, 12, &mut wrong).await?;
    let mut loud = Vec::new();
    for way in ["fork", "fork and die", "threads", "vfork", "sessions"] {
        let spec = within(with_env(arena.python(BOMB), &[("ATTACK_WAY", way)]), 4);
        let live = arena.open(&session, spec).await?;
        let beside = async {
            let mut taken = Vec::new();
            let mut most = 0;
            for _ in 0..4 {
                taken.extend(latencies(arena, &other, 4, &mut wrong).await?);
                most = most.max(marked(&arena.mark).len());
            }
            anyhow::Ok((taken, most))
        };
        let (outcome, beside) = tokio::join!(live.end(), beside);
        let (outcome, (taken, most)) = (outcome?, beside?);
        loud.extend(taken);
        let typed = [Cause::Timeout, Cause::PidsLimit].contains(&outcome.result.cause());
        evidence.client(format!("its end, by {way}"), typed, outcome.ending());
        if sandbox.is_some() {
            let held = most <= PROCESSES as usize;
            evidence.host(format!("processes at once, by {way}"), held, format!("{most}, limit {PROCESSES}"));
            nothing_left(&mut evidence, &arena.mark).await;
        }
        arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    }
    evidence.client(
        "executions of another session",
        wrong == 0,
        format!("{wrong} of {} wrong", quiet.len() + loud.len()),
    );
    evidence.note(format!(
        "p99 of another session {:.0} ms, before {:.0} ms",
        percentile(&mut loud, 99),
        percentile(&mut quiet, 99)
    ));
    Ok(evidence)
}

pub(super) async fn pools_of_the_machine(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish { memory_mib: 512, ..Wish::default() }).await?;
    let other = arena.session(Wish::default()).await?;
    let mut evidence = Evidence::default();
    for way in [
        "asynchronous I/O",
        "terminals",
        "inotify",
        "pipes",
        "sockets",
        "locks",
        "timers",
        "open files",
        "message queues",
    ] {
        let spec = with_env(interactive(arena.python(POOLS)), &[("ATTACK_WAY", way)]);
        let mut live = arena.open(&session, spec).await?;
        live.stage("taken").await?;
        let beside = arena.run(&other, arena.python(USE_POOLS)).await?;
        let said = Said::read(&beside.stdout);
        let refused: Vec<String> = said
            .attempts
            .iter()
            .filter(|attempt| attempt.got != "done")
            .map(|attempt| format!("{} {}", attempt.what, attempt.got))
            .collect();
        let held = said.done > Some(0) && refused.is_empty();
        let told = if held { "served".to_owned() } else { format!("refused: {}", refused.join(", ")) };
        evidence.saw(Witness::Attacker, format!("another session while {way} are taken"), held, told);
        live.go_on().await?;
        live.end().await?;
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

/// Ways to use memory, and whether the kernel has to kill for it.
const MEMORY: &[(&str, bool)] = &[
    ("heap", true),
    ("children", true),
    ("shared mapping", true),
    ("populated mapping", true),
    ("memfd", true),
    ("locked", true),
    ("System V", true),
    ("both tmpfs and heap", true),
    ("descriptors in flight", true),
    ("/tmp", false),
    ("/dev/shm", false),
    ("page cache", false),
    ("pipes", false),
    ("socket buffers", false),
    ("message queues", false),
    ("directory entries", false),
    ("stacks of threads", false),
];

pub(super) async fn memory(arena: &Arena) -> anyhow::Result<Evidence> {
    const MIB: u64 = 96;
    let wish = Wish { memory_mib: MIB, disk_mib: 512, cpu_millis: 2000, ..Wish::default() };
    let (session, sandbox) = prepare(arena, wish).await?;
    let mut evidence = Evidence::default();
    for (way, kills) in MEMORY {
        let variables = [("ATTACK_WAY", *way), ("ATTACK_MIB", "256")];
        let outcome = arena.run(&session, within(with_env(arena.python(HOG), &variables), 30)).await?;
        let begun = outcome.stdout.starts_with(b"begun\n");
        let had_all = contains(&outcome.stdout, b"had all of it");
        let oom = outcome.result.cause() == Cause::Oom && outcome.result.state() == State::Crashed;
        let held = begun && if *kills { oom && !had_all } else { outcome.result.state() != State::Timeout };
        evidence.client(*way, held, format!("{} {}", outcome.ending(), outcome.complaint()));
        arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    }
    if let Some(sandbox) = &sandbox {
        let peak = group_figure(sandbox, &["memory.max_usage_in_bytes", "memory.peak"]);
        let held = peak.is_some_and(|peak| peak <= MIB << 20);
        let told = peak
            .map_or_else(|| "no figure".to_owned(), |peak| format!("{} MiB, limit {MIB} MiB", peak >> 20));
        evidence.host("the most memory that the sandbox had", held, told);
        swapless(&mut evidence, sandbox);
    }
    Ok(evidence)
}

fn swapless(evidence: &mut Evidence, sandbox: &Sandbox) {
    let swap = group_figure(sandbox, &["memory.swap.max"]);
    let both = group_figure(sandbox, &["memory.memsw.limit_in_bytes"]);
    let memory = group_figure(sandbox, &["memory.limit_in_bytes"]);
    match (swap, both) {
        (Some(swap), _) => evidence.host("swap that it may use", swap == 0, swap.to_string()),
        (None, Some(_)) => {
            evidence.host("memory and swap together", both == memory, format!("{both:?} of {memory:?}"))
        }
        (None, None) => evidence.note("this kernel does not account for swap"),
    }
}

pub(super) async fn output(arena: &Arena) -> anyhow::Result<Evidence> {
    /// What the executor may grow by: its windows, and output kept in memory.
    const MAY_GROW_KIB: u64 = 48 << 10;
    let (session, sandbox) = prepare(arena, Wish { cpu_millis: 2000, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    let before = sandbox.as_ref().and_then(Sandbox::executor_memory);
    for (way, truncated) in [
        ("endless output", (true, false)),
        ("endless errors", (false, true)),
        ("both, line by line", (true, true)),
        ("one line of a gigabyte", (true, false)),
        ("byte by byte", (false, false)),
        ("the result without end", (false, false)),
        ("zeros and escapes", (true, false)),
    ] {
        let spec = within(with_env(arena.python(NOISE), &[("ATTACK_WAY", way)]), 2);
        let outcome = arena.run(&session, spec).await?;
        let said = (outcome.result.stdout_truncated, outcome.result.stderr_truncated);
        let told = format!("{}, truncated {said:?}", outcome.ending());
        evidence.client(way, said == truncated || way == "byte by byte", told);
        arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    }
    if let (Some(before), Some(after)) = (before, sandbox.as_ref().and_then(Sandbox::executor_memory)) {
        let told = format!("{} MiB, before {} MiB", after >> 10, before >> 10);
        evidence.host("memory of the executor", after < before + MAY_GROW_KIB, told);
    }
    Ok(evidence)
}

/// Ways to fill a disk that a look at the workspace shows.
const PLAIN: &[&str] = &[
    "tiny files",
    "many files",
    "reserved space",
    "tiny directories",
    "space beyond the end",
    "a very deep directory",
    "links to nowhere",
    "a directory that moves",
];

/// Ways that a look at the workspace does not show.
const HIDDEN: &[&str] = &[
    "many names for one file",
    "a directory nobody may read",
    "files that only a descriptor reaches",
    "deleted files kept open",
    "files without a name",
];

/// Each must end with the cause `disk_limit`; several at a time, as they mostly wait.
async fn all_limited(arena: &Arena, ways: &[&str]) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence::default();
    for some in ways.chunks(3) {
        for found in try_join_all(some.iter().map(|way| fill(arena, way, true))).await? {
            evidence.checks.extend(found.checks);
        }
    }
    Ok(evidence)
}

pub(super) async fn disk(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut evidence = all_limited(arena, PLAIN).await?;
    for way in ["one file", "a hole of a terabyte", "many holes"] {
        evidence.checks.extend(fill(arena, way, false).await?.checks);
    }
    Ok(evidence)
}

pub(super) async fn hidden_disk(arena: &Arena) -> anyhow::Result<Evidence> {
    all_limited(arena, HIDDEN).await
}

async fn fill(arena: &Arena, way: &str, must_end: bool) -> anyhow::Result<Evidence> {
    const LIMIT_MIB: u64 = 24;
    let (session, sandbox) =
        prepare(arena, Wish { disk_mib: LIMIT_MIB, cpu_millis: 2000, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    let variables = [("ATTACK_WAY", way), ("ATTACK_MIB", "256")];
    let spec = within(with_env(arena.python(FILLER), &variables), 40);
    let outcome = arena.run(&session, spec).await?;
    let full = contains(&outcome.stdout, b"full\n");
    let limited = outcome.result.cause() == Cause::DiskLimit;
    evidence.client(
        way,
        outcome.stdout.starts_with(b"begun\n") && (limited || !must_end && !full),
        ending_of(&outcome),
    );
    if let Some(sandbox) = &sandbox {
        // What is over the limit is what can be written between two looks.
        let used = used_mib(&sandbox.workspace());
        let told = format!("{used} MiB, limit {LIMIT_MIB} MiB");
        evidence.host(format!("size of the workspace after {way}"), used < LIMIT_MIB * 8, told);
    }
    cleaned_from_within(arena, &session, way, &mut evidence).await?;
    arena.terminate(&session.session_id).await?;
    if let Some(sandbox) = &sandbox {
        let gone = !sandbox.dir.exists();
        evidence.host(format!("the directory after {way}"), gone, if gone { "gone" } else { "still there" });
    }
    Ok(evidence)
}

/// The tenant can make room again. What grew after the last look at it may cost the first try.
async fn cleaned_from_within(
    arena: &Arena,
    session: &Session,
    way: &str,
    evidence: &mut Evidence,
) -> anyhow::Result<()> {
    let cleaning = "chmod -R u+rwx /workspace; cd /workspace; find . -mindepth 1 -delete; echo clean";
    let spec = within(arena.code(Language::Shell, cleaning), 60);
    let mut cleaned = arena.run(session, spec.clone()).await?;
    if cleaned.result.cause() == Cause::DiskLimit {
        cleaned = arena.run(session, spec).await?;
    }
    let held = contains(&cleaned.stdout, b"clean");
    evidence.client(format!("the session after {way}"), held, cleaned.ending());
    Ok(())
}

fn ending_of(outcome: &Outcome) -> String {
    let full = if contains(&outcome.stdout, b"full\n") { "; it wrote 256 MiB" } else { "" };
    format!("{}{full}", outcome.ending())
}

/// The space that files below a directory take, in MiB; what cannot be looked at counts nothing.
fn used_mib(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut seen = std::collections::HashSet::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(next) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(next) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                waiting.push(entry.path());
            }
            if seen.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
            }
        }
    }
    bytes >> 20
}
