//! Samples and what is said about them.

use std::time::Duration;

use serde::Serialize;

use crate::subject::Subject;

/// The samples of one subject in one round.
#[derive(Debug)]
pub(crate) struct Round {
    /// Milliseconds of the samples that succeeded, ascending. A failure is never a fast success.
    samples: Vec<f64>,
    failures: usize,
    first_failure: Option<String>,
    wall: Duration,
}

impl Round {
    /// Sorts outcomes into samples and failures.
    pub(crate) fn new(outcomes: Vec<anyhow::Result<Duration>>, wall: Duration) -> Self {
        let mut round = Self { samples: Vec::new(), failures: 0, first_failure: None, wall };
        for outcome in outcomes {
            match outcome {
                Ok(took) => round.samples.push(took.as_secs_f64() * 1e3),
                Err(error) => {
                    round.failures += 1;
                    round.first_failure.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
        round.samples.sort_by(f64::total_cmp);
        round
    }
}

/// Every round of one subject.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The subject.
    pub(crate) name: &'static str,
    /// The subject it is compared with.
    pub(crate) baseline: Option<&'static str>,
    /// How many ran at once.
    pub(crate) in_flight: usize,
    /// Its rounds.
    pub(crate) rounds: Vec<Round>,
}

/// What is reported of one subject. Times are milliseconds.
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
    /// Successes per second of wall time, the median of rounds.
    pub(crate) per_second: f64,
    /// The subject it is compared with.
    pub(crate) baseline: Option<&'static str>,
    /// The median, over rounds, of its p50 divided by the baseline's p50 of the same round.
    pub(crate) p50_ratio: Option<f64>,
    /// The median, over rounds, of its rate divided by the baseline's rate of the same round.
    pub(crate) rate_ratio: Option<f64>,
    /// The p50 of each round.
    pub(crate) round_p50s: Vec<f64>,
}

impl Measured {
    /// No rounds yet.
    pub(crate) fn new(subject: &Subject) -> Self {
        let Subject { name, baseline, in_flight, .. } = *subject;
        Self { name, baseline, in_flight, rounds: Vec::new() }
    }

    /// What is reported, compared with its baseline among `all`.
    pub(crate) fn summary(&self, all: &[Self]) -> Summary {
        let baseline = all.iter().find(|other| Some(other.name) == self.baseline);
        let mut pooled: Vec<f64> =
            self.rounds.iter().flat_map(|round| round.samples.iter().copied()).collect();
        pooled.sort_by(f64::total_cmp);
        Summary {
            name: self.name,
            in_flight: self.in_flight,
            samples: pooled.len(),
            failures: self.rounds.iter().map(|round| round.failures).sum(),
            first_failure: self.rounds.iter().find_map(|round| round.first_failure.clone()),
            min: pooled.first().copied().unwrap_or(f64::NAN),
            p50: median(self.p50s()),
            p95: quantile(&pooled, 0.95),
            p99: quantile(&pooled, 0.99),
            per_second: median(self.rates()),
            baseline: self.baseline,
            p50_ratio: baseline.map(|baseline| median(ratios(&self.p50s(), &baseline.p50s()))),
            rate_ratio: baseline.map(|baseline| median(ratios(&self.rates(), &baseline.rates()))),
            round_p50s: self.p50s(),
        }
    }

    fn p50s(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| quantile(&round.samples, 0.5)).collect()
    }

    fn rates(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| round.samples.len() as f64 / round.wall.as_secs_f64()).collect()
    }
}

fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// The value below which the fraction `q` of `sorted` lies, by nearest rank; NaN when there is none.
#[expect(clippy::cast_possible_truncation, reason = "a rank is at most the number of samples")]
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
