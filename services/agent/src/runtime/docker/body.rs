//! The container of a sandbox, as Docker is told: all of its walls are here. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
};

use crate::runtime::container::{
    plan::{Bind, Bounds, CPU_PERIOD, EXECUTOR, HOSTNAME, Plan, TMP_OPTIONS, TOOLS, Walls},
    seccomp,
};

/// What the engine is to make.
pub(super) fn body(plan: &Plan<'_>, walls: &Walls) -> ContainerCreateBody {
    let Plan { image, uid, command, .. } = plan;
    ContainerCreateBody {
        image: Some((*image).to_owned()),
        entrypoint: Some(vec![format!("{TOOLS}/{EXECUTOR}")]),
        cmd: Some(command.clone()),
        user: Some(format!("{uid}:{uid}")),
        hostname: Some(HOSTNAME.to_owned()),
        working_dir: Some("/".to_owned()),
        network_disabled: Some(true),
        // What an image would have run from time to time.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        stop_signal: Some("SIGTERM".to_owned()),
        labels: Some(plan.labels(walls)),
        host_config: Some(host_config(plan, walls)),
        ..Default::default()
    }
}

fn host_config(plan: &Plan<'_>, walls: &Walls) -> HostConfig {
    let Bounds { memory, cpu_quota, processes } = plan.bounds(walls);
    HostConfig {
        network_mode: Some("none".to_owned()),
        ipc_mode: Some("private".to_owned()),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        privileged: Some(false),
        security_opt: Some(security(walls)),
        // A jail has a /proc of its own, which the kernel allows only where none of it is hidden. What is
        // hidden otherwise is root's, which nobody in here is.
        masked_paths: Some(Vec::new()),
        readonly_paths: Some(Vec::new()),
        memory: Some(memory),
        // Together with swap: there is none.
        memory_swap: Some(memory),
        // Not in the engine's own unit, of which it allows no more than the machine has.
        cpu_period: Some(CPU_PERIOD),
        cpu_quota: Some(cpu_quota),
        pids_limit: Some(processes),
        // Open files are limited in the jail, and here as the engine is: it may not raise that.
        ulimits: Some(vec![ulimit("core", 0)]),
        cgroup_parent: Some(walls.cgroup_parent.clone()),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), TMP_OPTIONS.join(","))])),
        mounts: Some(plan.places.binds().into_iter().map(mount).collect()),
        init: Some(false),
        log_config: Some(log_config()),
        ..Default::default()
    }
}

fn security(walls: &Walls) -> Vec<String> {
    let profile = walls.apparmor.as_ref().map(|profile| format!("apparmor={profile}"));
    let always = ["no-new-privileges".to_owned(), format!("seccomp={}", seccomp::profile())];
    always.into_iter().chain(profile).collect()
}

fn mount(Bind { source, target, read_only }: Bind<'_>) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Default::default()
    }
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

/// Only what it says before it has a log, and that is little.
fn log_config() -> HostConfigLogConfig {
    let config =
        [("max-size", "64k"), ("max-file", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(config.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::container::plan::tests::planned;

    fn made(apparmor: Option<&str>) -> ContainerCreateBody {
        planned(apparmor, body)
    }

    #[test]
    fn a_container_has_no_network_no_right_and_limits_without_swap() {
        let body = made(None);
        let host = body.host_config.unwrap();
        assert_eq!((host.network_mode.as_deref(), body.network_disabled), (Some("none"), Some(true)));
        assert_eq!((host.readonly_rootfs, host.privileged, host.cap_add), (Some(true), Some(false), None));
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(body.user.as_deref(), Some("200001:200001"));
        let options = host.security_opt.unwrap();
        assert!(options.contains(&"no-new-privileges".to_owned()));
        assert!(options.iter().any(|option| option.starts_with("seccomp={")));
        assert!(host.memory.is_some_and(|memory| memory > 0));
        assert_eq!(host.memory, host.memory_swap, "no swap");
        assert_eq!((host.cpu_period, host.cpu_quota), (Some(100_000), Some(200_000)));
    }

    #[test]
    fn a_profile_is_named_only_where_there_is_apparmor() {
        let named = |body: ContainerCreateBody| {
            let options = body.host_config.unwrap().security_opt.unwrap();
            options.into_iter().find(|option| option.starts_with("apparmor="))
        };
        assert_eq!(named(made(None)), None);
        assert_eq!(named(made(Some("unconfined"))).as_deref(), Some("apparmor=unconfined"));
    }
}
