//! What is measured: each subject with its name, how many are in flight, and what is done.

use std::time::Duration;

use sandmesh_proto::executor::Language;

use crate::{
    baseline::{Jail, Program},
    work::{Door, On, Work},
};

/// One thing that is measured.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Its name, unique.
    pub(crate) name: &'static str,
    /// What is done for each sample.
    pub(crate) work: Work,
    /// How many are done at once.
    pub(crate) in_flight: usize,
    /// In how many sessions.
    pub(crate) sessions: usize,
    /// How long each waits before the next.
    pub(crate) pause: Duration,
    /// How long it is measured in a round, as a multiple of what is asked for.
    pub(crate) share: f64,
    /// The fewest samples of a turn, however long they take.
    pub(crate) at_least: usize,
    /// Subjects of the same group are measured next to each other.
    pub(crate) group: Group,
}

/// What is compared with each other, and so measured next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Python,
    Full,
    Javascript,
    Shell,
    Sessions,
    Containers,
    Calls,
}

/// Every group.
pub(crate) const GROUPS: [Group; 7] = [
    Group::Python,
    Group::Full,
    Group::Javascript,
    Group::Shell,
    Group::Sessions,
    Group::Containers,
    Group::Calls,
];

pub(crate) const PYTHON: &str = "python3 -c pass";
pub(crate) const PYTHON_JAILED: &str = "bwrap + python3 -c pass";
pub(crate) const PYTHON_8: &str = "python3 -c pass, 8 in flight";
pub(crate) const NODE: &str = "node -e 0";
pub(crate) const SHELL_JAILED: &str = "bwrap + sh -c :";
pub(crate) const EXECUTOR: &str = "python, executor";
pub(crate) const EXECUTOR_PAUSE_5: &str = "python, executor, 5 ms pauses";
pub(crate) const EXECUTOR_PAUSE_20: &str = "python, executor, 20 ms pauses";
pub(crate) const EXECUTOR_8: &str = "python, executor, 8 in flight";
pub(crate) const EXECUTOR_16: &str = "python, executor, 16 in flight";
pub(crate) const EXECUTOR_FRESH: &str = "python, executor, fresh interpreter";
pub(crate) const SESSION_ROLE: &str = "python, session role";
pub(crate) const GATEWAY: &str = "python, gateway, gRPC";
pub(crate) const GATEWAY_8: &str = "python, gateway, gRPC, 8 in flight";
pub(crate) const GATEWAY_FRESH: &str = "python, gateway, gRPC, fresh interpreter";
pub(crate) const REST: &str = "python, gateway, REST";
pub(crate) const REST_16: &str = "python, gateway, REST, 16 in flight";
pub(crate) const NODE_EXECUTOR: &str = "javascript, executor, 100 ms pauses";
pub(crate) const NODE_GATEWAY: &str = "javascript, gateway, gRPC, 100 ms pauses";
pub(crate) const NODE_BUSY: &str = "javascript, executor, no pauses";
pub(crate) const SHELL_EXECUTOR: &str = "shell, executor";
pub(crate) const SHELL_GATEWAY: &str = "shell, gateway, gRPC";
pub(crate) const CREATE: &str = "session create, REST";
pub(crate) const FIRST_RESULT: &str = "session create to first result, REST";
pub(crate) const DOCKER_RUN: &str = "docker run --rm --network=none IMAGE true";
pub(crate) const FIRST_RESULT_DOCKER: &str = "session create to first result, docker, REST";
pub(crate) const FIRST_RESULT_CONTAINERD: &str = "session create to first result, containerd, REST";
pub(crate) const CREATE_WARM: &str = "session create with a warm sandbox, REST";
pub(crate) const CREATE_100: &str = "p99 of 100 session creates at once, 50 warm sandboxes, REST";
pub(crate) const NOTHING: &str = "unary call, unix socket";
pub(crate) const GET_DIRECT: &str = "GetSession, unix socket";
pub(crate) const GET_GATEWAY: &str = "GetSession, gateway, gRPC";
pub(crate) const GET_REST: &str = "GET /sessions/{id}, gateway, REST";
pub(crate) const RECORD: &str = "insert and update of an execution";
pub(crate) const ACCEPT: &str = "StartExecution, unix socket";

impl Subject {
    fn new(group: Group, name: &'static str, work: Work) -> Self {
        Self { name, work, in_flight: 1, sessions: 1, pause: Duration::ZERO, share: 1.0, at_least: 3, group }
    }

    fn share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    fn in_flight(self, in_flight: usize) -> Self {
        Self { in_flight, share: 2.0, ..self }
    }

    fn sessions(self, sessions: usize) -> Self {
        Self { sessions, ..self }
    }

    fn at_least(self, samples: usize) -> Self {
        Self { at_least: samples, ..self }
    }

    fn pause(self, milliseconds: u64) -> Self {
        Self { pause: Duration::from_millis(milliseconds), share: 1.5, ..self }
    }
}

/// Every subject.
pub(crate) fn all() -> Vec<Subject> {
    let mut all = python();
    all.extend(full());
    all.extend(other_languages());
    all.extend(calls());
    all
}

fn python() -> Vec<Subject> {
    let python = |door| Work::Execute(On::Default, Language::Python, door);
    let fresh = |door| Work::Execute(On::Fresh, Language::Python, door);
    let one = |name, work| Subject::new(Group::Python, name, work);
    vec![
        one(PYTHON, Work::Spawn(Program::Python, Jail::None)),
        one(PYTHON_JAILED, Work::Spawn(Program::Python, Jail::Bubblewrap)).share(0.5),
        one(EXECUTOR, python(Door::Executor)),
        one(EXECUTOR_PAUSE_5, python(Door::Executor)).pause(5),
        one(EXECUTOR_PAUSE_20, python(Door::Executor)).pause(20),
        one(SESSION_ROLE, python(Door::SessionRole)),
        one(GATEWAY, python(Door::Gateway)),
        one(REST, python(Door::Rest)),
        one(EXECUTOR_FRESH, fresh(Door::Executor)),
        one(GATEWAY_FRESH, fresh(Door::Gateway)),
    ]
}

/// With both cores busy.
fn full() -> Vec<Subject> {
    let python = |door| Work::Execute(On::Default, Language::Python, door);
    let one = |name, work| Subject::new(Group::Full, name, work);
    vec![
        one(PYTHON_8, Work::Spawn(Program::Python, Jail::None)).in_flight(8),
        one(EXECUTOR_8, python(Door::Executor)).in_flight(8).sessions(2),
        one(GATEWAY_8, python(Door::Gateway)).in_flight(8).sessions(2),
        one(EXECUTOR_16, python(Door::Executor)).in_flight(16).share(3.0),
        one(REST_16, python(Door::Rest)).in_flight(16).share(3.0),
    ]
}

fn other_languages() -> Vec<Subject> {
    let javascript = |door| Work::Execute(On::Default, Language::Javascript, door);
    let shell = |door| Work::Execute(On::Default, Language::Shell, door);
    let node = |name, work| Subject::new(Group::Javascript, name, work);
    let sh = |name, work| Subject::new(Group::Shell, name, work);
    vec![
        node(NODE, Work::Spawn(Program::Node, Jail::None)),
        node(NODE_EXECUTOR, javascript(Door::Executor)).pause(100).share(2.0),
        node(NODE_GATEWAY, javascript(Door::Gateway)).pause(100).share(2.0),
        node(NODE_BUSY, javascript(Door::Executor)),
        sh(SHELL_JAILED, Work::Spawn(Program::Shell, Jail::Bubblewrap)),
        sh(SHELL_EXECUTOR, shell(Door::Executor)),
        sh(SHELL_GATEWAY, shell(Door::Gateway)),
    ]
}

fn calls() -> Vec<Subject> {
    let session = |name, work| Subject::new(Group::Sessions, name, work);
    // What is removed of the one before is not to be in the way of the next.
    let container = |name, work| Subject::new(Group::Containers, name, work).pause(300);
    let call = |name, work| Subject::new(Group::Calls, name, work).share(0.5);
    vec![
        session(CREATE, Work::CreateSession),
        session(FIRST_RESULT, Work::FirstResult(On::Default)),
        session(CREATE_WARM, Work::ClaimSession),
        session(CREATE_100, Work::Burst).at_least(1),
        container(DOCKER_RUN, Work::DockerRun),
        container(FIRST_RESULT_DOCKER, Work::FirstResult(On::Docker)),
        container(FIRST_RESULT_CONTAINERD, Work::FirstResult(On::Containerd)),
        call(NOTHING, Work::Nothing),
        call(GET_DIRECT, Work::GetSession(Door::SessionRole)),
        call(GET_GATEWAY, Work::GetSession(Door::Gateway)),
        call(GET_REST, Work::GetSession(Door::Rest)),
        call(ACCEPT, Work::Accept),
        call(RECORD, Work::Record),
    ]
}
