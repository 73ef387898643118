//! `sandmesh health`: asks one process of the mesh, where it listens, whether it can do its work.
//!
//! It reads the settings that the process was started with, so that it knows where that is and which
//! credential it wants; what is healthy is for the process to say (`grpc.health.v1`). It is what a container
//! engine or a supervisor runs, and needs nothing else on the machine.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use sandmesh_mesh::{Link, RoleName, Secret};
use tonic::{Request, metadata::MetadataValue};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{serve::SettingsArgs, settings::Settings};

/// Flags of `sandmesh health`: those that the process was started with.
#[derive(Debug, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// How many seconds it may take to answer
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=60))]
    within: u64,
}

/// Where a process is asked, and what it is shown.
#[derive(Debug)]
struct Door {
    /// What is served there, for a person.
    what: String,
    /// As a link takes it.
    endpoint: String,
    /// The credential of the mesh.
    token: Option<Secret>,
    /// The key of a client.
    key: Option<Secret>,
}

/// Asks, and says what it heard. The exit code is 0 when the process can do its work, 2 for a configuration
/// that cannot be used, 1 for anything else.
pub async fn run(args: &HealthArgs) -> ExitCode {
    let settings = match args.settings.load() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if !settings.mesh.join.is_empty() {
        eprintln!(
            "error: a machine that joined answers the control plane alone (`mesh.join`): ask there, with \
             `sandmesh nodes`"
        );
        return ExitCode::from(2);
    }
    let doors = doors(&settings);
    if doors.is_empty() {
        eprintln!(
            "error: this process serves neither clients nor roles: give the settings that it was started with \
             (`mesh.roles`, `mesh.listen`, `gateway.listen`)"
        );
        return ExitCode::from(2);
    }
    let mut healthy = true;
    for door in &doors {
        match ask(door, Duration::from_secs(args.within)).await {
            Ok(()) => println!("{} at {}: serving", door.what, door.endpoint),
            Err(why) => {
                healthy = false;
                eprintln!("{} at {}: {why}", door.what, door.endpoint);
            }
        }
    }
    ExitCode::from(u8::from(!healthy))
}

/// Everywhere that this process listens.
fn doors(settings: &Settings) -> Vec<Door> {
    let (mesh, mut doors) = (&settings.mesh, Vec::new());
    if !mesh.listen.is_empty() {
        let roles: Vec<_> = mesh.roles.iter().map(|role| role.as_str()).collect();
        let endpoint = endpoint(&mesh.listen);
        doors.push(Door { what: roles.join(", "), endpoint, token: mesh.token.clone(), key: None });
    }
    if mesh.roles.contains(&RoleName::Gateway) {
        let (endpoint, key) =
            (endpoint(&settings.gateway.listen.to_string()), settings.gateway.api_keys.first().cloned());
        doors.push(Door { what: "clients' port".to_owned(), endpoint, token: None, key });
    }
    doors
}

/// How what listens at this address is dialled from the same machine.
fn endpoint(listen: &str) -> String {
    if listen.starts_with("unix:") {
        return listen.to_owned();
    }
    let Ok(mut address) = listen.parse::<SocketAddr>() else { return format!("http://{listen}") };
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{address}")
}

async fn ask(door: &Door, within: Duration) -> Result<(), String> {
    let link = Link::dial_with(&door.endpoint, door.token.clone()).map_err(|error| error.to_string())?;
    // The empty name stands for all that the process does.
    let mut request = Request::new(HealthCheckRequest { service: String::new() });
    if let Some(key) = &door.key {
        let value = MetadataValue::try_from(format!("Bearer {}", key.expose()));
        let value = value.map_err(|_| "its key cannot be sent in a header".to_owned())?;
        request.metadata_mut().insert("authorization", value);
    }
    let asked = tokio::time::timeout(within, HealthClient::new(link).check(request)).await;
    let answer = asked.map_err(|_| format!("it did not answer within {within:?}"))?;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?.into_inner();
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        _ => Err("it serves, and lacks something that it needs to do its work; its log says what".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_process_is_asked_where_it_listens() {
        assert_eq!(endpoint("0.0.0.0:8001"), "http://127.0.0.1:8001");
        assert_eq!(endpoint("[::]:8001"), "http://[::1]:8001");
        assert_eq!(endpoint("10.0.0.2:8001"), "http://10.0.0.2:8001");
        assert_eq!(endpoint("localhost:8001"), "http://localhost:8001");
        assert_eq!(endpoint("unix:/run/s.sock"), "unix:/run/s.sock");
    }

    #[test]
    fn each_door_is_shown_its_own_credential() {
        let flags = json!({
            "mesh": {"data_dir": "/x", "listen": "0.0.0.0:8001", "token": "0123456789abcdef"},
            "gateway": {"api_keys": ["fedcba9876543210"]},
        });
        let doors = doors(&Settings::load(None, flags).unwrap());
        let [mesh, clients] = doors.as_slice() else { panic!("{doors:?}") };
        assert!(mesh.what.contains("state-sync") && mesh.token.is_some() && mesh.key.is_none());
        assert_eq!((clients.endpoint.as_str(), clients.token.is_some()), ("http://127.0.0.1:8000", false));
        assert!(clients.key.is_some());
    }

    #[test]
    fn a_process_that_serves_nobody_has_no_door() {
        let flags = json!({"mesh": {"data_dir": "/x", "roles": ["session"]}});
        assert!(doors(&Settings::load(None, flags).unwrap()).is_empty());
    }
}
