//! What is measured, and what it is compared with.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, stream};
use sandmesh_proto::executor::Language;

use crate::{
    baseline::{self, Jail},
    client::{Client, Door},
    stats::Round,
};

/// What subjects are run with.
pub(crate) struct Bench {
    pub(crate) client: Client,
    pub(crate) python: PathBuf,
    pub(crate) node: PathBuf,
}

/// One thing that is measured.
pub(crate) struct Subject {
    /// Its name, unique.
    pub(crate) name: &'static str,
    /// The name of the subject it is compared with.
    pub(crate) baseline: Option<&'static str>,
    /// How many run at once. With more than one the rate counts, besides the latency.
    pub(crate) in_flight: usize,
    work: Work,
}

#[derive(Clone, Copy)]
enum Work {
    Spawn(Interpreter, Jail),
    Execute(Language, Door),
    CreateSession,
    FirstResult,
}

#[derive(Clone, Copy)]
enum Interpreter {
    True,
    Shell,
    Python,
    Node,
}

const PYTHON: &str = "python3 -c pass";
const PYTHON_8: &str = "python3 -c pass, 8 in flight";
const NODE: &str = "node -e 0";
const SHELL_JAILED: &str = "bwrap + sh -c :";

const fn one(name: &'static str, baseline: Option<&'static str>, work: Work) -> Subject {
    Subject { name, baseline, in_flight: 1, work }
}

const fn many(name: &'static str, baseline: &'static str, in_flight: usize, work: Work) -> Subject {
    Subject { name, baseline: Some(baseline), in_flight, work }
}

/// The subjects whose name contains `only`, with their baselines.
pub(crate) fn subjects(only: &str) -> Vec<Subject> {
    let all = all();
    let chosen: Vec<_> = all.iter().filter(|subject| subject.name.contains(only)).collect();
    let names: Vec<_> =
        chosen.iter().flat_map(|subject| [Some(subject.name), subject.baseline]).flatten().collect();
    all.into_iter().filter(|subject| names.contains(&subject.name)).collect()
}

fn all() -> Vec<Subject> {
    use self::{Interpreter as I, Language as L, Work as W};
    let python = Some(PYTHON);
    vec![
        one("true", None, W::Spawn(I::True, Jail::None)),
        one(PYTHON, None, W::Spawn(I::Python, Jail::None)),
        one("bwrap + python3 -c pass", python, W::Spawn(I::Python, Jail::Bubblewrap)),
        one("python execution, gRPC", python, W::Execute(L::Python, Door::Grpc)),
        one("python execution, REST", python, W::Execute(L::Python, Door::Rest)),
        one("session create, REST", python, W::CreateSession),
        one("session create to first result, REST", python, W::FirstResult),
        one(NODE, None, W::Spawn(I::Node, Jail::None)),
        one("javascript execution, gRPC", Some(NODE), W::Execute(L::Javascript, Door::Grpc)),
        one(SHELL_JAILED, None, W::Spawn(I::Shell, Jail::Bubblewrap)),
        one("shell execution, gRPC", Some(SHELL_JAILED), W::Execute(L::Shell, Door::Grpc)),
        many(PYTHON_8, PYTHON, 8, W::Spawn(I::Python, Jail::None)),
        many("python execution, gRPC, 8 in flight", PYTHON_8, 8, W::Execute(L::Python, Door::Grpc)),
        many("python execution, gRPC, 16 in flight", PYTHON_8, 16, W::Execute(L::Python, Door::Grpc)),
    ]
}

impl Subject {
    /// Runs it a few times, so that files and connections are warm.
    ///
    /// # Errors
    /// When it does not work at all: then nothing it would report had a meaning.
    pub(crate) async fn warm_up(&self, bench: &Bench) -> anyhow::Result<()> {
        for _ in 0..3 {
            self.work.once(bench).await?;
        }
        Ok(())
    }

    /// Takes `samples` samples, `in_flight` at a time.
    pub(crate) async fn round(&self, bench: &Bench, samples: u32) -> Round {
        let began = Instant::now();
        let outcomes = stream::iter(0..samples).map(|_| self.work.once(bench));
        let outcomes: Vec<_> = outcomes.buffer_unordered(self.in_flight).collect().await;
        Round::new(outcomes, began.elapsed())
    }
}

impl Work {
    /// Does the work once and tells how long it took, without what has to be tidied up afterwards.
    async fn once(self, bench: &Bench) -> anyhow::Result<Duration> {
        match self {
            Self::Spawn(interpreter, jail) => {
                let argv = interpreter.argv(bench)?;
                tokio::task::spawn_blocking(move || baseline::run(jail, &argv)).await?
            }
            Self::Execute(language, door) => bench.client.execute(language, door).await,
            Self::CreateSession => bench.client.create_session(false).await,
            Self::FirstResult => bench.client.create_session(true).await,
        }
    }
}

impl Interpreter {
    fn argv(self, bench: &Bench) -> anyhow::Result<Vec<String>> {
        let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path is not UTF-8");
        Ok(match self {
            Self::True => vec!["/usr/bin/true".to_owned()],
            Self::Shell => vec!["/bin/sh".to_owned(), "-c".to_owned(), ":".to_owned()],
            Self::Python => vec![text(&bench.python)?, "-c".to_owned(), "pass".to_owned()],
            Self::Node => vec![text(&bench.node)?, "-e".to_owned(), "0".to_owned()],
        })
    }
}
