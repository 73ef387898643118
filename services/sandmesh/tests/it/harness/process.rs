//! One process of the program under test: started, watched, stopped, killed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// The program under test.
pub(crate) const SANDMESH: &str = env!("CARGO_BIN_EXE_sandmesh");

/// The executor, which the program finds beside itself.
pub(crate) fn executor() -> PathBuf {
    let path = Path::new(SANDMESH).with_file_name("sandmesh-executor");
    assert!(
        path.is_file(),
        "`{}` is missing: run `cargo build -p sandmesh-executor` before the tests (`just test` does)",
        path.display()
    );
    path
}

/// How a process is started; kept, so that it can be started again.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) log: PathBuf,
    /// The network namespace that it is in, if that is another than the test's.
    pub(crate) network: Option<String>,
}

impl Launch {
    /// The command with nothing of this process's own settings in it.
    ///
    /// `setpriv` makes the kernel stop the server when the test dies in any way, a runner's time limit
    /// included; it becomes the server, so that the pid is the server's.
    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        if let Some(network) = &self.network {
            command.args(["nsenter", &format!("--net=/run/netns/{network}")]);
        }
        command.arg(SANDMESH).args(&self.args);
        let own = std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("SANDMESH_"));
        for (key, _) in own {
            command.env_remove(key);
        }
        command.envs(self.env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        command
    }

    pub(crate) fn spawn(&self) -> Process {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().expect("setpriv (package util-linux) starts the server");
        Process { launch: self.clone(), child }
    }
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) launch: Launch,
    child: Child,
}

impl Process {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    pub(crate) fn terminate(&self) {
        signal(self.pid(), Signal::TERM);
    }

    /// Waits for its end; `None` when it goes on.
    pub(crate) fn wait(&mut self, at_most: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last lines that it logged.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let text = String::from_utf8_lossy(&fs::read(&self.launch.log).unwrap_or_default()).into_owned();
        let all: Vec<&str> = text.lines().collect();
        format!("--- log of {}\n{}", self.launch.name, all[all.len().saturating_sub(lines)..].join("\n"))
    }
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// The processes of this machine whose command line holds every one of `words`.
pub(crate) fn processes_with(words: &[&str]) -> Vec<i32> {
    let command_line = |pid: i32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    pids().filter(|pid| words.iter().all(|word| command_line(*pid).contains(word))).collect()
}

/// The processes whose parent is one of these.
pub(crate) fn children_of(parents: &[i32]) -> Vec<i32> {
    let parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    pids().filter(|pid| parent(*pid).is_some_and(|parent| parents.contains(&parent))).collect()
}

/// Every process of this machine but this one.
fn pids() -> impl Iterator<Item = i32> {
    let own = i32::try_from(std::process::id()).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != own)
}
