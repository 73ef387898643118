//! The control groups of executions.
//!
//! Making a group and removing it costs more than what it is for, so an empty one is used again: only
//! what differs from before counts, and what cannot be set back makes it unfit.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd as _, RawFd},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::cgroup::{Group, LimitHits, Limits, Meters, Usage};

/// Files that were written stay in memory, as part of whoever wrote them. A group with more of that is
/// not used again: it would be told of its next execution.
const MOST_LEFT: u64 = 1 << 20;

/// The share of the limit of memory that one execution may still have when the next begins.
const SHARE: u64 = 8;

/// How long memory may take to be freed, and how long it may not become less by so much: what the kernel has for
/// the files of the workspace stays.
const FREED: Duration = Duration::from_secs(3);
const STUCK: Duration = Duration::from_millis(200);
const STEP: u64 = 1 << 20;

/// The groups of all executions of a sandbox, below one that has the limits.
#[derive(Debug)]
pub(crate) struct RunGroups {
    /// The group `runs`.
    all: Group,
    limits: Limits,
    /// The doors of `runs` that every process enters besides those of its own group.
    shared_doors: Vec<File>,
    made: AtomicU64,
    free: Mutex<Vec<RunGroup>>,
}

impl RunGroups {
    /// Those below `runs`, which has these limits.
    pub(crate) fn new(all: Group, limits: Limits) -> io::Result<Self> {
        let shared_doors = open_doors(all.shared_doors())?;
        Ok(Self { all, limits, shared_doors, made: AtomicU64::new(0), free: Mutex::default() })
    }

    /// The group above all of them.
    pub(crate) fn all(&self) -> &Group {
        &self.all
    }

    /// An empty group.
    pub(crate) fn take(&self) -> io::Result<RunGroup> {
        match self.free().pop() {
            Some(group) => Ok(group),
            None => {
                let number = self.made.fetch_add(1, Ordering::Relaxed);
                RunGroup::make(&self.all.run(number), self.limits.max_processes)
            }
        }
    }

    /// Whether there is a limit that all executions share.
    pub(crate) fn limits_memory(&self) -> bool {
        self.limits.memory_bytes > 0
    }

    /// Waits for the memory of an execution that ended where the next may not get what it asks for, as long as the
    /// kernel frees it: entries of directories in memory and System V's shared memory go piece by piece after the
    /// last process.
    pub(crate) async fn memory_back(&self, group: &RunGroup) {
        let share = self.limits.memory_bytes / SHARE;
        if !self.limits_memory() || group.meters.memory_bytes() <= share {
            return;
        }
        let began = Instant::now();
        let (mut least, mut since) = (u64::MAX, began);
        loop {
            let left = group.lingering_bytes();
            if left <= least.saturating_sub(STEP) {
                (least, since) = (left, Instant::now());
            }
            if left <= share || since.elapsed() > STUCK || began.elapsed() > FREED {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Kills what is left in a group, and keeps it for another execution or removes it. False if something
    /// does not die.
    pub(crate) async fn give_back(&self, mut group: RunGroup, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(250);
        // Removing may succeed in part: a group that this was tried on is not whole any more.
        let mut is_whole = true;
        loop {
            if group.meters.is_empty() {
                if is_whole && group.is_fit_again() {
                    self.free().push(group);
                    return true;
                }
                is_whole = false;
                if group.group.remove() {
                    return true;
                }
            }
            if Instant::now() >= deadline {
                return false;
            }
            group.group.kill();
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Removes the empty groups, but for so many.
    pub(crate) fn keep(&self, most: usize) {
        let surplus = {
            let mut free = self.free();
            let most = most.min(free.len());
            free.split_off(most)
        };
        drop(surplus);
    }

    /// What every process of an execution in this group is to write "0" to.
    pub(crate) fn doors(&self, group: &RunGroup) -> impl Iterator<Item = RawFd> {
        let doors = group.doors.iter().chain(&self.shared_doors);
        doors.map(|door| door.as_raw_fd()).collect::<Vec<_>>().into_iter()
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<RunGroup>> {
        // No change in here is left half done by a panic.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The group of one execution at a time; dropped, it is killed and removed as far as that goes at once.
#[derive(Debug)]
pub(crate) struct RunGroup {
    group: Group,
    doors: Vec<File>,
    meters: Meters,
    /// The CPU time that it had used before the request of its execution.
    before: Duration,
    /// Which limits it had hit before its execution, and with it.
    hits: (LimitHits, LimitHits),
}

impl RunGroup {
    fn make(group: &Group, max_processes: u32) -> io::Result<Self> {
        group.create()?;
        // The sandbox's own limit once more, so that the kernel counts the refusals here.
        let limited = group.limit(Limits { max_processes, ..Limits::default() });
        let made = limited.and_then(|()| {
            let (doors, meters) = (open_doors(group.doors())?, Meters::open(group));
            Ok(Self { group: group.clone(), doors, meters, before: Duration::ZERO, hits: Default::default() })
        });
        if made.is_err() {
            group.remove();
        }
        made
    }

    /// Notes what was used until now, which is none of its execution's.
    pub(crate) fn begin_account(&mut self) {
        self.before = self.meters.cpu();
    }

    /// What its execution used, and which limits it hit.
    pub(crate) fn account(&mut self) -> (Usage, LimitHits) {
        self.hits.1 = self.meters.limit_hits();
        let (before, now) = self.hits;
        let usage = Usage {
            cpu: self.meters.cpu().saturating_sub(self.before),
            peak_memory_bytes: self.meters.peak_memory_bytes(),
            ..Usage::default()
        };
        let hits = LimitHits {
            oom_kills: now.oom_kills.saturating_sub(before.oom_kills),
            refused_forks: now.refused_forks.saturating_sub(before.refused_forks),
        };
        (usage, hits)
    }

    /// Memory that it has and is to give back: all while processes are in it, then without what is kept of files.
    fn lingering_bytes(&self) -> u64 {
        if self.meters.is_empty() { self.meters.lingering_bytes() } else { self.meters.memory_bytes() }
    }

    /// Kills everything in it, once.
    pub(crate) fn kill(&self) {
        self.group.kill();
    }

    /// Whether it, empty, is as good as new, which makes it so.
    fn is_fit_again(&mut self) -> bool {
        let is_fit = self.meters.memory_bytes() <= MOST_LEFT && self.meters.forget_peak().is_ok();
        if is_fit {
            // A spare that was not taken was no execution, and may have hit some all the same.
            self.hits = (self.meters.limit_hits(), LimitHits::default());
            self.begin_account();
        }
        is_fit
    }
}

impl Drop for RunGroup {
    fn drop(&mut self) {
        if !self.group.remove() {
            self.group.kill();
            self.group.remove();
        }
    }
}

fn open_doors(paths: Vec<PathBuf>) -> io::Result<Vec<File>> {
    paths.into_iter().map(|path| OpenOptions::new().write(true).open(path)).collect()
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::process::ExitStatusExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    /// Groups for real, where the test may make them.
    fn groups(name: &str) -> Option<RunGroups> {
        let name = format!("sandmesh-test-{}-{name}", std::process::id());
        let all = Group::root().ok()?.child(&name);
        all.create().ok()?;
        RunGroups::new(all, Limits { max_processes: 10, ..Limits::default() }).ok()
    }

    #[tokio::test]
    async fn an_empty_group_is_used_again_and_one_that_was_touched_is_not() {
        let Some(groups) = groups("again") else { return };
        let first = groups.take().unwrap();
        assert!(groups.give_back(first, PATIENCE).await);
        assert_eq!(groups.made.load(Ordering::Relaxed), 1);
        let can_forget = groups.free().len() == 1;
        let again = groups.take().unwrap();
        assert_eq!(groups.made.load(Ordering::Relaxed), if can_forget { 1 } else { 2 });
        // What was removed, or in part, is not for use any more, whatever the rest looks like.
        again.group.remove();
        assert!(groups.give_back(again, PATIENCE).await);
        assert_eq!(groups.free().len(), 0);
        groups.keep(0);
        assert!(groups.all.remove(), "nothing is left");
    }

    #[tokio::test]
    async fn what_is_left_in_a_group_is_seen_and_killed() {
        let Some(groups) = groups("left") else { return };
        let group = groups.take().unwrap();
        assert!(group.meters.is_empty());
        let mut left = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        for door in group.doors.iter().chain(&groups.shared_doors) {
            (&*door).write_all(left.id().to_string().as_bytes()).unwrap();
        }
        // Right after it was empty.
        assert!(!group.meters.is_empty());
        let reaped = std::thread::spawn(move || left.wait().unwrap());
        assert!(groups.give_back(group, PATIENCE).await);
        assert_eq!(reaped.join().unwrap().signal(), Some(libc::SIGKILL));
        groups.keep(0);
        assert!(groups.all.remove(), "nothing is left");
    }
}
