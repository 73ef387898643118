//! The figures of one group. Each file is opened once and read as often as wanted.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    time::Duration,
};

use super::{Controller, Group, LimitHits, Usage, Version, field, number, read};

/// What a figure is read from; a kernel without the file has always counted zero.
#[derive(Debug)]
struct Meter {
    file: Option<File>,
    /// The line, where there are several.
    key: Option<&'static str>,
}

impl Meter {
    fn open(group: &Group, controller: Controller, name: &str, key: Option<&'static str>) -> Self {
        let path = group.file(controller, name);
        // For writing too, where that is possible: some can be set back.
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).or_else(|_| File::open(&path));
        Self { file: file.ok(), key }
    }

    fn read(&self) -> u64 {
        let mut bytes = [0; 2048];
        let count = self.file.as_ref().map_or(0, |file| file.read_at(&mut bytes, 0).unwrap_or(0));
        let text = str::from_utf8(&bytes[..count]).unwrap_or_default();
        match self.key {
            Some(key) => field(text, key),
            None => number(text),
        }
    }
}

/// What v2 tells of it: since Linux 5.18 all, before that its parts.
fn kernel_bytes(statistics: &str) -> u64 {
    match field(statistics, "kernel") {
        0 => field(statistics, "slab") + field(statistics, "kernel_stack"),
        all => all,
    }
}

/// The figures of a group.
#[derive(Debug)]
pub(crate) struct Meters {
    version: Version,
    cpu: Meter,
    memory: Meter,
    peak: Meter,
    processes: Meter,
    oom_kills: Meter,
    refused_forks: Meter,
    /// The list of its processes. It is opened anew each time: on v1 an open one tells for a second what it
    /// told before.
    members: PathBuf,
    /// What is read less often: its parts of memory, and on v1 what the kernel has for it.
    statistics: PathBuf,
    kernel: PathBuf,
}

impl Meters {
    /// Those of a group that exists.
    pub(crate) fn open(group: &Group) -> Self {
        let (cpu, memory, peak, oom) = match group.version {
            Version::V1 => (
                (Controller::Cpuacct, "cpuacct.usage", None),
                "memory.usage_in_bytes",
                "memory.max_usage_in_bytes",
                "memory.oom_control",
            ),
            Version::V2 => (
                (Controller::Cpu, "cpu.stat", Some("usage_usec")),
                "memory.current",
                "memory.peak",
                "memory.events",
            ),
        };
        let of_memory = |name, key| Meter::open(group, Controller::Memory, name, key);
        Self {
            version: group.version,
            cpu: Meter::open(group, cpu.0, cpu.1, cpu.2),
            memory: of_memory(memory, None),
            peak: of_memory(peak, None),
            processes: Meter::open(group, Controller::Pids, "pids.current", None),
            oom_kills: of_memory(oom, Some("oom_kill")),
            refused_forks: Meter::open(group, Controller::Pids, "pids.events", Some("max")),
            // Of the hierarchy that a process enters first.
            members: group.file(Controller::Memory, "cgroup.procs"),
            statistics: group.file(Controller::Memory, "memory.stat"),
            kernel: group.file(Controller::Memory, "memory.kmem.usage_in_bytes"),
        }
    }

    /// CPU time that was used.
    pub(crate) fn cpu(&self) -> Duration {
        match self.version {
            Version::V1 => Duration::from_nanos(self.cpu.read()),
            Version::V2 => Duration::from_micros(self.cpu.read()),
        }
    }

    /// Memory that is used.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.read()
    }

    /// What the kernel has for it, and what is shared or in a file system in memory: what may be left of processes
    /// that ended. What it has for files on a disk cannot be told from the rest.
    pub(crate) fn lingering_bytes(&self) -> u64 {
        let statistics = read(&self.statistics);
        let kernel = match self.version {
            Version::V1 => number(&read(&self.kernel)),
            Version::V2 => kernel_bytes(&statistics),
        };
        kernel + field(&statistics, "shmem")
    }

    /// The most that was.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        self.peak.read()
    }

    /// How often it ran into a limit.
    pub(crate) fn limit_hits(&self) -> LimitHits {
        LimitHits { oom_kills: self.oom_kills.read(), refused_forks: self.refused_forks.read() }
    }

    /// All that is used and was.
    pub(crate) fn usage(&self) -> Usage {
        let memory_bytes = self.memory_bytes();
        Usage {
            cpu: self.cpu(),
            memory_bytes,
            peak_memory_bytes: self.peak_memory_bytes().max(memory_bytes),
            processes: u32::try_from(self.processes.read()).unwrap_or(u32::MAX),
        }
    }

    /// Whether no process is seen in it, without a look at groups below it. One that is gone is empty.
    pub(crate) fn is_empty(&self) -> bool {
        if self.processes.file.is_some() {
            return self.processes.read() == 0;
        }
        File::open(&self.members).map_or(true, |file| file.read_at(&mut [0; 1], 0).unwrap_or(0) == 0)
    }

    /// Sets the peak of memory back; v2 has that since Linux 6.12, for whoever reads the same file.
    pub(crate) fn forget_peak(&self) -> io::Result<()> {
        let word: &[u8] = if self.version == Version::V1 { b"0" } else { b"reset" };
        let file = self.peak.file.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        file.write_all_at(word, 0)
    }
}
