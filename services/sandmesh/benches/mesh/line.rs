//! The goals: each line with what must and what should be reached, and how its figure comes about.

use sandmesh_scheduler::simulation::kinds;

use crate::{subject as s, work::Door};

/// A goal: what must be reached, and what is aimed at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) must: f64,
    pub(crate) aim: f64,
    /// Whether more is better.
    pub(crate) at_least: bool,
}

/// How the figure of a line comes about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Figure {
    /// A median over that of the baseline.
    P50 { of: &'static str, over: &'static str },
    /// A p99 over the median of the baseline.
    P99 { of: &'static str, over: &'static str },
    /// A p99 over the median of the same.
    Tail { of: &'static str },
    /// CPU time over that of the baseline.
    Cpu { of: &'static str, over: &'static str },
    /// A rate over that of the baseline.
    Rate { of: &'static str, over: &'static str },
    /// What one median is above another, over that of the baseline.
    Difference { of: &'static str, without: &'static str, over: &'static str },
    /// The memory of idle sessions.
    Memory,
    /// What is streamed through a door.
    Streamed(Door),
    /// The p99 of the scheduler's decision of the line's name.
    Decision,
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    /// To choose it with.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// What its figure is in: the letter of a baseline, or a unit.
    pub(crate) unit: &'static str,
    /// Without one it is there for comparison.
    pub(crate) goal: Option<Goal>,
    /// How its figure comes about.
    pub(crate) figure: Figure,
}

impl Line {
    const fn new(name: &'static str, what: &'static str, unit: &'static str, figure: Figure) -> Self {
        Self { name, what, unit, goal: None, figure }
    }

    const fn at_most(mut self, must: f64, aim: f64) -> Self {
        self.goal = Some(Goal { must, aim, at_least: false });
        self
    }

    const fn at_least(mut self, must: f64, aim: f64) -> Self {
        self.goal = Some(Goal { must, aim, at_least: true });
        self
    }

    /// The subjects that it needs.
    pub(crate) fn subjects(&self) -> Vec<&'static str> {
        match self.figure {
            Figure::P50 { of, over }
            | Figure::P99 { of, over }
            | Figure::Cpu { of, over }
            | Figure::Rate { of, over } => vec![of, over],
            Figure::Tail { of } => vec![of],
            Figure::Difference { of, without, over } => vec![of, without, over],
            Figure::Memory | Figure::Streamed(_) | Figure::Decision => Vec::new(),
        }
    }
}

/// The baselines by their letters.
pub(crate) const LETTERS: &str = "A = `python3 -c pass`, N = `node -e 0`, S = bwrap + `sh -c :`, \
    U = a unary call that does nothing, on a unix socket, D = `docker run` of `true`; x = times";

/// Every line, in the order of the table.
pub(crate) fn all(with_fresh: bool) -> Vec<Line> {
    let mut lines = python();
    lines.extend(others());
    lines.extend(sessions());
    lines.extend(decisions());
    if with_fresh {
        let fresh = |name, what, of| Line::new(name, what, "A", Figure::P50 { of, over: s::PYTHON });
        lines.push(fresh("fresh-executor", "Python, fresh interpreter, executor, p50", s::EXECUTOR_FRESH));
        lines.push(fresh("fresh-gateway", "Python, fresh interpreter, gateway gRPC, p50", s::GATEWAY_FRESH));
    }
    lines
}

fn python() -> Vec<Line> {
    let p50 = |name, what, of| Line::new(name, what, "A", Figure::P50 { of, over: s::PYTHON });
    let tail = |name, what, of| Line::new(name, what, "x", Figure::Tail { of });
    let rate = |name, what, of| {
        Line::new(name, what, "x", Figure::Rate { of, over: s::PYTHON_8 }).at_least(4.0, 6.0)
    };
    vec![
        p50("python-bwrap", "bwrap + `python3 -c pass`, p50", s::PYTHON_JAILED),
        p50("python-executor", "Python, executor on its unix socket, p50", s::EXECUTOR).at_most(0.25, 0.15),
        p50("python-idle-5", "the same with 5 ms pauses, p50", s::EXECUTOR_PAUSE_5).at_most(0.10, 0.07),
        p50("python-idle-20", "the same with 20 ms pauses, p50", s::EXECUTOR_PAUSE_20).at_most(0.10, 0.07),
        p50("python-gateway", "Python, gateway gRPC, durable, p50", s::GATEWAY).at_most(0.35, 0.20),
        p50("python-rest", "Python, REST, durable, p50", s::REST).at_most(0.35, 0.20),
        tail("tail-executor", "Python, executor, 16 in flight, p99 / its p50", s::EXECUTOR_16)
            .at_most(4.0, 2.5),
        tail("tail-rest", "Python, REST, 16 in flight, p99 / its p50", s::REST_16).at_most(4.0, 2.5),
        Line::new(
            "cpu",
            "CPU per Python execution, whole stack, gateway gRPC, 8 in flight",
            "A",
            Figure::Cpu { of: s::GATEWAY_8, over: s::PYTHON_8 },
        )
        .at_most(0.25, 0.15),
        rate("rate-gateway", "Python executions/s, both cores busy, gateway gRPC", s::GATEWAY_8),
        rate("rate-executor", "Python executions/s, both cores busy, executor", s::EXECUTOR_8),
    ]
}

fn others() -> Vec<Line> {
    let javascript = |name, what, of| Line::new(name, what, "N", Figure::P50 { of, over: s::NODE });
    let shell = |name, what, of| {
        Line::new(name, what, "S", Figure::P50 { of, over: s::SHELL_JAILED }).at_most(0.60, 0.35)
    };
    vec![
        javascript("javascript-executor", "JavaScript, executor, 100 ms pauses, p50", s::NODE_EXECUTOR)
            .at_most(0.40, 0.25),
        javascript("javascript-gateway", "JavaScript, gateway gRPC, 100 ms pauses, p50", s::NODE_GATEWAY)
            .at_most(0.40, 0.25),
        javascript("javascript-busy", "JavaScript, executor, no pauses, p50", s::NODE_BUSY),
        shell("shell-executor", "shell, executor, p50", s::SHELL_EXECUTOR),
        shell("shell-gateway", "shell, gateway gRPC, durable, p50", s::SHELL_GATEWAY),
    ]
}

fn sessions() -> Vec<Line> {
    let hop = |name, what, of| {
        let figure = Figure::Difference { of, without: s::GET_DIRECT, over: s::NOTHING };
        Line::new(name, what, "U", figure).at_most(2.0, 1.5)
    };
    let p50 = |name, what, of| Line::new(name, what, "A", Figure::P50 { of, over: s::PYTHON });
    let container = |name, what, of| {
        Line::new(name, what, "D", Figure::P50 { of, over: s::DOCKER_RUN }).at_most(1.2, 0.6)
    };
    let added = Figure::Difference { of: s::SESSION_ROLE, without: s::EXECUTOR, over: s::PYTHON };
    let stream = |name, what, door| Line::new(name, what, "MB/s", Figure::Streamed(door));
    vec![
        p50("create-pool", "session create from a warm pool, REST, p50", s::CREATE_WARM).at_most(0.5, 0.25),
        Line::new(
            "create-pool-tail",
            "the same, p99",
            "A",
            Figure::P99 { of: s::CREATE_WARM, over: s::PYTHON },
        )
        .at_most(2.0, 1.0),
        Line::new(
            "create-100",
            "100 creates at once from a pool of 50, p99 / warm p50",
            "x",
            Figure::P50 { of: s::CREATE_100, over: s::CREATE_WARM },
        )
        .at_most(10.0, 4.0),
        p50("create", "session create, cold, REST, p50", s::CREATE),
        p50("create-result", "session create, cold, to first result, REST, p50", s::FIRST_RESULT)
            .at_most(6.0, 3.0),
        container("create-container", "the same, docker, p50", s::FIRST_RESULT_DOCKER),
        container("create-containerd", "the same, containerd, p50", s::FIRST_RESULT_CONTAINERD),
        Line::new("memory", "memory of an idle session with a warm Python", "MiB", Figure::Memory)
            .at_most(12.0, 4.0),
        stream("stream-grpc", "stdout through the gateway, gRPC, memory flat", Door::Gateway)
            .at_least(200.0, 600.0),
        stream("stream-sse", "stdout through the gateway, server-sent events, memory flat", Door::Rest),
        hop("hop-grpc", "gateway hop on a unary call, gRPC", s::GET_GATEWAY),
        hop("hop-rest", "gateway hop on a unary call, REST", s::GET_REST),
        p50("record", "durable record: its insert and its update, p50", s::RECORD).at_most(0.03, 0.01),
        Line::new("session-role", "all that the session role adds, with the record", "A", added),
        p50("accept", "an execution accepted, durable, p50", s::ACCEPT),
    ]
}

/// What the scheduler decides, the usual first, and then what misleads a search.
fn decisions() -> Vec<Line> {
    let line = |(name, what)| Line::new(name, what, "us", Figure::Decision).at_most(100.0, 20.0);
    let first = ("placement", "placement, 10,000 nodes and 100,000 sandboxes, p99");
    std::iter::once(first).chain(kinds().skip(1)).map(line).collect()
}
