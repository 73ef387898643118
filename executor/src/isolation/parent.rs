//! The executor's side of a warm parent: its jail, and the orders it gets.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{
    cmsg_space,
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr,
        UnixCredentials, recv, recvmsg, sendmsg, setsockopt, shutdown, socketpair, sockopt::PassCred,
    },
    unistd::{Pid, pipe2},
};
use tokio::{
    io::Interest,
    net::{UnixStream, unix::pipe},
    process::{Child, Command},
    time::{Instant, timeout},
};

use super::{Sandbox, cgroup::Group, jail, layer::Layer};
use crate::{
    native::{
        snapshot::Stand,
        wire::{MAX_PATH, SETTING_WORDS},
    },
    snapshot::restore::ENVIRONMENT,
};

/// How long a parent may take to be warm.
const WARM_UP: Duration = Duration::from_secs(30);

/// The same for a template, which a node waits for.
const TEMPLATE_WARM_UP: Duration = Duration::from_secs(10);

/// How long a jail that has nothing to do any more may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(1);

/// How much of what a parent complains about is kept.
const COMPLAINT_BYTES: usize = 4 << 10;

/// What a parent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// An interpreter whose children run code without starting one.
    Python,
    /// This program, whose children execute something.
    Program,
}

/// Whether a Python holds a [rehearsal](crate::native::rehearsal) before it is warm. It takes longer to start then, and
/// its children cost less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rehearsal {
    /// Be warm soon.
    Skip,
    /// Have cheap children.
    Hold,
}

/// What a jail runs.
#[derive(Debug)]
enum Role {
    Program,
    Python(Rehearsal),
    /// A Python that is made of this snapshot.
    Restored(File),
    /// A Python of which a snapshot is to be taken.
    Template,
}

impl Role {
    fn host(&self) -> Host {
        if let Self::Program = self { Host::Program } else { Host::Python }
    }

    /// What the runner is told; a loader that cannot use its snapshot starts one that is warm soon.
    fn word(&self) -> &'static str {
        match self {
            Self::Program | Self::Restored(_) | Self::Python(Rehearsal::Skip) => "parent",
            Self::Python(Rehearsal::Hold) => "rehearsed-parent",
            Self::Template => "template",
        }
    }
}

/// A step that failed while a process was being made.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub(crate) stage: &'static str,
    pub(crate) source: io::Error,
}

/// A warm parent in its jail. Dropped, the jail is killed with all that is in it.
#[derive(Debug)]
pub(crate) struct Parent {
    /// A socket of packets, which waits like one of a stream.
    control: UnixStream,
    jail: Mutex<Option<Child>>,
    complaint: Mutex<(pipe::Receiver, Vec<u8>)>,
    warm: tokio::sync::OnceCell<()>,
    role: Role,
    born: Instant,
    children: AtomicU32,
    condemned: AtomicBool,
    refused: AtomicBool,
}

impl Parent {
    /// Starts a jail with a parent in it; it need not be warm yet to be given orders. A Python comes of a snapshot, if
    /// there is one, whose template has held a rehearsal.
    ///
    /// Must be called on a thread that lives as long as the executor (a worker of the runtime is
    /// one): the kernel kills the jail when the thread that started it ends.
    pub(crate) fn start(host: Host, rehearsal: Rehearsal, sandbox: &Sandbox) -> Result<Self, SpawnError> {
        let layer = sandbox.layer();
        let role = match host {
            Host::Program => Role::Program,
            Host::Python => match sandbox.snapshot() {
                Some(snapshot) => Role::Restored(snapshot),
                None => Role::Python(rehearsal),
            },
        };
        Self::launch(role, layer.as_ref(), sandbox)
    }

    /// Starts a jail with a Python in it that is made of this snapshot.
    pub(crate) fn restored(snapshot: File, sandbox: &Sandbox) -> Result<Self, SpawnError> {
        Self::launch(Role::Restored(snapshot), None, sandbox)
    }

    /// Starts a jail with a template in it, of which a snapshot is to be taken.
    pub(crate) fn template(sandbox: &Sandbox) -> Result<Self, SpawnError> {
        Self::launch(Role::Template, None, sandbox)
    }

    fn launch(role: Role, layer: Option<&Layer>, sandbox: &Sandbox) -> Result<Self, SpawnError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(stage("create_socket"))?;
        nonblocking(&ours).map_err(stage("create_socket"))?;
        if let Role::Template = role {
            setsockopt(&ours, PassCred, &true).map_err(stage("create_socket"))?;
        }
        let (complaint, stderr) = pipe2(OFlag::O_CLOEXEC).map_err(stage("create_pipes"))?;
        let stdout = stderr.try_clone().map_err(stage("create_pipes"))?;
        let mut command = command(&role, layer, sandbox);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        enter_group(&mut command, sandbox.parents.as_ref()).map_err(stage("spawn_jail"))?;
        if let Role::Restored(file) = &role {
            keep_open(&mut command, file);
        }
        let child = command.spawn().map_err(stage("spawn_jail"))?;
        let settings = settings(role.host(), sandbox);
        send(&ours, &settings, &[]).map_err(stage("send_settings"))?;
        let complaint = pipe::Receiver::from_owned_fd(complaint).map_err(stage("create_pipes"))?;
        Ok(Self {
            control: UnixStream::from_std(ours.into()).map_err(stage("create_socket"))?,
            jail: Mutex::new(Some(child)),
            complaint: Mutex::new((complaint, Vec::new())),
            warm: tokio::sync::OnceCell::new(),
            role,
            born: Instant::now(),
            children: AtomicU32::new(0),
            condemned: AtomicBool::new(false),
            refused: AtomicBool::new(false),
        })
    }

    /// Waits until it is warm; an error tells what it complained about.
    pub(crate) async fn is_warm(&self) -> Result<(), SpawnError> {
        let said = self.warm.get_or_try_init(|| async {
            let mut word = [0; 16];
            let hear = || Ok(recv(self.control.as_raw_fd(), &mut word, MsgFlags::empty())?);
            match timeout(WARM_UP, self.control.async_io(Interest::READABLE, hear)).await {
                Ok(Ok(1..)) => {
                    self.note_refusal();
                    Ok(())
                }
                Ok(Err(err)) if err.kind() != io::ErrorKind::ConnectionReset => Err(err),
                // Its end, whether it had read its settings or not.
                Ok(_) => Err(io::Error::new(io::ErrorKind::BrokenPipe, self.complaint())),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        });
        said.await.map(drop).map_err(stage("warm_up"))
    }

    /// Orders a child with these descriptors. `what` is the path of its result file, or [`WITH_KEEPER`], or
    /// nothing.
    pub(crate) async fn order(&self, fds: &[RawFd], what: &[u8]) -> io::Result<()> {
        // Never empty: that would be the end of all orders.
        let order = [what, &[0]].concat();
        if order.len() > MAX_PATH {
            return Err(Errno::ENAMETOOLONG.into());
        }
        self.children.fetch_add(1, Ordering::Relaxed);
        self.control.async_io(Interest::WRITABLE, || send(&self.control, &order, fds)).await
    }

    /// How many children it was ordered to make, and for how long it has been there.
    pub(crate) fn age(&self) -> (u32, Duration) {
        (self.children.load(Ordering::Relaxed), self.born.elapsed())
    }

    /// Whether its children are as cheap as they can be: it was to hold a rehearsal, or to be made of a snapshot.
    pub(crate) fn rehearsal(&self) -> Rehearsal {
        match self.role {
            Role::Python(rehearsal) => rehearsal,
            Role::Program => Rehearsal::Skip,
            Role::Restored(_) | Role::Template if !self.is_refused() => Rehearsal::Hold,
            Role::Restored(_) | Role::Template => Rehearsal::Skip,
        }
    }

    /// Whether it was to be made of a snapshot.
    pub(crate) fn is_restored(&self) -> bool {
        matches!(self.role, Role::Restored(_))
    }

    /// Whether it was started anew, as its snapshot is not used.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// A loader that does not use its snapshot says why, and executes Python.
    fn note_refusal(&self) {
        if self.is_restored()
            && let why = self.complaint()
            && !why.is_empty()
        {
            tracing::warn!(why, "python was started anew");
            self.refused.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until a template waits; gives its id outside the jail, and where it stands.
    pub(crate) async fn stands(&self) -> Result<(Pid, Stand), SpawnError> {
        let stands = timeout(
            TEMPLATE_WARM_UP,
            self.control.async_io(Interest::READABLE, || hear_stand(&self.control)),
        );
        let heard = stands.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let heard = match heard {
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            heard => heard,
        };
        let heard = heard.and_then(|heard| heard.ok_or_else(|| io::Error::other(self.complaint())));
        heard.map_err(stage("warm_up"))
    }

    /// Gives it no more orders: something about it looks wrong.
    pub(crate) fn condemn(&self) {
        self.condemned.store(true, Ordering::Relaxed);
    }

    /// Whether it was [condemned](Self::condemn).
    pub(crate) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Relaxed)
    }

    /// What the jail, or the parent in it, said on its standard error so far. Both only speak when
    /// something is wrong.
    pub(crate) fn complaint(&self) -> String {
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        let (pipe, text) = &mut *complaint;
        let mut buffer = [0; COMPLAINT_BYTES];
        while let Ok(count @ 1..) = pipe.try_read(&mut buffer) {
            let room = COMPLAINT_BYTES.saturating_sub(text.len());
            text.extend_from_slice(&buffer[..count.min(room)]);
        }
        String::from_utf8_lossy(text).trim().trim_start_matches("bwrap: ").to_owned()
    }

    /// Ends the jail with all that is in it, and waits for that. Cancel safe: it ends all the same.
    pub(crate) async fn end(&self) {
        let child = self.jail.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return };
        // The parent ends when there will be no more orders; it is the first process of the jail, so
        // everything is dead by the time the jail's own process ends.
        let _ = shutdown(self.control.as_raw_fd(), Shutdown::Both);
        if timeout(FAREWELL, child.wait()).await.is_err() {
            let _ = child.start_kill();
            let _ = timeout(FAREWELL, child.wait()).await;
        }
    }
}

fn command(role: &Role, layer: Option<&Layer>, sandbox: &Sandbox) -> Command {
    let mut command = match &sandbox.jail {
        Some(arguments) => {
            let mut command = Command::from(sandbox.bubblewrap.command());
            let extra = if let Role::Restored(_) = role { Some(ENVIRONMENT) } else { None };
            command.args(arguments.with_layer(layer, extra));
            match (role, sandbox.interpreters.python.as_deref()) {
                (Role::Program, _) | (_, None) => command.args(jail::program_parent()),
                (role, Some(python)) => {
                    if let Role::Restored(file) = role {
                        command.args(jail::loader(file.as_raw_fd(), layer));
                    }
                    command.arg(python).args(jail::python_parent(role.word(), layer))
                }
            };
            command
        }
        None => {
            let mut command = Command::new(&sandbox.rooms.executor);
            command.arg("parent");
            command
        }
    };
    command.env_clear().kill_on_drop(true);
    command
}

/// The settings of its nests as the parent reads them: words, the options of temporary file systems,
/// the filters.
fn settings(host: Host, sandbox: &Sandbox) -> Vec<u8> {
    const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let tmpfs = sandbox.jail.as_ref().map(jail::Arguments::temporary).unwrap_or_default();
    let tmpfs = [tmpfs.as_bytes(), b"\0"].concat();
    let (of_parent, of_user) = sandbox
        .seccomp
        .as_ref()
        .map_or((&[][..], &[][..]), |filters| (filters.parent.as_slice(), filters.user.as_slice()));
    let limits = sandbox.rlimits();
    let namespaces = if sandbox.jail.is_some() { u64::from(NAMESPACES.cast_unsigned()) } else { 0 };
    let words: [u64; SETTING_WORDS] = [
        namespaces,
        limits.open_files,
        limits.file_bytes,
        limits.data_bytes,
        limits.processes,
        // An interpreter writes its result itself.
        u64::from(host == Host::Python),
        tmpfs.len() as u64,
        of_parent.len() as u64,
        of_user.len() as u64,
    ];
    let words = words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    [&words, tmpfs.as_slice(), of_parent, of_user].concat()
}

fn send(to: &impl AsRawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let carried = [ControlMessage::ScmRights(fds)];
    let carried = if fds.is_empty() { &[][..] } else { &carried };
    sendmsg::<UnixAddr>(to.as_raw_fd(), &[IoSlice::new(bytes)], carried, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Makes the jail enter its group before anything else.
#[expect(unsafe_code, reason = "code between fork and exec")]
fn enter_group(command: &mut Command, group: Option<&Group>) -> io::Result<()> {
    let mut open = std::fs::OpenOptions::new();
    open.write(true).custom_flags(libc::O_CLOEXEC);
    let doors = group.map(Group::doors).unwrap_or_default();
    let doors = doors.iter().map(|path| open.open(path)).collect::<io::Result<Vec<_>>>()?;
    let enter = move || doors.iter().try_for_each(|mut door| io::Write::write_all(&mut door, b"0"));
    // SAFETY: between fork and exec the closure makes one system call for each door, which were
    // opened before; it does not allocate, lock or unwind.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Leaves the file open in the jail, which is started with the same number for it.
#[expect(unsafe_code, reason = "code between fork and exec")]
fn keep_open(command: &mut Command, file: &File) {
    let number = file.as_raw_fd();
    let keep = move || {
        // SAFETY: the child has what its parent has open, which keeps it until the jail has ended.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        Ok(fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)?)
    };
    // SAFETY: between fork and exec the closure makes one system call; it does not allocate, lock or unwind.
    unsafe { command.pre_exec(keep) };
}

/// Receives what a template says, and from whom that is; `None` if it says something else, or nothing any more.
fn hear_stand(control: &UnixStream) -> io::Result<Option<(Pid, Stand)>> {
    let (mut bytes, mut space) = ([0; Stand::BYTES + 1], cmsg_space!(UnixCredentials));
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let heard = recvmsg::<UnixAddr>(control.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
    let sender = heard.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmCredentials(sender) => Some(Pid::from_raw(sender.pid())),
        _ => None,
    });
    let count = heard.bytes;
    Ok(sender.zip(Stand::decode(&bytes[..count])))
}

pub(super) fn stage<E: Into<io::Error>>(stage: &'static str) -> impl Fn(E) -> SpawnError {
    move |err| SpawnError { stage, source: err.into() }
}
