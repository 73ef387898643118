//! What a server leaves on the machine: sandbox directories, executors, cgroups, mounts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use super::process::{executor, processes_with, signal};

/// How deep below a controller the cgroups of a test can be: the runner's own cgroup may be nested.
const DEPTH: usize = 8;

/// The sandboxes whose directories exist below `data_dir`.
pub(crate) fn sandbox_dirs(data_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(data_dir.join("sandboxes")) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// The cgroups of sandboxes: the directories below every one that is named `parent`.
pub(crate) fn cgroups_below(parent: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in cgroups_named(parent) {
        collect_dirs(&root, DEPTH, &mut found);
    }
    found
}

/// The directories named `parent`, one for each controller.
fn cgroups_named(parent: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    collect_dirs(Path::new("/sys/fs/cgroup"), DEPTH, &mut all);
    all.retain(|dir| dir.file_name().is_some_and(|name| name == parent));
    all
}

fn collect_dirs(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.push(entry.path());
        if depth > 0 {
            collect_dirs(&entry.path(), depth - 1, found);
        }
    }
}

/// The processes in the cgroups of the sandboxes of a test.
pub(crate) fn processes_in(parent: &str) -> Vec<i32> {
    let read = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = cgroups_below(parent)
        .iter()
        .flat_map(|dir| read(dir).lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Everything there is of sandboxes, in words; empty when nothing is left.
pub(crate) fn of(data_dir: &Path, cgroup_parent: &str) -> Vec<String> {
    let mut left: Vec<String> =
        sandbox_dirs(data_dir).iter().map(|dir| format!("directory {}", dir.display())).collect();
    left.extend(cgroups_below(cgroup_parent).iter().map(|dir| format!("cgroup {}", dir.display())));
    left.extend(processes_in(cgroup_parent).iter().map(|pid| format!("process {pid} in a cgroup")));
    let executors = processes_with(&["sandmesh-executor", &data_dir.to_string_lossy()]);
    left.extend(executors.iter().map(|pid| format!("executor {pid}")));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts.lines().filter(|line| line.contains(&*data_dir.to_string_lossy()));
    left.extend(ours.map(|line| format!("mount {line}")));
    left
}

/// Removes what a test left, through the program's own way first.
pub(crate) fn remove(data_dir: &Path, cgroup_parent: &str) {
    for dir in sandbox_dirs(data_dir) {
        let id = dir.file_name().unwrap_or_default().to_owned();
        let mut destroy = Command::new(executor());
        destroy.arg("destroy").arg("--dir").arg(&dir).arg("--sandbox-id").arg(id);
        let _ = destroy.args(["--cgroup-parent", cgroup_parent]).output();
    }
    for pid in processes_in(cgroup_parent) {
        signal(pid, Signal::KILL);
    }
    for pid in processes_with(&["sandmesh-executor", &data_dir.to_string_lossy()]) {
        signal(pid, Signal::KILL);
    }
    let mut cgroups = cgroups_below(cgroup_parent);
    cgroups.reverse();
    cgroups.extend(cgroups_named(cgroup_parent));
    for dir in cgroups {
        // A cgroup can be removed a moment after its last process was killed.
        for _ in 0..50 {
            if fs::remove_dir(&dir).is_ok() || !dir.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
