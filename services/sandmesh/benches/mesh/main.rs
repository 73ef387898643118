//! `just bench` measures every goal against its baseline; `just soak` looks whether anything grows.
//!
//! Every figure is taken in the same run as its baseline, in interleaved rounds, with the same layout: each
//! process that a baseline starts gets a kernel session of its own, as an execution does. Nothing timed is
//! asserted. The tables go to the standard output and, with a chart and every round, to `target/bench/`.
//! `README.md` beside `mesh/` says what each line is and how it is measured.

mod baseline;
mod cgroup;
mod chart;
mod containers;
#[path = "../../../agent/testing/engine.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    dead_code,
    reason = "it is of the tests, which fail by panicking, and has more than is used here"
)]
mod engine;
mod kernel;
mod line;
mod machine;
mod measure;
mod memory;
mod pools;
mod process;
mod report;
mod server;
mod settings;
mod soak;
mod stack;
mod stats;
mod streaming;
mod subject;
#[path = "../shared/svg.rs"]
mod svg;
mod verdict;
mod work;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use sandmesh_scheduler::simulation::{self, Case};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    containers::Containers,
    line::{Figure, Line},
    machine::Machine,
    memory::Idle,
    report::Report,
    server::Server,
    settings::{Options, Settings},
    stack::Stack,
    stats::Measured,
    streaming::Streamed,
    subject::Subject,
    verdict::Results,
    work::{Bench, Work},
};

/// The program that was built for this run; the executor is beside it.
const PROGRAM: &str = env!("CARGO_BIN_EXE_sandmesh");

/// Starts an interpreter for each execution instead of keeping one warm.
const FRESH: (&str, &str) = ("SANDMESH_AGENT__ISOLATION__INTERPRETERS", "fresh");

/// How many nodes the scheduler decides among, with ten sandboxes each.
const NODES: u32 = 10_000;

/// How many decisions of each kind are measured for each round.
const DECISIONS: u32 = 1000;

/// Logs how long each writer of an execution waits for the database.
const LOGGED: (&str, &str) = ("SANDMESH_MESH__LOG_FILTER", "warn,sandmesh_session::store::pen=trace");

/// Measures executions and sessions against starting a process.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
    /// Given by cargo bench
    #[arg(long = "bench", hide = true, global = true)]
    by_cargo: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep a server at full load and look whether anything grows or is left behind
    Soak(soak::Options),
}

/// One thread, as the client should be as little of what is measured as it can be.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    // Clients of REST want to know one, also where they speak no TLS. It is the first, so that this works.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let directory = Path::new(PROGRAM).ancestors().nth(2).context("there is no target directory")?;
    let directory = directory.join("bench");
    let work = async {
        match cli.command {
            Some(Command::Soak(options)) => soak::run(options, PathBuf::from(PROGRAM), &directory).await,
            None => bench(cli.options.settings(PathBuf::from(PROGRAM)), &directory).await,
        }
    };
    // When this is interrupted, the server is ended with all that it made.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = Box::pin(work) => done,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}

async fn bench(settings: Settings, directory: &Path) -> anyhow::Result<()> {
    let mut lines = line::all(settings.with_fresh);
    if settings.list {
        lines.iter().for_each(|line| println!("{:<20} {}", line.name, line.what));
        return Ok(());
    }
    lines.retain(|line| line.name.contains(&settings.only));
    anyhow::ensure!(!lines.is_empty(), "no line has `{}` in its name: see `--list`", settings.only);
    let machine = Machine::read(&settings);
    let (rounds, milliseconds) = Report::amount(settings.amount);
    let is_logged = lines.iter().any(|line| line.subjects().contains(&subject::RECORD));
    let mut bench = start(settings, &lines, is_logged).await?;
    let measured = measure(&bench, &lines).await;
    let decisions = decisions(&bench, &lines);
    let machine = machine.done(bench.cpu());
    bench.warm.server.stop()?;
    for other in bench.fresh.iter_mut().chain(&mut bench.logged) {
        other.server.stop()?;
    }
    bench.containers.stop()?;
    let (measured, idle) = measured?;
    let results =
        Results { rounds: &measured, idle: idle.as_ref(), decisions: &decisions, lacking: &lacking(&bench) };
    let report = Report {
        machine,
        rounds,
        milliseconds,
        lines: lines.iter().map(|line| results.row(line)).collect(),
        subjects: measured.measured.iter().map(Measured::summary).collect(),
        streamed: measured.streamed,
        idle,
    };
    print!("{}", report.markdown());
    report.write(directory)?;
    eprintln!("written: bench.json, bench.md and bench.svg in {}", directory.display());
    Ok(())
}

async fn start(settings: Settings, lines: &[Line], is_logged: bool) -> anyhow::Result<Bench> {
    // As much output is kept as is streamed.
    let output = format!("{}MiB", settings.amount.stream_mib);
    let keep = [("SANDMESH_AGENT__MAX_OUTPUT", &*output), ("SANDMESH_SESSION__MAX_OUTPUT", &*output)];
    let warm = Stack::connect(Server::start(&settings.program, &keep).await?).await?;
    let mut others = [(settings.with_fresh, FRESH, None), (is_logged, LOGGED, None)];
    for (is_wanted, setting, stack) in &mut others {
        if *is_wanted {
            *stack = Some(Stack::connect(Server::start(&settings.program, &[*setting]).await?).await?);
        }
    }
    let [(_, _, fresh), (_, _, logged)] = others;
    let wanted: Vec<Work> = subjects_of(lines).iter().map(|subject| subject.work).collect();
    let containers = Containers::start(&settings.program, &wanted).await;
    Ok(Bench { settings, warm, fresh, logged, containers })
}

/// What these lines are made of.
fn subjects_of(lines: &[Line]) -> Vec<Subject> {
    let names: Vec<_> = lines.iter().flat_map(Line::subjects).collect();
    subject::all().into_iter().filter(|subject| names.contains(&subject.name)).collect()
}

/// What cannot be measured, and why.
fn lacking(bench: &Bench) -> Vec<(&'static str, String)> {
    let why_not = |subject: Subject| Some((subject.name, bench.containers.why_not(subject.work)?.to_owned()));
    subject::all().into_iter().filter_map(why_not).collect()
}

/// Measures decisions of the scheduler, in this process.
fn decisions(bench: &Bench, lines: &[Line]) -> Vec<Case> {
    let is_wanted =
        |name: &str| lines.iter().any(|line| line.name == name && matches!(line.figure, Figure::Decision));
    simulation::cases(NODES, bench.settings.amount.rounds.saturating_mul(DECISIONS), is_wanted)
}

/// Measures what these lines are made of.
async fn measure(bench: &Bench, lines: &[Line]) -> anyhow::Result<(measure::Rounds, Option<Idle>)> {
    let mut subjects = subjects_of(lines);
    subjects.retain(|subject| bench.containers.why_not(subject.work).is_none());
    let streamed = lines.iter().filter_map(|line| match line.figure {
        Figure::Streamed(door) => Some(Streamed::new(door, bench.settings.amount.stream_mib)),
        _ => None,
    });
    let rounds = measure::rounds(bench, &subjects, streamed.collect()).await?;
    let wants_memory = lines.iter().any(|line| matches!(line.figure, Figure::Memory));
    let idle = if wants_memory {
        Some(memory::measure(&bench.warm, bench.settings.amount.idle_sessions).await?)
    } else {
        None
    };
    Ok((rounds, idle))
}
