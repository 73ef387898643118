//! The server under test: started here on loopback with an empty data directory, and ended with all it made.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::cgroup::Group;

/// How long it may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many uids its sandboxes have.
const UIDS: u32 = 10_000;

/// A running `sandmesh serve`.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    address: String,
    directory: TempDir,
    uid_base: u32,
    group: Group,
}

impl Server {
    /// Starts it with these settings and waits until it is healthy.
    ///
    /// # Errors
    /// When it ends or is not healthy in time; the end of its log is in the error.
    pub(crate) async fn start(program: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let executor = program.with_file_name("sandmesh-executor");
        ensure!(executor.exists(), "`{}` is missing: run `just executor`", executor.display());
        let directory = tempfile::Builder::new().prefix("sandmesh-bench").tempdir()?;
        // A free port: bound, read and given back.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let name = directory.path().file_name().context("the directory has no name")?.to_string_lossy();
        let group = Group::create(&name)?;
        // Beside other servers of this machine: sandboxes with users of their own.
        let uid_base = 100_000_000 + (std::process::id() % 100_000) * UIDS;
        let mut command = in_own_session(program);
        command
            .args(["serve", "--listen", &address, "--data-dir"])
            .arg(directory.path().join("data"))
            .env("SANDMESH_MESH__LISTEN", format!("unix:{}", directory.path().join("mesh.sock").display()))
            .env("SANDMESH_MESH__LOG_FILTER", "warn")
            .env("SANDMESH_AGENT__UID_BASE", uid_base.to_string())
            .env("SANDMESH_AGENT__UID_COUNT", UIDS.to_string())
            .env("SANDMESH_AGENT__CGROUP_PARENT", &*name)
            .env("SANDMESH_AGENT__ON_SHUTDOWN", "destroy")
            .envs(settings.iter().copied())
            .stderr(File::create(directory.path().join("log"))?);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", program.display()))?;
        let mut server = Self { child, address, directory, uid_base, group };
        server.group.admit(server.child.id())?;
        server.healthy().await?;
        Ok(server)
    }

    /// Where it serves clients, as `HOST:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where it serves its roles, as `unix:PATH`.
    pub(crate) fn mesh_address(&self) -> String {
        format!("unix:{}", self.directory.path().join("mesh.sock").display())
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The ids of the sandboxes that have a directory.
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data_dir().join("sandboxes")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The users of its sandboxes.
    pub(crate) fn uids(&self) -> Range<u32> {
        self.uid_base..self.uid_base + UIDS
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// All that runs for it.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end well and in time.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_raw(self.pid()).context("the server has no pid")?, Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the server ended with {status}:\n{}", self.log());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("the server did not end within {PATIENCE:?}:\n{}", self.log())
    }

    async fn healthy(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{}/api/v1/health", self.address);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log());
            }
            if reqwest::get(&url).await.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the server is not healthy after {PATIENCE:?}:\n{}", self.log())
    }

    /// How much is in its log.
    pub(crate) fn log_length(&self) -> u64 {
        fs::metadata(self.log_path()).map_or(0, |meta| meta.len())
    }

    /// What its log has from there on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn log_since(&self, offset: u64) -> anyhow::Result<String> {
        let mut log = File::open(self.log_path())?;
        log.seek(SeekFrom::Start(offset))?;
        let mut text = String::new();
        log.read_to_string(&mut text)?;
        Ok(text)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Err(error) = self.stop()
        {
            eprintln!("{error:#}");
        }
    }
}

/// A program in a kernel session of its own, as a service has, which ends when this process does.
fn in_own_session(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "setsid"]).arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}
