//! A mesh with two of every process, on two nodes, with a database server and a bucket of its own: any part of
//! it may die.

use std::path::{Path, PathBuf};

use sandmesh_mesh::database::testing::{Kind, OwnServer};

use super::{
    Api, Bucket, Server, Wiring,
    bucket::{KEY, SECRET},
    free_port,
    process::Launch,
    settings_of,
};

/// Which node the second agent is.
pub(crate) const SECOND_NODE: &str = "second";

/// The mesh.
pub(crate) struct Twofold {
    pub(crate) server: Server,
    /// The gateways, with their ports.
    pub(crate) doors: [(Api, u16); 2],
    pub(crate) database: OwnServer,
    pub(crate) bucket: Bucket,
}

impl Twofold {
    /// Starts it on a kind of database server.
    pub(crate) async fn start(kind: Kind, settings: &[(&str, &str)]) -> Self {
        let (database, bucket) = (OwnServer::start(kind), Bucket::start());
        let own = database.database().await;
        let url = own.url();
        let in_bucket = settings_of_bucket(&bucket);
        let mut all: Vec<(&str, &str)> = settings.to_vec();
        all.extend(settings_of(&url));
        all.extend(in_bucket.iter().map(|(name, value)| (*name, value.as_str())));
        all.extend([("SANDMESH_AGENT__MAX_SANDBOXES", "100"), ("SANDMESH_AGENT__UID_COUNT", "150")]);
        let mut server = Server::empty(Some(own));
        let first = server.launches(Wiring::Split, &all);
        let port = free_port();
        for launch in both(first, server.dir.path(), port) {
            server.processes.push(launch.spawn());
        }
        server.ready().await;
        let doors = [(server.api.clone(), server.port), (Api::new(port), port)];
        Self { server, doors, database, bucket }
    }
}

/// The settings by which the session role uses a bucket.
pub(crate) fn settings_of_bucket(bucket: &Bucket) -> [(&'static str, String); 5] {
    [
        ("SANDMESH_SESSION__OBJECT_STORE__URL", format!("{}/sandmesh", bucket.url())),
        ("SANDMESH_SESSION__OBJECT_STORE__ENDPOINT", bucket.endpoint()),
        ("SANDMESH_SESSION__OBJECT_STORE__ALLOW_HTTP", "true".to_owned()),
        ("SANDMESH_SESSION__OBJECT_STORE__ACCESS_KEY_ID", KEY.to_owned()),
        ("SANDMESH_SESSION__OBJECT_STORE__SECRET_ACCESS_KEY", SECRET.to_owned()),
    ]
}

/// The directory of a node with a name of its own, and the cgroup of its sandboxes; `None` for other processes.
pub(super) fn node_of(agent: &Launch) -> Option<(PathBuf, String)> {
    let setting = |name: &str| Some(agent.env.iter().rfind(|(key, _)| key == name)?.1.clone());
    setting("SANDMESH_AGENT__NODE_ID")?;
    let data_dir = agent.args.iter().skip_while(|arg| *arg != "--data-dir").nth(1)?;
    Some((data_dir.into(), setting("SANDMESH_AGENT__CGROUP_PARENT")?))
}

/// Each process twice, and all of them linked to both of each.
fn both(first: Vec<Launch>, dir: &Path, port: u16) -> Vec<Launch> {
    let second: Vec<_> = first.iter().map(|launch| second(launch, dir, port)).collect();
    let addresses: Vec<_> = first.iter().zip(&second).map(|(a, b)| (dial(a), dial(b))).collect();
    let mut all = [first, second].concat();
    for arg in all.iter_mut().flat_map(|launch| &mut launch.args).filter(|arg| arg.contains('=')) {
        if let Some((one, other)) = addresses.iter().find(|(one, _)| arg.ends_with(&format!("={one}"))) {
            *arg = arg.replace(one.as_str(), &format!("{one},{other}"));
        }
    }
    all
}

/// The second process of a kind, at an address and in a directory of its own.
fn second(first: &Launch, dir: &Path, port: u16) -> Launch {
    let name = format!("{}-2", first.name);
    let mut launch = Launch { log: dir.join(format!("{name}.log")), ..first.clone() };
    let listen = match value(first, "--mesh-listen").starts_with("unix:") {
        true => format!("unix:{}", dir.join(format!("{name}.sock")).display()),
        false => format!("127.0.0.1:{}", free_port()),
    };
    replace(&mut launch, "--data-dir", &dir.join(&name).display().to_string());
    replace(&mut launch, "--mesh-listen", &listen);
    if first.args.iter().any(|arg| arg == "--listen") {
        replace(&mut launch, "--listen", &format!("127.0.0.1:{port}"));
    }
    for (key, value) in &mut launch.env {
        match key.as_str() {
            "SANDMESH_AGENT__CGROUP_PARENT" => value.push_str("-2"),
            "SANDMESH_AGENT__UID_BASE" => *value = (value.parse::<u32>().unwrap() + 150).to_string(),
            "SANDMESH_AGENT__ADVERTISE" => *value = format!("http://{listen}"),
            _ => {}
        }
    }
    if first.name == "agent" {
        launch.env.push(("SANDMESH_AGENT__NODE_ID".to_owned(), SECOND_NODE.to_owned()));
    }
    launch.name = name;
    launch
}

fn place(launch: &Launch, flag: &str) -> usize {
    launch.args.iter().position(|arg| arg == flag).unwrap() + 1
}

fn value<'a>(launch: &'a Launch, flag: &str) -> &'a str {
    &launch.args[place(launch, flag)]
}

fn replace(launch: &mut Launch, flag: &str, with: &str) {
    let place = place(launch, flag);
    with.clone_into(&mut launch.args[place]);
}

/// How a process is dialled.
fn dial(launch: &Launch) -> String {
    let listen = value(launch, "--mesh-listen");
    if listen.starts_with("unix:") { listen.to_owned() } else { format!("http://{listen}") }
}
