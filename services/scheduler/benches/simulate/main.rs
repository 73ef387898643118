//! `just simulate`: a day of thousands of nodes, and how long decisions take among them. The tables go to the standard
//! output and, with a chart and every sample, to `target/bench/`. It fails when more was ever on a node than it has,
//! or a session was forgotten.

#[path = "../../../sandmesh/benches/shared/svg.rs"]
mod svg;

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use sandmesh_scheduler::simulation::{COLUMNS, Case, Options, cases, run};

use crate::svg::{Series, short};

/// Where results go, from the directory of this crate.
const RESULTS: &str = "../../target/bench";

/// Lives through a day of arrivals with the real scheduler, on nodes that are values.
#[derive(Debug, Parser)]
struct Args {
    /// How many nodes there are
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    nodes: u32,
    /// How many hours pass
    #[arg(long, default_value_t = 24.0, value_parser = hours)]
    hours: f64,
    /// How many sandboxes there are at the busiest time, without bursts; nine for each node unless given
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=2_000_000))]
    sandboxes: Option<u32>,
    /// What is random follows from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only measure decisions, so many of each kind
    #[arg(long, value_name = "SAMPLES", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    decisions: Option<u32>,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn hours(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(hours) if (0.01..=240.0).contains(&hours) => Ok(hours),
        _ => Err("it must be from 0.01 to 240".to_owned()),
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(RESULTS);
    fs::create_dir_all(&directory)?;
    match args.decisions {
        Some(samples) => decisions(&args, samples, &directory),
        None => day(&args, &directory),
    }
}

fn decisions(args: &Args, samples: u32, directory: &Path) -> anyhow::Result<()> {
    let machine = machine();
    let measured = cases(args.nodes, samples, |_| true);
    let mut text = format!("{} nodes; {samples} decisions of each kind; {machine}\n\n", args.nodes);
    text.push_str("| decision | p50 us | p99 us | max us |\n|---|--:|--:|--:|\n");
    for case in measured {
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|q| short(quantile(&case, q)));
        text.push_str(&format!("| {}: {} | {p50} | {p99} | {most} |\n", case.name, case.what));
    }
    print!("{text}");
    fs::write(directory.join("decisions.md"), text)?;
    Ok(())
}

fn day(args: &Args, directory: &Path) -> anyhow::Result<()> {
    let sandboxes = args.sandboxes.unwrap_or_else(|| args.nodes.saturating_mul(9));
    let options = Options { nodes: args.nodes, hours: args.hours, sandboxes, seed: args.seed };
    let before = machine();
    let outcome = run(&options);
    let title = format!(
        "{} nodes, {} hours, {sandboxes} sandboxes of sessions at the busiest time, seed {}; {before}, {} after",
        options.nodes,
        options.hours,
        options.seed,
        load()
    );
    let text = format!("{title}\n\n{}", outcome.markdown());
    let series = Series { names: COLUMNS, samples: &outcome.samples, unit: "h" };
    print!("{text}");
    fs::write(directory.join("simulation.md"), text)?;
    fs::write(directory.join("simulation.csv"), series.csv())?;
    fs::write(directory.join("simulation.svg"), series.chart(&title))?;
    eprintln!("written: simulation.md, simulation.csv and simulation.svg in {}", shown(directory).display());
    let broken = outcome.broken();
    anyhow::ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(())
}

fn shown(directory: &Path) -> PathBuf {
    directory.canonicalize().unwrap_or_else(|_| directory.to_owned())
}

#[expect(clippy::cast_possible_truncation, reason = "a rank is at most the number of samples")]
#[expect(clippy::cast_sign_loss, reason = "a fraction of a length is not negative")]
fn quantile(case: &Case, q: f64) -> f64 {
    let rank = (q * case.micros.len() as f64).ceil() as usize;
    case.micros.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// On what it runs, and how busy that is.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map(|(_, model)| model).unwrap_or_default();
    format!("{model}, one core of it; load {} before", load())
}

/// The average number of runnable threads in the last minute.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}
