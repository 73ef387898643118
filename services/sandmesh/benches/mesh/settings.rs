//! What is measured, how long, and with which programs.

use std::{path::PathBuf, time::Duration};

use clap::Args;

/// How many rounds and how long: short, for a look whether it works at all.
const QUICK: Amount =
    Amount { rounds: 2, time: Duration::from_millis(150), idle_sessions: 3, stream_mib: 32 };

/// The options of a measurement.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many times every subject is measured, in turn with all others
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long a subject is measured in each round; some take a multiple of it
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(50..=60_000))]
    milliseconds: u32,
    /// Of how many idle sessions the memory is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    idle_sessions: u32,
    /// How much output is streamed in each round, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    stream_mib: u32,
    /// Two short rounds, to see whether it works; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Measure only lines whose name contains this
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// List the names of the lines and end
    #[arg(long)]
    list: bool,
    /// Start a second server that starts an interpreter for each execution, and measure that too
    #[arg(long)]
    with_fresh: bool,
    #[command(flatten)]
    programs: Programs,
}

/// The programs under test and those of the baselines.
#[derive(Debug, Args)]
pub(crate) struct Programs {
    /// Another build of sandmesh, with its sandmesh-executor beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// The Python of the baseline
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/python3")]
    pub(crate) python: PathBuf,
    /// The Node.js of the baseline
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/node")]
    pub(crate) node: PathBuf,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    /// How many times every subject is measured.
    pub(crate) rounds: u32,
    /// How long in each round.
    pub(crate) time: Duration,
    /// The sessions whose memory is measured.
    pub(crate) idle_sessions: u32,
    /// The output that is streamed.
    pub(crate) stream_mib: u32,
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Settings {
    /// How much.
    pub(crate) amount: Amount,
    /// Only the lines whose name contains this.
    pub(crate) only: String,
    /// Only list them.
    pub(crate) list: bool,
    /// With a second server without warm interpreters.
    pub(crate) with_fresh: bool,
    /// The program under test.
    pub(crate) program: PathBuf,
    /// The Python of the baseline.
    pub(crate) python: PathBuf,
    /// The Node.js of the baseline.
    pub(crate) node: PathBuf,
}

impl Options {
    /// What these options mean, where `built` is the program that was built for this run.
    pub(crate) fn settings(self, built: PathBuf) -> Settings {
        let asked = Amount {
            rounds: self.rounds,
            time: Duration::from_millis(self.milliseconds.into()),
            idle_sessions: self.idle_sessions,
            stream_mib: self.stream_mib,
        };
        Settings {
            amount: if self.quick { QUICK } else { asked },
            only: self.only,
            list: self.list,
            with_fresh: self.with_fresh,
            program: self.programs.program.unwrap_or(built),
            python: self.programs.python,
            node: self.programs.node,
        }
    }
}

impl Settings {
    /// Programs, and nothing that is measured in rounds.
    pub(crate) fn programs_only(programs: Programs, built: PathBuf) -> Self {
        Self {
            amount: QUICK,
            only: String::new(),
            list: false,
            with_fresh: false,
            program: programs.program.unwrap_or(built),
            python: programs.python,
            node: programs.node,
        }
    }
}
