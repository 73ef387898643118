//! How an executor inside a container gets what only the host can give: its control groups, the socket that
//! it is dialled on, and its log.
//!
//! The executor, the first process of the container, makes a socket in a directory that both see, and waits.
//! `sandmesh-executor admit`, outside and with the rights of root, connects to it and hands over descriptors.
//! Nothing of the image has run by then. The executor never dials.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt as _, net::UnixListener},
    },
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, sockopt::PeerCredentials,
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    cli::AdmitOptions,
    isolation::{Need, cgroup::Group, house},
    process_id::ProcessId,
};

/// How long an executor waits to be admitted; who admits it comes right after its start.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the executor's socket may take to appear: the container is being started.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(2);
/// The most descriptors of a letter, and the most bytes.
const MOST_FDS: usize = 16;
const MOST_BYTES: usize = 8 << 10;

/// What is handed over beside the descriptors. A group names its directories by their index among these.
#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    groups: Option<Groups>,
}

/// The groups of a sandbox that are used after its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Groups {
    /// Of the jails and the warm parents in them, which are ours.
    pub(crate) parents: Group,
    /// Of user code.
    pub(crate) runs: Group,
}

/// What an executor was given.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The socket that it is dialled on.
    pub(crate) listener: UnixListener,
    pub(crate) groups: Option<Groups>,
    /// The directories of the groups: these lead there as long as they are open.
    pub(crate) doors: Vec<OwnedFd>,
}

/// Waits at `entry`, a socket to be made, until somebody hands over what there is.
pub(crate) fn wait(entry: &Path) -> anyhow::Result<Admission> {
    let listener = listen_at(entry).with_context(|| format!("cannot listen on {}", entry.display()))?;
    let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    if poll(&mut waiting, patience).context("cannot wait to be admitted")? == 0 {
        bail!("nobody admitted this executor within {PATIENCE:?}");
    }
    let peer = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).context("cannot be admitted")?;
    #[expect(unsafe_code, reason = "a descriptor that was just made")]
    // SAFETY: accept4 made it, and nobody else has it.
    let peer = unsafe { OwnedFd::from_raw_fd(peer) };
    let _ = fs::remove_file(entry);
    let (letter, fds) = receive(&peer).context("cannot take what was handed over")?;
    let mut fds = fds.into_iter();
    let (listener, log) = fds.next().zip(fds.next()).context("a socket and a log are to be handed over")?;
    let doors: Vec<OwnedFd> = fds.collect();
    take_log(&log).context("cannot write to the log that was handed over")?;
    let groups = match letter.groups {
        Some(named) => Some(named.found(&doors).context("a control group was not handed over")?),
        None => None,
    };
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).context("cannot use the socket that was handed over")?;
    Ok(Admission { listener, groups, doors })
}

impl Groups {
    fn found(&self, doors: &[OwnedFd]) -> Option<Self> {
        Some(Self { parents: self.parents.handed_over(doors)?, runs: self.runs.handed_over(doors)? })
    }
}

/// `sandmesh-executor admit`: gives the executor of a container what it waits for, and prints its process.
pub(crate) fn admit(options: &AdmitOptions) -> anyhow::Result<()> {
    let peer = reach(&options.entry)?;
    let pid = getsockopt(&peer, PeerCredentials).context("cannot tell who waits")?.pid();
    let groups = make_groups(options, Pid::from_raw(pid))?;
    let listener = house::bind(&options.dir.join("executor.sock"))?;
    // So that `destroy` finds it, whatever becomes of the engine.
    ProcessId::of(pid)?.store(&options.dir.join("executor.pid"))?;
    let log = open_log(&options.dir.join("executor.log")).context("cannot open the log")?;
    let mut fds = vec![OwnedFd::from(listener), log];
    let groups = groups.map(|groups| hand_over(&groups, &mut fds)).transpose();
    let letter = Letter { groups: groups.context("cannot open the control groups")? };
    send(&peer, &letter, &fds).context("cannot hand over what there is")?;
    println!("{pid}");
    Ok(())
}

fn hand_over(groups: &Groups, fds: &mut Vec<OwnedFd>) -> io::Result<Groups> {
    const BEFORE: usize = 2;
    let (parents, first) = groups.parents.to_hand_over(fds.len() - BEFORE)?;
    fds.extend(first);
    let (runs, second) = groups.runs.to_hand_over(fds.len() - BEFORE)?;
    fds.extend(second);
    Ok(Groups { parents, runs })
}

/// Makes the groups of a sandbox below that of its container, whose first process this is.
fn make_groups(options: &AdmitOptions, pid: Pid) -> anyhow::Result<Option<Groups>> {
    if options.cgroups == Need::Off {
        return Ok(None);
    }
    let limits = options.limits.limits();
    let made = Group::root().and_then(|root| root.of_process(pid, &options.container)).and_then(|sandbox| {
        house::groups_below(&sandbox, limits, Some((options.uid, options.uid)), Some(pid))
    });
    match made {
        Ok(groups) => Ok(Some(groups)),
        Err(err) if options.cgroups == Need::Optional => {
            eprintln!("no control groups: limits hold for the container as a whole: {err:#}");
            Ok(None)
        }
        Err(err) => Err(err.context("control groups are required and cannot be made for the container")),
    }
}

/// Connects to an executor that is being started.
fn reach(entry: &Path) -> anyhow::Result<OwnedFd> {
    let address =
        UnixAddr::new(entry).with_context(|| format!("{} is no path of a socket", entry.display()))?;
    let deadline = Instant::now() + ARRIVAL;
    loop {
        let flags = SockFlag::SOCK_CLOEXEC;
        let peer =
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).context("cannot make a socket")?;
        match connect(peer.as_raw_fd(), &address) {
            Ok(()) => return Ok(peer),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) if Instant::now() < deadline => sleep(LOOK),
            Err(err) => bail!("no executor waits at {}: {err}", entry.display()),
        }
    }
}

fn listen_at(entry: &Path) -> anyhow::Result<OwnedFd> {
    match fs::remove_file(entry) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err.into()),
        _ => {}
    }
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(entry)?)?;
    listen(&listener, Backlog::new(1)?)?;
    Ok(listener)
}

/// Both only append: what is in it is cut from outside, as it grows.
fn open_log(path: &Path) -> io::Result<OwnedFd> {
    let mut options = fs::OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path).map(OwnedFd::from)
}

/// From now on the log is where this process and its children write.
fn take_log(log: &OwnedFd) -> nix::Result<()> {
    nix::unistd::dup2_stdout(log)?;
    nix::unistd::dup2_stderr(log)
}

fn send(to: &OwnedFd, letter: &Letter, fds: &[OwnedFd]) -> anyhow::Result<()> {
    let text = serde_json::to_vec(letter)?;
    if text.len() > MOST_BYTES || fds.len() > MOST_FDS {
        bail!("it is more than a letter may have");
    }
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let carried = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(to.as_raw_fd(), &[IoSlice::new(&text)], &carried, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[expect(unsafe_code, reason = "descriptors that were just received")]
fn receive(from: &OwnedFd) -> anyhow::Result<(Letter, Vec<OwnedFd>)> {
    let mut text = vec![0; MOST_BYTES];
    let mut room = cmsg_space!([RawFd; MOST_FDS]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(from.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let mut fds = Vec::new();
    for carried in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = carried {
            // SAFETY: the kernel made them for this process just now, and nobody else has them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        bail!("more was handed over than there is room for");
    }
    Ok((serde_json::from_slice(&text[..length])?, fds))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_letter_arrives_with_all_that_it_carries() {
        let dir = tempfile::tempdir().unwrap();
        let entry = dir.path().join("entry.sock");
        let log = open_log(&dir.path().join("log")).unwrap();
        let listener = listen_at(&entry).unwrap();
        let peer = reach(&entry).unwrap();
        send(&peer, &Letter { groups: None }, &[log]).unwrap();
        #[expect(unsafe_code, reason = "a descriptor that was just made")]
        // SAFETY: accept4 made it, and nobody else has it.
        let accepted =
            unsafe { OwnedFd::from_raw_fd(accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap()) };
        let (letter, fds) = receive(&accepted).unwrap();
        assert!(letter.groups.is_none());
        let [log] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        fs::File::from(log).write_all(b"said").unwrap();
        let mut said = String::new();
        fs::File::open(dir.path().join("log")).unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "said");
    }

    #[test]
    fn a_link_in_the_place_of_the_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join("log")).unwrap();
        open_log(&dir.path().join("log")).unwrap_err();
        assert!(!dir.path().join("elsewhere").exists());
    }
}
