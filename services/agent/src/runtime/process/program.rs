//! The command lines of `sandmesh-executor`: what of isolation and cgroups there is to know, that program
//! knows.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::process::{Child, Command};

use super::install::proxy_socket;
use crate::{
    Config,
    config::IsolationPolicy,
    layers,
    packages::Layer,
    runtime::{Ability, Contents, Order, Problems},
    sandbox::{Isolation, Language, Resources, SandboxId},
};

/// How long a check or a destruction may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long taking out what was installed may take: it may be much, and goes to the disk.
const SEAL_TIMEOUT: Duration = Duration::from_secs(120);
/// How much of what a program printed is shown.
pub(super) const TAIL_BYTES: usize = 2048;

/// The program, with the settings that go into each of its command lines.
#[derive(Debug, Clone)]
pub(super) struct Program {
    path: PathBuf,
    config: Config,
    /// The interpreters that `check` found: so that no sandbox has to start them all to know.
    interpreters: Arc<OnceLock<Vec<Interpreter>>>,
    /// Where the layers of packages are.
    layers: PathBuf,
}

/// The answer of `sandmesh-executor check`.
#[derive(Debug, Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    problems: Vec<Problem>,
    /// What works and could be better.
    #[serde(default)]
    warnings: Vec<Problem>,
    #[serde(default)]
    isolation: Isolation,
    #[serde(default)]
    languages: Vec<Interpreter>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    what: String,
    missing: String,
    fix: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Interpreter {
    language: Language,
    #[serde(default)]
    path: PathBuf,
    version: String,
}

impl Interpreter {
    /// What packages for it depend on.
    fn runtime(&self) -> (Language, String) {
        let name = self.language.runtime_name(&self.version);
        (self.language, format!("{name} {}", self.path.display()))
    }
}

/// The versions that are known, in the words of `serve`.
fn versions(interpreters: &[Interpreter]) -> String {
    let known = interpreters.iter().filter(|found| !found.version.is_empty());
    let words: Vec<_> = known.map(|found| format!("{}={}", found.language.as_str(), found.version)).collect();
    words.join(",")
}

/// An executor to start.
struct Serve<'a> {
    id: &'a SandboxId,
    dir: &'a Path,
    uid: Option<u32>,
    resources: &'a Resources,
    at_once: u32,
}

impl Program {
    /// The program that is configured, or else the one beside `running`.
    pub(super) fn locate(config: &Config, data_dir: &Path, running: Option<&Path>) -> Result<Self, Problems> {
        let path = match (config.executor.as_os_str().is_empty(), running.and_then(Path::parent)) {
            (false, _) => config.executor.clone(),
            (true, Some(beside)) => beside.join("sandmesh-executor"),
            (true, None) => PathBuf::from("sandmesh-executor"),
        };
        if path.is_file() {
            let (config, layers) = (config.clone(), layers::root(data_dir));
            return Ok(Self { path, config, interpreters: Arc::default(), layers });
        }
        Err(Problems(vec![format!(
            "program `{}` is missing; put `sandmesh-executor` beside the running program, or name it in setting \
             `agent.executor`",
            path.display()
        )]))
    }

    /// Asks what this machine can give with the isolation that is configured, to a sandbox of this uid.
    pub(super) async fn check(&self, uid: Option<u32>) -> Result<Ability, Problems> {
        let mut command = self.command("check");
        self.add_isolation(&mut command, uid);
        let output = self.answer(command).await.map_err(|why| Problems(vec![why]))?;
        match serde_json::from_slice::<Answer>(&output.stdout) {
            Ok(answer) if answer.ok => {
                let interpreters = self.interpreters.get_or_init(|| answer.languages);
                Ok(Ability {
                    isolation: answer.isolation,
                    languages: interpreters.iter().map(|found| found.language).collect(),
                    runtimes: interpreters.iter().map(Interpreter::runtime).collect(),
                    warnings: answer.warnings.iter().map(describe).collect(),
                })
            }
            Ok(answer) => Err(Problems(
                answer.problems.iter().map(|found| explain(found, &self.config.isolation)).collect(),
            )),
            Err(_) => Err(Problems(vec![format!(
                "`{} check` ended with {} and said: {}",
                self.path.display(),
                output.status,
                tail(&output.stderr)
            )])),
        }
    }

    /// Starts the executor of a sandbox in `dir`.
    pub(super) fn serve(&self, order: &Order, dir: &Path, uid: Option<u32>, log: File) -> io::Result<Child> {
        let at_once = match order.spec.max_concurrent_executions {
            0 => self.config.max_concurrent_executions,
            asked => asked,
        };
        let serve = Serve { id: &order.id, dir, uid, resources: &order.spec.resources, at_once };
        let mut command = self.serve_command(&serve);
        command.args(["--warm", order.spec.language.as_str()]);
        command.arg("--layers").arg(&self.layers);
        if let Some(layer) = &order.layer {
            command.args(["--layer", &layer_flag(layer)]);
        }
        if let Some(end) = order.spec.expires_at {
            // Rounded up: it must not end before its time.
            let seconds = end.timestamp() + i64::from(end.timestamp_subsec_nanos() > 0);
            command.args(["--expires-at", &seconds.to_string()]);
        }
        start(command, log)
    }

    /// Starts the executor of an installer in `dir`, whose jail shows the socket of its proxy. It ends with
    /// who holds it, and by itself, should this process be killed.
    pub(super) fn serve_installer(
        &self,
        (id, dir, uid): (&SandboxId, &Path, Option<u32>),
        resources: &Resources,
        expires_at: DateTime<Utc>,
        log: File,
    ) -> io::Result<Child> {
        let mut command = self.serve_command(&Serve { id, dir, uid, resources, at_once: 1 });
        command.arg("--proxy").arg(proxy_socket(dir));
        command.args(["--expires-at", &expires_at.timestamp().to_string()]).kill_on_drop(true);
        start(command, log)
    }

    /// Everything of `serve` that is the same for all sandboxes.
    fn serve_command(&self, serve: &Serve<'_>) -> Command {
        let Serve { id, dir, uid, resources, at_once } = *serve;
        let mut command = self.command("serve");
        add_place(&mut command, dir, id);
        for (name, value) in [
            ("--memory-bytes", resources.memory_bytes),
            ("--cpu-millis", resources.cpu_millis.into()),
            ("--max-processes", resources.max_processes.into()),
            ("--disk-bytes", resources.disk_bytes),
            ("--disk-reserve-bytes", self.config.disk_reserve.0),
            ("--max-executions", at_once.into()),
            ("--max-queued", self.config.max_queued.into()),
            ("--max-output-bytes", self.config.max_output.0),
        ] {
            command.arg(name).arg(value.to_string());
        }
        let versions = self.interpreters.get().map(|interpreters| versions(interpreters));
        if let Some(versions) = versions.filter(|versions| !versions.is_empty()) {
            command.args(["--known-versions", &versions]);
        }
        self.add_isolation(&mut command, uid);
        command
    }

    /// Takes what was installed out of the sandbox of an installer, after all of it was killed.
    pub(super) async fn seal(
        &self,
        (id, dir): (&SandboxId, &Path),
        from: &str,
        to: &Path,
        language: Language,
    ) -> Result<Contents, String> {
        let mut command = self.command("seal");
        add_place(&mut command, dir, id);
        command.args(["--cgroup-parent", &self.config.cgroup_parent, "--from", from]);
        command.arg("--to").arg(to).args(["--language", language.as_str()]);
        let output = self.answer_within(SEAL_TIMEOUT, command).await?;
        if !output.status.success() {
            return Err(tail(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// The settings.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The interpreter of Python.
    pub(super) fn python(&self) -> PathBuf {
        let mut found = self.interpreters.get().into_iter().flatten();
        let python = found.find(|found| found.language == Language::Python);
        python.map_or_else(|| "/usr/bin/python3".into(), |python| python.path.clone())
    }

    /// Destroys all that there is of a sandbox.
    pub(super) async fn destroy(&self, dir: &Path, id: &SandboxId) -> Result<(), String> {
        let mut command = self.command("destroy");
        add_place(&mut command, dir, id);
        command.args(["--cgroup-parent", &self.config.cgroup_parent]);
        let output = self.answer(command).await?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("`destroy` ended with {} and said: {}", output.status, tail(&output.stderr)))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.path);
        // What the service was given in its environment is none of a sandbox's business; programs are
        // looked for where the service would find them.
        command.arg(verb).env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
    }

    fn add_isolation(&self, command: &mut Command, uid: Option<u32>) {
        if let Some(uid) = uid {
            command.args(["--uid", &uid.to_string(), "--gid", &uid.to_string()]);
        }
        let IsolationPolicy { jail, seccomp, cgroups, interpreters } = self.config.isolation;
        command.args(["--cgroup-parent", &self.config.cgroup_parent]);
        command.args(["--jail", jail.as_str(), "--seccomp", seccomp.as_str(), "--cgroups", cgroups.as_str()]);
        command.args(["--interpreters", interpreters.as_str()]);
        let interpreters = [
            ("--python", &self.config.python),
            ("--node", &self.config.node),
            ("--shell", &self.config.shell),
        ];
        for (name, path) in interpreters {
            if let Some(path) = path {
                command.args([OsStr::new(name), path.as_os_str()]);
            }
        }
    }

    async fn answer(&self, command: Command) -> Result<Output, String> {
        self.answer_within(ANSWER_TIMEOUT, command).await
    }

    async fn answer_within(&self, limit: Duration, mut command: Command) -> Result<Output, String> {
        command.stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(limit, command.output()).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(format!("cannot run `{}`: {error}", self.path.display())),
            Err(_) => Err(format!("`{}` did not answer within {limit:?}", self.path.display())),
        }
    }
}

/// Starts an executor that writes to this log.
fn start(mut command: Command, log: File) -> io::Result<Child> {
    let errors = log.try_clone()?;
    // It leaves the agent's session by itself, which the leader of a process group could not.
    command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn()
}

fn layer_flag(layer: &Layer) -> String {
    format!("{}:{}", layer.language.as_str(), layer.key)
}

fn add_place(command: &mut Command, dir: &Path, id: &SandboxId) {
    let args: [OsString; 4] = ["--dir".into(), dir.into(), "--sandbox-id".into(), id.as_str().into()];
    command.args(args);
}

fn describe(problem: &Problem) -> String {
    let Problem { what, missing, fix } = problem;
    format!("{what}: missing is {missing}; {fix}")
}

/// One problem, with how to get what is missing and which setting does without.
fn explain(problem: &Problem, policy: &IsolationPolicy) -> String {
    let (what, text) = (&problem.what, describe(problem));
    if text.contains("agent.isolation") {
        return text;
    }
    let about = |words: &[&str]| words.iter().any(|word| what.contains(word));
    let weaker = match what {
        _ if about(&["cgroup", "control group"]) && policy.cgroups == crate::config::Cgroups::Required => {
            "cgroups = \"optional\""
        }
        _ if about(&["seccomp"]) => "seccomp = \"off\"",
        _ if about(&["bubblewrap", "bwrap", "namespace", "jail"]) => "jail = \"off\"",
        _ => return text,
    };
    format!("{text}; or accept weaker isolation with `agent.isolation.{weaker}`")
}

/// The end of what a program printed.
pub(super) fn tail(printed: &[u8]) -> String {
    let start = printed.len().saturating_sub(TAIL_BYTES);
    String::from_utf8_lossy(printed.get(start..).unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_reported_with_its_setting() {
        let running = Path::new("/nowhere/sandmesh");
        let problems =
            Program::locate(&Config::default(), Path::new("/data"), Some(running)).unwrap_err().to_string();
        assert!(problems.contains("`/nowhere/sandmesh-executor`") && problems.contains("`agent.executor`"));
    }

    #[test]
    fn a_problem_says_how_to_get_it_and_how_to_do_without() {
        let problem = |what: &str| Problem {
            what: what.to_owned(),
            missing: "not found in PATH".to_owned(),
            fix: "apt-get install bubblewrap".to_owned(),
        };
        let text = explain(&problem("bubblewrap"), &IsolationPolicy::default());
        assert!(
            text.contains("apt-get install bubblewrap") && text.contains("agent.isolation.jail = \"off\"")
        );
        assert!(!explain(&problem("python"), &IsolationPolicy::default()).contains("agent.isolation"));
    }
}
