//! `sandmesh run`: a file in a session of its own.

mod program;

use std::time::Duration;

use clap::{Args, ValueEnum};
use sandmesh_proto::{
    executor::Mode,
    session::{
        CreateSessionRequest, Dependency, ExecutionSpec, GetSessionRequest, Session, TerminateSessionRequest,
        session::State,
    },
};
use tokio::time::{Instant, sleep};

use super::{
    Context, args,
    client::{Client, timed},
    execute::{Job, execute},
    failure::Failure,
    interrupts::Interrupts,
    output,
    table::plain,
    view,
};
use program::Program;

/// How long a session may take to run.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How often a session that is being created is looked at.
const START_POLL: Duration = Duration::from_millis(100);
/// How much longer than its execution a session lives, in seconds, should nobody terminate it.
const SLACK_SECONDS: u32 = 60;
/// What the server gives an installation of packages, in seconds.
const INSTALL_SECONDS: u32 = 300;
/// What the server gives an execution that asks for no time limit, in seconds.
const DEFAULT_TIMEOUT_SECONDS: u32 = 30;
/// The longest time limit and lifetime there is, in seconds.
const MAX_TIMEOUT_SECONDS: u32 = 3600;

/// What to run, and how.
#[derive(Debug, Args)]
#[command(
    after_help = "Python and JavaScript files have a function `handler(event)`, whose return value is \
    printed as JSON; with --script they run from top to bottom, as shell files always do. The exit code is \
    that of the execution: 128+n for signal n, 124 for its time limit, 130 when cancelled, 125 when sandmesh \
    itself failed. Ctrl-C cancels the execution and terminates the session; a second one leaves at once."
)]
pub struct RunArgs {
    /// The file to run; `-` for the standard input
    pub file: String,
    /// The event for the handler: a JSON object, or @FILE
    #[arg(long, value_name = "JSON")]
    pub event: Option<String>,
    /// Language [default: from the extension, else from the `#!` line]
    #[arg(short, long, value_enum)]
    pub language: Option<LanguageArg>,
    /// Template of the session [default: python-basic, nodejs-basic or shell-basic]
    #[arg(short, long, value_name = "ID", conflicts_with = "session")]
    pub template: Option<String>,
    /// Run in this session, and keep it
    #[arg(short, long, value_name = "ID")]
    pub session: Option<String>,
    /// Keep the session that was created for the run
    #[arg(long)]
    pub keep: bool,
    /// Time limit, for example 30s or 5m [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = args::seconds)]
    pub timeout: Option<u32>,
    /// Environment variable of the execution; may be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = args::pair)]
    pub env: Vec<(String, String)>,
    /// Package to install first, for example click==8.1 or left-pad@^1.3; may be repeated
    #[arg(long = "dep", value_name = "PACKAGE", value_parser = args::dependency, conflicts_with = "session")]
    pub dependencies: Vec<Dependency>,
    /// The function to call [default: handler]
    #[arg(long, value_name = "NAME", conflicts_with = "script")]
    pub entrypoint: Option<String>,
    /// Run the file from top to bottom instead of calling its handler
    #[arg(long)]
    pub script: bool,
    /// Give the standard input to the execution
    #[arg(short = 'i', long)]
    pub stdin: bool,
}

/// A language that a file can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LanguageArg {
    /// Python
    #[value(name = "py", alias = "python")]
    Python,
    /// JavaScript
    #[value(name = "js", alias = "javascript", alias = "node")]
    JavaScript,
    /// Shell
    #[value(name = "sh", alias = "shell", alias = "bash")]
    Shell,
}

pub(super) async fn run(args: RunArgs, context: &Context) -> Result<u8, Failure> {
    let program = Program::read(&args.file, args.language)?;
    let event_json = args.event.as_deref().map(args::event).transpose()?.unwrap_or_default();
    if args.stdin && (args.file == "-" || args.event.as_deref() == Some("@-")) {
        return Err(Failure::usage("the standard input is read already; it cannot be the execution's too"));
    }
    let mut interrupts = Interrupts::listen()?;
    let lease = Lease::take(&args, &program, &context.client, &mut interrupts).await?;
    let spec = ExecutionSpec {
        language: program.language().into(),
        code: program.code,
        timeout_seconds: args.timeout,
        event_json,
        env: args.env.into_iter().collect(),
        entrypoint: args.entrypoint.unwrap_or_default(),
        mode: if args.script { Mode::Script } else { Mode::Unspecified }.into(),
        ..ExecutionSpec::default()
    };
    let outcome = if interrupts.any() {
        Err(Failure::Interrupted)
    } else {
        let job = Job { session_id: lease.session_id.clone(), spec, with_input: args.stdin };
        execute(job, context, &mut interrupts).await
    };
    lease.release(&context.client, &mut interrupts).await;
    outcome
}

/// The session of a run.
#[derive(Debug)]
struct Lease {
    session_id: String,
    keep: bool,
}

impl Lease {
    async fn take(
        args: &RunArgs,
        program: &Program,
        client: &Client,
        interrupts: &mut Interrupts,
    ) -> Result<Self, Failure> {
        if let Some(session_id) = args.session.clone() {
            return Ok(Self { session_id, keep: true });
        }
        let request = CreateSessionRequest {
            template_id: args.template.clone().unwrap_or_else(|| program.template().to_owned()),
            timeout_seconds: lifetime(args.timeout, args.keep, !args.dependencies.is_empty()),
            dependencies: args.dependencies.clone(),
            ..CreateSessionRequest::default()
        };
        let mut sessions = client.sessions();
        // Ctrl-C waits for the answer: a session whose id is not known could not be terminated.
        let answer = interrupts.shield(sessions.create_session(timed(request))).await??;
        let session = answer.into_inner().session.unwrap_or_default();
        let lease = Self { session_id: session.session_id.clone(), keep: args.keep };
        let running = tokio::select! {
            running = until_running(client, session) => running,
            () = interrupts.recv() => Err(Failure::Interrupted),
        };
        match running {
            Ok(()) => Ok(lease),
            Err(failure) => {
                lease.release(client, interrupts).await;
                Err(failure)
            }
        }
    }

    /// Ends the session, unless it is to be kept or there is no time left.
    async fn release(&self, client: &Client, interrupts: &mut Interrupts) {
        let id = &self.session_id;
        if self.keep {
            return output::note(&format!("session {id} is kept"));
        }
        let request = TerminateSessionRequest { session_id: id.clone() };
        let mut sessions = client.sessions();
        let terminated = match interrupts.urgent() {
            true => Err(Failure::Interrupted),
            false => interrupts.shield(sessions.terminate_session(timed(request))).await,
        };
        match terminated {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                let why = plain(status.message());
                output::note(&format!("warning: session {id} was not terminated ({why}); it ends by itself"));
            }
            Err(_) => output::note(&format!("warning: session {id} was not terminated; it ends by itself")),
        }
    }
}

/// The lifetime to ask for: long enough for the execution, and short when nobody will use it again.
/// Packages are installed in that time, too.
fn lifetime(timeout: Option<u32>, keep: bool, installs: bool) -> Option<u32> {
    let slack = SLACK_SECONDS + if installs { INSTALL_SECONDS } else { 0 };
    let needed = timeout.unwrap_or(DEFAULT_TIMEOUT_SECONDS).saturating_add(slack).min(MAX_TIMEOUT_SECONDS);
    // A template gives 60 seconds at least and 300 mostly: only a longer run has to ask for more.
    (!keep || needed > 300).then_some(needed)
}

async fn until_running(client: &Client, mut session: Session) -> Result<(), Failure> {
    let installs = session.dependency_installation.is_some();
    let limit = START_LIMIT + Duration::from_secs(if installs { INSTALL_SECONDS.into() } else { 0 });
    let give_up_at = Instant::now() + limit;
    loop {
        let id = &session.session_id;
        match session.state() {
            State::Running => return Ok(()),
            State::Creating if Instant::now() < give_up_at => sleep(START_POLL).await,
            State::Creating => {
                let limit = limit.as_secs();
                return Err(Failure::broken(format!("session `{id}` does not run after {limit} s")));
            }
            state => {
                let state = view::word(state.as_str_name(), "STATE_");
                return Err(Failure::broken(format!("session `{id}` is {state}: {}", session.status_reason)));
            }
        }
        let request = timed(GetSessionRequest { session_id: id.clone() });
        session = client.sessions().get_session(request).await?.into_inner().session.unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_outlives_its_execution_and_not_by_much() {
        assert_eq!(lifetime(None, false, false), Some(90));
        assert_eq!(lifetime(None, false, true), Some(390));
        assert_eq!(lifetime(Some(3600), false, false), Some(3600));
        assert_eq!(lifetime(Some(u32::MAX), false, false), Some(3600));
    }

    #[test]
    fn a_kept_session_has_the_lifetime_of_its_template_unless_that_is_too_short() {
        assert_eq!(lifetime(None, true, false), None);
        assert_eq!(lifetime(Some(900), true, false), Some(960));
    }
}
