//! The command lines of `sandmesh-executor`: what of isolation and cgroups there is to know, that program
//! knows.

mod answer;

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::process::{Child, Command};

use self::answer::{Answer, Interpreter, describe, explain, versions};
use super::process::proxy_socket;
use crate::{
    Config,
    config::{Interpreters, IsolationPolicy},
    layers,
    packages::Layer,
    runtime::{Ability, Contents, Order, Problems},
    sandbox::{Language, Resources, SandboxId},
};

/// How long a check or a destruction may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long taking out what was installed may take: it may be much, and goes to the disk.
const SEAL_TIMEOUT: Duration = Duration::from_secs(120);
/// How much of what a program printed is shown.
pub(in crate::runtime) const TAIL_BYTES: usize = 2048;

/// The program, with the settings that go into each of its command lines.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct Program {
    path: PathBuf,
    config: Config,
    /// The interpreters that `check` found: so that no sandbox has to start them all to know.
    interpreters: Arc<OnceLock<Vec<Interpreter>>>,
    /// Where the layers of packages are.
    layers: PathBuf,
    /// Where the copy of Python in large pages and its snapshot are, for sandboxes that are processes.
    copies: PathBuf,
}

/// An executor to start.
struct Serve<'a> {
    id: &'a SandboxId,
    dir: &'a Path,
    uid: Option<u32>,
    resources: &'a Resources,
    at_once: u32,
}

/// An executor in a container: whose first process waits, and what it is to be given.
#[derive(Debug)]
pub(in crate::runtime) struct Admit<'a> {
    /// The directory of the sandbox.
    pub(in crate::runtime) dir: &'a Path,
    /// Where the executor waits.
    pub(in crate::runtime) entry: &'a Path,
    /// The id of the container.
    pub(in crate::runtime) container: &'a str,
    pub(in crate::runtime) uid: u32,
    pub(in crate::runtime) resources: &'a Resources,
}

impl Program {
    /// The program that is configured, or else the one beside `running`.
    pub(in crate::runtime) fn locate(
        config: &Config,
        data_dir: &Path,
        running: Option<&Path>,
    ) -> Result<Self, Problems> {
        let path = match (config.executor.as_os_str().is_empty(), running.and_then(Path::parent)) {
            (false, _) => config.executor.clone(),
            (true, Some(beside)) => beside.join("sandmesh-executor"),
            (true, None) => PathBuf::from("sandmesh-executor"),
        };
        if path.is_file() {
            let (config, layers) = (config.clone(), layers::root(data_dir));
            let copies = data_dir.join("interpreters");
            return Ok(Self { path, config, interpreters: Arc::default(), layers, copies });
        }
        Err(Problems(vec![format!(
            "program `{}` is missing; put `sandmesh-executor` beside the running program, or name it in setting \
             `agent.executor`",
            path.display()
        )]))
    }

    /// Asks what this machine can give with the isolation that is configured, to a sandbox of this uid.
    pub(in crate::runtime) async fn check(&self, uid: Option<u32>) -> Result<Ability, Problems> {
        let mut command = self.command("check");
        self.add_isolation(&mut command, uid);
        let (output, ()) = tokio::join!(self.answer(command), self.copy_python(uid));
        let output = output.map_err(|why| Problems(vec![why]))?;
        self.read_check(
            &output.stdout,
            &format!("ended with {} and said: {}", output.status, tail(&output.stderr)),
        )
    }

    /// Has the copy and the snapshot of Python made, once: without them all works as well.
    async fn copy_python(&self, uid: Option<u32>) {
        if self.interpreters.get().is_some() {
            return;
        }
        let mut command = self.command("copy");
        command.arg("--into").arg(&self.copies).args(self.snapshot_arg());
        self.add_isolation(&mut command, uid);
        let why = match self.answer(command).await {
            Ok(output) if output.status.success() => return,
            Ok(output) => tail(&output.stderr),
            Err(why) => why,
        };
        tracing::info!(why, "there is no copy of Python in large pages, or no snapshot of it");
    }

    /// Reads what a check printed; `otherwise` is what is told when it printed nothing of that kind.
    pub(in crate::runtime) fn read_check(
        &self,
        printed: &[u8],
        otherwise: &str,
    ) -> Result<Ability, Problems> {
        match serde_json::from_slice::<Answer>(printed) {
            Ok(answer) if answer.ok => {
                let interpreters = self.interpreters.get_or_init(|| answer.languages);
                Ok(Ability {
                    isolation: answer.isolation,
                    languages: interpreters.iter().map(|found| found.language).collect(),
                    warnings: answer.warnings.iter().map(describe).collect(),
                })
            }
            Ok(answer) => Err(Problems(
                answer.problems.iter().map(|found| explain(found, &self.config.isolation)).collect(),
            )),
            Err(_) => Err(Problems(vec![format!("`{} check` {otherwise}", self.path.display())])),
        }
    }

    /// Starts the executor of a sandbox in `dir`, which warms up in turn with others that are given the same file.
    pub(in crate::runtime) fn serve(
        &self,
        order: &Order,
        (dir, turns): (&Path, &Path),
        uid: Option<u32>,
        log: File,
    ) -> io::Result<Child> {
        let at_once = self.at_once(order);
        let serve = Serve { id: &order.id, dir, uid, resources: &order.spec.resources, at_once };
        let mut command = self.serve_command(&serve);
        command.args(order_args(order, &self.layers));
        command.arg("--copies").arg(&self.copies).args(self.snapshot_arg());
        // What is made for a pool is to be warm when it is claimed, and few are made at once.
        if !order.spec.session_id.is_empty() {
            command.arg("--warm-turns").arg(turns);
        }
        start(command, log)
    }

    /// What `serve` is told of an order in a container, where layers are at `layers`; where things are and how
    /// it is isolated is for the caller to add.
    pub(in crate::runtime) fn container_args(&self, order: &Order, layers: &Path) -> Vec<OsString> {
        let mut args = self.limit_args(&order.spec.resources, self.at_once(order));
        args.extend(self.policy_args());
        args.extend(order_args(order, layers));
        args
    }

    /// What `serve` is told of an installer in a container.
    pub(in crate::runtime) fn installer_args(
        &self,
        resources: &Resources,
        expires_at: DateTime<Utc>,
    ) -> Vec<OsString> {
        let mut args = self.limit_args(resources, 1);
        args.extend(self.policy_args());
        args.extend(["--expires-at".into(), expires_at.timestamp().to_string().into()]);
        args
    }

    /// How many executions may run at once.
    pub(in crate::runtime) fn at_once(&self, order: &Order) -> u32 {
        match order.spec.max_concurrent_executions {
            0 => self.config.max_concurrent_executions,
            asked => asked,
        }
    }

    /// Gives the executor of a container what it waits for. Answers with its process.
    pub(in crate::runtime) async fn admit(&self, admit: &Admit<'_>) -> Result<i32, String> {
        let mut command = self.command("admit");
        command.arg("--entry").arg(admit.entry).arg("--dir").arg(admit.dir);
        command.args(["--container", admit.container, "--uid", &admit.uid.to_string()]);
        command.args(limits(admit.resources));
        command.args(["--cgroups", self.config.isolation.cgroups.as_str()]);
        let output = self.answer(command).await?;
        let said = String::from_utf8_lossy(&output.stdout);
        match (output.status.success(), said.trim().parse()) {
            (true, Ok(pid)) => Ok(pid),
            _ => Err(format!("its executor was not admitted: {}", tail(&output.stderr))),
        }
    }

    /// The program.
    pub(in crate::runtime) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the executor of an installer in `dir`, whose jail shows the socket of its proxy. It ends with
    /// who holds it, and by itself, should this process be killed.
    pub(in crate::runtime) fn serve_installer(
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

    /// Everything of `serve` that is the same for all sandboxes of processes.
    fn serve_command(&self, serve: &Serve<'_>) -> Command {
        let Serve { id, dir, uid, resources, at_once } = *serve;
        let mut command = self.command("serve");
        add_place(&mut command, dir, id.as_str());
        command.args(self.limit_args(resources, at_once));
        let versions = self.interpreters.get().map(|interpreters| versions(interpreters));
        if let Some(versions) = versions.filter(|versions| !versions.is_empty()) {
            command.args(["--known-versions", &versions]);
        }
        self.add_isolation(&mut command, uid);
        command
    }

    fn limit_args(&self, resources: &Resources, at_once: u32) -> Vec<OsString> {
        let mut args: Vec<OsString> = limits(resources).into_iter().map(OsString::from).collect();
        for (name, value) in [
            ("--disk-bytes", resources.disk_bytes),
            ("--disk-reserve-bytes", self.config.disk_reserve.0),
            ("--max-executions", at_once.into()),
            ("--max-queued", self.config.max_queued.into()),
            ("--max-output-bytes", self.config.max_output.0),
        ] {
            args.extend([name.into(), value.to_string().into()]);
        }
        args
    }

    /// Takes what was installed out of the sandbox of an installer, after all of it was killed.
    pub(in crate::runtime) async fn seal(
        &self,
        (id, dir): (&SandboxId, &Path),
        from: &str,
        to: &Path,
        language: Language,
    ) -> Result<Contents, String> {
        let mut command = self.command("seal");
        add_place(&mut command, dir, id.as_str());
        command.args(["--cgroup-parent", &self.config.cgroup_parent, "--from", from]);
        command.arg("--to").arg(to).args(["--language", language.as_str()]);
        let output = self.answer_within(SEAL_TIMEOUT, command).await?;
        if !output.status.success() {
            return Err(tail(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// The settings.
    pub(in crate::runtime) fn config(&self) -> &Config {
        &self.config
    }

    /// What packages for a language depend on; `None` where there is no interpreter.
    pub(in crate::runtime) fn runtime(&self, language: Language) -> Option<String> {
        let mut found = self.interpreters.get().into_iter().flatten();
        found.find(|found| found.language == language).map(Interpreter::runtime)
    }

    /// The interpreter of Python.
    pub(in crate::runtime) fn python(&self) -> PathBuf {
        let mut found = self.interpreters.get().into_iter().flatten();
        let python = found.find(|found| found.language == Language::Python);
        python.map_or_else(|| "/usr/bin/python3".into(), |python| python.path.clone())
    }

    /// Destroys all that there is of a sandbox, whose control groups are below one of this name: its id, or that of
    /// its container.
    pub(in crate::runtime) async fn destroy(&self, dir: &Path, group: &str) -> Result<(), String> {
        let mut command = self.command("destroy");
        add_place(&mut command, dir, group);
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
        command.args(["--cgroup-parent", &self.config.cgroup_parent]);
        command.args(self.policy_args());
    }

    /// The isolation that is configured, and the interpreters.
    pub(in crate::runtime) fn policy_args(&self) -> Vec<OsString> {
        let IsolationPolicy { jail, seccomp, cgroups, interpreters, .. } = self.config.isolation;
        let policy = [
            ("--jail", jail.as_str()),
            ("--seccomp", seccomp.as_str()),
            ("--cgroups", cgroups.as_str()),
            ("--interpreters", interpreters.as_str()),
        ];
        let mut args: Vec<OsString> =
            policy.iter().flat_map(|(name, word)| [name.into(), word.into()]).collect();
        let interpreters = [
            ("--python", &self.config.python),
            ("--node", &self.config.node),
            ("--shell", &self.config.shell),
        ];
        for (name, path) in interpreters {
            if let Some(path) = path {
                args.extend([OsString::from(name), path.into()]);
            }
        }
        args
    }

    /// Whether sandboxes that are processes share a snapshot.
    fn snapshot_arg(&self) -> Option<&'static str> {
        let IsolationPolicy { interpreters, snapshots, .. } = self.config.isolation;
        (snapshots && interpreters == Interpreters::Warm).then_some("--snapshots")
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

/// The limits that control groups enforce.
fn limits(resources: &Resources) -> Vec<String> {
    let limits = [
        ("--memory-bytes", resources.memory_bytes),
        ("--cpu-millis", resources.cpu_millis.into()),
        ("--max-processes", resources.max_processes.into()),
    ];
    limits.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]).collect()
}

/// What `serve` is told of an order, where layers are at `layers`.
fn order_args(order: &Order, layers: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--warm".into(), order.spec.language.as_str().into()];
    args.extend(["--layers".into(), layers.into()]);
    if let Some(layer) = &order.layer {
        args.extend(["--layer".into(), layer_flag(layer).into()]);
    }
    if let Some(end) = order.spec.expires_at {
        // Rounded up: it must not end before its time.
        let seconds = end.timestamp() + i64::from(end.timestamp_subsec_nanos() > 0);
        args.extend(["--expires-at".into(), seconds.to_string().into()]);
    }
    args
}

fn layer_flag(layer: &Layer) -> String {
    format!("{}:{}", layer.language.as_str(), layer.key)
}

fn add_place(command: &mut Command, dir: &Path, id: &str) {
    let args: [OsString; 4] = ["--dir".into(), dir.into(), "--sandbox-id".into(), id.into()];
    command.args(args);
}

/// The end of what a program printed.
pub(in crate::runtime) fn tail(printed: &[u8]) -> String {
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
}
