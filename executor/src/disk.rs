//! Watching what a sandbox takes of the disk while its executions run.
//!
//! This is a watch, not a quota: it notices within about a second that the limit was passed and ends
//! the executions with a typed cause. [`size`] adds up the files of the workspace, [`held`] those that
//! only a running process still reaches. What neither can see (descriptors that are on their way between
//! processes) ends the executions when the machine's disk is nearly full.

mod held;
mod size;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use self::size::Size;
use crate::{cli::MeasureOptions, execution::Stop, isolation::Sandbox, service::Service};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// After a look that took its time there is a pause of so many times that.
const SHARE: u32 = 4;

/// Ends the executions that have begun whenever more is used than the limit and than before. What is too
/// large already can be cleaned up. Returns at once where there is no limit, and otherwise never.
pub(crate) async fn watch(service: Arc<Service>) {
    let limit = service.sandbox().disk_bytes();
    if limit == 0 {
        return;
    }
    let (start, mut rested) = (Instant::now(), Instant::now());
    let (mut before, mut settled, mut stopped) = (0, true, false);
    loop {
        // A sandbox that nobody uses is to cost nothing, however many there are.
        if settled && service.is_empty() {
            service.arrival().await;
        }
        sleep_until(next_look(start, Instant::now().max(rested))).await;
        let running = service.running() > 0;
        if !running && settled {
            continue;
        }
        let began = Instant::now();
        // All of it, once nothing changes any more: what comes next is compared with that.
        let enough = if running && !stopped { limit.max(before) } else { u64::MAX };
        let looking = Arc::clone(&service);
        let look = tokio::task::spawn_blocking(move || Look::at(looking.sandbox(), enough));
        let Ok(look) = look.await else { continue };
        stopped = look.used > enough || running && look.endangers;
        if stopped {
            tracing::warn!(
                used = look.used,
                limit,
                hidden = look.endangers,
                "more disk is used than the limit"
            );
            service.stop_started(Stop::DiskLimit);
        } else {
            rested = Instant::now() + began.elapsed() * SHARE;
        }
        // What is too deep to be measured is no measure: it may grow unseen, and so must go.
        before = if look.used == u64::MAX { 0 } else { look.used };
        settled = !running;
    }
}

/// When it is looked next: at the same times whoever comes when, so that nobody who is quick is sure to be gone
/// before.
fn next_look(start: Instant, now: Instant) -> Instant {
    let past = (now - start).as_millis() / INTERVAL.as_millis();
    start + INTERVAL * u32::try_from(past + 1).unwrap_or(u32::MAX)
}

/// What was found at one time.
#[derive(Debug)]
struct Look {
    /// Bytes on the disk, or a little more than what was enough.
    used: u64,
    /// Something is hidden, and the machine's disk is nearly full.
    endangers: bool,
}

impl Look {
    fn at(sandbox: &Sandbox, enough: u64) -> Self {
        let workspace = sandbox.workspace();
        let Ok(top) = fs::metadata(workspace) else { return Self { used: 0, endangers: false } };
        let mut size = Size::new(enough);
        size.add_tree(workspace.to_owned());
        let tree = if size.is_shut() && !size.is_enough() {
            // The jail's own user namespace has the right to look into every directory of its user.
            size.total().max(measure_with_rights(sandbox, enough).unwrap_or_default())
        } else {
            size.total()
        };
        let pids = sandbox.user_processes();
        let held = held::size(&pids, top.dev(), enough.saturating_sub(tree));
        let is_scarce = free_bytes(workspace).is_some_and(|free| free < sandbox.disk_reserve_bytes());
        Self { used: tree.saturating_add(held), endangers: is_scarce && held::has_more(&pids) }
    }
}

/// What a tree takes, or a little more than what is enough.
pub(crate) fn tree_size(top: PathBuf, enough: u64) -> u64 {
    let mut size = Size::new(enough);
    size.add_tree(top);
    size.total()
}

/// What root may still write below a path.
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Measures with the right to read every directory. `None` if there is no jail that could give it.
fn measure_with_rights(sandbox: &Sandbox, enough: u64) -> Option<u64> {
    let output = sandbox.measuring_jail(enough)?.output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().parse());
    match said {
        Ok(Ok(bytes)) => Some(bytes),
        failed => {
            tracing::warn!(?failed, "cannot look into directories that are closed to their owner");
            None
        }
    }
}

/// `sandmesh-executor measure`: prints the size of a tree.
pub(crate) fn print_size(options: &MeasureOptions) -> ExitCode {
    println!("{}", tree_size(options.dir.clone(), options.enough));
    ExitCode::SUCCESS
}
