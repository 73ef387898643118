//! One child of a warm parent: its descriptors, its control group, its end.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream as Socket,
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    time::{Instant, sleep},
};

use super::{
    Sandbox,
    cgroup::{Group, LimitHits, Limits, Usage},
    jail::Scene,
    parent::{Host, Parent, SpawnError, stage},
};

/// A child with the executor's ends of its descriptors: it waits for its request, or runs it.
///
/// Dropped, everything in its nest is killed by its init; [`dismantle`](Self::dismantle) waits for that.
#[derive(Debug)]
pub(crate) struct Process {
    /// Where its code finds things.
    pub(crate) scene: Scene,
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: Option<pipe::Receiver>,
    pub(crate) stderr: Option<pipe::Receiver>,
    pub(crate) result: Option<pipe::Receiver>,
    pub(crate) request: Option<pipe::Sender>,
    /// Ends when user code starts; a report on it says why that failed.
    pub(crate) start: Option<pipe::Receiver>,
    /// The reports of its init.
    pub(crate) reports: OwnedReadHalf,
    /// Bytes for its init, until the execution takes it.
    pub(crate) control: Option<OwnedWriteHalf>,
    parent: Arc<Parent>,
    /// Whether the parent has no other children and goes with this one.
    only_child: bool,
    group: Option<RunGroup>,
    /// What the group had used before the request.
    before: Usage,
    _scratch: Option<Scratch>,
}

/// The group of one execution; dropped, it is killed and removed as far as that goes at once.
#[derive(Debug)]
struct RunGroup(Group);

impl Drop for RunGroup {
    fn drop(&mut self) {
        if !self.0.remove() {
            self.0.kill();
            self.0.remove();
        }
    }
}

/// The files of one execution without a jail, whose own temporary directory would take them along.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What resists is in the sandbox's directory and goes with it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a parent has other children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kinship {
    Siblings,
    OnlyChild,
}

impl Sandbox {
    /// Orders a child of a parent. It has a control group of its own and waits for its request.
    pub(crate) async fn order(
        &self,
        parent: Arc<Parent>,
        host: Host,
        kinship: Kinship,
    ) -> Result<Process, SpawnError> {
        let number = self.next_number();
        let scene = self.scene(number);
        let scratch = self.jail.is_none().then(|| Scratch(scene.scratch.clone()));
        let group = self.run_group(number).map_err(stage("create_cgroup"))?;
        let doors = group.as_ref().map_or_else(|| Ok(Vec::new()), |group| self.open_doors(&group.0));
        let doors = doors.map_err(stage("open_cgroup"))?;
        let (pipes, control) = (Pipes::new(), Socket::pair());
        let (pipes, control) =
            (pipes.map_err(stage("create_pipes"))?, control.map_err(stage("create_pipes"))?);
        let result_file = if host == Host::Program { scene.result_file() } else { PathBuf::new() };
        let fds: Vec<RawFd> = [control.1.as_raw_fd()]
            .into_iter()
            .chain([&pipes.stdin.0, &pipes.stdout.1, &pipes.stderr.1].map(|fd| fd.as_raw_fd()))
            .chain([&pipes.result.1, &pipes.request.0, &pipes.start.1].map(|fd| fd.as_raw_fd()))
            .chain(doors.iter().map(|door| door.as_raw_fd()))
            .collect();
        parent.order(&fds, &result_file).await.map_err(stage("order_child"))?;
        control.0.set_nonblocking(true).map_err(stage("create_pipes"))?;
        let ends = || -> io::Result<_> {
            let (reports, orders) = UnixStream::from_std(control.0)?.into_split();
            Ok(Process {
                scene,
                stdin: Some(pipe::Sender::from_owned_fd(pipes.stdin.1)?),
                stdout: Some(pipe::Receiver::from_owned_fd(pipes.stdout.0)?),
                stderr: Some(pipe::Receiver::from_owned_fd(pipes.stderr.0)?),
                result: Some(pipe::Receiver::from_owned_fd(pipes.result.0)?),
                request: Some(pipe::Sender::from_owned_fd(pipes.request.1)?),
                start: Some(pipe::Receiver::from_owned_fd(pipes.start.0)?),
                reports,
                control: Some(orders),
                parent,
                only_child: kinship == Kinship::OnlyChild,
                group,
                before: Usage::default(),
                _scratch: scratch,
            })
        };
        ends().map_err(stage("create_pipes"))
    }

    fn run_group(&self, number: u64) -> io::Result<Option<RunGroup>> {
        let Some(runs) = &self.cgroup else { return Ok(None) };
        let group = RunGroup(runs.run(number));
        group.0.create()?;
        // The sandbox's own limit once more, so that the kernel counts the refusals here.
        group.0.limit(Limits { max_processes: self.limits.max_processes, ..Default::default() })?;
        Ok(Some(group))
    }

    /// What the child writes to: the doors of its group, and that of `runs` where the CPU is limited.
    fn open_doors(&self, group: &Group) -> io::Result<Vec<File>> {
        let shared = self.cgroup.iter().flat_map(Group::shared_doors);
        group
            .doors()
            .into_iter()
            .chain(shared)
            .map(|path| OpenOptions::new().write(true).open(path))
            .collect()
    }
}

impl Process {
    /// Whether it still waits for its request, as far as can be seen.
    pub(crate) fn is_waiting(&self) -> bool {
        let unread = self.reports.try_read(&mut [0; 1]);
        unread.is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock) && !self.parent.is_condemned()
    }

    /// Notes what it used until now, which is none of its execution's.
    pub(crate) fn begin_account(&mut self) {
        self.before = self.group.as_ref().map(|group| group.0.usage()).unwrap_or_default();
    }

    /// Kills everything of the user's in it, from outside.
    pub(crate) fn kill(&mut self) {
        if let Some(group) = &self.group {
            group.0.kill();
        }
    }

    /// Its parent is not to have more children.
    pub(crate) fn condemn_parent(&self) {
        self.parent.condemn();
    }

    /// What the jail complained about.
    pub(crate) fn complaint(&self) -> String {
        self.parent.complaint()
    }

    /// What its processes used and which limits they hit; `None` without control groups.
    pub(crate) fn account(&self) -> Option<(Usage, LimitHits)> {
        let group = &self.group.as_ref()?.0;
        let mut usage = group.usage();
        usage.cpu = usage.cpu.saturating_sub(self.before.cpu);
        Some((usage, group.limit_hits()))
    }

    /// Removes the group, killing what is left in it, and a jail that was for this child only. False
    /// if something did not die.
    pub(crate) async fn dismantle(mut self, patience: Duration) -> bool {
        drop(self.control.take());
        if self.only_child {
            self.parent.end().await;
        }
        let Some(group) = &self.group else { return true };
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(250);
        while !group.0.remove() {
            if Instant::now() >= deadline {
                self.parent.condemn();
                return false;
            }
            group.0.kill();
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        true
    }
}

/// Both ends of every pipe of an execution: (read, write).
struct Pipes {
    stdin: (OwnedFd, OwnedFd),
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
    result: (OwnedFd, OwnedFd),
    request: (OwnedFd, OwnedFd),
    start: (OwnedFd, OwnedFd),
}

impl Pipes {
    fn new() -> nix::Result<Self> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        Ok(Self {
            stdin: pipe()?,
            stdout: pipe()?,
            stderr: pipe()?,
            result: pipe()?,
            request: pipe()?,
            start: pipe()?,
        })
    }
}
