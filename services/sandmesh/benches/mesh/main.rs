//! `just bench`: executions and sessions through the front door, against starting a process.
//!
//! Every figure is taken in the same run as its baseline, in interleaved rounds. Each process that a
//! baseline starts gets a kernel session of its own, as an execution does: the scheduler shares the CPU
//! among sessions, so without that the comparison would be wrong. Nothing timed is asserted; the table
//! goes to the standard output and, with every round, to `target/bench/`.

mod baseline;
mod client;
mod machine;
mod report;
mod server;
mod stats;
mod subject;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;

use crate::{
    client::Client,
    machine::Machine,
    report::Report,
    server::Server,
    stats::Measured,
    subject::{Bench, Subject, subjects},
};

/// The program under test; the executor is beside it.
const PROGRAM: &str = env!("CARGO_BIN_EXE_sandmesh");

/// Measures executions and sessions against starting a process.
#[derive(Debug, Parser)]
struct Args {
    /// How many times every subject is measured, in turn with all others
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many samples a subject gives in each round
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    per_round: u32,
    /// Measure only subjects whose name contains this, and their baselines
    #[arg(long, default_value = "")]
    only: String,
    /// The Python of the baseline
    #[arg(long, default_value = "/usr/bin/python3")]
    python: PathBuf,
    /// The Node.js of the baseline
    #[arg(long, default_value = "/usr/bin/node")]
    node: PathBuf,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let program = Path::new(PROGRAM);
    let executor = program.with_file_name("sandmesh-executor");
    anyhow::ensure!(executor.exists(), "`{}` is missing: run `just executor`", executor.display());
    let server = Server::start(program).await?;
    let client = Client::connect(server.address()).await?;
    let machine = Machine::read(&args.python, &args.node);
    let bench = Bench { client, python: args.python, node: args.node };
    let chosen = subjects(&args.only);
    let measured = measure(&bench, &chosen, args.rounds, args.per_round).await?;
    server.stop()?;
    let report = Report { machine: machine.done(), rounds: args.rounds, per_round: args.per_round, measured };
    print!("{}", report.markdown());
    let directory = program.ancestors().nth(2).context("the program has no target directory")?.join("bench");
    report.write(&directory)?;
    eprintln!("written: {0}/bench.json and {0}/bench.md", directory.display());
    Ok(())
}

/// Runs every subject in every round, each round from another starting point, so that no subject is
/// always measured after the same neighbour.
async fn measure(
    bench: &Bench,
    subjects: &[Subject],
    rounds: u32,
    per_round: u32,
) -> anyhow::Result<Vec<Measured>> {
    let mut measured: Vec<_> = subjects.iter().map(Measured::new).collect();
    for subject in subjects {
        subject.warm_up(bench).await.with_context(|| format!("`{}` does not work", subject.name))?;
    }
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for step in 0..subjects.len() {
            let at = (step + round as usize) % subjects.len();
            measured[at].rounds.push(subjects[at].round(bench, per_round).await);
        }
    }
    Ok(measured)
}
