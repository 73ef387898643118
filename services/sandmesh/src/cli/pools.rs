//! `sandmesh pools`: list, set.

use clap::{Args, Subcommand};
use sandmesh_proto::{
    executor::Resources,
    scheduler::{ListPoolsRequest, Pool, SetPoolRequest},
    template::{PoolProfile, PoolSettings},
};

use super::{
    Context, Format,
    args::{bytes, cpu_millis, pair},
    client::timed,
    failure::Failure,
    output,
    table::Table,
    view::PoolView,
};

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
        /// At most this many; 0, and no profile, ends the pool
        #[arg(long, value_name = "N")]
        max: u32,
        /// This many beyond what is expected to be asked for while one is made
        #[arg(long, default_value_t = 0, value_name = "N")]
        buffer: u32,
        /// Warm sandboxes with other limits: `cpu=2,memory=2Gi,max=4`, also with disk, processes, min, buffer; can be
        /// repeated, and those that are not named end
        #[arg(long, value_name = "LIMITS", value_parser = profile)]
        profile: Vec<PoolProfile>,
    },
}

/// `cpu=2,memory=2Gi,max=4`.
fn profile(text: &str) -> Result<PoolProfile, String> {
    let number = |name: &str, text: &str| {
        text.parse::<u32>().map_err(|_| format!("`{name}={text}` is not a whole number"))
    };
    let (mut profile, mut limits) = (PoolProfile::default(), Resources::default());
    for word in text.split(',') {
        let (name, value) = pair(word)?;
        match (name.as_str(), value.as_str()) {
            ("cpu", value) => limits.cpu_millis = cpu_millis(value)?,
            ("memory", value) => limits.memory_bytes = bytes(value)?,
            ("disk", value) => limits.disk_bytes = bytes(value)?,
            (name @ "processes", value) => limits.max_processes = number(name, value)?,
            (name @ "min", value) => profile.min = number(name, value)?,
            (name @ "max", value) => profile.max = number(name, value)?,
            (name @ "buffer", value) => profile.buffer = number(name, value)?,
            (name, _) => {
                return Err(format!("`{name}` is none of cpu, memory, disk, processes, min, max, buffer"));
            }
        }
    }
    profile.resources = Some(limits);
    Ok(profile)
}

pub(super) async fn run(args: PoolsArgs, context: &Context) -> Result<(), Failure> {
    let mut client = context.client.pools();
    match args.command.unwrap_or(PoolCommand::List) {
        PoolCommand::List => {
            let reply = client.list_pools(timed(ListPoolsRequest {})).await?.into_inner();
            show(reply.pools, context, false)
        }
        PoolCommand::Set { template, min, max, buffer, profile: profiles } => {
            let settings = Some(PoolSettings { min, max, buffer, profiles });
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
            let header = [
                "TEMPLATE", "LIMITS", "MIN", "MAX", "BUFFER", "WARM", "STARTING", "CLAIMED", "COLD", "ERROR",
            ];
            output::text(&Table::new(header, views.iter().flat_map(PoolView::rows)).to_string())
        }
    }
}
