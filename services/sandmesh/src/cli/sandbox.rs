//! `sandmesh sandbox`: list, logs.

use clap::{Args, Subcommand};
use sandmesh_proto::scheduler::{ListNodeSandboxesRequest, ReadSandboxLogRequest};
use tonic::Request;

use super::{
    Context, Format, args,
    client::timed,
    failure::Failure,
    output,
    pages::{self, Found},
    table::Table,
    view::SandboxView,
};

/// The most of a log that the server sends at first.
const MOST_LOG: u64 = 1 << 20;

/// What to do with sandboxes.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// List the sandboxes of all nodes
    List(SandboxListArgs),
    /// Print the end of the log of a sandbox's executor
    Logs(SandboxLogsArgs),
}

/// Which sandboxes to list.
#[derive(Debug, Args)]
pub struct SandboxListArgs {
    /// Only sandboxes on this node
    #[arg(long, value_name = "ID")]
    pub node: Option<String>,
    /// Only sandboxes of this session
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

/// Which log to print.
#[derive(Debug, Args)]
pub struct SandboxLogsArgs {
    /// The sandbox
    #[arg(value_name = "ID")]
    pub sandbox: String,
    /// Go on with what is added, until the sandbox is gone
    #[arg(short, long)]
    pub follow: bool,
    /// At most this much of what is there, up to 1Mi
    #[arg(long, default_value = "64Ki", value_name = "SIZE", value_parser = args::bytes)]
    pub tail: u64,
}

pub(super) async fn run(command: SandboxCommand, context: &Context) -> Result<(), Failure> {
    match command {
        SandboxCommand::List(args) => list(args, context).await,
        SandboxCommand::Logs(args) => logs(args, context).await,
    }
}

async fn list(args: SandboxListArgs, context: &Context) -> Result<(), Failure> {
    let (node_id, session_id) = (args.node.unwrap_or_default(), args.session.unwrap_or_default());
    let found = pages::collect(args.limit, async |page_size, page_token| {
        let (node_id, session_id) = (node_id.clone(), session_id.clone());
        let request = ListNodeSandboxesRequest { node_id, session_id, page_size, page_token, offset: 0 };
        let page = context.client.nodes().list_node_sandboxes(timed(request)).await?.into_inner();
        if !page.unreachable_nodes.is_empty() {
            output::note(&format!("nodes that do not answer: {}", page.unreachable_nodes.join(", ")));
        }
        Ok(Found { items: page.sandboxes, next_page_token: page.next_page_token, total: page.total })
    })
    .await?;
    let page = pages::view(found, args.limit, SandboxView::from);
    match context.format {
        Format::Json => output::json(&page),
        Format::Text => {
            let header = ["ID", "SESSION", "NODE", "STATUS", "RESTARTS", "CREATED"];
            output::text(&Table::new(header, page.items.iter().map(SandboxView::row)).to_string())?;
            pages::note(&page);
            Ok(())
        }
    }
}

/// The log as it is; it is written by the executor, and no text of users is in it.
async fn logs(args: SandboxLogsArgs, context: &Context) -> Result<(), Failure> {
    let tail_bytes = u32::try_from(args.tail.min(MOST_LOG)).unwrap_or(u32::MAX);
    let request = ReadSandboxLogRequest { sandbox_id: args.sandbox, tail_bytes, follow: args.follow };
    let request = if args.follow { Request::new(request) } else { timed(request) };
    let mut parts = context.client.nodes().read_sandbox_log(request).await?.into_inner();
    while let Some(part) = parts.message().await? {
        output::bytes(&part.data)?;
    }
    Ok(())
}
