//! The report: a Markdown table for people, and JSON with every round.

use std::{fmt::Write, fs, path::Path};

use serde::Serialize;

use crate::{
    machine::Machine,
    stats::{Measured, Summary},
};

/// Everything that was measured.
pub(crate) struct Report {
    /// On what.
    pub(crate) machine: Machine,
    /// In how many rounds.
    pub(crate) rounds: u32,
    /// With how many samples in each.
    pub(crate) per_round: u32,
    /// What.
    pub(crate) measured: Vec<Measured>,
}

#[derive(Serialize)]
struct Json<'a> {
    machine: &'a Machine,
    rounds: u32,
    per_round: u32,
    subjects: Vec<Summary>,
}

const HEADER: &str = "\
| subject | samples | failures | min ms | p50 ms | p95 ms | p99 ms | per second | p50 / baseline | rate / baseline | baseline |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|
";

impl Report {
    /// The table, with what it was taken on.
    pub(crate) fn markdown(&self) -> String {
        let mut text =
            format!("{}; {} rounds of {}\n\n{HEADER}", self.machine.line(), self.rounds, self.per_round);
        for summary in self.summaries() {
            text.push_str(&row(&summary));
        }
        for failed in self.summaries().iter().filter(|summary| summary.failures > 0) {
            let why = failed.first_failure.as_deref().unwrap_or_default();
            let _ = write!(text, "\n`{}` failed {} times, first: {why}\n", failed.name, failed.failures);
        }
        text
    }

    /// Writes `bench.json` and `bench.md`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let Self { machine, rounds, per_round, .. } = self;
        let json = Json { machine, rounds: *rounds, per_round: *per_round, subjects: self.summaries() };
        fs::create_dir_all(directory)?;
        fs::write(directory.join("bench.json"), serde_json::to_string_pretty(&json)?)?;
        fs::write(directory.join("bench.md"), self.markdown())?;
        Ok(())
    }

    fn summaries(&self) -> Vec<Summary> {
        self.measured.iter().map(|measured| measured.summary(&self.measured)).collect()
    }
}

fn row(s: &Summary) -> String {
    let ratio = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
    format!(
        "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {} | {} | {} |\n",
        s.name,
        s.samples,
        s.failures,
        s.min,
        s.p50,
        s.p95,
        s.p99,
        s.per_second,
        ratio(s.p50_ratio),
        ratio(s.rate_ratio),
        s.baseline.unwrap_or_default(),
    )
}
