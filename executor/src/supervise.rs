//! Watching over one execution's processes from their start to their end: reports, deadline, killing.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    clock,
    execution::Stop,
    isolation::process::Process,
    native::wire::{KILL_ALL, REPORT_BYTES, Report, STARTING},
    run::{Announce, StartedAt},
    status::Failure,
};

/// How long a jail may take to start the user's process.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long the init has to kill everything and report, before its processes are killed from
/// outside. Well below the 100 ms within which a deadline must be kept.
const GRACE: Duration = Duration::from_millis(25);

/// How long killed processes may take to die before they are given up: one may hang in the kernel.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// What became of an execution's processes.
#[derive(Debug)]
pub(crate) struct Life {
    /// Set once the user's process ran.
    pub(crate) started: Option<StartedAt>,
    /// How the user's process ended, by its reaper's word.
    pub(crate) exited: Option<Exit>,
    /// Why it was not started.
    pub(crate) failed: Option<Failure>,
    /// Why it was stopped from outside, if it was.
    pub(crate) stopped: Option<Stop>,
    /// When it ended, by both clocks.
    pub(crate) ended: Instant,
    pub(crate) ended_at: SystemTime,
    /// What the jail said, which only speaks when it fails.
    pub(crate) complaint: String,
}

/// How the user's process ended, and what all processes of the execution used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) usage: ChildUsage,
}

/// What was used, as far as a control group does not tell.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ChildUsage {
    pub(crate) cpu_us: u64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
}

/// What the supervisor waits for besides the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The start, until its patience ends.
    Starting,
    /// The user's deadline.
    Running,
    /// The init's killing and report.
    Stopping,
    /// The death of what was killed.
    Killed,
}

/// Watches until everything is gone (or does not die of being killed).
pub(crate) async fn supervise(process: &mut Process, announce: &Announce<'_>, limit: Duration) -> Life {
    let mut life = Life::new();
    let mut start = Words::new();
    let mut reports = Words::new();
    let (mut phase, mut until) = (Phase::Starting, Instant::now() + START_PATIENCE);
    loop {
        select! {
            biased;
            () = start.all(process.start.as_mut()), if !start.ended => {
                if life.note_start(&start, process, announce) && phase == Phase::Starting {
                    (phase, until) = (Phase::Running, start.began + limit);
                }
            }
            () = reports.next(&mut process.reports) => if life.note_report(&mut reports, announce) { break },
            stop = announce.execution.stop_requested(), if life.stopped.is_none() => {
                life.stopped = Some(stop);
                (phase, until) = ask_to_die(process, announce).await;
            }
            () = sleep_until(until) => {
                if phase == Phase::Killed {
                    tracing::error!(execution.id = announce.execution.id, "killed processes do not die");
                    break;
                }
                (phase, until) = press(phase, &mut life, process, announce).await;
            }
        }
    }
    (life.ended, life.ended_at) = (Instant::now(), clock::now());
    if !start.ended {
        // The parent may be slow to close its copy: what was heard counts, the end need not be.
        drop(timeout(GRACE, start.all(process.start.as_mut())).await);
        life.note_start(&start, process, announce);
    }
    if life.exited.is_none() {
        process.condemn_parent();
        life.complaint = process.complaint();
    }
    life
}

/// What follows when the time of a phase is over.
async fn press(
    phase: Phase,
    life: &mut Life,
    process: &mut Process,
    announce: &Announce<'_>,
) -> (Phase, Instant) {
    if phase == Phase::Running {
        life.stopped.get_or_insert(Stop::Timeout);
        return ask_to_die(process, announce).await;
    }
    process.kill();
    (Phase::Killed, Instant::now() + DEATH_PATIENCE)
}

/// Lets the init kill everything, so that its report has the exact end and usage; it has [`GRACE`].
async fn ask_to_die(process: &mut Process, announce: &Announce<'_>) -> (Phase, Instant) {
    let order = async {
        match &mut process.control {
            // Not started yet.
            Some(control) => drop(control.write_all(&[KILL_ALL]).await),
            None => announce.execution.control_byte(KILL_ALL).await,
        }
    };
    drop(timeout(GRACE, order).await);
    (Phase::Stopping, Instant::now() + GRACE)
}

impl Life {
    fn new() -> Self {
        Self {
            started: None,
            exited: None,
            failed: None,
            stopped: None,
            ended: Instant::now(),
            ended_at: clock::now(),
            complaint: String::new(),
        }
    }

    /// Whether its processes were gone before anything was started, and nobody wanted that.
    pub(crate) fn never_was(&self) -> bool {
        self.started.is_none() && self.failed.is_none() && self.stopped.is_none()
    }

    /// Notes what was said up to the start; true if the user's code runs.
    fn note_start(&mut self, said: &Words, process: &mut Process, announce: &Announce<'_>) -> bool {
        process.note_start();
        match said.heard().split_first() {
            Some((&STARTING, [])) => {
                let input = process.input.take();
                let control = process.control.take();
                self.started = control.map(|control| announce.started(said.began, control, input));
                return true;
            }
            Some((&STARTING, report)) => self.note_failure(Report::decode(report), announce),
            _ => self.note_failure(Report::decode(said.heard()), announce),
        }
        false
    }

    /// Notes a report of the init; true if it is the last.
    fn note_report(&mut self, said: &mut Words, announce: &Announce<'_>) -> bool {
        let report = Report::decode(said.heard());
        if let Some(Report::Exited { status, usage: [cpu_us, peak_kib, read, written] }) = report {
            const BLOCK: u64 = 512;
            let status = ExitStatus::from_raw(status);
            let usage = ChildUsage {
                cpu_us,
                peak_rss_bytes: peak_kib.saturating_mul(1024),
                read_bytes: read.saturating_mul(BLOCK),
                write_bytes: written.saturating_mul(BLOCK),
            };
            self.exited = Some(Exit { code: status.code(), signal: status.signal(), usage });
            return true;
        }
        self.note_failure(report, announce);
        said.clear();
        said.ended
    }

    fn note_failure(&mut self, report: Option<Report>, announce: &Announce<'_>) {
        if let Some(Report::Failed { stage, errno }) = report {
            let failure = Failure::from_errno(errno, stage.name(), &announce.what_failed(stage));
            self.failed.get_or_insert(failure);
        }
    }
}

/// Bytes that arrive in pieces, up to those of a report.
#[derive(Debug)]
struct Words {
    bytes: [u8; 1 + REPORT_BYTES],
    count: usize,
    /// When the first of them came.
    began: Instant,
    /// Nothing more will come.
    ended: bool,
}

impl Words {
    fn new() -> Self {
        Self { bytes: [0; 1 + REPORT_BYTES], count: 0, began: Instant::now(), ended: false }
    }

    fn heard(&self) -> &[u8] {
        &self.bytes[..self.count]
    }

    fn clear(&mut self) {
        self.count = 0;
    }

    /// Reads until one report is whole, or to the end. Cancel safe.
    async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) {
        while self.count < REPORT_BYTES && !self.ended {
            self.more(from, REPORT_BYTES).await;
        }
    }

    /// Reads to the end, or as much as there may be. Cancel safe.
    async fn all(&mut self, from: Option<&mut (impl AsyncRead + Unpin)>) {
        let Some(from) = from else {
            self.ended = true;
            return;
        };
        while self.count < self.bytes.len() && !self.ended {
            self.more(from, self.bytes.len()).await;
        }
        self.ended = true;
    }

    async fn more(&mut self, from: &mut (impl AsyncRead + Unpin), most: usize) {
        match from.read(&mut self.bytes[self.count..most]).await {
            Ok(count @ 1..) => {
                if self.count == 0 {
                    self.began = Instant::now();
                }
                self.count += count;
            }
            _ => self.ended = true,
        }
    }
}
