//! Whether a Docker engine is fit, and what is to be known of it.

use bollard::{
    ClientVersion,
    models::{SystemInfo, SystemInfoCgroupDriverEnum},
};

use super::client::Client;
use crate::runtime::{Problems, container::engine::Trouble};

/// The oldest version of the API that has what is used here: that of Docker Engine 20.10.
const OLDEST_API: (usize, usize) = (1, 41);

/// What another engine on the socket lacks that speaks Docker's API.
const PODMAN: &str = "a Docker engine is missing: this is Podman, whose API takes a seccomp profile only as a file of \
                      its own machine and masks `/proc` whatever it is told, so that there is no jail; use Docker or \
                      containerd, or `agent.runtime = \"process\"`";

/// What is missing, with what to do.
fn problem(text: impl Into<String>) -> Problems {
    Problems(vec![text.into()])
}

/// What the engine says of itself, if containers can be made with it at all.
pub(super) async fn survey(engine: &Client) -> Result<(SystemInfo, ClientVersion), Problems> {
    let advice = "start it, or name its socket in setting `agent.docker.socket`";
    let unreachable = |trouble: Trouble| problem(format!("{trouble}; {advice}"));
    let info = engine.info().await.map_err(unreachable)?;
    let spoken = engine.client().await.map_err(unreachable)?.client_version();
    if is_podman(&engine.parts().await.map_err(unreachable)?) {
        return Err(problem(PODMAN));
    }
    let mut problems = unfit(&info);
    if (spoken.major_version, spoken.minor_version) < OLDEST_API {
        let version = info.server_version.as_deref().unwrap_or("unknown");
        problems
            .push(format!("Docker Engine 20.10 or newer is missing: this is {version}; install a newer one"));
    }
    if problems.is_empty() { Ok((info, spoken)) } else { Err(Problems(problems)) }
}

/// What about the engine makes it unfit.
fn unfit(info: &SystemInfo) -> Vec<String> {
    let mut problems = Vec::new();
    if has(info, "rootless") {
        problems.push(
            "an engine that runs as root is missing: a rootless one cannot give each sandbox a uid of its own; use \
             the system's engine, or `agent.runtime = \"process\"`"
                .to_owned(),
        );
    }
    if !has(info, "seccomp") {
        problems.push(
            "seccomp is missing in the engine: use one that was built with it, on a kernel that has it"
                .to_owned(),
        );
    }
    if info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::NONE) {
        problems.push(
            "control groups are missing: the engine has no cgroup driver; configure cgroupfs or systemd"
                .to_owned(),
        );
    }
    problems
}

/// Whether an engine of these parts is Podman.
fn is_podman(parts: &[String]) -> bool {
    parts.iter().any(|part| part.to_lowercase().contains("podman"))
}

/// Whether the engine has a security option.
pub(super) fn has(info: &SystemInfo, option: &str) -> bool {
    let mut options = info.security_options.iter().flatten();
    options.any(|found| {
        found.split(',').any(|word| word == option || word.strip_prefix("name=") == Some(option))
    })
}

/// What it says of itself, for a person.
pub(super) fn about(info: &SystemInfo, spoken: ClientVersion) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let version = info.server_version.clone().unwrap_or_else(unknown);
    let ClientVersion { major_version, minor_version } = spoken;
    let groups = info.cgroup_version.map_or_else(unknown, |version| version.to_string());
    let driver = info.cgroup_driver.map_or_else(unknown, |driver| driver.to_string());
    let apparmor = if has(info, "apparmor") { "AppArmor" } else { "no AppArmor" };
    vec![
        ("engine", format!("Docker Engine {version}, API {major_version}.{minor_version}")),
        ("its control groups", format!("version {groups}, by {driver}")),
        ("its security", format!("seccomp, {apparmor}")),
    ]
}

/// Where the containers' control groups are, in the words of the driver.
pub(super) fn cgroup_parent(info: &SystemInfo, name: &str) -> String {
    match info.cgroup_driver {
        Some(SystemInfoCgroupDriverEnum::SYSTEMD) => format!("{name}.slice"),
        _ => format!("/{name}"),
    }
}

/// What works and could be better.
pub(super) fn warnings(info: &SystemInfo) -> Vec<String> {
    let mut warnings = Vec::new();
    if info.live_restore_enabled != Some(true) {
        warnings.push(
            "sandboxes end when the Docker engine is started anew; to keep them, set \"live-restore\": true in its \
             daemon.json"
                .to_owned(),
        );
    }
    if has(info, "apparmor") {
        warnings.push(
            "containers are under the AppArmor profile of `agent.docker.apparmor`: the engine's own one forbids \
             mounts, and with that the jail"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(options: &[&str], driver: SystemInfoCgroupDriverEnum) -> SystemInfo {
        SystemInfo {
            security_options: Some(options.iter().map(|option| (*option).to_owned()).collect()),
            cgroup_driver: Some(driver),
            ..Default::default()
        }
    }

    #[test]
    fn an_engine_that_cannot_isolate_is_told_with_what_to_do() {
        let good = ["name=seccomp,profile=default", "name=cgroupns"];
        assert!(unfit(&info(&good, SystemInfoCgroupDriverEnum::SYSTEMD)).is_empty());
        let rootless = ["name=seccomp,profile=builtin", "name=rootless"];
        let problems = unfit(&info(&rootless, SystemInfoCgroupDriverEnum::NONE));
        assert!(problems.len() == 2 && problems[0].contains("process"), "{problems:?}");
        assert!(unfit(&info(&[], SystemInfoCgroupDriverEnum::CGROUPFS))[0].contains("seccomp"));
    }

    #[test]
    fn podman_is_told_from_docker_by_its_parts() {
        let parts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(is_podman(&parts(&["Podman Engine", "Conmon", "OCI Runtime (runc)"])));
        assert!(!is_podman(&parts(&["Engine", "containerd", "runc", "docker-init"])));
    }

    #[test]
    fn a_parent_is_named_as_its_driver_wants_it() {
        let parent = |driver| cgroup_parent(&info(&[], driver), "sandmesh");
        assert_eq!(parent(SystemInfoCgroupDriverEnum::CGROUPFS), "/sandmesh");
        assert_eq!(parent(SystemInfoCgroupDriverEnum::SYSTEMD), "sandmesh.slice");
    }
}
