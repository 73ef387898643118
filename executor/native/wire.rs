//! What the executor, a parent and its nests say to each other, as bytes.
//!
//! The executor sends a parent one [`Settings`] and then orders, each with the descriptors of
//! [`Fds`]; a nest answers with [`Report`]s. All are of one machine and one build, so words are native.

use super::sys::{Errno, Fd};

/// The longest message to a parent.
pub(crate) const MAX_MESSAGE: usize = 48 << 10;

/// The longest path of a result file, with its NUL.
pub(crate) const MAX_PATH: usize = 256;

/// The bytes of a report.
pub(crate) const REPORT_BYTES: usize = 64;

/// The control byte that ends a nest: every process in it is killed and the report follows.
pub(crate) const KILL_ALL: u8 = 0xff;

/// Where the user's process finds the result descriptor.
pub(crate) const RESULT_FD: Fd = 3;
/// Where a runner finds its request; it closes it before user code runs.
pub(crate) const REQUEST_FD: Fd = 4;
/// What is closed when user code starts: by the runner, or by the execution of a program. Until then
/// a failure can be reported over it.
pub(crate) const START_FD: Fd = 5;

/// What is said over [`START_FD`] right before user code starts; a report after it tells that it did not.
pub(crate) const STARTING: u8 = b'S';

/// The order of a nest that gives the user's process a [keeper](super::keeper), and of one whose user's process
/// makes its own. Others are the path of a result file, or nothing.
pub(crate) const WITH_KEEPER: u8 = 1;
pub(crate) const WITH_OWN_KEEPER: u8 = 2;

/// Separates what came over the result descriptor from what was in the result file. No JSON text
/// has it.
pub(crate) const RESULT_FILE_MARK: u8 = 0;

/// The words at the start of the settings.
pub(crate) const SETTING_WORDS: usize = 9;

/// How a parent makes nests.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Namespaces to clone, as flags; zero where there is no jail.
    pub(crate) namespaces: u64,
    /// Limits of the user's process: open files, and what is zero if not limited: bytes of a file,
    /// bytes of private memory, processes.
    pub(crate) open_files: u64,
    pub(crate) file_bytes: u64,
    pub(crate) data_bytes: u64,
    pub(crate) processes: u64,
    /// Whether programs that the user's process executes are not to have its result.
    pub(crate) keeps_result: bool,
    /// The options of temporary file systems, with a NUL at the end.
    pub(crate) tmpfs: (usize, usize),
    /// The filters for system calls, of the parent and all that comes of it, and what the user's process
    /// has besides; empty for none.
    pub(crate) parent_filter: (usize, usize),
    pub(crate) user_filter: (usize, usize),
    pub(crate) bytes: [u8; MAX_MESSAGE],
}

impl Settings {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            namespaces: 0,
            open_files: 0,
            file_bytes: 0,
            data_bytes: 0,
            processes: 0,
            keeps_result: false,
            tmpfs: (0, 0),
            parent_filter: (0, 0),
            user_filter: (0, 0),
            bytes: [0; MAX_MESSAGE],
        }
    }

    /// Understands the first `count` of its bytes; false if they are not what they should be.
    pub(crate) fn understand(&mut self, count: usize) -> bool {
        let Some(words) = self.bytes.get(..count).and_then(words::<SETTING_WORDS>) else { return false };
        let [namespaces, open_files, file_bytes, data_bytes, processes, keeps_result, tmpfs, parent, user] =
            words;
        (self.namespaces, self.open_files, self.file_bytes) = (namespaces, open_files, file_bytes);
        (self.data_bytes, self.processes, self.keeps_result) = (data_bytes, processes, keeps_result != 0);
        let after = |from: usize, length: u64| {
            (from, usize::try_from(length).map_or(usize::MAX, |length| from.saturating_add(length)))
        };
        self.tmpfs = after(SETTING_WORDS * 8, tmpfs);
        self.parent_filter = after(self.tmpfs.1, parent);
        self.user_filter = after(self.parent_filter.1, user);
        self.user_filter.1 == count
    }

    pub(crate) fn tmpfs(&self) -> &[u8] {
        self.bytes.get(self.tmpfs.0..self.tmpfs.1).unwrap_or_default()
    }

    pub(crate) fn parent_filter(&self) -> &[u8] {
        self.bytes.get(self.parent_filter.0..self.parent_filter.1).unwrap_or_default()
    }

    pub(crate) fn user_filter(&self) -> &[u8] {
        self.bytes.get(self.user_filter.0..self.user_filter.1).unwrap_or_default()
    }
}

/// The descriptors of an order, in this sequence; after them come the doors of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fds {
    /// Control bytes in, reports out.
    Control = 0,
    Stdin,
    Stdout,
    Stderr,
    Result,
    Request,
    Start,
    /// The first of the files to which the user's process writes "0".
    Doors,
}

/// The steps of making a user's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Order = 1,
    Clone,
    Mount,
    Fork,
    Cgroup,
    Descriptors,
    Limits,
    Privileges,
    Filter,
    Request,
    Files,
    Workdir,
    Exec,
}

impl Stage {
    const ALL: [Self; 13] = [
        Self::Order,
        Self::Clone,
        Self::Mount,
        Self::Fork,
        Self::Cgroup,
        Self::Descriptors,
        Self::Limits,
        Self::Privileges,
        Self::Filter,
        Self::Request,
        Self::Files,
        Self::Workdir,
        Self::Exec,
    ];

    /// The word of the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Order => "read_order",
            Self::Clone => "clone",
            Self::Mount => "mount",
            Self::Fork => "fork",
            Self::Cgroup => "enter_cgroup",
            Self::Descriptors => "pass_descriptors",
            Self::Limits => "set_rlimits",
            Self::Privileges => "drop_privileges",
            Self::Filter => "install_seccomp",
            Self::Request => "read_request",
            Self::Files => "write_files",
            Self::Workdir => "enter_workdir",
            Self::Exec => "exec",
        }
    }
}

/// What a nest tells the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The user's process ended, by the status that its reaper got; everything else in the nest is
    /// reaped too, but for a keeper, which is killed. The usage is that of all who were reaped: microseconds of
    /// CPU, peak KiB, blocks in, blocks out.
    Exited { status: i32, usage: [u64; 4] },
    /// It was not started.
    Failed { stage: Stage, errno: Errno },
}

impl Report {
    pub(crate) fn encode(self) -> [u8; REPORT_BYTES] {
        let number = |value: i32| u64::from(value.cast_unsigned());
        let words = match self {
            Self::Exited { status, usage: [cpu, peak, read, written] } => {
                [1, number(status), cpu, peak, read, written, 0, 0]
            }
            Self::Failed { stage, errno } => [2, stage as u64, number(errno), 0, 0, 0, 0, 0],
        };
        let mut bytes = [0; REPORT_BYTES];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// `None` for bytes that no report has.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |word: u64| u32::try_from(word).ok().map(u32::cast_signed);
        match words::<8>(bytes)? {
            [1, status, cpu, peak, read, written, ..] => {
                Some(Self::Exited { status: number(status)?, usage: [cpu, peak, read, written] })
            }
            [2, stage, errno, ..] => {
                let stage = Stage::ALL.into_iter().find(|known| *known as u64 == stage)?;
                Some(Self::Failed { stage, errno: number(errno)? })
            }
            _ => None,
        }
    }
}

/// The first words of these bytes.
fn words<const COUNT: usize>(bytes: &[u8]) -> Option<[u64; COUNT]> {
    let mut words = [0; COUNT];
    let mut chunks = bytes.chunks_exact(8);
    for word in &mut words {
        *word = u64::from_ne_bytes(chunks.next()?.try_into().ok()?);
    }
    Some(words)
}
