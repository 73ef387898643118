//! Whether containers can be made here as they must be: found out by making one, with a jail in it, in an image
//! that has nothing.

use std::{path::Path, time::Duration};

use bollard::{
    body_full,
    models::{SystemInfo, SystemInfoCgroupDriverEnum},
    query_parameters::CreateImageOptions,
};
use futures::TryStreamExt;
use tokio::time::{Instant, sleep};

use super::{
    DockerRuntime, Ready,
    container::{self, Plan, entry_args, name},
    engine::{Engine, Trouble},
};
use crate::{
    runtime::{Ability, LogStart, Problems, log, program::tail},
    sandbox::{Language, Resources, SandboxId},
};

/// An image without anything in it.
const EMPTY: (&str, &str) = ("sandmesh-empty", "1");
/// The end of an archive of files, which is all of one without any.
const NO_FILES: [u8; 1024] = [0; 1024];
/// The oldest version of the API that has what is used here: that of Docker Engine 20.10.
const OLDEST_API: (usize, usize) = (1, 41);
/// How long the check in the container may take.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);
/// Limits of the container of a check.
const SMALL: Resources =
    Resources { cpu_millis: 1000, memory_bytes: 64 << 20, disk_bytes: 1 << 20, max_processes: 32 };

/// What is missing, with what to do.
fn problem(text: impl Into<String>) -> Problems {
    Problems(vec![text.into()])
}

/// What the engine says of itself, if containers can be made with it at all.
pub(super) async fn survey(engine: &Engine) -> Result<SystemInfo, Problems> {
    let advice = "start it, or name its socket in setting `agent.docker.socket`";
    let unreachable = |trouble: Trouble| problem(format!("{trouble}; {advice}"));
    let info = engine.info().await.map_err(unreachable)?;
    let spoken = engine.client().await.map_err(unreachable)?.client_version();
    let mut problems = unfit(&info);
    if (spoken.major_version, spoken.minor_version) < OLDEST_API {
        let version = info.server_version.as_deref().unwrap_or("unknown");
        problems
            .push(format!("Docker Engine 20.10 or newer is missing: this is {version}; install a newer one"));
    }
    if problems.is_empty() { Ok(info) } else { Err(Problems(problems)) }
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

/// Whether the engine has a security option.
pub(super) fn has(info: &SystemInfo, option: &str) -> bool {
    let mut options = info.security_options.iter().flatten();
    options.any(|found| {
        found.split(',').any(|word| word == option || word.strip_prefix("name=") == Some(option))
    })
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

impl DockerRuntime {
    /// Makes a container like that of a sandbox, has the executor check in it what it can do, and removes it.
    pub(super) async fn probe(&self, ready: &Ready) -> Result<Ability, Problems> {
        let id = SandboxId::random();
        let probed = self.probe_in(&id, ready).await;
        if let Err(why) = self.clear(&id, &self.installs.join(id.as_str())).await {
            tracing::warn!(why, "left over from a check");
        }
        let mut ability = probed?;
        // What an image has is known when there is a sandbox of it.
        ability.languages = vec![Language::Python, Language::Javascript, Language::Shell];
        ability.warnings.extend(ready.warnings.iter().cloned());
        Ok(ability)
    }

    async fn probe_in(&self, id: &SandboxId, ready: &Ready) -> Result<Ability, Problems> {
        let cannot =
            |what: &str, why: String| problem(format!("a container cannot be {what} for a check: {why}"));
        let image = empty_image(&self.engine).await.map_err(|trouble| cannot("made", trouble.to_string()))?;
        let dir = self.installs.join(id.as_str());
        let uid = self.first_uid();
        let places = self.make_places(&dir, uid, ready).map_err(|error| cannot("made", error.to_string()))?;
        let mut command = vec!["check".to_owned(), "--without-interpreters".to_owned()];
        command.extend(entry_args());
        command
            .extend(self.program.policy_args().into_iter().map(|word| word.to_string_lossy().into_owned()));
        let plan = Plan {
            id,
            image: &image,
            uid,
            resources: &SMALL,
            at_once: 1,
            places: &places,
            command,
            spec: None,
        };
        let body = container::body(&plan, &ready.walls);
        let container = self.engine.create(&name(&self.owner(), id), body).await;
        let container = container.map_err(|trouble| cannot("made", trouble.to_string()))?;
        self.engine.start(&container).await.map_err(|trouble| cannot("started", trouble.to_string()))?;
        let admitted = self.admit(&dir, &container, uid, &SMALL).await;
        admitted.map_err(|why| problem(explain(&why)))?;
        let said = self.finished(&container, &dir).await.map_err(|why| cannot("run", why))?;
        self.program.read_check(&said, &format!("in a container said: {}", tail(&said)))
    }

    /// What the check printed, once it has ended.
    async fn finished(&self, container: &str, dir: &Path) -> Result<Vec<u8>, String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let state = self.engine.state(container).await.map_err(|trouble| trouble.to_string())?;
            if state.is_none_or(|state| state.running != Some(true)) {
                let part = log::read(dir, LogStart::At(0)).map_err(|error| error.to_string())?;
                return Ok(last_object(&part.data).to_vec());
            }
            sleep(PAUSE).await;
        }
        Err(format!("it did not end within {PATIENCE:?}"))
    }
}

/// The last line that looks like what a check prints, or all of it.
fn last_object(said: &[u8]) -> &[u8] {
    said.split(|byte| *byte == b'\n').rfind(|line| line.starts_with(b"{")).unwrap_or(said)
}

/// What to do about control groups that cannot be made.
fn explain(why: &str) -> String {
    if why.contains("control group") {
        return format!(
            "{why}; run the agent on the host itself and as root, or accept the container's limits alone with \
             `agent.isolation.cgroups = \"optional\"`"
        );
    }
    why.to_owned()
}

/// An image that has nothing in it; made here, as no registry is needed for that.
async fn empty_image(engine: &Engine) -> Result<String, Trouble> {
    let (repo, tag) = EMPTY;
    let client = engine.client().await?;
    let name = format!("{repo}:{tag}");
    if client.inspect_image(&name).await.is_ok() {
        return Ok(name);
    }
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(repo.to_owned()),
        tag: Some(tag.to_owned()),
        ..Default::default()
    };
    let made = client.create_image(Some(options), Some(body_full(NO_FILES.to_vec().into())), None);
    let made: Result<Vec<_>, _> = made.try_collect().await;
    made.map(|_| name).map_err(|error| engine.trouble(error))
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
    fn a_parent_is_named_as_its_driver_wants_it() {
        let parent = |driver| cgroup_parent(&info(&[], driver), "sandmesh");
        assert_eq!(parent(SystemInfoCgroupDriverEnum::CGROUPFS), "/sandmesh");
        assert_eq!(parent(SystemInfoCgroupDriverEnum::SYSTEMD), "sandmesh.slice");
    }

    #[test]
    fn the_answer_of_a_check_is_found_among_other_lines() {
        assert_eq!(last_object(b"warning\n{\"ok\":true}\n"), b"{\"ok\":true}");
        assert_eq!(last_object(b"nothing"), b"nothing");
    }
}
