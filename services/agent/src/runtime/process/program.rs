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

use serde::Deserialize;
use tokio::process::{Child, Command};

use crate::{
    Config,
    config::IsolationPolicy,
    runtime::{Ability, Order, Problems},
    sandbox::{Isolation, Language, SandboxId},
};

/// How long a check or a destruction may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of what a program printed is shown.
pub(super) const TAIL_BYTES: usize = 2048;

/// The program, with the settings that go into each of its command lines.
#[derive(Debug, Clone)]
pub(super) struct Program {
    path: PathBuf,
    config: Config,
    /// The versions of the interpreters that `check` found, in the words of `serve`: so that no sandbox
    /// has to start them all to know.
    versions: Arc<OnceLock<String>>,
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

#[derive(Debug, Deserialize)]
struct Interpreter {
    language: Language,
    version: String,
}

impl Answer {
    fn versions(&self) -> String {
        let known = self.languages.iter().filter(|found| !found.version.is_empty());
        let words: Vec<_> =
            known.map(|found| format!("{}={}", found.language.as_str(), found.version)).collect();
        words.join(",")
    }
}

impl Program {
    /// The program that is configured, or else the one beside `running`.
    pub(super) fn locate(config: &Config, running: Option<&Path>) -> Result<Self, Problems> {
        let path = match (config.executor.as_os_str().is_empty(), running.and_then(Path::parent)) {
            (false, _) => config.executor.clone(),
            (true, Some(beside)) => beside.join("sandmesh-executor"),
            (true, None) => PathBuf::from("sandmesh-executor"),
        };
        if path.is_file() {
            return Ok(Self { path, config: config.clone(), versions: Arc::default() });
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
                self.versions.get_or_init(|| answer.versions());
                Ok(Ability {
                    isolation: answer.isolation,
                    languages: answer.languages.into_iter().map(|found| found.language).collect(),
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
        let resources = &order.spec.resources;
        let at_once = match order.spec.max_concurrent_executions {
            0 => self.config.max_concurrent_executions,
            asked => asked,
        };
        let mut command = self.command("serve");
        add_place(&mut command, dir, &order.id);
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
        command.args(["--warm", order.spec.language.as_str()]);
        if let Some(versions) = self.versions.get().filter(|versions| !versions.is_empty()) {
            command.args(["--known-versions", versions]);
        }
        if let Some(end) = order.spec.expires_at {
            // Rounded up: it must not end before its time.
            let seconds = end.timestamp() + i64::from(end.timestamp_subsec_nanos() > 0);
            command.args(["--expires-at", &seconds.to_string()]);
        }
        self.add_isolation(&mut command, uid);
        let errors = log.try_clone()?;
        // It leaves the agent's session by itself, which the leader of a process group could not.
        command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn()
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

    async fn answer(&self, mut command: Command) -> Result<Output, String> {
        command.stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(ANSWER_TIMEOUT, command.output()).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(format!("cannot run `{}`: {error}", self.path.display())),
            Err(_) => Err(format!("`{}` did not answer within {ANSWER_TIMEOUT:?}", self.path.display())),
        }
    }
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
        let problems = Program::locate(&Config::default(), Some(running)).unwrap_err().to_string();
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
