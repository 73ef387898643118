//! `sandmesh execution`: list, get, cancel.

use clap::Subcommand;
use sandmesh_proto::session::{CancelExecutionRequest, GetExecutionRequest, ListExecutionsRequest};

use super::{
    Context, Format,
    client::timed,
    failure::Failure,
    output,
    pages::{self, Found},
    table::{Table, plain},
    view::ExecutionView,
};

/// What to do with executions.
#[derive(Debug, Subcommand)]
pub enum ExecutionCommand {
    /// List the executions of a session, newest first
    List {
        /// The session
        session: String,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show an execution and its output
    Get {
        /// The execution
        #[arg(value_name = "ID")]
        execution: String,
    },
    /// Cancel an execution and wait for its end
    Cancel {
        /// The execution
        #[arg(value_name = "ID")]
        execution: String,
    },
}

pub(super) async fn run(command: ExecutionCommand, context: &Context) -> Result<(), Failure> {
    match command {
        ExecutionCommand::List { session, limit } => list(&session, limit, context).await,
        ExecutionCommand::Get { execution } => get(execution, context).await,
        ExecutionCommand::Cancel { execution } => cancel(execution, context).await,
    }
}

async fn list(session_id: &str, limit: u32, context: &Context) -> Result<(), Failure> {
    let found = pages::collect(limit, async |page_size, page_token| {
        let request = ListExecutionsRequest {
            session_id: session_id.to_owned(),
            page_size,
            page_token,
            ..ListExecutionsRequest::default()
        };
        let page = context.client.sessions().list_executions(timed(request)).await?.into_inner();
        Ok(Found { items: page.executions, next_page_token: page.next_page_token, total: page.total })
    })
    .await?;
    let page = pages::view(found, limit, ExecutionView::from);
    match context.format {
        Format::Json => output::json(&page),
        Format::Text => {
            let header = ["ID", "STATUS", "LANGUAGE", "EXIT", "DURATION", "CREATED"];
            output::text(&Table::new(header, page.items.iter().map(row)).to_string())?;
            pages::note(&page);
            Ok(())
        }
    }
}

fn row(execution: &ExecutionView) -> [String; 6] {
    let or_dash = |value: String| if value.is_empty() { "-".to_owned() } else { value };
    [
        execution.id.clone(),
        execution.status.clone(),
        or_dash(execution.language.clone().unwrap_or_default()),
        or_dash(execution.exit()),
        or_dash(execution.duration()),
        or_dash(execution.created_at.clone().unwrap_or_default()),
    ]
}

async fn get(execution_id: String, context: &Context) -> Result<(), Failure> {
    let answer = context.client.sessions().get_execution(timed(GetExecutionRequest { execution_id })).await?;
    let view = ExecutionView::from(answer.into_inner().execution.unwrap_or_default());
    if context.format == Format::Json {
        return output::json(&view);
    }
    let mut text = view.fields().to_string();
    for (name, output) in [("standard output", &view.stdout), ("standard error", &view.stderr)] {
        if !output.is_empty() {
            text.push_str(&format!("\n{name}:\n{}\n", output.trim_end_matches('\n')));
        }
    }
    output::text(&text)
}

async fn cancel(execution_id: String, context: &Context) -> Result<(), Failure> {
    let answer =
        context.client.sessions().cancel_execution(timed(CancelExecutionRequest { execution_id })).await?;
    let view = ExecutionView::from(answer.into_inner().execution.unwrap_or_default());
    match context.format {
        Format::Json => output::json(&view),
        Format::Text => output::text(&format!("{} {}\n", plain(&view.id), view.status)),
    }
}
