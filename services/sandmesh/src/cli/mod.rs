//! The user's commands: parse the words, call the gateway over gRPC, print.
//!
//! It owns the command line of everything but `serve`, the exit codes and the form of the output. It
//! holds no rule about sessions or executions: the server decides, this asks and shows.
//!
//! Exit codes of `run` and `exec`: the code of the execution; 128 + n when signal n ended it; 124 when
//! it reached its time limit; 130 when it was cancelled; 2 when the request is wrong; 125 when
//! sandmesh itself failed. `doctor`: 1 when something is wrong. The other commands: 0, 2 and 125, and
//! `cp` 130 after Ctrl-C.

mod args;
mod backoff;
mod client;
mod console;
mod cp;
mod doctor;
mod exec;
mod execute;
mod execution;
mod failure;
mod follow;
mod input;
mod interrupts;
mod nodes;
mod output;
mod pages;
mod pools;
mod run;
mod sandbox;
mod session;
mod summary;
mod table;
mod template;
mod transcript;
mod view;

use std::process::ExitCode;

use clap::{Args, CommandFactory, Subcommand, ValueEnum};
use clap_complete::Shell;
use sandmesh_mesh::Secret;

use crate::Program;

pub use cp::{CpArgs, Place};
pub use doctor::DoctorArgs;
pub use exec::ExecArgs;
pub use execution::ExecutionCommand;
pub use nodes::{NodeCommand, NodesArgs};
pub use pools::{PoolCommand, PoolsArgs};
pub use run::{LanguageArg, RunArgs};
pub use sandbox::{SandboxCommand, SandboxListArgs, SandboxLogsArgs};
pub use session::{CreateArgs, ListArgs, SessionCommand, StatusArg};
pub use template::TemplateCommand;

use client::Client;
use failure::Failure;

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Address of the gateway
    #[arg(
        long,
        global = true,
        env = "SANDMESH_URL",
        default_value = "http://127.0.0.1:8000",
        value_name = "URL"
    )]
    pub url: String,
    /// API key, where the server wants one
    #[arg(
        long,
        global = true,
        env = "SANDMESH_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        value_parser = args::secret
    )]
    pub api_key: Option<Secret>,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// The form of what a command prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON document, with the field names of the REST API
    Json,
}

/// The user's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a file in a session of its own, and stream its output
    Run(Box<RunArgs>),
    /// Run a command in a session
    Exec(ExecArgs),
    /// Copy files into a session, or out of one
    Cp(CpArgs),
    /// Sessions: create, list, get, terminate, delete
    #[command(subcommand)]
    Session(SessionCommand),
    /// Executions: list, get, cancel
    #[command(subcommand)]
    Execution(ExecutionCommand),
    /// Templates: list, get
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Nodes: list, drain, resume, remove, token
    #[command(alias = "node")]
    Nodes(NodesArgs),
    /// Pools of warm sandboxes: list, set
    #[command(alias = "pool")]
    Pools(PoolsArgs),
    /// Sandboxes: list, logs
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// Check this machine as a host of sandboxes, or attack a deployment
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What a command works with.
#[derive(Debug)]
struct Context {
    client: Client,
    format: Format,
}

/// Runs a command and reports its error, if any, on the standard error.
pub async fn run(command: Command, globals: &Globals) -> ExitCode {
    match dispatch(command, globals).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            for line in failure.lines(&globals.url) {
                output::note(&line);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn dispatch(command: Command, globals: &Globals) -> Result<u8, Failure> {
    if let Command::Completions { shell } = command {
        return output::bytes(&completions(shell)).map(|()| 0);
    }
    if let Command::Doctor(args) = command {
        return Box::pin(doctor::run(args, globals)).await;
    }
    let context = Context { client: Client::new(globals)?, format: globals.output };
    match command {
        Command::Run(args) => Box::pin(run::run(*args, &context)).await,
        Command::Exec(args) => Box::pin(exec::run(args, &context)).await,
        Command::Cp(args) => Box::pin(cp::run(args, &context)).await.map(|()| 0),
        Command::Session(command) => session::run(command, &context).await.map(|()| 0),
        Command::Execution(command) => execution::run(command, &context).await.map(|()| 0),
        Command::Template(command) => template::run(command, &context).await.map(|()| 0),
        Command::Nodes(args) => nodes::run(args, &context).await.map(|()| 0),
        Command::Pools(args) => pools::run(args, &context).await.map(|()| 0),
        Command::Sandbox(command) => sandbox::run(command, &context).await.map(|()| 0),
        Command::Doctor(_) | Command::Completions { .. } => Ok(0),
    }
}

/// The completion script of the whole program, `serve` included.
fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Program::command(), "sandmesh", &mut script);
    script
}

#[cfg(test)]
mod tests;
