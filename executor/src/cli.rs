//! The command line.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    admission, check, destroy, disk,
    isolation::{IsolationOptions, Need, cgroup::Limits, large_pages, layer::Layer},
    parent, relay, seal, serve, snapshot,
};

/// The daemon inside one sandbox.
#[derive(Debug, Parser)]
#[command(name = "sandmesh-executor", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one sandbox on DIR/executor.sock.
    Serve(Box<ServeOptions>),
    /// Tell whether this host can isolate executions as asked, and what is missing.
    Check(CheckOptions),
    /// Make a copy of the system's Python in large pages of memory, and a snapshot of a warm one, for sandboxes of
    /// this host.
    Copy(CopyOptions),
    /// Write a snapshot of a warm Python to the standard output; not for people.
    #[command(hide = true)]
    Template(CopyOptions),
    /// Go on as the warm Python of a snapshot; not for people.
    #[command(hide = true)]
    Restore(RestoreOptions),
    /// Give an executor in a container what only the host can give it.
    Admit(AdmitOptions),
    /// Kill everything in a sandbox and remove its control groups and its directory.
    Destroy(DestroyOptions),
    /// Kill everything in an installer's sandbox, and take what it installed out of it.
    Seal(SealOptions),
    /// Be the warm parent in a jail; not for people.
    #[command(hide = true)]
    Parent,
    /// Print what the files below a directory take; not for people.
    #[command(hide = true)]
    Measure(MeasureOptions),
    /// Run a program of the installer's jail with a way to the proxy; not for people.
    #[command(hide = true)]
    Relay(RelayOptions),
}

/// A language to be warm for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    Python,
    Javascript,
    Shell,
}

/// The limits of a sandbox.
#[derive(Debug, Args)]
pub(crate) struct LimitOptions {
    /// Memory of all executions together, without swap; 0 for no limit.
    #[arg(long)]
    memory_bytes: u64,
    /// CPU of all executions together in thousandths of a core; 0 for no limit.
    #[arg(long)]
    cpu_millis: u32,
    /// Processes and threads of all executions together; 0 for no limit.
    #[arg(long)]
    max_processes: u32,
}

impl LimitOptions {
    pub(crate) fn limits(&self) -> Limits {
        let Self { memory_bytes, cpu_millis, max_processes } = *self;
        Limits { memory_bytes, cpu_millis, max_processes }
    }
}

/// Flags of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// The sandbox's directory.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The sandbox's id; the name of its control group too.
    #[arg(long)]
    pub(crate) sandbox_id: String,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
    /// Size of the workspace; 0 for no limit.
    #[arg(long)]
    pub(crate) disk_bytes: u64,
    /// Free space of the disk below which executions that hide what they use of it are ended; 0 for none.
    #[arg(long, default_value_t = 0)]
    pub(crate) disk_reserve_bytes: u64,
    /// Executions that run at a time.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) max_executions: u32,
    /// Executions that wait for their turn.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub(crate) max_queued: u32,
    /// Bytes kept of each output stream of an execution.
    #[arg(long)]
    pub(crate) max_output_bytes: u64,
    /// The language to be warm for from the start.
    #[arg(long, value_enum)]
    pub(crate) warm: Option<Language>,
    /// A file by which sandboxes take turns at warming up.
    #[arg(long)]
    pub(crate) warm_turns: Option<PathBuf>,
    /// Versions of interpreters that are known, as `check` told them: python=3.11.2,javascript=18.19.0. Those of
    /// others are asked for, which takes starting them.
    #[arg(long, value_delimiter = ',', value_parser = known_version)]
    pub(crate) known_versions: Vec<(Language, String)>,
    /// When to end by itself, in seconds since 1970.
    #[arg(long)]
    pub(crate) expires_at: Option<u64>,
    /// The directory of all layers of packages.
    #[arg(long)]
    pub(crate) layers: Option<PathBuf>,
    /// The directory of the copy of Python and of its snapshot, as `copy` made them.
    #[arg(long)]
    pub(crate) copies: Option<PathBuf>,
    /// Have Python warm by way of the snapshot, which it has in common with other sandboxes.
    #[arg(long, requires = "copies")]
    pub(crate) snapshots: bool,
    /// The layer that executions find at first, as LANGUAGE:KEY.
    #[arg(long, requires = "layers")]
    pub(crate) layer: Option<Layer>,
    /// The socket of a proxy, which the jail is to show: for the sandbox of an installer.
    #[arg(long)]
    pub(crate) proxy: Option<PathBuf>,
    /// The workspace, where it is not in the sandbox's directory.
    #[arg(long)]
    pub(crate) workspace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) isolation: IsolationOptions,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// There need not be an interpreter: what is asked about is the host.
    #[arg(long)]
    pub(crate) without_interpreters: bool,
    #[command(flatten)]
    pub(crate) isolation: IsolationOptions,
}

/// Flags of `copy`.
#[derive(Debug, Args)]
pub(crate) struct CopyOptions {
    /// The directory of the copy, which is of this program alone.
    #[arg(long)]
    pub(crate) into: PathBuf,
    /// Take a snapshot, too.
    #[arg(long)]
    pub(crate) snapshots: bool,
    #[command(flatten)]
    pub(crate) isolation: IsolationOptions,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreOptions {
    /// The descriptor of the snapshot.
    #[arg(long)]
    pub(crate) snapshot: i32,
    /// The variable PATH, where it is not that of the template, as there are packages.
    #[arg(long)]
    pub(crate) path: Option<String>,
    /// Where packages for Python are.
    #[arg(long, requires = "path")]
    pub(crate) packages: Option<String>,
    /// What to execute if it cannot be used.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Flags of `admit`.
#[derive(Debug, Args)]
pub(crate) struct AdmitOptions {
    /// Where the executor waits: as `--entry` was given to it, seen from here.
    #[arg(long)]
    pub(crate) entry: PathBuf,
    /// The sandbox's directory, for its socket and its log.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The container's id: the control group must have it in its name.
    #[arg(long)]
    pub(crate) container: String,
    /// The user that the executor has.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uid: u32,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
    /// As for `serve`.
    #[arg(long, value_enum, default_value = "required")]
    pub(crate) cgroups: Need,
}

fn known_version(text: &str) -> Result<(Language, String), String> {
    let (language, version) = text.split_once('=').ok_or("must be LANGUAGE=VERSION")?;
    Ok((Language::from_str(language, false)?, version.to_owned()))
}

/// Flags of `destroy`.
#[derive(Debug, Args)]
pub(crate) struct DestroyOptions {
    /// The sandbox's directory.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The sandbox's id.
    #[arg(long)]
    pub(crate) sandbox_id: String,
    /// As given to `serve`.
    #[arg(long, default_value = "sandmesh")]
    pub(crate) cgroup_parent: String,
}

/// Arguments of `seal`.
#[derive(Debug, Args)]
pub(crate) struct SealOptions {
    #[command(flatten)]
    pub(crate) place: DestroyOptions,
    /// What was installed, below the workspace.
    #[arg(long)]
    pub(crate) from: PathBuf,
    /// Where it is to go, on the same file system; must not exist.
    #[arg(long)]
    pub(crate) to: PathBuf,
    /// The language that it is for.
    #[arg(long, value_enum)]
    pub(crate) language: Language,
}

/// Arguments of `relay`.
#[derive(Debug, Args)]
pub(crate) struct RelayOptions {
    /// A directory to make first.
    #[arg(long)]
    pub(crate) make: Vec<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Arguments of `measure`.
#[derive(Debug, Args)]
pub(crate) struct MeasureOptions {
    /// Where to look.
    pub(crate) dir: PathBuf,
    /// Bytes above which it makes no difference how many.
    #[arg(long)]
    pub(crate) enough: u64,
}

/// The program: reads the command line, does it, and tells errors on the standard error.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Parent => return parent::run(),
        Command::Measure(options) => return disk::print_size(&options),
        Command::Relay(options) => relay::run(&options),
        Command::Seal(options) => seal::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Check(options) => check::run(&options),
        Command::Restore(options) => return snapshot::restore::run(&options),
        Command::Copy(options) => large_pages::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Template(options) => snapshot::take::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Admit(options) => admission::admit(&options).map(|()| ExitCode::SUCCESS),
        Command::Serve(options) => serve::run(&options),
        Command::Destroy(options) => destroy::run(&options).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|err| {
        eprintln!("sandmesh-executor: {err:#}");
        ExitCode::FAILURE
    })
}
