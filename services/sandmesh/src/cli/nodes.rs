//! `sandmesh nodes`: list, drain, resume.

use clap::{Args, Subcommand};
use sandmesh_proto::scheduler::{
    DrainNodeRequest, NodeServiceListNodesRequest, NodeStatus, ResumeNodeRequest,
};

use super::{Context, Format, client::timed, failure::Failure, output, table::Table, view::NodeView};

/// What to do with nodes; without a word they are listed.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// What to do
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
}

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes
    List,
    /// Have a node take no new sandboxes; those it has stay
    Drain {
        /// The node
        #[arg(value_name = "ID")]
        node: String,
    },
    /// Have a node take new sandboxes again
    Resume {
        /// The node
        #[arg(value_name = "ID")]
        node: String,
    },
}

pub(super) async fn run(args: NodesArgs, context: &Context) -> Result<(), Failure> {
    let mut client = context.client.nodes();
    match args.command.unwrap_or(NodeCommand::List) {
        NodeCommand::List => {
            let reply = client.list_nodes(timed(NodeServiceListNodesRequest {})).await?.into_inner();
            show(reply.nodes, context, false)
        }
        NodeCommand::Drain { node } => {
            let reply = client.drain_node(timed(DrainNodeRequest { node_id: node })).await?.into_inner();
            show(reply.node.into_iter().collect(), context, true)
        }
        NodeCommand::Resume { node } => {
            let reply = client.resume_node(timed(ResumeNodeRequest { node_id: node })).await?.into_inner();
            show(reply.node.into_iter().collect(), context, true)
        }
    }
}

/// Prints nodes: as JSON the one that was asked for, or an array.
fn show(nodes: Vec<NodeStatus>, context: &Context, one: bool) -> Result<(), Failure> {
    let views: Vec<NodeView> = nodes.into_iter().map(NodeView::from).collect();
    match (context.format, views.first()) {
        (Format::Json, Some(view)) if one => output::json(view),
        (Format::Json, _) => output::json(&views),
        (Format::Text, _) => {
            let header = ["ID", "STATUS", "RUNTIME", "SANDBOXES", "MEMORY", "LAST SEEN"];
            output::text(&Table::new(header, views.iter().map(NodeView::row)).to_string())
        }
    }
}
