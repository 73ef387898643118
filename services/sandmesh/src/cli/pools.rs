//! `sandmesh pools`: list, set.

use clap::{Args, Subcommand};
use sandmesh_proto::{
    scheduler::{ListPoolsRequest, Pool, SetPoolRequest},
    template::PoolSettings,
};

use super::{Context, Format, client::timed, failure::Failure, output, table::Table, view::PoolView};

/// What to do with pools; without a word they are listed.
#[derive(Debug, Args)]
pub struct PoolsArgs {
    /// What to do
    #[command(subcommand)]
    pub command: Option<PoolCommand>,
}

/// What to do with pools.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List the pools
    List,
    /// Say how many sandboxes of a template are to be warm
    Set {
        /// The template
        #[arg(value_name = "TEMPLATE")]
        template: String,
        /// At least this many
        #[arg(long, default_value_t = 0, value_name = "N")]
        min: u32,
        /// At most this many; 0 ends the pool
        #[arg(long, value_name = "N")]
        max: u32,
        /// This many beyond what is expected to be asked for while one is made
        #[arg(long, default_value_t = 0, value_name = "N")]
        buffer: u32,
    },
}

pub(super) async fn run(args: PoolsArgs, context: &Context) -> Result<(), Failure> {
    let mut client = context.client.pools();
    match args.command.unwrap_or(PoolCommand::List) {
        PoolCommand::List => {
            let reply = client.list_pools(timed(ListPoolsRequest {})).await?.into_inner();
            show(reply.pools, context, false)
        }
        PoolCommand::Set { template, min, max, buffer } => {
            let settings = Some(PoolSettings { min, max, buffer });
            let request = SetPoolRequest { template_id: template, settings };
            let reply = client.set_pool(timed(request)).await?.into_inner();
            show(reply.pool.into_iter().collect(), context, true)
        }
    }
}

/// Prints pools: as JSON the one that was set, or an array.
fn show(pools: Vec<Pool>, context: &Context, one: bool) -> Result<(), Failure> {
    let views: Vec<PoolView> = pools.into_iter().map(PoolView::from).collect();
    match (context.format, views.first()) {
        (Format::Json, Some(view)) if one => output::json(view),
        (Format::Json, _) => output::json(&views),
        (Format::Text, _) => {
            let header = ["TEMPLATE", "MIN", "MAX", "BUFFER", "WARM", "STARTING", "CLAIMED", "COLD", "ERROR"];
            output::text(&Table::new(header, views.iter().map(PoolView::row)).to_string())
        }
    }
}
