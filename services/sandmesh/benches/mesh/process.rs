//! What `/proc` says about processes: their memory, descriptors, programs and children.

use std::{collections::HashMap, fs, path::PathBuf};

/// The memory of a process, or of several together, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident, shared pages counted in full.
    pub(crate) rss: u64,
    /// Resident, shared pages divided among those who share them.
    pub(crate) pss: u64,
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self { rss: sum.rss + one.rss, pss: sum.pss + one.pss })
    }
}

/// The memory of a process; nothing when it has ended.
pub(crate) fn memory(pid: i32) -> Memory {
    let text = read(pid, "smaps_rollup");
    Memory { rss: kibibytes(&text, "Rss:"), pss: kibibytes(&text, "Pss:") }
}

/// What the machine has in files that are in memory alone, in bytes.
pub(crate) fn files_in_memory() -> u64 {
    kibibytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "Shmem:")
}

/// The most resident memory since [`forget_peak`], in bytes.
pub(crate) fn peak(pid: i32) -> u64 {
    kibibytes(&read(pid, "status"), "VmHWM:")
}

/// Begins anew with the peak of a process.
///
/// # Errors
/// When the process has ended or belongs to somebody else.
pub(crate) fn forget_peak(pid: i32) -> std::io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// How many descriptors a process has, and how many of them are sockets.
pub(crate) fn descriptors(pid: i32) -> (usize, usize) {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets: Vec<PathBuf> = entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let sockets = targets.iter().filter(|target| target.to_string_lossy().starts_with("socket:"));
    (targets.len(), sockets.count())
}

/// Whether a process is a Python interpreter.
pub(crate) fn is_python(pid: i32) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"))
}

/// These processes and all that descend from them.
pub(crate) fn with_descendants(mut pids: Vec<i32>) -> Vec<i32> {
    let children = children();
    let mut at = 0;
    while at < pids.len() {
        let new: Vec<i32> = children.get(&pids[at]).into_iter().flatten().copied().collect();
        let new: Vec<i32> = new.into_iter().filter(|pid| !pids.contains(pid)).collect();
        pids.extend(new);
        at += 1;
    }
    pids
}

/// The processes whose user is one of these, or whose command line mentions `text`.
pub(crate) fn strays(users: std::ops::Range<u32>, text: &str) -> Vec<i32> {
    let ours = |pid: &i32| {
        let uid = read(*pid, "status")
            .lines()
            .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse::<u32>().ok());
        uid.is_some_and(|uid| users.contains(&uid)) || read(*pid, "cmdline").contains(text)
    };
    all().into_iter().filter(ours).collect()
}

fn children() -> HashMap<i32, Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in all() {
        // The name is in parentheses and may hold anything; the parent is the second word after it.
        let stat = read(pid, "stat");
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn read(pid: i32, file: &str) -> String {
    fs::read(format!("/proc/{pid}/{file}"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The value of the first `NAME  N kB` line, in bytes.
fn kibibytes(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0) * 1024
}
