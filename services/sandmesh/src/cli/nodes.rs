//! `sandmesh nodes`: list, drain, resume, remove, and a token for others.

use clap::{Args, Subcommand};
use sandmesh_mesh::{HumanDuration, duration_pb};
use sandmesh_proto::scheduler::{
    CreateJoinTokenRequest, CreateJoinTokenResponse, DrainNodeRequest, NodeServiceListNodesRequest,
    NodeStatus, RemoveNodeRequest, ResumeNodeRequest,
};

use super::{
    Context, Format,
    client::timed,
    failure::Failure,
    output,
    table::Table,
    view::{JoinTokenView, NodeView},
};

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
    /// Take a node that joined, or is lost, out of the mesh: its sessions go on elsewhere
    Remove {
        /// The node
        #[arg(value_name = "ID")]
        node: String,
    },
    /// Make a token with which machines join as nodes
    Token {
        /// How long it works, 1m to 30days [default: as the server is configured]
        #[arg(long, value_name = "DURATION")]
        valid_for: Option<HumanDuration>,
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
        NodeCommand::Remove { node } => {
            let request = RemoveNodeRequest { node_id: node, only_here: false };
            client.remove_node(timed(request)).await?;
            Ok(())
        }
        NodeCommand::Token { valid_for } => {
            let valid_for = valid_for.map(|limit| duration_pb(limit.0));
            let request = timed(CreateJoinTokenRequest { valid_for });
            show_token(&client.create_join_token(request).await?.into_inner(), context)
        }
        NodeCommand::Resume { node } => {
            let reply = client.resume_node(timed(ResumeNodeRequest { node_id: node })).await?.into_inner();
            show(reply.node.into_iter().collect(), context, true)
        }
    }
}

/// Prints a token: alone, so that it can be passed on; what to do with it is said beside it.
fn show_token(made: &CreateJoinTokenResponse, context: &Context) -> Result<(), Failure> {
    let view = JoinTokenView::from(made);
    if let Format::Json = context.format {
        return output::json(&view);
    }
    let port = view.listen.rsplit(':').next().unwrap_or_default();
    output::note(&format!(
        "works until {}; on the other machine, with the address of this one:\n  \
         SANDMESH_MESH__JOIN_TOKEN=TOKEN sandmesh serve --roles agent --join ADDRESS:{port}",
        view.expires_at.as_deref().unwrap_or_default(),
    ));
    output::text(&format!("{}\n", view.token))
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
