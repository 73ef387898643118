//! `sandmesh exec`: a command in a session.

use clap::Args;
use sandmesh_proto::session::ExecutionSpec;

use super::{
    Context, args,
    execute::{Job, execute},
    failure::Failure,
    input,
    interrupts::Interrupts,
};

/// What to run, and in which session.
#[derive(Debug, Args)]
#[command(after_help = "Standard input from a pipe or a file goes to the command. \
    Ctrl-C cancels the command; a second one leaves at once.")]
pub struct ExecArgs {
    /// The session
    pub session: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
    /// Time limit, for example 30s or 5m [default: the server's, 30s]
    #[arg(long, value_name = "DURATION", value_parser = args::seconds)]
    pub timeout: Option<u32>,
    /// Environment variable of the command; may be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = args::pair)]
    pub env: Vec<(String, String)>,
    /// Do not read the standard input
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
}

pub(super) async fn run(args: ExecArgs, context: &Context) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let spec = ExecutionSpec {
        command: args.command,
        timeout_seconds: args.timeout,
        env: args.env.into_iter().collect(),
        ..ExecutionSpec::default()
    };
    let job = Job { session_id: args.session, spec, with_input: !args.no_stdin && input::is_piped() };
    execute(job, context, &mut interrupts).await
}
