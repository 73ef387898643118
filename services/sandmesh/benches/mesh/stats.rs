//! Samples and what is said about them.

use std::time::Duration;

use serde::Serialize;

use crate::{subject::Subject, work::Took};

/// The samples of one subject in one round.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Milliseconds of the samples that succeeded, ascending. A failure is never a fast success.
    samples: Vec<f64>,
    failures: usize,
    first_failure: Option<String>,
    wall: Duration,
    /// Of all of them, the failures too.
    cpu: Option<Duration>,
}

impl Round {
    /// Sorts outcomes into samples and failures. `cpu` is what all of them used together; without it they
    /// tell themselves.
    pub(crate) fn new(outcomes: Vec<anyhow::Result<Took>>, wall: Duration, cpu: Option<Duration>) -> Self {
        let mut round = Self { wall, cpu, ..Self::default() };
        for outcome in outcomes {
            match outcome {
                Ok(took) => {
                    round.samples.push(took.wall.as_secs_f64() * 1e3);
                    round.cpu = sum(round.cpu, took.cpu);
                }
                Err(error) => {
                    round.failures += 1;
                    round.first_failure.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
        round.samples.sort_by(f64::total_cmp);
        round
    }

    /// Adds more samples of the same round.
    pub(crate) fn extend(&mut self, more: Self) {
        self.samples.extend(more.samples);
        self.samples.sort_by(f64::total_cmp);
        self.failures += more.failures;
        self.first_failure = self.first_failure.take().or(more.first_failure);
        self.wall += more.wall;
        self.cpu = sum(self.cpu, more.cpu);
    }

    /// The median, in milliseconds.
    pub(crate) fn p50(&self) -> f64 {
        quantile(&self.samples, 0.5)
    }

    /// What one in a hundred takes longer than, in milliseconds.
    pub(crate) fn p99(&self) -> f64 {
        quantile(&self.samples, 0.99)
    }

    /// Successes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.wall.as_secs_f64()
    }

    /// CPU milliseconds for each success.
    pub(crate) fn cpu(&self) -> f64 {
        self.cpu.map_or(f64::NAN, |cpu| cpu.as_secs_f64() * 1e3 / self.samples.len() as f64)
    }
}

fn sum(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    if a.is_none() && b.is_none() { None } else { Some(a.unwrap_or_default() + b.unwrap_or_default()) }
}

/// Every round of one subject.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The subject.
    pub(crate) name: &'static str,
    /// How many ran at once.
    in_flight: usize,
    /// Its rounds.
    pub(crate) rounds: Vec<Round>,
}

/// What is reported of one subject. Times are milliseconds; what is not known is NaN, in JSON null.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// The subject.
    pub(crate) name: &'static str,
    /// How many ran at once.
    pub(crate) in_flight: usize,
    /// Samples that succeeded, of all rounds together.
    pub(crate) samples: usize,
    /// What failed, of all rounds together.
    pub(crate) failures: usize,
    /// The first failure.
    pub(crate) first_failure: Option<String>,
    /// The fastest sample.
    pub(crate) min: f64,
    /// The median of the rounds' medians.
    pub(crate) p50: f64,
    /// Of all samples together.
    pub(crate) p95: f64,
    /// Of all samples together.
    pub(crate) p99: f64,
    /// Successes per second, the median of rounds.
    pub(crate) per_second: f64,
    /// CPU for each success, the median of rounds.
    pub(crate) cpu: f64,
    /// The p50 of each round.
    pub(crate) round_p50s: Vec<f64>,
    /// The rate of each round.
    pub(crate) round_rates: Vec<f64>,
    /// The CPU of each round.
    pub(crate) round_cpus: Vec<f64>,
}

impl Measured {
    /// No rounds yet.
    pub(crate) fn new(subject: &Subject) -> Self {
        Self { name: subject.name, in_flight: subject.in_flight, rounds: Vec::new() }
    }

    /// One figure of each round.
    pub(crate) fn each(&self, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(figure).collect()
    }

    /// What failed, of all rounds together.
    pub(crate) fn failures(&self) -> usize {
        self.rounds.iter().map(|round| round.failures).sum()
    }

    /// What is reported.
    pub(crate) fn summary(&self) -> Summary {
        let mut pooled: Vec<f64> =
            self.rounds.iter().flat_map(|round| round.samples.iter().copied()).collect();
        pooled.sort_by(f64::total_cmp);
        Summary {
            name: self.name,
            in_flight: self.in_flight,
            samples: pooled.len(),
            failures: self.failures(),
            first_failure: self.rounds.iter().find_map(|round| round.first_failure.clone()),
            min: pooled.first().copied().unwrap_or(f64::NAN),
            p50: median(&self.each(Round::p50)),
            p95: quantile(&pooled, 0.95),
            p99: quantile(&pooled, 0.99),
            per_second: median(&self.each(Round::rate)),
            cpu: median(&self.each(Round::cpu)),
            round_p50s: self.each(Round::p50),
            round_rates: self.each(Round::rate),
            round_cpus: self.each(Round::cpu),
        }
    }
}

/// The middle value; NaN when there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// The value below which the fraction `q` of `sorted` lies, by nearest rank; NaN when there is none.
#[expect(clippy::cast_possible_truncation, reason = "a rank is at most the number of samples")]
#[expect(clippy::cast_sign_loss, reason = "a fraction of a length is not negative")]
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
