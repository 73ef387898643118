//! `sandmesh serve`: from flags to a running node.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use sandmesh_mesh::{ConfigError, Mesh, Node, Role, RoleName, Telemetry, config};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::settings::Settings;

/// Flags of `sandmesh serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the effective configuration and exit
    #[arg(long)]
    dump_config: bool,
}

/// What tells of a process of the mesh. Every flag is a setting, too, and wins over environment and file.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// Where clients are served: REST, gRPC-web and gRPC on one port [default: 127.0.0.1:8000]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Where databases, objects and sandboxes are kept [default: sandmesh in the user's data home]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The roles to run in this process, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROLE")]
    roles: Option<Vec<RoleName>>,
    /// Where this process serves its roles to others: HOST:PORT or unix:PATH [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    mesh_listen: Option<String>,
    /// Where a role runs that does not run here, as role=http://HOST:PORT or role=unix:PATH
    #[arg(long = "link", value_parser = parse_link, value_name = "ROLE=ADDRESS")]
    links: Vec<(RoleName, String)>,
    /// Where machines may join as nodes, over TLS [default: nowhere]
    #[arg(long, value_name = "HOST:PORT")]
    join_listen: Option<SocketAddr>,
    /// Join the mesh there as a node, with --roles agent; the token of `sandmesh nodes token` is in
    /// SANDMESH_MESH__JOIN_TOKEN
    #[arg(long, value_name = "HOST:PORT")]
    join: Option<String>,
    /// A configuration file in TOML
    #[arg(long, env = "SANDMESH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

fn parse_link(text: &str) -> Result<(RoleName, String), String> {
    let (role, address) =
        text.split_once('=').ok_or("write ROLE=ADDRESS, as in session=http://10.0.0.2:8001")?;
    Ok((role.parse::<RoleName>().map_err(|error| error.to_string())?, address.to_owned()))
}

impl SettingsArgs {
    /// The settings of the process: file, environment and flags.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub(crate) fn load(&self) -> Result<Settings, ConfigError> {
        Settings::load(self.config.as_deref(), self.flags())
    }

    /// The flags that were given, in the shape of the settings.
    fn flags(&self) -> Value {
        let mut mesh = Map::new();
        if let Some(dir) = &self.data_dir {
            let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
            mesh.insert("data_dir".into(), json!(dir));
        }
        if let Some(roles) = &self.roles {
            mesh.insert("roles".into(), json!(roles));
        }
        if let Some(address) = &self.mesh_listen {
            mesh.insert("listen".into(), json!(address));
        }
        if !self.links.is_empty() {
            let links: Map<_, _> = self.links.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
            mesh.insert("links".into(), links.into());
        }
        if let Some(address) = &self.join {
            mesh.insert("join".into(), json!(address));
        }
        let join: Map<_, _> = self.join_listen.iter().map(|a| ("listen".to_owned(), json!(a))).collect();
        let gateway: Map<_, _> = self.listen.iter().map(|a| ("listen".to_owned(), json!(a))).collect();
        json!({ "mesh": mesh, "gateway": gateway, "scheduler": { "join": join } })
    }
}

/// Serves until SIGTERM or SIGINT. The exit code is 0 after an orderly stop, 2 for a configuration that
/// cannot be used, 1 for anything else.
pub async fn run(args: &ServeArgs) -> ExitCode {
    let settings = match args.settings.load() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let outcome = if args.dump_config {
        config::dump(&settings).map(|text| print!("{text}")).map_err(anyhow::Error::from)
    } else {
        serve(&settings).await
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&settings.mesh)?;
    let mut node = bind(settings).await?;
    for name in RoleName::ALL.into_iter().filter(|name| settings.mesh.roles.contains(name)) {
        let role = create(name, settings, node.mesh()).await?;
        node.add(role);
    }
    let stop = stop_signal(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    node.run(stop).await?;
    telemetry.flush();
    Ok(())
}

async fn bind(settings: &Settings) -> anyhow::Result<Node> {
    match settings.mesh.join.is_empty() {
        true => Node::bind(&settings.mesh).await,
        false => Node::bind_as(&settings.mesh, &sandmesh_agent::node_id(&settings.agent)?).await,
    }
}

async fn create(name: RoleName, settings: &Settings, mesh: &Mesh) -> anyhow::Result<Arc<dyn Role>> {
    match name {
        RoleName::Session => sandmesh_session::create(&settings.session, mesh).await,
        RoleName::Template => sandmesh_template::create(&settings.template, mesh).await,
        RoleName::Scheduler => sandmesh_scheduler::create(&settings.scheduler, mesh).await,
        RoleName::Agent => sandmesh_agent::create(&settings.agent, mesh).await,
        RoleName::HealthProbe => sandmesh_health_probe::create(&settings.health_probe, mesh).await,
        RoleName::StateSync => sandmesh_state_sync::create(&settings.state_sync, mesh).await,
        RoleName::Gateway => sandmesh_gateway::create(&settings.gateway, mesh).await,
    }
}

/// Resolves at the first signal. A second one ends the process at once: somebody is in a hurry.
#[expect(clippy::disallowed_methods, reason = "outlives every tracked task on purpose")]
async fn stop_signal(mut terminate: Signal, mut interrupt: Signal) {
    either(&mut terminate, &mut interrupt).await;
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        std::process::exit(130);
    });
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
