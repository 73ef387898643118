//! The server under test: started here on loopback with an empty data directory, and ended with all it made.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long it may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `sandmesh serve`.
pub(crate) struct Server {
    child: Child,
    address: String,
    directory: TempDir,
}

impl Server {
    /// Starts it and waits until it is healthy.
    ///
    /// # Errors
    /// When it ends or is not healthy in time; the end of its log is in the error.
    pub(crate) async fn start(program: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("sandmesh-bench").tempdir()?;
        let log = File::create(directory.path().join("log"))?;
        // A free port: bound, read and given back.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let child = Command::new(program)
            .args(["serve", "--listen", &address, "--data-dir"])
            .arg(directory.path().join("data"))
            // Beside another server of this machine: sandboxes with users and cgroups of their own.
            .env("SANDMESH_AGENT__UID_BASE", "700000")
            .env("SANDMESH_AGENT__CGROUP_PARENT", "sandmesh-bench")
            .env("SANDMESH_AGENT__ON_SHUTDOWN", "destroy")
            .env("SANDMESH_MESH__LOG_FILTER", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let mut server = Self { child, address, directory };
        server.healthy().await?;
        Ok(server)
    }

    /// Where it serves, as `HOST:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end well and in time.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.terminate()
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

    fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn terminate(&mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("the server has no pid")?, Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the server ended with {status}:\n{}", self.log());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        bail!("the server did not end within {PATIENCE:?}:\n{}", self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Err(error) = self.terminate()
        {
            eprintln!("{error:#}");
        }
    }
}
