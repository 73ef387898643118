//! `just chaos`: kills the parts of a mesh at random, many times, while clients use it, and prints what became
//! of everything that was accepted. Ends with an error when a promise was broken.
//!
//! The campaign is that of the integration tests, where a short one is a test of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::large_futures,
    dead_code,
    unused_imports,
    reason = "it shares the harness of the tests, which fails by panicking and has more than is used here"
)]

#[path = "../../tests/it/chaos/mod.rs"]
mod chaos;
#[path = "../../tests/it/harness/mod.rs"]
mod harness;
#[path = "../../tests/it/streams_watch.rs"]
mod streams_watch;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use sandmesh_mesh::database::testing::Kind;

use crate::chaos::{Campaign, Parts};

/// Kills the parts of a mesh at random while clients use it.
#[derive(Debug, Parser)]
struct Args {
    /// How often something is killed
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    kills: u32,
    /// For how many minutes, at most
    #[arg(long, default_value_t = 1440, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Two of every process and two nodes, with this database server and a bucket, which are killed, too
    #[arg(long, value_enum)]
    two_on: Option<DatabaseServer>,
    /// Which random choices are made
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many clients work at once
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: u64,
    /// How many sessions they share
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    sessions: u64,
    /// The pause between two kills in milliseconds, on average
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pause_ms: u64,
    /// Give every execution a jail and an interpreter of its own
    #[arg(long)]
    fresh: bool,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// The servers that a mesh of two may use.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DatabaseServer {
    Mariadb,
    Postgres,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { kills, minutes, two_on, seed, clients, sessions, pause_ms, fresh, bench: _ } = Args::parse();
    let (pause, at_most) = (Duration::from_millis(pause_ms), Duration::from_secs(60 * minutes));
    let parts = match two_on {
        None => Parts::One,
        Some(DatabaseServer::Mariadb) => Parts::Two(Kind::MariaDb),
        Some(DatabaseServer::Postgres) => Parts::Two(Kind::Postgres),
    };
    let report = Campaign { parts, kills, at_most, seed, clients, sessions, pause, fresh }.run().await;
    print!("{report}");
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
