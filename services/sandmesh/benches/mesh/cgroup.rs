//! The control group around a whole server: its CPU time, and all that runs and exists in it.
//!
//! The sandboxes of a server are in groups below one parent. The server itself is put beside them, so that
//! the parent accounts for the whole stack: server, executors, jails and user code, whoever reaps them and
//! whether they still run. Version 1 and version 2 both hand the time of a group that is removed on to its
//! parent.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::process;

/// The group of the server itself.
const SERVER: &str = "server";

/// A parent group: one directory per hierarchy on version 1, one in all on version 2.
#[derive(Debug)]
pub(crate) struct Group {
    /// The directory that accounts for CPU time, and the file in it.
    cpu: PathBuf,
    usage: &'static str,
    /// In every hierarchy, made by us or by an executor.
    directories: Vec<PathBuf>,
}

impl Group {
    /// Makes it, with the server's group in it.
    ///
    /// # Errors
    /// When no hierarchy accounts for CPU time, or this user may not make groups.
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let v1 = mount_points(&mounts, |kind, options| kind == "cgroup" && !options.contains("name="));
        let accounting =
            mount_points(&mounts, |kind, options| kind == "cgroup" && has_word(options, "cpuacct"));
        let group = match (accounting.first(), mount_points(&mounts, |kind, _| kind == "cgroup2").first()) {
            (Some(accounting), _) => Self {
                cpu: accounting.join(name),
                usage: "cpuacct.usage",
                directories: v1.iter().map(|mount| mount.join(name)).collect(),
            },
            (None, Some(unified)) => {
                let cpu = delegated(unified).join(name);
                Self { directories: vec![cpu.clone()], cpu, usage: "cpu.stat" }
            }
            (None, None) => bail!("no control group file system is mounted"),
        };
        let server = group.cpu.join(SERVER);
        fs::create_dir_all(&server).with_context(|| format!("cannot make `{}`", server.display()))?;
        Ok(group)
    }

    /// Puts the server in its group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn admit(&self, pid: u32) -> anyhow::Result<()> {
        let file = self.cpu.join(SERVER).join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| format!("cannot write `{}`", file.display()))
    }

    /// The CPU time of everything that ever was in it.
    pub(crate) fn cpu(&self) -> Duration {
        let text = fs::read_to_string(self.cpu.join(self.usage)).unwrap_or_default();
        match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
            Some(microseconds) => Duration::from_micros(microseconds.trim().parse().unwrap_or(0)),
            None => Duration::from_nanos(text.trim().parse().unwrap_or(0)),
        }
    }

    /// Gives its sandboxes together as much of a busy CPU as that many kernel sessions have: as many as the
    /// baseline has in flight. Without it one group would compete with many sessions.
    pub(crate) fn share(&self, sessions: usize) {
        for (file, each) in [("cpu.shares", 1024), ("cpu.weight", 100)] {
            let files = self.directories.iter().map(|directory| directory.join(file));
            for file in files.filter(|file| file.exists()) {
                if let Err(error) = fs::write(&file, (each * sessions).to_string()) {
                    eprintln!("cannot write `{}`: {error}", file.display());
                }
            }
        }
    }

    /// The processes of one sandbox: those in its groups and their descendants.
    pub(crate) fn processes_of(&self, sandbox: &str) -> Vec<i32> {
        process::with_descendants(self.pids(|directory| directory.join(sandbox)))
    }

    /// The executor of one sandbox.
    pub(crate) fn executor_of(&self, sandbox: &str) -> Option<i32> {
        self.pids(|directory| directory.join(sandbox).join("executor")).first().copied()
    }

    /// The processes in it, the server's left out.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let server = pids_in(&self.cpu.join(SERVER));
        let mut pids = process::with_descendants(self.pids(PathBuf::clone));
        pids.retain(|pid| !server.contains(pid));
        pids
    }

    /// The groups below it in all hierarchies, the server's left out.
    pub(crate) fn below(&self) -> Vec<PathBuf> {
        let server = self.cpu.join(SERVER);
        let mut below: Vec<_> = self.directories.iter().flat_map(|directory| subgroups(directory)).collect();
        below.retain(|directory| *directory != server);
        below
    }

    fn pids(&self, place: impl Fn(&PathBuf) -> PathBuf) -> Vec<i32> {
        let roots = self.directories.iter().map(place);
        let all = roots.flat_map(|root| subgroups(&root).into_iter().chain([root]));
        let mut pids: Vec<i32> = all.flat_map(|directory| pids_in(&directory)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

impl Drop for Group {
    /// Removes it, once the server has ended. Executors make the parent and leave it in every hierarchy: it
    /// is what was configured, so it is ours.
    fn drop(&mut self) {
        let all = [self.cpu.join(SERVER), self.cpu.clone()].into_iter().chain(self.directories.drain(..));
        for directory in all {
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    eprintln!("cannot remove `{}`: {error}", directory.display());
                }
                _ => {}
            }
        }
    }
}

/// Every group below one, at any depth.
fn subgroups(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups
        .flat_map(|entry| {
            let path = entry.path();
            subgroups(&path).into_iter().chain([path])
        })
        .collect()
}

fn pids_in(directory: &Path) -> Vec<i32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Where groups can be made on version 2: at the top, or in the subtree that was delegated to us.
fn delegated(mount: &Path) -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let writable = rustix::fs::access(mount, rustix::fs::Access::WRITE_OK).is_ok();
    if writable { mount.to_owned() } else { mount.join(own) }
}

/// The mount points of the file systems that `wanted` accepts by type and super options.
fn mount_points(mountinfo: &str, wanted: impl Fn(&str, &str) -> bool) -> Vec<PathBuf> {
    let point = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        wanted(kind, options).then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    mountinfo.lines().filter_map(point).collect()
}

fn has_word(list: &str, word: &str) -> bool {
    list.split(',').any(|other| other == word)
}
