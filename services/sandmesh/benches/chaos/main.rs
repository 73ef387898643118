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

use crate::{
    chaos::{CONTAINER_PAUSE, Campaign, Parts},
    harness::engine,
};

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
    /// Containers of this engine for sandboxes, which dies, too
    #[arg(long, value_enum, conflicts_with = "two_on")]
    runtime: Option<Engine>,
    /// Which random choices are made
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many clients work at once
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: u64,
    /// How many sessions they share
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    sessions: u64,
    /// The pause between two kills in milliseconds, on average: 150, with containers 700
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pause_ms: Option<u64>,
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

/// The engines that sandboxes may be containers of.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Engine {
    Docker,
    Containerd,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { kills, minutes, two_on, runtime, seed, clients, sessions, pause_ms, fresh, bench: _ } =
        Args::parse();
    let parts = match (two_on, runtime) {
        (Some(DatabaseServer::Mariadb), _) => Parts::Two(Kind::MariaDb),
        (Some(DatabaseServer::Postgres), _) => Parts::Two(Kind::Postgres),
        (None, Some(Engine::Docker)) => Parts::InContainers(engine::Kind::Docker),
        (None, Some(Engine::Containerd)) => Parts::InContainers(engine::Kind::Containerd),
        (None, None) => Parts::One,
    };
    let usual = if runtime.is_some() { CONTAINER_PAUSE } else { Duration::from_millis(150) };
    let (pause, at_most) = (pause_ms.map_or(usual, Duration::from_millis), Duration::from_secs(60 * minutes));
    let report = Campaign { parts, kills, at_most, seed, clients, sessions, pause, fresh }.run().await;
    print!("{report}");
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
