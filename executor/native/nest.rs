//! One nest: the namespaces of one execution, their first process, and the user's process in it.
//!
//! The init is not dumpable, has no capability left and blocks every signal, so user code can
//! neither inspect nor signal it; it reaps what is left behind, and its end is the end of all.

use core::ffi::CStr;

use super::{
    keeper,
    parent::tell,
    sys::{self, Disposition, Errno, Fd, OnExec, Patience},
    wire::{
        Fds, KILL_ALL, MAX_PATH, REQUEST_FD, RESULT_FD, RESULT_FILE_MARK, Report, START_FD, Settings, Stage,
        WITH_KEEPER, WITH_OWN_KEEPER,
    },
};

const SIGKILL: i32 = 9;
const SIGCHLD: i32 = 17;
const ECHILD: Errno = 10;

const PR_SET_DUMPABLE: i32 = 4;

/// The largest result that is taken from a result file, and one byte more so that too much shows.
const MAX_RESULT_BYTES: usize = (6 << 20) + 1;

/// A nest, as its first processes know it.
#[derive(Debug)]
pub(crate) struct Nest {
    fds: [Fd; 16],
    count: usize,
    /// The file that is sent as a result when the user's process has ended; a string with a NUL.
    result_file: [u8; MAX_PATH],
    keeper: Keeper,
}

/// Where the user's process has a [keeper] from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    None,
    /// The nest made it.
    First,
    /// It made it itself, if it could.
    Own,
}

impl Nest {
    /// One of these descriptors, with a keeper or the path of a result file, as the order says.
    pub(super) fn new(fds: [Fd; 16], count: usize, order: &[u8]) -> Self {
        let (keeper, order) = match order.first() {
            Some(&WITH_KEEPER) => (Keeper::First, &[][..]),
            Some(&WITH_OWN_KEEPER) => (Keeper::Own, &[][..]),
            _ => (Keeper::None, order),
        };
        let mut nest = Self { fds, count, result_file: [0; MAX_PATH], keeper };
        let length = order.len().min(MAX_PATH - 1);
        nest.result_file[..length].copy_from_slice(&order[..length]);
        nest
    }

    /// Furnishes the new namespaces; ends the process if that fails.
    pub(super) fn settle(&self, settings: &Settings) {
        if let Err((stage, errno)) = furnish(settings) {
            self.give_up(stage, errno);
        }
    }

    fn fd(&self, which: Fds) -> Fd {
        self.fds[which as usize]
    }

    /// Tells what failed, and ends.
    pub(super) fn give_up(&self, stage: Stage, errno: Errno) -> ! {
        tell(self.fd(Fds::Control), stage, errno);
        sys::exit(1)
    }

    /// The init: obeys and reaps until the user's process has ended, ends the rest, and reports.
    pub(super) fn attend(&self, settings: &Settings, main: i32) -> ! {
        let owns_namespace = settings.namespaces != 0;
        let children = match self.retire() {
            Ok(children) => children,
            Err(errno) => {
                tell(CONTROL, Stage::Descriptors, errno);
                sys::exit(1);
            }
        };
        let mut init = Init { main, owns_namespace, listening: true };
        let status = init.watch(children);
        if self.keeper != Keeper::None && init.has_only_the_keeper(self.keeper) {
            // Whatever it runs, it runs no more. Its end is what takes long.
            init.kill_left();
            report(status);
            init.end_the_rest();
            sys::exit(0)
        }
        init.end_the_rest();
        self.send_result_file();
        report(status);
        sys::exit(0)
    }

    /// Keeps what the init needs and nothing else: its descriptors are those of [`KEPT`] and one that tells of
    /// children that ended.
    fn retire(&self) -> Result<Fd, Errno> {
        sys::drop_capabilities()?;
        for (number, which) in KEPT {
            sys::dup_to(self.fd(which), number, OnExec::Close)?;
        }
        sys::close_from(FIRST_NOT_KEPT)?;
        sys::child_signals()
    }

    /// Sends what is in the result file, after the mark. The file is the user's: it may be anything.
    fn send_result_file(&self) {
        let Ok(path) = CStr::from_bytes_until_nul(&self.result_file) else { return };
        if path.is_empty() {
            return;
        }
        let Ok(file) = sys::open_to_read(path) else { return };
        if sys::is_regular_file(file) && write_all(RESULT, &[RESULT_FILE_MARK]).is_ok() {
            copy(file, RESULT);
        }
    }

    /// The user's process: enters its group, takes its descriptors, gives up every privilege. Says
    /// whether its request is still to come; ends the process if a step fails.
    pub(crate) fn enter(&mut self, settings: &Settings) -> bool {
        if let Err((stage, errno)) = self.try_enter(settings) {
            tell(self.fd(Fds::Start), stage, errno);
            sys::exit(127);
        }
        sys::poll(REQUEST_FD, None, Patience::Look) == Ok([false; 2])
    }

    fn try_enter(&mut self, settings: &Settings) -> Result<(), (Stage, Errno)> {
        let at = |stage| move |errno| (stage, errno);
        sys::new_session();
        for door in &self.fds[Fds::Doors as usize..self.count] {
            sys::write(*door, b"0").map_err(at(Stage::Cgroup))?;
        }
        apply_limits(settings).map_err(at(Stage::Limits))?;
        drop_privileges().map_err(at(Stage::Privileges))?;
        self.arrange(settings.keeps_result).map_err(at(Stage::Descriptors))?;
        if !settings.user_filter().is_empty() {
            sys::filter(settings.user_filter()).map_err(at(Stage::Filter))?;
        }
        // After all that limits what the user's code may do: it could make the keeper do it.
        if self.keeper == Keeper::First {
            // Where there may be no other process, the end takes as long as it takes.
            let _ = keeper::employ();
        }
        sys::block_signals(false).map_err(at(Stage::Descriptors))
    }

    /// The standard streams, the result, the request and the start, and nothing else. The init made
    /// sure that none of them had such a number before.
    fn arrange(&mut self, keeps_result: bool) -> Result<(), Errno> {
        sys::dispose(SIGCHLD, Disposition::Default)?;
        let result = if keeps_result { OnExec::Close } else { OnExec::Keep };
        let targets = [
            (Fds::Stdin, 0, OnExec::Keep),
            (Fds::Stdout, 1, OnExec::Keep),
            (Fds::Stderr, 2, OnExec::Keep),
            (Fds::Result, RESULT_FD, result),
            (Fds::Request, REQUEST_FD, OnExec::Keep),
            (Fds::Start, START_FD, OnExec::Close),
        ];
        for (which, number, on_exec) in targets {
            sys::dup_to(self.fd(which), number, on_exec)?;
        }
        self.fds[Fds::Start as usize] = START_FD;
        sys::close_from(START_FD + 1)
    }
}

/// Tells how the user's process ended, and what it and all others that were reaped used.
fn report(status: i32) {
    let _ = sys::write(CONTROL, &Report::Exited { status, usage: sys::usage_of_children() }.encode());
}

/// What the init keeps, by its own numbers: what it uses, and what the user's process writes to. These end with the
/// init, so that its report, and not each of three pipes, tells the executor that nothing more will come.
const KEPT: [(Fd, Fds); 4] =
    [(CONTROL, Fds::Control), (RESULT, Fds::Result), (2, Fds::Stdout), (3, Fds::Stderr)];
const CONTROL: Fd = 0;
const RESULT: Fd = 1;
const FIRST_NOT_KEPT: Fd = 4;

/// What every process of the nest is to find.
fn furnish(settings: &Settings) -> Result<(), (Stage, Errno)> {
    const NOSUID_NODEV: usize = 0x2 | 0x4;
    const NOEXEC: usize = 0x8;
    const NOSUID_NOEXEC: usize = 0x2 | NOEXEC;
    const PR_SET_CHILD_SUBREAPER: i32 = 36;
    let at = |stage| move |errno| (stage, errno);
    // Ours, not the parent's: it lets the kernel reap.
    sys::dispose(SIGCHLD, Disposition::Default).map_err(at(Stage::Clone))?;
    if settings.namespaces == 0 {
        sys::prctl(PR_SET_CHILD_SUBREAPER, 1, 0).map(drop).map_err(at(Stage::Clone))?;
    } else {
        sys::mount(c"proc", c"/proc", NOSUID_NODEV | NOEXEC, b"").map_err(at(Stage::Mount))?;
        for place in [c"/tmp", c"/dev/shm"] {
            sys::mount(c"tmpfs", place, NOSUID_NODEV, settings.tmpfs()).map_err(at(Stage::Mount))?;
        }
        // A few: all terminals of a machine come out of one pool.
        const TERMINALS: &[u8] = b"newinstance,ptmxmode=0666,mode=620,max=16\0";
        sys::mount(c"devpts", c"/dev/pts", NOSUID_NOEXEC, TERMINALS).map_err(at(Stage::Mount))?;
    }
    Ok(())
}

/// Limits that a parent cannot have itself; what is zero is not limited.
fn apply_limits(settings: &Settings) -> Result<(), Errno> {
    const DATA: usize = 2;
    const NPROC: usize = 6;
    limit_all(&[(DATA, settings.data_bytes), (NPROC, settings.processes)])
}

fn limit_all(limits: &[(usize, u64)]) -> Result<(), Errno> {
    let mut limits = limits.iter().filter(|(_, value)| *value > 0);
    limits.try_for_each(|(resource, value)| sys::limit(*resource, *value))
}

/// What user's processes have from their parent, which therefore has it too: no core dumps, little locked
/// memory, limits of files, no privilege by executing a program, the filter for most system calls.
pub(super) fn restrain_parent(settings: &Settings) -> Result<(), Errno> {
    const LOCKED_BYTES: u64 = 8 << 20;
    const FSIZE: usize = 1;
    const CORE: usize = 4;
    const NOFILE: usize = 7;
    const MEMLOCK: usize = 8;
    const PR_CAPBSET_DROP: i32 = 24;
    const PR_SET_NO_NEW_PRIVS: i32 = 38;
    const PR_CAP_AMBIENT: i32 = 47;
    const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
    /// All that the jail leaves a parent; the second is what it takes to drop them. It goes on having them.
    const SYS_ADMIN_AND_SETPCAP: [usize; 2] = [21, 8];
    sys::set_umask(0o022);
    // One byte: unlike none, that also keeps a helper that the host pipes dumps to from being run.
    limit_all(&[
        (CORE, 1),
        (MEMLOCK, LOCKED_BYTES),
        (NOFILE, settings.open_files),
        (FSIZE, settings.file_bytes),
    ])?;
    sys::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    // Without a jail there is no right to narrow the bounding set; `no_new_privs` makes it worth nothing.
    if settings.namespaces != 0 {
        for capability in SYS_ADMIN_AND_SETPCAP {
            sys::prctl(PR_CAPBSET_DROP, capability, 0)?;
        }
    }
    sys::prctl(PR_SET_NO_NEW_PRIVS, 1, 0)?;
    if settings.parent_filter().is_empty() {
        return Ok(());
    }
    sys::filter(settings.parent_filter())
}

/// No capability, and a process that its own kind may look at.
fn drop_privileges() -> Result<(), Errno> {
    sys::drop_capabilities()?;
    sys::prctl(PR_SET_DUMPABLE, 1, 0).map(drop)
}

/// The children of an init, each number with a space behind it.
const CHILDREN: &CStr = c"/proc/thread-self/children";

/// What the init is about.
struct Init {
    main: i32,
    owns_namespace: bool,
    listening: bool,
}

impl Init {
    /// Reaps and obeys until the main process has ended; gives its status.
    fn watch(&mut self, children: Fd) -> i32 {
        loop {
            let polled = sys::poll(children, self.listening.then_some(CONTROL), Patience::Wait);
            let Ok([ended, commanded]) = polled else { return self.last_resort() };
            if ended {
                let mut signals = [0; 1024];
                let _ = sys::read(children, &mut signals);
                if let Some(status) = self.reap() {
                    return status;
                }
            }
            if commanded {
                self.listening = self.obey();
            }
        }
    }

    /// Nothing can be heard any more: everything is killed, and the end is waited for.
    fn last_resort(&self) -> i32 {
        self.kill_all();
        while let Ok((pid, status)) = sys::wait(Patience::Wait) {
            if pid == self.main {
                return status;
            }
        }
        SIGKILL
    }

    /// Reaps every child that ended; gives the status of the main one if it is among them.
    fn reap(&self) -> Option<i32> {
        let mut found = None;
        while let Ok((pid @ 1.., status)) = sys::wait(Patience::Look) {
            if pid == self.main {
                found = Some(status);
            }
        }
        found
    }

    /// Carries out what came over the control descriptor; false when it is the last.
    fn obey(&self) -> bool {
        let mut bytes = [0; 64];
        let count = sys::read(CONTROL, &mut bytes).unwrap_or(0);
        // No byte: the executor is gone.
        if count == 0 || bytes[..count].contains(&KILL_ALL) {
            self.kill_all();
            return false;
        }
        bytes[..count].iter().for_each(|signal| sys::kill(self.main, i32::from(*signal)));
        true
    }

    /// Kills every process but this one; the main one is left to be reaped.
    fn kill_all(&self) {
        if self.owns_namespace {
            sys::kill(-1, SIGKILL);
        } else {
            // Its children become ours when it is gone.
            sys::kill(self.main, SIGKILL);
        }
    }

    /// Whether nothing is left but the keeper of the main process's memory.
    fn has_only_the_keeper(&self, keeper: Keeper) -> bool {
        let mut text = [0; 16];
        match sys::wait(Patience::Look) {
            Ok((0, _)) => {}
            answer => return answer.is_err(),
        }
        let children = read_file(CHILDREN, &mut text);
        match children.strip_suffix(b" ") {
            Some(only) if keeper == Keeper::First => only == keeper::FIRST,
            Some(only) => !only.contains(&b' ') && is_keeper(only),
            None => false,
        }
    }

    /// Kills and reaps what the main process left behind.
    fn end_the_rest(&self) {
        loop {
            match sys::wait(Patience::Look) {
                Err(ECHILD) | Err(_) => return,
                Ok((0, _)) => {
                    self.kill_left();
                    let _ = sys::wait(Patience::Wait);
                }
                Ok(_) => {}
            }
        }
    }

    fn kill_left(&self) {
        if self.owns_namespace {
            return sys::kill(-1, SIGKILL);
        }
        // Orphans become our children, so killing generation after generation reaches all of them.
        let mut text = [0; 4096];
        let Ok(file) = sys::open_to_read(CHILDREN) else { return };
        let count = sys::read(file, &mut text).unwrap_or(0);
        sys::close(file);
        // Each ends with a space; one that was cut off is met the next time.
        let whole = text[..count].iter().rposition(|byte| *byte == b' ').unwrap_or(0);
        for word in text[..whole].split(|byte| *byte == b' ') {
            if let Some(pid) = core::str::from_utf8(word).ok().and_then(|word| word.parse().ok()) {
                sys::kill(pid, SIGKILL);
            }
        }
    }
}

/// Whether the process of this number has the name of a keeper.
fn is_keeper(number: &[u8]) -> bool {
    let mut path = [0; 32];
    let mut end = 0;
    for part in [&b"/proc/"[..], number, b"/comm"] {
        path[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    }
    let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
    read_file(path, &mut [0; 16]).strip_suffix(b"\n") == Some(keeper::NAME.to_bytes())
}

/// What a small file has, as far as there is room; nothing if it cannot be read.
fn read_file<'a>(path: &CStr, room: &'a mut [u8]) -> &'a [u8] {
    let read = sys::open_to_read(path).and_then(|file| {
        let count = sys::read(file, room);
        sys::close(file);
        count
    });
    &room[..read.unwrap_or(0)]
}

fn write_all(to: Fd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = sys::write(to, bytes)?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Copies as much as a result may have.
fn copy(from: Fd, to: Fd) {
    let mut buffer = [0; 4096];
    let mut left = MAX_RESULT_BYTES;
    while left > 0 {
        let most = left.min(buffer.len());
        match sys::read(from, &mut buffer[..most]) {
            Ok(count @ 1..) if write_all(to, &buffer[..count]).is_ok() => left -= count,
            _ => return,
        }
    }
}
