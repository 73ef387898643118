//! What the figures were taken on.

use std::{fs, path::Path, process::Command, time::Duration};

use serde::Serialize;

use crate::settings::Settings;

/// The machine, its interpreters, and how busy it was.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory: String,
    kernel: String,
    autogroup: String,
    control_groups: &'static str,
    python: String,
    node: String,
    bubblewrap: String,
    sandmesh: String,
    load_before: String,
    load_after: String,
    /// How much of all CPU time other programs used while it was measured, in percent.
    others_percent: f64,
    #[serde(skip)]
    busy_before: Busy,
}

/// How much of the CPU other programs may use before figures of time mean little.
const NOISY_PERCENT: f64 = 10.0;

/// In which `/proc` counts CPU time, on every architecture that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of all cores until now, in ticks: in all, not idle, and of this process and the children that it
/// waited for.
#[derive(Debug, Clone, Copy, Default)]
struct Busy {
    all: f64,
    used: f64,
    own: f64,
}

impl Machine {
    /// Reads what there is; what cannot be read is empty.
    pub(crate) fn read(settings: &Settings) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory").exists();
        Self {
            cpu: line("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory: line("/proc/meminfo", "MemTotal"),
            kernel: read("/proc/sys/kernel/osrelease"),
            autogroup: read("/proc/sys/kernel/sched_autogroup_enabled"),
            control_groups: if v1 { "v1" } else { "v2" },
            python: version(&settings.python),
            node: version(&settings.node),
            bubblewrap: version(Path::new("/usr/bin/bwrap")),
            sandmesh: version(&settings.program),
            load_before: load(),
            load_after: String::new(),
            others_percent: f64::NAN,
            busy_before: busy(),
        }
    }

    /// Adds how busy the machine was, where the servers under test, which still run, used `servers`.
    pub(crate) fn done(self, servers: Duration) -> Self {
        let (before, after) = (self.busy_before, busy());
        let ours = after.own - before.own + servers.as_secs_f64() * TICKS_PER_SECOND;
        let others = after.used - before.used - ours;
        let others_percent = (100.0 * others / (after.all - before.all)).max(0.0);
        Self { load_after: load(), others_percent, ..self }
    }

    /// A warning when too much else went on.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.others_percent > NOISY_PERCENT).then(|| {
            format!(
                "**Other programs used {:.0} % of the CPU meanwhile: only ratios of CPU time mean much.**",
                self.others_percent
            )
        })
    }

    /// One line about it.
    pub(crate) fn line(&self) -> String {
        let Self { cpu, cores, memory, kernel, control_groups, autogroup, python, node, .. } = self;
        let Self { bubblewrap, sandmesh, load_before, load_after, others_percent, .. } = self;
        format!(
            "{cores} x {cpu}, {memory}, Linux {kernel}, cgroup {control_groups}, sched_autogroup \
             {autogroup}; {python}, node {node}, {bubblewrap}, {sandmesh}; load {load_before} before, \
             {load_after} after; other programs used {others_percent:.0} % of the CPU"
        )
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of the first `name: value` line of a file.
fn line(path: &str, name: &str) -> String {
    let text = read(path);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// The average number of runnable threads, of 1, 5 and 15 minutes.
fn load() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn busy() -> Busy {
    let stat = read("/proc/stat");
    // user, nice, system, idle, iowait, irq, softirq, steal
    let of_all = numbers(stat.lines().next().unwrap_or_default(), 1, 8);
    let own = read("/proc/self/stat");
    // utime, stime, cutime, cstime: the twelfth word after the name and those that follow.
    let own = numbers(own.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default(), 11, 4);
    let all: f64 = of_all.iter().sum();
    Busy { all, used: all - of_all.iter().skip(3).take(2).sum::<f64>(), own: own.iter().sum() }
}

/// That many of the words of a line, as numbers.
fn numbers(line: &str, skipped: usize, taken: usize) -> Vec<f64> {
    line.split_whitespace().skip(skipped).take(taken).filter_map(|word| word.parse().ok()).collect()
}
