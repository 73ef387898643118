//! A look at everything that could grow, and at everything that could be left behind.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::load::Load;
use crate::{
    process::{self, Memory},
    server::Server,
    stack::Stack,
};

/// What is looked at: its name, and whether it must be flat and how much it may vary all the same, as
/// growth beyond a tenth.
pub(crate) const COLUMNS: [(&str, Option<f64>); 17] = [
    ("seconds", None),
    ("executions", None),
    ("failures", None),
    ("executions per second", None),
    ("load", None),
    ("server RSS MiB", Some(8.0)),
    ("server PSS MiB", Some(8.0)),
    ("executors RSS MiB", Some(4.0)),
    ("executors PSS MiB", Some(4.0)),
    ("sandboxes PSS MiB", Some(16.0)),
    // Of the whole machine. A warm parent has pages in a file in memory that no process has mapped.
    ("files in memory MiB", Some(16.0)),
    ("server descriptors", Some(8.0)),
    ("executor descriptors", Some(8.0)),
    ("sockets", Some(8.0)),
    ("processes", Some(8.0)),
    ("cgroups", Some(16.0)),
    ("mounts", Some(4.0)),
];

/// One look: a value for each column.
pub(crate) type Sample = [f64; COLUMNS.len()];

/// Looks at a server under load. Of the executors those of the sessions that stay; of processes and groups
/// all.
#[derive(Debug)]
pub(crate) struct Sampler<'a> {
    stack: &'a Stack,
    load: &'a Load,
    began: Instant,
}

impl<'a> Sampler<'a> {
    /// Begins now.
    pub(crate) fn new(stack: &'a Stack, load: &'a Load) -> Self {
        Self { stack, load, began: Instant::now() }
    }

    /// Takes samples until the load is over.
    pub(crate) async fn run(&self, every: Duration) -> Vec<Sample> {
        let mut samples: Vec<Sample> = Vec::new();
        loop {
            tokio::time::sleep(every).await;
            if self.load.is_over() {
                return samples;
            }
            let sample = self.sample(samples.last());
            eprintln!(
                "{:4.0} s: {:.0} executions, {:.0} failed, {:.0}/s, server {:.0} MiB",
                sample[0], sample[1], sample[2], sample[3], sample[5]
            );
            samples.push(sample);
        }
    }

    fn sample(&self, before: Option<&Sample>) -> Sample {
        let server = self.stack.server.pid();
        let group = self.stack.server.group();
        let executors: Vec<i32> =
            self.stack.sessions.iter().filter_map(|session| group.executor_of(&session.sandbox)).collect();
        let all = group.processes();
        let of_server = process::memory(server);
        let of_executors: Memory = executors.iter().map(|pid| process::memory(*pid)).sum();
        let of_all: Memory = all.iter().map(|pid| process::memory(*pid)).sum();
        let (descriptors, sockets) = process::descriptors(server);
        let theirs: Vec<_> = executors.iter().map(|pid| process::descriptors(*pid)).collect();
        let seconds = self.began.elapsed().as_secs_f64();
        let executions = self.load.executions() as f64;
        let (since, done) = before.map_or((0.0, 0.0), |before| (before[0], before[1]));
        [
            seconds,
            executions,
            self.load.failures() as f64,
            (executions - done) / (seconds - since),
            load_average(),
            mebibytes(of_server.rss),
            mebibytes(of_server.pss),
            mebibytes(of_executors.rss),
            mebibytes(of_executors.pss),
            mebibytes(of_all.pss),
            mebibytes(process::files_in_memory()),
            descriptors as f64,
            theirs.iter().map(|(descriptors, _)| *descriptors).sum::<usize>() as f64,
            (sockets + theirs.iter().map(|(_, sockets)| *sockets).sum::<usize>()) as f64,
            all.len() as f64,
            group.below().len() as f64,
            (mounts(server) + executors.iter().copied().map(mounts).sum::<usize>()) as f64,
        ]
    }
}

/// What there still is of sandboxes whose sessions have ended, in words; empty when nothing is left.
pub(crate) fn left_of_sessions(server: &Server) -> Vec<String> {
    let mut left: Vec<String> = server.sandboxes().iter().map(|id| format!("directory of {id}")).collect();
    left.extend(server.group().processes().iter().map(|pid| format!("process {pid} in a cgroup")));
    left.extend(server.group().below().iter().map(|group| format!("cgroup {}", group.display())));
    left
}

/// What there still is of a server that has ended, in words; empty when nothing is left.
pub(crate) fn left_of_server(server: &Server) -> Vec<String> {
    let directory = server.data_dir();
    let directory = directory.to_string_lossy();
    let mut left = left_of_sessions(server);
    left.extend(process::strays(server.uids(), &directory).iter().map(|pid| format!("process {pid}")));
    for (what, file) in [("mount", "/proc/self/mountinfo"), ("socket", "/proc/net/unix")] {
        let text = fs::read_to_string(file).unwrap_or_default();
        let ours = text.lines().filter(|line| line.contains(&*directory));
        left.extend(ours.map(|line| format!("{what} {line}")));
    }
    left
}

/// How many mounts a process sees.
fn mounts(pid: i32) -> usize {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default().lines().count()
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}
