//! `just soak`: full load for minutes, and a look every few seconds whether anything grows.
//!
//! It owns the order of things: load and samples at once, then the end of all sessions, then the end of
//! the server, each followed by a look at what is left. `load.rs` is the load, `sample.rs` the look,
//! `report.rs` the judgement.

mod load;
mod report;
mod sample;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;

use self::{load::Load, report::Report, sample::Sampler};
use crate::{
    machine::Machine,
    server::Server,
    settings::{Programs, Settings},
    stack::Stack,
};

/// How long sandboxes may take to be gone once their sessions have ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// The options of a soak.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long, in minutes
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// How many executions are in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=64))]
    in_flight: u32,
    /// Seconds between two samples
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    every: u32,
    #[command(flatten)]
    programs: Programs,
}

/// A session lives an hour at most, and some here live from the start to the end.
fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=55.0).contains(&minutes) => Ok(minutes),
        _ => Err("it must be from 0.1 to 55".to_owned()),
    }
}

/// Runs the soak.
///
/// # Errors
/// When an execution failed, or anything was left behind.
pub(crate) async fn run(options: Options, built: PathBuf, directory: &Path) -> anyhow::Result<()> {
    let settings = Settings::programs_only(options.programs, built);
    let machine = Machine::read(&settings);
    let mut stack = Stack::connect(Server::start(&settings.program, &[]).await?).await?;
    let load = Load::new(Instant::now() + Duration::from_secs_f64(options.minutes * 60.0));
    let sampler = Sampler::new(&stack, &load);
    let every = Duration::from_secs(options.every.into());
    let (loaded, samples) =
        futures::future::join(load.run(&stack, options.in_flight as usize), sampler.run(every)).await;
    loaded?;
    for session in std::mem::take(&mut stack.sessions) {
        stack.end_session(&session.id).await?;
    }
    let quiet = Instant::now();
    while !sample::left_of_sessions(&stack.server).is_empty() && quiet.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after_sessions = sample::left_of_sessions(&stack.server);
    let machine = machine.done(stack.server.group().cpu());
    stack.server.stop()?;
    let after_server = sample::left_of_server(&stack.server);
    let report = Report { machine, samples, load, after_sessions, after_server };
    print!("{}", report.markdown());
    report.write(directory)?;
    eprintln!("written: soak.csv, soak.md and soak.svg in {}", directory.display());
    report.check()
}
