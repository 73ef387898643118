//! Rounds: every subject in turn, each time after another neighbour.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::future::join_all;

use crate::{
    kernel,
    stack::Stack,
    stats::{Measured, Round},
    streaming::{self, Streamed},
    subject::{GROUPS, Group, PYTHON, Subject},
    work::{Bench, Took},
};

/// How long nothing is asked after a subject, so that what it leaves to be done in the background (processes
/// to reap, spares to refill) is charged to it and not to the next.
const SETTLE: Duration = Duration::from_millis(150);

/// How often in a round each subject has its turn: what is compared is then closer together in time.
const PASSES: usize = 3;

/// The most samples of a turn, however short they are.
const SAMPLES: usize = 2000;

/// A turn ends after this many failures.
const FAILURES: usize = 10;

/// Everything that is measured again in each round.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// The samples of each subject.
    pub(crate) measured: Vec<Measured>,
    /// What was streamed.
    pub(crate) streamed: Vec<Streamed>,
}

/// Measures subjects, and streams through these doors, in every round.
///
/// # Errors
/// When a subject does not work at all.
pub(crate) async fn rounds(
    bench: &Bench,
    subjects: &[Subject],
    mut streamed: Vec<Streamed>,
) -> anyhow::Result<Rounds> {
    let mut measured: Vec<_> = subjects.iter().map(Measured::new).collect();
    for subject in subjects {
        warm_up(bench, subject).await.with_context(|| format!("`{}` does not work", subject.name))?;
    }
    let amount = bench.settings.amount;
    for round in 0..amount.rounds {
        eprintln!("round {} of {}", round + 1, amount.rounds);
        for measured in &mut measured {
            measured.rounds.push(Round::default());
        }
        let turns = (0..PASSES).flat_map(|pass| order(subjects, round as usize + pass));
        for at in turns {
            let new = Box::pin(measure(bench, &subjects[at])).await;
            if let Some(last) = measured[at].rounds.last_mut() {
                last.extend(new);
            }
        }
        for streamed in &mut streamed {
            tokio::time::sleep(SETTLE).await;
            let stream = Box::pin(streaming::stream(&bench.warm, streamed.door, amount.stream_mib)).await;
            streamed.add(stream);
        }
    }
    Ok(Rounds { measured, streamed })
}

/// In which order the subjects have their turns in a pass: group by group, so that what is compared is close
/// together in time, each time from another starting point. The baseline of most is measured with each
/// group that has none of its own.
fn order(subjects: &[Subject], round: usize) -> Vec<usize> {
    let python = subjects.iter().position(|subject| subject.name == PYTHON);
    let mut order = Vec::new();
    for step in 0..GROUPS.len() {
        let group = GROUPS[(step + round) % GROUPS.len()];
        let mut members: Vec<_> = (0..subjects.len()).filter(|at| subjects[*at].group == group).collect();
        if !members.is_empty() {
            let first = round % members.len();
            members.rotate_left(first);
        }
        if matches!(group, Group::Sessions | Group::Full) && !members.is_empty() {
            members.extend(python);
        }
        order.extend(members);
    }
    order
}

/// Runs a subject a few times, so that files and connections are warm.
async fn warm_up(bench: &Bench, subject: &Subject) -> anyhow::Result<()> {
    for sample in 0..subject.at_least * subject.sessions {
        subject.work.once(bench, sample % subject.sessions).await?;
    }
    Ok(())
}

/// Gives a subject one turn.
async fn measure(bench: &Bench, subject: &Subject) -> Round {
    let stack = subject.work.on().and_then(|on| bench.stack(on).ok());
    stack.inspect(|stack| stack.server.group().share(subject.in_flight));
    let before = stack.map(cpu);
    let began = Instant::now();
    let samples = samples(bench, subject).await;
    let wall = began.elapsed();
    if before.is_some() {
        tokio::time::sleep(SETTLE).await;
    }
    let used = stack.map(cpu).zip(before).map(|(after, before)| after.saturating_sub(before));
    Round::new(samples, wall, used)
}

async fn samples(bench: &Bench, subject: &Subject) -> Vec<anyhow::Result<Took>> {
    let time = bench.settings.amount.time.mul_f64(subject.share / PASSES as f64);
    let end = Instant::now() + time;
    let (taken, failed) = (Cell::new(0), Cell::new(0));
    let wants_more = || {
        let early = Instant::now() < end && taken.get() < SAMPLES;
        failed.get() < FAILURES && (early || taken.get() < subject.at_least)
    };
    let worker = |number: usize| {
        let (taken, failed, wants_more) = (&taken, &failed, &wants_more);
        async move {
            let mut samples = Vec::new();
            while wants_more() {
                taken.set(taken.get() + 1);
                if !subject.pause.is_zero() {
                    tokio::time::sleep(subject.pause).await;
                }
                let sample = subject.work.once(bench, number % subject.sessions).await;
                failed.set(failed.get() + usize::from(sample.is_err()));
                samples.push(sample);
            }
            samples
        }
    };
    join_all((0..subject.in_flight).map(worker)).await.into_iter().flatten().collect()
}

/// The CPU time until now of everything that works on what is asked of a server: the server with its
/// sandboxes, and this process, which is the client.
fn cpu(stack: &Stack) -> Duration {
    stack.server.group().cpu() + kernel::own_cpu()
}
