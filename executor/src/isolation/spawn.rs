//! Putting one execution into a fresh jail: its descriptors, its control group, its process.
//!
//! What the jail's init gets, by descriptor (see `init.rs`): 0 the spec, 1 control, 2 reports (and
//! whatever bubblewrap has to complain about), 3-5 the user's standard streams, 6 the result, 7 the
//! runner's request. All else is closed on exec.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::memfd::{MFdFlags, memfd_create},
    unistd::pipe2,
};
use tokio::{
    net::unix::pipe,
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::{
    Sandbox,
    cgroup::{Group, LimitHits, Usage},
};
use crate::init;

/// Where distributions put bubblewrap.
pub(crate) const BUBBLEWRAP: [&str; 3] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];

/// A step that failed while a process was being made.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub(crate) stage: &'static str,
    pub(crate) source: io::Error,
}

/// A running jail with the executor's ends of its descriptors.
///
/// Dropping it kills the jail's processes and removes the group, without waiting for it to be done.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: Option<pipe::Receiver>,
    pub(crate) stderr: Option<pipe::Receiver>,
    pub(crate) result: Option<pipe::Receiver>,
    pub(crate) report: Option<pipe::Receiver>,
    pub(crate) control: Option<pipe::Sender>,
    child: Child,
    group: Option<RunGroup>,
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

impl Sandbox {
    /// Starts the jail of one execution. `request` is what the runner reads; it is kept off the
    /// command line and out of the environment.
    ///
    /// Must be called on a thread that lives as long as the executor (a worker of the runtime is
    /// one): the kernel kills the jail when the thread that started it ends.
    pub(crate) fn spawn(
        &self,
        id: &str,
        mut spec: init::Spec,
        request: &[&[u8]],
    ) -> Result<Process, SpawnError> {
        spec.rlimits = Some(self.rlimits());
        spec.owns_pid_namespace = self.jail.is_some();
        let scratch = self.jail.is_none().then(|| Scratch(self.scene(id).scratch));
        let group = self.run_group(id).map_err(stage("create_cgroup"))?;
        let spec = spec.encode(self.seccomp.as_deref().unwrap_or_default());
        let spec = memory_file(&[&spec]).map_err(stage("write_request"))?;
        let request = memory_file(request).map_err(stage("write_request"))?;
        let pipes = Pipes::new().map_err(stage("create_pipes"))?;
        let mut command = self.command();
        command.stdin(spec).stdout(pipes.control.0).stderr(pipes.report.1);
        let inherited = [pipes.stdin.0, pipes.stdout.1, pipes.stderr.1, pipes.result.1, request];
        pass_on(&mut command, &inherited, group.as_ref().map(|g| &g.0)).map_err(stage("spawn_jail"))?;
        let child = command.spawn().map_err(stage("spawn_jail"))?;
        let ends = || -> io::Result<_> {
            Ok(Process {
                stdin: Some(pipe::Sender::from_owned_fd(pipes.stdin.1)?),
                stdout: Some(pipe::Receiver::from_owned_fd(pipes.stdout.0)?),
                stderr: Some(pipe::Receiver::from_owned_fd(pipes.stderr.0)?),
                result: Some(pipe::Receiver::from_owned_fd(pipes.result.0)?),
                report: Some(pipe::Receiver::from_owned_fd(pipes.report.0)?),
                control: Some(pipe::Sender::from_owned_fd(pipes.control.1)?),
                child,
                group,
                _scratch: scratch,
            })
        };
        ends().map_err(stage("create_pipes"))
    }

    fn run_group(&self, id: &str) -> io::Result<Option<RunGroup>> {
        let Some(runs) = &self.cgroup else { return Ok(None) };
        let group = RunGroup(runs.child(id));
        group.0.create()?;
        // The sandbox's own limit once more, so that the kernel counts the refusals here.
        group.0.limit(super::Limits { max_processes: self.limits.max_processes, ..Default::default() })?;
        Ok(Some(group))
    }

    fn command(&self) -> Command {
        let mut command = match &self.jail {
            Some(arguments) => {
                let bubblewrap =
                    BUBBLEWRAP.iter().find(|path| Path::new(path).exists()).unwrap_or(&BUBBLEWRAP[0]);
                let mut command = Command::new(bubblewrap);
                command.args(arguments.as_slice());
                command
            }
            None => {
                let mut command = Command::new(&self.rooms.executor);
                command.arg("init");
                command
            }
        };
        command.env_clear().kill_on_drop(true);
        command
    }
}

impl Process {
    /// Waits for the jail to be gone. Cancel safe.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills everything in the jail, at once.
    pub(crate) fn kill(&mut self) {
        // Its pid namespace ends with the jail's first process, whose death follows from this.
        let _ = self.child.start_kill();
        if let Some(group) = &self.group {
            group.0.kill();
        }
    }

    /// What the processes used and which limits they hit; `None` without control groups.
    pub(crate) fn account(&self) -> Option<(Usage, LimitHits)> {
        self.group.as_ref().map(|group| (group.0.usage(), group.0.limit_hits()))
    }

    /// Removes the group, killing what is left in it. False if something in it did not die.
    pub(crate) async fn dismantle(self, patience: Duration) -> bool {
        let Some(group) = &self.group else { return true };
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(250);
        while !group.0.remove() {
            if Instant::now() >= deadline {
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
    report: (OwnedFd, OwnedFd),
    control: (OwnedFd, OwnedFd),
}

impl Pipes {
    fn new() -> nix::Result<Self> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        Ok(Self {
            stdin: pipe()?,
            stdout: pipe()?,
            stderr: pipe()?,
            result: pipe()?,
            report: pipe()?,
            control: pipe()?,
        })
    }
}

/// Bytes as a file that is read from its start and has no name.
fn memory_file(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create("sandmesh", MFdFlags::MFD_CLOEXEC)?);
    let mut offset = 0;
    for part in parts {
        // By position: the reader shares this file's offset, which must stay at the start.
        file.write_all_at(part, offset)?;
        offset += part.len() as u64;
    }
    Ok(file.into())
}

/// Gives the child `fds` as descriptors 3, 4, ... and makes it enter `group` before anything else.
#[expect(unsafe_code, reason = "code between fork and exec")]
fn pass_on(command: &mut Command, fds: &[OwnedFd; 5], group: Option<&Group>) -> io::Result<()> {
    let fds: [RawFd; 5] = std::array::from_fn(|i| fds[i].as_raw_fd());
    let doors = group.map(Group::doors).unwrap_or_default();
    let doors: Vec<CString> =
        doors.iter().map(|path| CString::new(path.as_os_str().as_bytes())).collect::<Result<_, _>>()?;
    let enter = move || {
        doors.iter().try_for_each(move_here)?;
        place(fds)
    };
    // SAFETY: between fork and exec the closure calls only async-signal-safe functions (open, write,
    // close, fcntl, dup2) on memory allocated before; it does not allocate, lock or unwind.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Moves the calling process into the group of this door. Async-signal-safe.
#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn move_here(door: &CString) -> io::Result<()> {
    // SAFETY: the path is a valid C string, the buffer outlives the call, and the descriptor is ours.
    unsafe {
        let fd = check(libc::open(door.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = libc::write(fd, b"0".as_ptr().cast(), 1);
        let result = if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) };
        libc::close(fd);
        result
    }
}

/// Makes the descriptors 3, 4, ... of these, whatever their numbers are. Async-signal-safe.
#[expect(unsafe_code, reason = "system calls between fork and exec")]
fn place(mut fds: [RawFd; 5]) -> io::Result<()> {
    const ABOVE_ALL: RawFd = 16;
    // SAFETY: plain descriptor calls; the numbers are open descriptors of this process.
    unsafe {
        // First out of the way, so that none is overwritten before it is placed.
        for fd in &mut fds {
            *fd = check(libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, ABOVE_ALL))?;
        }
        for (target, fd) in (3..).zip(fds) {
            check(libc::dup2(fd, target))?;
        }
    }
    Ok(())
}

fn check(result: RawFd) -> io::Result<RawFd> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn stage<E: Into<io::Error>>(stage: &'static str) -> impl Fn(E) -> SpawnError {
    move |err| SpawnError { stage, source: err.into() }
}
