//! One execution from its request to its exit code: what `run` and `exec` have in common.

use std::future::{Future, pending};

use sandmesh_proto::session::{ExecuteRequest, Execution, ExecutionSpec};
use tokio::sync::oneshot;

use super::{
    Context, Format,
    console::Console,
    failure::Failure,
    follow::{Followed, Follower},
    input,
    interrupts::Interrupts,
    output, summary,
    transcript::Transcript,
    view::ExecutionView,
};

/// What to run, and where.
#[derive(Debug)]
pub(super) struct Job {
    /// The session.
    pub(super) session_id: String,
    /// What to run in it.
    pub(super) spec: ExecutionSpec,
    /// Whether this program's standard input is the execution's.
    pub(super) with_input: bool,
}

/// Runs the job, shows its output and its result, and returns the exit code.
pub(super) async fn execute(
    mut job: Job,
    context: &Context,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    let reader = match job.with_input {
        true => input::attach(&mut job.spec).await?,
        false => None,
    };
    let request = ExecuteRequest {
        session_id: job.session_id,
        spec: Some(job.spec),
        execution_id: String::new(),
        request_id: format!("cli-{:032x}", rand::random::<u128>()),
    };
    let console = match context.format {
        Format::Text => Some(Console::open()?),
        Format::Json => None,
    };
    let (sender, started) = oneshot::channel();
    let follower = Follower::new(&context.client, interrupts, console, sender);
    let forward = async {
        match reader {
            Some(reader) => reader.forward(&context.client, started).await,
            None => Ok(()),
        }
    };
    let followed = tokio::select! {
        followed = follower.follow(&request) => followed?,
        failure = only_failure(forward) => return Err(failure),
    };
    report(followed, context.format)
}

async fn only_failure(work: impl Future<Output = Result<(), Failure>>) -> Failure {
    match work.await {
        Ok(()) => pending().await,
        Err(failure) => failure,
    }
}

fn report(followed: Followed, format: Format) -> Result<u8, Failure> {
    let Followed { execution, transcript } = followed;
    let code = summary::exit_code(&execution);
    match format {
        Format::Text => show(&execution, &transcript)?,
        Format::Json => output::json(&ExecutionView::from(with_output(execution, &transcript)))?,
    }
    Ok(code)
}

/// The result, as if it held the output that was streamed.
fn with_output(mut execution: Execution, transcript: &Transcript) -> Execution {
    execution.stdout = transcript.stdout().to_vec().into();
    execution.stderr = transcript.stderr().to_vec().into();
    execution.stdout_truncated |= transcript.stdout_lacks();
    execution.stderr_truncated |= transcript.stderr_lacks();
    execution
}

fn show(execution: &Execution, transcript: &Transcript) -> Result<(), Failure> {
    let truncated = [
        ("output", execution.stdout_truncated || transcript.stdout_lacks()),
        ("error", execution.stderr_truncated || transcript.stderr_lacks()),
    ];
    for (name, _) in truncated.into_iter().filter(|(_, truncated)| *truncated) {
        output::note(&format!("warning: the standard {name} is not complete"));
    }
    if let Some(verdict) = summary::verdict(execution, transcript.stderr()) {
        output::note(&format!("error: {}", super::table::plain(&verdict)));
    }
    if let Some(hint) = summary::hint(execution) {
        output::note(&format!("hint: {hint}"));
    }
    let Some(value) = &execution.return_value_json else { return Ok(()) };
    if transcript.stdout().last().is_some_and(|last| *last != b'\n') {
        output::text("\n")?;
    }
    output::json_text(value)
}
