//! Control groups, v1 and v2 behind one interface: limits of a sandbox, accounting and killing of an
//! execution.
//!
//! Layout below the mount point: `<parent>/<sandbox>/{executor,parents,runs/<number>}`. The limits are on
//! `runs`, so that the executor itself is never a victim of the user's memory; `runs` belongs to the
//! sandbox's uid, so that the executor, unprivileged by then, can make one group per execution that runs.
//! A v1 host has one directory per controller and a v2 host has one for all: a [`Group`] hides that.

mod meters;
mod process;

use std::{
    fs, io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use self::meters::Meters;

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// The limits of one sandbox; zero means not limited.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) max_processes: u32,
}

/// What a group used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) memory_bytes: u64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) processes: u32,
}

/// How often a group ran into a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LimitHits {
    /// Processes killed because memory ran out.
    pub(crate) oom_kills: u64,
    /// Forks refused because of the limit of processes.
    pub(crate) refused_forks: u64,
}

/// The interface version of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Version {
    V1,
    V2,
}

/// A controller that is used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Controller {
    Memory,
    Pids,
    Cpu,
    Cpuacct,
    /// Any that nothing is limited or counted with.
    Other,
}

const CONTROLLERS: [(Controller, &str); 4] = [
    (Controller::Memory, "memory"),
    (Controller::Pids, "pids"),
    (Controller::Cpu, "cpu"),
    (Controller::Cpuacct, "cpuacct"),
];

/// The time of which a group gets its share of the processors.
const CPU_PERIOD_US: &str = "100000";

/// The controllers that a group hands down to its children, in v2's words.
const HAND_DOWN: &str = "+memory +pids +cpu";

/// One control group: a directory in every hierarchy that matters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Group {
    version: Version,
    /// v1: one directory per controller; v2: a single entry that stands for all.
    dirs: Vec<(Controller, PathBuf)>,
}

impl Group {
    /// Finds the root of the hierarchy that can limit memory and processes here.
    /// An error says what is missing.
    pub(crate) fn root() -> anyhow::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
        Self::detect(&mountinfo()?, &own)
    }

    /// The root with every other hierarchy there is: an engine makes groups of containers in all.
    pub(crate) fn everywhere() -> anyhow::Result<Self> {
        Ok(Self::root()?.with_others(&mountinfo()?))
    }

    fn with_others(mut self, mountinfo: &str) -> Self {
        if self.version == Version::V1 {
            let mounts = mountinfo.lines().filter_map(Mount::parse);
            let points = mounts.filter(|mount| mount.kind.starts_with("cgroup")).map(|mount| mount.point);
            let others = points.map(|point| (Controller::Other, PathBuf::from(point)));
            let others: Vec<_> =
                others.filter(|(_, dir)| self.dirs.iter().all(|(_, own)| own != dir)).collect();
            self.dirs.extend(others);
        }
        self
    }

    fn detect(mountinfo: &str, own: &str) -> anyhow::Result<Self> {
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).collect();
        let v1: Vec<_> = CONTROLLERS
            .iter()
            .filter_map(|(controller, name)| {
                let mount =
                    mounts.iter().find(|m| m.kind == "cgroup" && m.options.split(',').any(|o| o == *name))?;
                Some((*controller, PathBuf::from(mount.point)))
            })
            .collect();
        let has = |controller| v1.iter().any(|(c, _)| *c == controller);
        if has(Controller::Memory) && has(Controller::Pids) {
            return Ok(Self { version: Version::V1, dirs: v1 });
        }
        let Some(mount) = mounts.iter().find(|m| m.kind == "cgroup2") else {
            bail!(
                "no cgroup file system with the controllers memory and pids is mounted below /sys/fs/cgroup"
            );
        };
        let mut dir = PathBuf::from(mount.point);
        if !writable(&dir)
            && let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::/"))
        {
            // Not ours from the top: a subtree that was delegated to the service may be.
            dir.push(own);
        }
        let available = read(&dir.join("cgroup.controllers"));
        for needed in ["memory", "pids"] {
            if !available.split_whitespace().any(|name| name == needed) {
                bail!("the controller {needed} is not available in {}", dir.display());
            }
        }
        Ok(Self { version: Version::V2, dirs: vec![(Controller::Memory, dir)] })
    }

    /// The word for the API: "cgroup-v1" or "cgroup-v2".
    pub(crate) fn name(&self) -> &'static str {
        match self.version {
            Version::V1 => "cgroup-v1",
            Version::V2 => "cgroup-v2",
        }
    }

    /// The group of this name below this one; it need not exist.
    pub(crate) fn child(&self, name: &str) -> Self {
        let dirs = self.dirs.iter().map(|(controller, dir)| (*controller, dir.join(name))).collect();
        Self { version: self.version, dirs }
    }

    /// The group of an execution below this one. Only where something is limited or counted for each
    /// execution it is a group of its own: every directory costs time at the start and at the end.
    pub(crate) fn run(&self, number: u64) -> Self {
        let mut group = self.child(&number.to_string());
        group.dirs.retain(|(controller, _)| *controller != Controller::Cpu);
        group
    }

    /// The doors of this group that the processes of its [runs](Self::run) must enter besides theirs.
    pub(crate) fn shared_doors(&self) -> Vec<PathBuf> {
        let counted = |dir: &Path| self.dirs.iter().any(|(c, d)| *c != Controller::Cpu && d == dir);
        let shared = self.dirs.iter().filter(|(c, dir)| *c == Controller::Cpu && !counted(dir));
        shared.map(|(_, dir)| dir.join("tasks")).collect()
    }

    /// Makes the group if it does not exist. Its parent must.
    pub(crate) fn create(&self) -> io::Result<()> {
        for (_, dir) in &self.dirs {
            match fs::create_dir(dir) {
                Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(at(dir, &err)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the children of this group be limited (v2; v1 needs nothing).
    pub(crate) fn hand_down(&self) -> io::Result<()> {
        if self.version == Version::V1 {
            return Ok(());
        }
        let file = self.file(Controller::Memory, "cgroup.subtree_control");
        let available = read(&self.file(Controller::Memory, "cgroup.controllers"));
        let wanted: Vec<_> = HAND_DOWN
            .split(' ')
            .filter(|word| available.split_whitespace().any(|name| *name == word[1..]))
            .collect();
        write(&file, &wanted.join(" "))
    }

    /// Sets the limits of a fresh group.
    pub(crate) fn limit(&self, limits: Limits) -> io::Result<()> {
        if limits.memory_bytes > 0 {
            self.limit_memory(&limits.memory_bytes.to_string())?;
        }
        if limits.max_processes > 0 {
            write(&self.file(Controller::Pids, "pids.max"), &limits.max_processes.to_string())?;
        }
        if limits.cpu_millis > 0 {
            let quota = u64::from(limits.cpu_millis) * 100;
            match self.version {
                Version::V1 if self.has(Controller::Cpu) => {
                    let period = self.file(Controller::Cpu, "cpu.cfs_period_us");
                    // As a rule it is that of a new group. To set it takes a look at every group of the machine.
                    if read(&period).trim() != CPU_PERIOD_US {
                        write(&period, CPU_PERIOD_US)?;
                    }
                    write(&self.file(Controller::Cpu, "cpu.cfs_quota_us"), &quota.to_string())?;
                }
                Version::V1 => {}
                Version::V2 => {
                    write(&self.file(Controller::Cpu, "cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))?;
                }
            }
        }
        Ok(())
    }

    fn limit_memory(&self, bytes: &str) -> io::Result<()> {
        match self.version {
            Version::V1 => {
                write(&self.file(Controller::Memory, "memory.limit_in_bytes"), bytes)?;
                // Memory and swap together; without the file there is no swap accounting to escape to.
                optional(write(&self.file(Controller::Memory, "memory.memsw.limit_in_bytes"), bytes))
            }
            Version::V2 => {
                write(&self.file(Controller::Memory, "memory.max"), bytes)?;
                optional(write(&self.file(Controller::Memory, "memory.swap.max"), "0"))
            }
        }
    }

    /// Hands the group to a uid, which may then make groups below it and move its processes there,
    /// but not change the group's own limits.
    pub(crate) fn delegate(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.give(&["", "tasks", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"], uid, gid)
    }

    /// Lets a uid move its processes between groups below this one, which v2 asks for; and no more.
    pub(crate) fn allow_moves(&self, uid: u32, gid: u32) -> io::Result<()> {
        if self.version == Version::V2 { self.give(&["cgroup.procs"], uid, gid) } else { Ok(()) }
    }

    fn give(&self, names: &[&str], uid: u32, gid: u32) -> io::Result<()> {
        for (_, dir) in &self.dirs {
            for name in names {
                optional(chown(dir.join(name), Some(uid), Some(gid)).map_err(|err| at(dir, &err)))?;
            }
        }
        Ok(())
    }

    /// Moves the calling process, which must have one thread, here.
    pub(crate) fn enter(&self) -> io::Result<()> {
        self.doors().iter().try_for_each(|file| write(file, "0"))
    }

    /// The files to which a process of one thread writes "0" to move itself here.
    ///
    /// On v1 not `cgroup.procs`: moving a whole process waits for every processor to pass through the
    /// scheduler (7 ms and more on an idle machine), moving the calling thread does not.
    pub(crate) fn doors(&self) -> Vec<PathBuf> {
        let name = match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        };
        let mut files: Vec<_> = self.dirs.iter().map(|(_, dir)| dir.join(name)).collect();
        // Controllers mounted together share their directory.
        files.dedup();
        files
    }

    /// What it uses and used. A file that this kernel does not have counts as zero.
    pub(crate) fn usage(&self) -> Usage {
        Meters::open(self).usage()
    }

    /// Sends SIGKILL to every process in it and below it, once. Returns how many were there. One that
    /// forks meanwhile on v1 is met by the next call.
    pub(crate) fn kill(&self) -> usize {
        if self.version == Version::V2 && write(&self.file(Controller::Memory, "cgroup.kill"), "1").is_ok() {
            return self.pids().len();
        }
        let pids = self.pids();
        for pid in &pids {
            // One that is gone already is what is wanted.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        pids.len()
    }

    /// Removes it and everything below it. Returns false while processes are still in it.
    pub(crate) fn remove(&self) -> bool {
        // Each of them, even if one cannot be removed yet.
        self.dirs.iter().filter(|(_, dir)| !remove_tree(dir)).count() == 0
    }

    /// Kills and removes it, waiting for the processes to die; false if they did not within `patience`.
    pub(crate) fn destroy(&self, patience: Duration) -> bool {
        let mut pause = Duration::from_micros(500);
        let mut waited = Duration::ZERO;
        loop {
            self.kill();
            if self.remove() {
                return true;
            }
            if waited >= patience {
                return false;
            }
            std::thread::sleep(pause);
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// The processes in it and below it, in any hierarchy.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        for (_, dir) in &self.dirs {
            collect_pids(dir, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    fn has(&self, controller: Controller) -> bool {
        self.dirs.iter().any(|(c, _)| *c == controller)
    }

    fn file(&self, controller: Controller, name: &str) -> PathBuf {
        let dir = self.dirs.iter().find(|(c, _)| *c == controller).or_else(|| self.dirs.first());
        dir.map(|(_, dir)| dir.join(name)).unwrap_or_default()
    }
}

fn mountinfo() -> anyhow::Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")
}

/// One line of `/proc/self/mountinfo`.
struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let kind = right.next()?;
        Some(Self { point: left.split(' ').nth(4)?, kind, options: right.nth(1)? })
    }
}

fn collect_pids(dir: &Path, pids: &mut Vec<Pid>) {
    pids.extend(
        read(&dir.join("cgroup.procs")).lines().filter_map(|line| line.parse().ok().map(Pid::from_raw)),
    );
    for child in subgroups(dir) {
        collect_pids(&child, pids);
    }
}

fn remove_tree(dir: &Path) -> bool {
    // Where it is mounted for reading only, removing also fails of what is not there.
    let remove = || fs::remove_dir(dir).is_ok() || matches!(dir.try_exists(), Ok(false));
    // Most have nothing below them.
    remove() || {
        for child in subgroups(dir) {
            remove_tree(&child);
        }
        remove()
    }
}

/// The groups directly below one. Only root and the sandbox's uid can make groups here, never user
/// code, so the depth is ours.
fn subgroups(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn writable(dir: &Path) -> bool {
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_ok()
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    // Not fs::write: a control file is never created or truncated.
    let mut open = fs::OpenOptions::new();
    let result = open.write(true).open(file).and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()));
    result.map_err(|err| at(file, &err))
}

fn at(path: &Path, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}

fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The value of `key` in a flat keyed file.
fn field(text: &str, key: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).map_or(0, number)
}

#[cfg(test)]
mod tests;
