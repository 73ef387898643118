//! `sandmesh doctor`: whether this machine can host sandboxes well, and whether a deployment holds what it
//! promises.
//!
//! `machine` looks at the host and `facts` judges what it saw; what of isolation can really be had is asked
//! of `sandmesh-executor check`, and of the agent where sandboxes are containers, which `engines` judges. With
//! `--attack` the suite of [`crate::attack`] runs against a deployment.
//! Exit codes: 0 when all is well, 1 when something is wrong, 2 and 125 as everywhere.

mod attack;
mod engines;
mod facts;
mod finding;
mod machine;

use std::path::PathBuf;

use clap::Args;

use super::{Format, Globals, failure::Failure, output, table::Table};
use finding::{Finding, Level};

/// The exit code when something is wrong.
const UNWELL: u8 = 1;

/// What to look at.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --attack, this machine is checked as a host of sandboxes, with the settings \
    that `sandmesh serve` would have; where sandboxes are containers, one is made and removed for that. \
    With --attack, real attack programs run in sessions of their own at \
    --url, which are removed afterwards; run it where nobody else's work is at stake. A server of --own-server \
    has the runtime, the executor, and the engine of the settings, and else its own."
)]
pub struct DoctorArgs {
    /// Attack the deployment at --url, and print what held
    #[arg(long)]
    pub attack: bool,
    /// Attack a server started for this, on an empty directory, instead of the one at --url
    #[arg(long, requires = "attack")]
    pub own_server: bool,
    /// Only the cases with these numbers, separated by commas
    #[arg(long, value_delimiter = ',', requires = "attack", value_name = "NUMBER")]
    pub cases: Vec<u8>,
    /// The template of the sessions that are attacked
    #[arg(short, long, requires = "attack", default_value = "python-basic", value_name = "ID")]
    pub template: String,
    /// The runtime that sandboxes are made with [default: the settings']
    #[arg(long, value_parser = ["process", "docker", "containerd"], value_name = "RUNTIME")]
    pub runtime: Option<String>,
    /// The server's data directory, if it is on this machine [default: the settings']
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The server's configuration file in TOML
    #[arg(long, env = "SANDMESH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

pub(super) async fn run(args: DoctorArgs, globals: &Globals) -> Result<u8, Failure> {
    if args.attack {
        if args.runtime.is_some() && !args.own_server {
            let told =
                "--runtime with --attack is for --own-server: the deployment at --url has the one it has";
            return Err(Failure::usage(told));
        }
        return attack::run(args, globals).await;
    }
    let report = machine::look(&args).await?;
    match globals.output {
        Format::Json => output::json(&report)?,
        Format::Text => output::text(&text(&report))?,
    }
    Ok(if report.ok { 0 } else { UNWELL })
}

/// A line for each finding, what it means and how to mend it below those that need it, and the sum.
fn text(report: &machine::Report) -> String {
    let row = |finding: &Finding| [finding.level.to_string(), finding.what.to_owned(), finding.found.clone()];
    let table = Table::new(["", "CHECK", "FOUND"], report.findings.iter().map(row)).to_string();
    let mut text = String::new();
    // The first line is the header; then a row for each finding, in the same order.
    let mut lines = table.lines();
    text.extend(lines.next().map(|line| format!("{line}\n")));
    for (line, finding) in lines.zip(&report.findings) {
        text.push_str(&format!("{line}\n"));
        if finding.level != Level::Ok {
            text.push_str(&format!("         {}\n         fix: {}\n", finding.meaning, finding.fix));
        }
    }
    let count = |level| report.findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    text.push_str(&format!("\n{problems} problems, {warnings} warnings; {}\n", report.usable()));
    text
}
