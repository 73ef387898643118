//! A server of the suite's own: on a free port, with an empty data directory and a key, removed at the end.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use sandmesh_agent::config::{Config, RuntimeKind};
use sandmesh_mesh::Secret;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

use super::{
    host::groups_named,
    http::Door,
    target::{Local, Target},
};

/// How long it may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A value in the server's environment that user code must not see.
const SECRET_NAME: &str = "ATTACK_SECRET_OF_THE_HOST";

/// A running server with everything in one process.
#[derive(Debug)]
pub struct OwnServer {
    child: Child,
    dir: TempDir,
    /// How to attack it.
    pub target: Target,
}

impl OwnServer {
    /// Starts `program`, with the runtime, the executor and the engine of these settings, and waits until it is
    /// healthy.
    ///
    /// # Errors
    /// When it ends or is not healthy in time; the end of its log is in the error.
    pub async fn start(program: &Path, template: &str, agent: &Config) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("sma-").tempdir().context("cannot make a directory")?;
        let (data_dir, log) = (dir.path().join("data"), dir.path().join("log"));
        // A free port: bound, read and given back.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (key, secret) = (random("key"), random("host"));
        let mut command = clean(program);
        command.args(["serve", "--listen", &address, "--data-dir"]).arg(&data_dir);
        command.envs(settings(&key)).envs(of_runtime(agent)?);
        let output = File::create(&log)?;
        let child = command
            .env(SECRET_NAME, &secret)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let local =
            Local { data_dir, pids: vec![child.id()], logs: vec![log], secrets: vec![secret, key.clone()] };
        let target = Target {
            url: format!("http://{address}"),
            api_key: Some(Secret::new(key)),
            template: template.to_owned(),
            local: Some(local),
            program: Some(program.to_owned()),
        };
        let mut server = Self { child, dir, target };
        server.healthy().await?;
        Ok(server)
    }

    async fn healthy(&mut self) -> anyhow::Result<()> {
        let door = Door::new(&self.target.url, None)?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log());
            }
            if door.send("GET /api/v1/health", &[], "").await.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("the server is not healthy after {PATIENCE:?}:\n{}", self.log())
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A server leaves the group that it was given; this one nobody else uses. What is not empty stays.
        for group in groups_named(&cgroup_parent()) {
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// The control group of its sandboxes.
fn cgroup_parent() -> String {
    format!("sandmesh-attack-{}", std::process::id())
}

/// Settings that keep it apart from other servers of the machine.
fn settings(key: &str) -> Vec<(&'static str, String)> {
    // Three hundred uids for each of the pids there can be, beyond those that servers have by default.
    let uid_base = 20_000_000 + (std::process::id() % 4_000_000) * 300;
    vec![
        ("SANDMESH_GATEWAY__API_KEYS", format!("[\"{key}\"]")),
        ("SANDMESH_AGENT__UID_BASE", uid_base.to_string()),
        ("SANDMESH_AGENT__UID_COUNT", "300".to_owned()),
        ("SANDMESH_AGENT__CGROUP_PARENT", cgroup_parent()),
        ("SANDMESH_AGENT__ON_SHUTDOWN", "destroy".to_owned()),
    ]
}

/// The settings by which it makes sandboxes as this agent would.
fn of_runtime(agent: &Config) -> anyhow::Result<Vec<(String, String)>> {
    let all = serde_json::to_value(agent)?;
    let mut settings = vec![("SANDMESH_AGENT__EXECUTOR".to_owned(), agent.executor.display().to_string())];
    settings.extend(text(&all["runtime"]).map(|runtime| ("SANDMESH_AGENT__RUNTIME".to_owned(), runtime)));
    let section = match agent.runtime {
        RuntimeKind::Process => return Ok(settings),
        RuntimeKind::Docker => "docker",
        RuntimeKind::Containerd => "containerd",
    };
    for (name, value) in all[section].as_object().into_iter().flatten() {
        let name = format!("SANDMESH_AGENT__{section}__{name}").to_uppercase();
        settings.extend(text(value).map(|value| (name, value)));
    }
    Ok(settings)
}

/// A value as it is in the environment; `None` for one that is not set.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The program, with no setting of whoever runs this.
pub(super) fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SANDMESH_")) {
        command.env_remove(name);
    }
    command
}

/// A value that nobody guesses, with a word before it that says what it is.
pub(super) fn random(what: &str) -> String {
    format!("{what}-{:032x}", rand::random::<u128>())
}

/// Waits for a program to end, at most so long, and gives what it printed.
pub(super) async fn ending(mut command: Command, at_most: Duration) -> anyhow::Result<(Option<i32>, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    match tokio::time::timeout(at_most, command.output()).await {
        Ok(output) => {
            let output = output?;
            let text = [output.stdout, output.stderr].concat();
            Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(_) => Ok((None, "it runs on".to_owned())),
    }
}

/// A path for a socket or a file of one's own below a directory.
pub(super) fn below(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}
