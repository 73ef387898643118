//! The first process in a jail (`sandmesh-executor init`): it starts the user's process, waits for
//! it, reaps what it leaves behind, and reports.
//!
//! It is not dumpable and user code cannot signal or inspect it; its exit ends the pid namespace, so
//! nothing outlives an execution. Descriptors: 0 the [`Spec`], 1 control (a byte per signal to
//! send; end of file or [`KILL_ALL`] ends everything), 2 [`Report`]s, 3-5 the user's standard
//! streams, 6 the result, 7 the runner's request.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        resource::{UsageWho, getrusage},
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, pipe2},
};
use serde::{Deserialize, Serialize};

use self::child::become_user_process;
use crate::isolation::rlimits::Rlimits;

mod child;

/// The control byte that ends everything: every process is killed and the report follows.
pub(crate) const KILL_ALL: u8 = 0xff;

/// Where the user's process finds the result descriptor, and the runner its request.
pub(crate) const RESULT_FD: RawFd = 3;
/// See [`RESULT_FD`]; the runner closes it before user code runs.
pub(crate) const REQUEST_FD: RawFd = 4;

/// Separates what came over the result descriptor from what was in the result file. No JSON text
/// has it.
pub(crate) const RESULT_FILE_MARK: u8 = 0;

/// What to run and how.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The program and its arguments. A name without a slash is looked up in the `PATH` of `env`.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where to start.
    pub(crate) workdir: String,
    /// Files to write first, for interpreters that want their code in one.
    pub(crate) files: Vec<(String, String)>,
    /// Give the process the result descriptor.
    pub(crate) has_result: bool,
    /// Give the process the request descriptor.
    pub(crate) has_request: bool,
    /// Send what is in this file, up to so many bytes, as the result when the process has ended.
    pub(crate) result_file: Option<(String, u64)>,
    /// Limits of the process.
    pub(crate) rlimits: Option<Rlimits>,
    /// Whether this init is the first process of a pid namespace.
    pub(crate) owns_pid_namespace: bool,
}

impl Spec {
    /// The bytes to hand over: the length of the spec, the spec, the filter (none if empty).
    pub(crate) fn encode(&self, filter: &[u8]) -> Vec<u8> {
        let spec = serde_json::to_vec(self).unwrap_or_default();
        let length = u32::try_from(spec.len()).unwrap_or(u32::MAX).to_le_bytes();
        [&length, spec.as_slice(), filter].concat()
    }

    fn decode(bytes: &[u8]) -> anyhow::Result<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk().context("the spec is empty")?;
        let (spec, filter) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .context("the spec is shorter than it says")?;
        Ok((serde_json::from_slice(spec)?, filter))
    }
}

/// What the init tells the executor, one JSON text a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The user's process runs its program.
    Started,
    /// It ended, by exactly one of these.
    Exited { code: Option<i32>, signal: Option<i32>, usage: ChildUsage },
    /// It could not be started.
    Failed { stage: String, errno: i32, message: String },
}

/// What all reaped processes of the jail used.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ChildUsage {
    pub(crate) cpu_us: u64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
}

/// Runs as the jail's init; the exit code does not matter to anybody.
pub(crate) fn run() -> ExitCode {
    match supervise() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            report(&Report::Failed { stage: "init".to_owned(), errno: 0, message: format!("{err:#}") });
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> anyhow::Result<()> {
    prctl::set_dumpable(false)?;
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read the spec")?;
    let (spec, filter) = Spec::decode(&bytes)?;
    if !spec.owns_pid_namespace {
        prctl::set_child_subreaper(true)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
    }
    for (path, content) in &spec.files {
        write_file(Path::new(path), content).with_context(|| format!("cannot write {path}"))?;
    }
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let Some(main) = start(&spec, filter)? else { return Ok(()) };
    let status = attend(main, &children, spec.owns_pid_namespace)?;
    let code = status.code();
    if let (Some((path, limit)), Some(_)) = (&spec.result_file, code) {
        send_result_file(Path::new(path), *limit);
    }
    if !spec.owns_pid_namespace {
        // Nothing ends by itself with us.
        kill_all(false);
    }
    report(&Report::Exited { code, signal: status.signal(), usage: usage() });
    Ok(())
}

/// Forks the user's process and reports whether its program runs. `None`: it does not.
#[expect(unsafe_code, reason = "fork")]
fn start(spec: &Spec, filter: &[u8]) -> anyhow::Result<Option<Pid>> {
    let (failure, tell) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, so the child may do anything.
    let main = match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            let failed = become_user_process(spec, filter, tell.as_raw_fd());
            child::exit_with(&failed, tell.as_raw_fd());
        }
        Err(errno) => {
            report(&failed_report("fork", errno, "cannot start a process in the jail"));
            return Ok(None);
        }
    };
    drop(tell);
    // Ours until now; a reader of a pipe whose writer is gone must see its end.
    (3..=5).chain(7..=7).for_each(child::close);
    let mut failed = Vec::new();
    File::from(failure).read_to_end(&mut failed)?;
    match child::Failed::decode(&failed) {
        None => report(&Report::Started),
        Some(failed) => {
            let _ = waitpid(main, None);
            report(&failed_report(failed.stage.name(), failed.errno, &failed.stage.message(spec)));
            return Ok(None);
        }
    }
    Ok(Some(main))
}

/// How the main process ended.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Code(i32),
    Signal(i32),
}

impl Ending {
    fn code(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(_) => None,
        }
    }

    fn signal(self) -> Option<i32> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(signal),
        }
    }
}

/// Reaps and obeys until the main process has ended.
fn attend(main: Pid, children: &SignalFd, owns_pid_namespace: bool) -> anyhow::Result<Ending> {
    let control = io::stdout();
    let mut listening = true;
    loop {
        let mut fds = [
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds[..1 + usize::from(listening)], PollTimeout::NONE) {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let commanded = listening && fds[1].any().unwrap_or(false);
        while let Ok(Some(_)) = children.read_signal() {}
        if let Some(ending) = reap(main)? {
            return Ok(ending);
        }
        if commanded {
            listening = obey(main, control.as_raw_fd(), owns_pid_namespace);
        }
    }
}

/// Carries out what came over the control descriptor; false when it is the last.
fn obey(main: Pid, control: RawFd, owns_pid_namespace: bool) -> bool {
    let mut bytes = [0; 64];
    let count = child::read(control, &mut bytes);
    let Some(bytes) = count.and_then(|count| bytes.get(..count)).filter(|bytes| !bytes.is_empty()) else {
        // The executor is gone.
        kill_all(owns_pid_namespace);
        return false;
    };
    for byte in bytes {
        if *byte == KILL_ALL {
            kill_all(owns_pid_namespace);
            return false;
        }
        if let Ok(signal) = Signal::try_from(i32::from(*byte)) {
            let _ = kill(main, signal);
        }
    }
    true
}

/// Reaps every child that ended; says so if the main one is among them.
fn reap(main: Pid) -> anyhow::Result<Option<Ending>> {
    let mut ending = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => ending = Some(Ending::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                ending = Some(Ending::Signal(signal as i32))
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ending),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Kills every process but this one.
fn kill_all(owns_pid_namespace: bool) {
    if owns_pid_namespace {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        return;
    }
    // Orphans become our children, so killing generation after generation reaches all of them.
    const GENERATIONS: usize = 1000;
    for _ in 0..GENERATIONS {
        let own = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let pids: Vec<_> =
            own.split_whitespace().filter_map(|pid| pid.parse().ok().map(Pid::from_raw)).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(pid, Signal::SIGKILL);
            // The main process is left for `reap`, which wants its status.
            let _ = nix::sys::wait::waitid(
                nix::sys::wait::Id::Pid(pid),
                WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
            );
        }
    }
}

/// Sends what is in the result file after the mark. The file is the user's: it may be anything.
fn send_result_file(path: &Path, limit: u64) {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let Ok(file) = fs::OpenOptions::new().read(true).custom_flags(flags).open(path) else { return };
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return;
    }
    let mut content = vec![RESULT_FILE_MARK];
    if file.take(limit + 1).read_to_end(&mut content).is_ok() {
        let _ = child::result_pipe().write_all(&content);
    }
}

fn usage() -> ChildUsage {
    const BLOCK: u64 = 512;
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return ChildUsage::default() };
    let count = |value: i64| u64::try_from(value).unwrap_or(0);
    let micros = |time: nix::sys::time::TimeVal| count(time.tv_sec()) * 1_000_000 + count(time.tv_usec());
    ChildUsage {
        cpu_us: micros(usage.user_time()) + micros(usage.system_time()),
        peak_rss_bytes: count(usage.max_rss()) * 1024,
        read_bytes: count(usage.block_reads()) * BLOCK,
        write_bytes: count(usage.block_writes()) * BLOCK,
    }
}

fn write_file(path: &Path, content: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, content)
}

fn failed_report(stage: &str, errno: Errno, message: &str) -> Report {
    Report::Failed { stage: stage.to_owned(), errno: errno as i32, message: message.to_owned() }
}

/// Writes one report; nobody is left to tell if that fails.
fn report(report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = io::stderr().write_all(&line);
    }
}
