//! The `sandmesh` program: [`serve`] runs the roles of the mesh in one process, [`health`] asks one how it
//! is, [`cli`] is what people type. This is the only crate that knows every role.

pub mod attack;
pub mod cli;
pub mod health;
pub mod serve;
pub mod settings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs untrusted code in sandboxes: serves the platform, and uses it.
#[derive(Debug, Parser)]
#[command(name = "sandmesh", version, propagate_version = true)]
pub struct Program {
    #[command(flatten)]
    globals: cli::Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the platform: every role in this process, or those named by --roles
    Serve(serve::ServeArgs),
    /// Ask the server that these settings are of, on this machine, whether it can do its work
    Health(health::HealthArgs),
    #[command(flatten)]
    Client(cli::Command),
}

/// Parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let program = Program::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match program.command {
        Command::Serve(args) => runtime.block_on(serve::run(&args)),
        Command::Health(args) => runtime.block_on(health::run(&args)),
        Command::Client(command) => runtime.block_on(cli::run(command, &program.globals)),
    }
}
