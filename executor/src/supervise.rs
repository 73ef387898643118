//! Watching over one jail from its start to its end: its reports, its deadline, and its killing.

use std::time::Duration;

use sandmesh_proto::executor as pb;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines, Take},
    net::unix::pipe,
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    execution::Stop,
    init::{ChildUsage, KILL_ALL, Report},
    isolation::Process,
    run::{Announce, StartedAt},
    status::Failure,
};

/// How long a jail may take to start the user's process.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long the jail's init has to kill everything and report, before the jail is killed from
/// outside. Well below the 100 ms within which a deadline must be kept.
const GRACE: Duration = Duration::from_millis(25);

/// How long a killed jail may take to die before it is given up: a process may hang in the kernel.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

/// How much the jail may report.
const MAX_REPORT_BYTES: u64 = 64 << 10;

/// What became of a jail.
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
    /// When it ended.
    pub(crate) ended: Instant,
    /// What bubblewrap said, which only speaks when it fails.
    pub(crate) complaint: String,
}

/// How the user's process ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) usage: ChildUsage,
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
    /// The death of a killed jail.
    Killed,
}

/// Watches until the jail is gone (or does not die of being killed).
pub(crate) async fn supervise(process: &mut Process, announce: &Announce<'_>, limit: Duration) -> Life {
    let mut life = Life::new();
    let mut reports = Reports::new(process.report.take());
    let (mut phase, mut until) = (Phase::Starting, Instant::now() + START_PATIENCE);
    loop {
        select! {
            biased;
            report = reports.next() => {
                if life.note(report, process, announce) && phase == Phase::Starting {
                    (phase, until) = (Phase::Running, Instant::now() + limit);
                }
            }
            _ = process.wait() => break,
            stop = announce.execution.stop_requested(), if life.stopped.is_none() => {
                life.stopped = Some(stop);
                (phase, until) = ask_to_die(process, announce).await;
            }
            () = sleep_until(until) => {
                match phase {
                    Phase::Killed => {
                        tracing::error!(execution.id = announce.execution.id, "a killed jail does not die");
                        break;
                    }
                    Phase::Running => {
                        life.stopped.get_or_insert(Stop::Timeout);
                        (phase, until) = ask_to_die(process, announce).await;
                    }
                    Phase::Starting | Phase::Stopping => {
                        process.kill();
                        (phase, until) = (Phase::Killed, Instant::now() + DEATH_PATIENCE);
                    }
                }
            }
        }
    }
    life.ended = Instant::now();
    // The last words may have come together with the end.
    while let Ok(Some(report)) = timeout(GRACE, reports.next_open()).await {
        life.note(report, process, announce);
    }
    life
}

/// Lets the init kill everything, so that its report has the exact end and usage; it has [`GRACE`].
async fn ask_to_die(process: &mut Process, announce: &Announce<'_>) -> (Phase, Instant) {
    match &mut process.control {
        // Not started yet: nothing to be exact about.
        Some(_) => process.kill(),
        None => drop(timeout(GRACE, announce.execution.control_byte(KILL_ALL)).await),
    }
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
            complaint: String::new(),
        }
    }

    /// Notes a report; true if it says that the user's process runs.
    fn note(&mut self, report: Line, process: &mut Process, announce: &Announce<'_>) -> bool {
        match report {
            Line::Report(Report::Started) => {
                self.started = process.control.take().map(|control| announce.started(control));
                return true;
            }
            Line::Report(Report::Exited { code, signal, usage }) => {
                self.exited = Some(Exit { code, signal, usage })
            }
            Line::Report(Report::Failed { stage, errno, message }) => {
                self.failed = Some(match errno {
                    0 => Failure::new(pb::FailureKind::Internal, &stage, message),
                    errno => Failure::from_errno(errno, &stage, &message),
                });
            }
            Line::Other(text) => {
                self.complaint.push_str(text.trim_start_matches("bwrap: "));
                self.complaint.push(' ');
            }
        }
        false
    }
}

/// The lines on the report descriptor.
struct Reports(Option<Lines<BufReader<Take<pipe::Receiver>>>>);

enum Line {
    Report(Report),
    Other(String),
}

impl Reports {
    fn new(pipe: Option<pipe::Receiver>) -> Self {
        Self(pipe.map(|pipe| BufReader::new(pipe.take(MAX_REPORT_BYTES)).lines()))
    }

    /// The next line; for ever pending once there are no more. Cancel safe.
    async fn next(&mut self) -> Line {
        match self.next_open().await {
            Some(line) => line,
            None => std::future::pending().await,
        }
    }

    /// The next line, or none once there are no more. Cancel safe.
    async fn next_open(&mut self) -> Option<Line> {
        let line = match &mut self.0 {
            Some(lines) => lines.next_line().await.ok().flatten(),
            None => None,
        };
        let Some(line) = line else {
            self.0 = None;
            return None;
        };
        Some(serde_json::from_str(&line).map_or_else(|_| Line::Other(line), Line::Report))
    }
}
