//! One child of a warm parent: its descriptors, its control group, its end.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStringExt as _, net::UnixStream as Socket},
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};
use rustix::io::Errno;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
};

use super::{
    Sandbox,
    cgroup::{LimitHits, Usage},
    jail::Scene,
    parent::{Host, Parent, SpawnError, stage},
    run_group::{RunGroup, RunGroups},
};
use crate::native::wire::{REPORT_BYTES, WITH_KEEPER, WITH_OWN_KEEPER};

/// A child with the executor's ends of its descriptors: it waits for its request, or runs it.
///
/// Dropped, everything in its nest is killed by its init; [`dismantle`](Self::dismantle) waits for that.
#[derive(Debug)]
pub(crate) struct Process {
    /// Where its code finds things.
    pub(crate) scene: Scene,
    /// Its input as long as nobody can write to it.
    stdin: Option<OwnedFd>,
    /// Its input for whoever writes to it; without that it is empty.
    pub(crate) input: Option<pipe::Sender>,
    pub(crate) stdout: Option<pipe::Receiver>,
    pub(crate) stderr: Option<pipe::Receiver>,
    pub(crate) result: Option<pipe::Receiver>,
    pub(crate) request: Option<RequestPipe>,
    /// Ends when user code starts; a report on it says why that failed.
    pub(crate) start: Option<pipe::Receiver>,
    /// The reports of its init.
    pub(crate) reports: OwnedReadHalf,
    /// Bytes for its init, until the execution takes it.
    pub(crate) control: Option<OwnedWriteHalf>,
    parent: Arc<Parent>,
    /// Who made, or is to make, its keeper.
    pub(crate) keeper: Keeper,
    /// Whether the parent has no other children and goes with this one.
    only_child: bool,
    /// Its group, and where that belongs.
    group: Option<(RunGroup, Arc<RunGroups>)>,
    _scratch: Option<Scratch>,
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
    /// It has, and there is time until the child's request comes.
    Spare,
    OnlyChild,
}

/// Who makes the keeper of a child's memory, see [`keeper`](crate::native::keeper).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeper {
    Nobody,
    /// Its nest, before it is warm.
    Nest,
    /// It itself, when it is.
    Child,
}

impl Sandbox {
    /// Orders a child of a parent. It has a control group of its own and waits for its request.
    pub(crate) async fn order(
        &self,
        parent: Arc<Parent>,
        host: Host,
        kinship: Kinship,
        keeper: Keeper,
    ) -> Result<Process, SpawnError> {
        let number = self.next_number();
        let scene = self.scene(number);
        let scratch = self.jail.is_none().then(|| Scratch(scene.scratch.clone()));
        let groups = self.groups.clone();
        let group = groups.as_deref().map(RunGroups::take).transpose().map_err(stage("create_cgroup"))?;
        let group = group.zip(groups);
        let (pipes, control) = (Pipes::new(), Socket::pair());
        let (pipes, control) =
            (pipes.map_err(stage("create_pipes"))?, control.map_err(stage("create_pipes"))?);
        // Only in a namespace of its own is one known by its number; and `memory_back` looks after what it holds only
        // where executions share a limit.
        let is_looked_after = group.as_ref().is_some_and(|(_, groups)| groups.limits_memory());
        let keeper = if self.jail.is_some() && is_looked_after { keeper } else { Keeper::Nobody };
        let what = match (host, keeper) {
            (_, Keeper::Nest) => vec![WITH_KEEPER],
            (_, Keeper::Child) => vec![WITH_OWN_KEEPER],
            (Host::Program, _) => scene.result_file().into_os_string().into_vec(),
            (Host::Python, _) => Vec::new(),
        };
        let fds: Vec<RawFd> = [control.1.as_raw_fd()]
            .into_iter()
            .chain([&pipes.stdin.0, &pipes.stdout.1, &pipes.stderr.1].map(|fd| fd.as_raw_fd()))
            .chain([&pipes.result.1, &pipes.request.0, &pipes.start.1].map(|fd| fd.as_raw_fd()))
            .chain(group.iter().flat_map(|(group, groups)| groups.doors(group)))
            .collect();
        parent.order(&fds, &what).await.map_err(stage("order_child"))?;
        control.0.set_nonblocking(true).map_err(stage("create_pipes"))?;
        let ends = || -> io::Result<_> {
            let (reports, orders) = UnixStream::from_std(control.0)?.into_split();
            Ok(Process {
                scene,
                stdin: Some(pipes.stdin.1),
                input: None,
                stdout: Some(receiver(pipes.stdout.0)?),
                stderr: Some(receiver(pipes.stderr.0)?),
                result: Some(receiver(pipes.result.0)?),
                request: Some(RequestPipe(pipes.request.1)),
                start: Some(receiver(pipes.start.0)?),
                reports,
                control: Some(orders),
                parent,
                keeper,
                only_child: kinship == Kinship::OnlyChild,
                group,
                _scratch: scratch,
            })
        };
        ends().map_err(stage("create_pipes"))
    }
}

impl Process {
    /// Makes its input one that can be written to.
    pub(crate) fn open_input(&mut self) -> io::Result<()> {
        self.input = self.stdin.take().map(sender).transpose()?;
        Ok(())
    }

    /// Closes what is of use only until its code runs.
    pub(crate) fn note_start(&mut self) {
        (self.start, self.stdin) = (None, None);
    }

    /// Whether it still waits for its request, as far as can be seen.
    pub(crate) fn is_waiting(&self) -> bool {
        let unread = self.reports.try_read(&mut [0; 1]);
        unread.is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock) && !self.parent.is_condemned()
    }

    /// Notes what it used until now, which is none of its execution's.
    pub(crate) fn begin_account(&mut self) {
        if let Some((group, _)) = &mut self.group {
            group.begin_account();
        }
    }

    /// Waits for the end of its init, which is the last of its nest.
    pub(crate) async fn all_gone(&mut self) {
        while self.reports.read(&mut [0; REPORT_BYTES]).await.is_ok_and(|count| count > 0) {}
    }

    /// Waits for the memory that it has, if that is much: who knows of its end may ask for as much at once.
    pub(crate) async fn memory_back(&self) {
        if let Some((group, groups)) = &self.group {
            groups.memory_back(group).await;
        }
    }

    /// Kills everything of the user's in it, from outside.
    pub(crate) fn kill(&mut self) {
        if let Some((group, _)) = &self.group {
            group.kill();
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
    pub(crate) fn account(&mut self) -> Option<(Usage, LimitHits)> {
        self.group.as_mut().map(|(group, _)| group.account())
    }

    /// Gives the group back, killing what is left in it, and ends a jail that was for this child only. False
    /// if something did not die.
    pub(crate) async fn dismantle(mut self, patience: Duration) -> bool {
        drop(self.control.take());
        if self.only_child {
            self.parent.end().await;
        }
        let Some((group, groups)) = self.group.take() else { return true };
        let died = groups.give_back(group, patience).await;
        if !died {
            self.parent.condemn();
        }
        died
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

/// The end of a pipe that this process reads. (The checked way asks what it is and how it was opened.)
fn receiver(end: OwnedFd) -> io::Result<pipe::Receiver> {
    nonblocking(&end, OFlag::O_RDONLY)?;
    pipe::Receiver::from_owned_fd_unchecked(end)
}

/// The end of a pipe that this process writes.
fn sender(end: OwnedFd) -> io::Result<pipe::Sender> {
    nonblocking(&end, OFlag::O_WRONLY)?;
    pipe::Sender::from_owned_fd_unchecked(end)
}

/// Where a request is written. The runtime hears of it only when there is something to wait for, as one write is
/// mostly all.
#[derive(Debug)]
pub(crate) struct RequestPipe(OwnedFd);

impl RequestPipe {
    /// Writes as much as there is room for; gives how much that was.
    pub(crate) fn write(&self, data: &[u8]) -> io::Result<usize> {
        nonblocking(&self.0, OFlag::O_WRONLY)?;
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.0, data)) {
            Err(Errno::AGAIN) => Ok(0),
            written => Ok(written?),
        }
    }

    /// Writes all parts, and closes it.
    pub(crate) async fn write_all(self, mut parts: Vec<Bytes>) -> io::Result<()> {
        /// What a pipe takes at once.
        const SMALL: usize = 64 << 10;
        if parts.iter().map(Bytes::len).sum::<usize>() <= SMALL {
            parts = vec![parts.concat().into()];
        }
        if let Some(first) = parts.first_mut() {
            let written = self.write(first)?;
            first.advance(written);
        }
        if parts.iter().all(Bytes::is_empty) {
            return Ok(());
        }
        let mut pipe = sender(self.0)?;
        for part in parts {
            pipe.write_all(&part).await?;
        }
        Ok(())
    }
}

fn nonblocking(end: &OwnedFd, mode: OFlag) -> nix::Result<()> {
    fcntl(end, FcntlArg::F_SETFL(mode | OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel makes small pipes for who has many.
    #[tokio::test]
    async fn request_is_written_whole_also_to_a_pipe_that_takes_less_at_once() {
        let large: Bytes = (0..25u32 << 10).flat_map(u32::to_le_bytes).collect();
        let small = large.slice(..10 << 10);
        for parts in [vec![], vec![small.clone()], vec![small.clone(), small.clone()], vec![small, large]] {
            let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
            fcntl(&theirs, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
            let (mut reader, mut read) = (receiver(ours).unwrap(), Vec::new());
            let expected = parts.concat();
            let writes = RequestPipe(theirs).write_all(parts);
            let (written, _) = tokio::join!(writes, reader.read_to_end(&mut read));
            written.unwrap();
            assert!(read == expected, "{} bytes of {}", read.len(), expected.len());
        }
    }
}
