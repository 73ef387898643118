//! Whether it was flat: the first third of the time against the last.

use std::{fmt::Write, fs, path::Path};

use sandmesh_proto::executor::Language;

use super::{
    load::Load,
    sample::{COLUMNS, Sample},
};
use crate::{
    machine::Machine,
    stats::quantile,
    svg::{Series, short},
};

/// The growth that is taken for noise, as a fraction.
const NOISE: f64 = 0.1;

/// Everything that was seen.
#[derive(Debug)]
pub(crate) struct Report {
    /// On what.
    pub(crate) machine: Machine,
    /// At even intervals.
    pub(crate) samples: Vec<Sample>,
    /// What was run.
    pub(crate) load: Load,
    /// What was left when all sessions had ended, in words.
    pub(crate) after_sessions: Vec<String>,
    /// What was left when the server had ended, in words.
    pub(crate) after_server: Vec<String>,
}

impl Report {
    /// The tables.
    pub(crate) fn markdown(&self) -> String {
        let load = &self.load;
        let mut text = format!(
            "{}\n\n{} executions, {} failed; {} sessions came and went.\n\n",
            self.machine.line(),
            load.executions(),
            load.failures(),
            load.sessions()
        );
        text.push_str("| language | executions | p50 ms | p95 ms | p99 ms |\n|---|--:|--:|--:|--:|\n");
        for (name, language) in
            [("python", Language::Python), ("javascript", Language::Javascript), ("shell", Language::Shell)]
        {
            let took = load.took(language);
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|q| short(quantile(&took, q)));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {name} | {} | {p50} | {p95} | {p99} |", took.len());
        }
        text.push_str("\n| what | first third | last third | most | verdict |\n|---|--:|--:|--:|---|\n");
        for (at, (name, slack)) in COLUMNS.iter().enumerate().skip(3) {
            let (first, last, most) = self.thirds(at);
            let verdict = match slack {
                None => "-",
                Some(slack) if is_flat(first, last, *slack) => "flat",
                Some(_) => "grows",
            };
            let [first, last, most] = [first, last, most].map(short);
            let _ = writeln!(text, "| {name} | {first} | {last} | {most} | {verdict} |");
        }
        let count = |left: &[String]| left.len();
        let _ = writeln!(
            text,
            "\nleft when the sessions had ended: {}; when the server had ended: {}",
            count(&self.after_sessions),
            count(&self.after_server)
        );
        self.after_sessions.iter().chain(&self.after_server).for_each(|left| {
            let _ = writeln!(text, "- {left}");
        });
        if let Some(failure) = load.first_failure() {
            let _ = writeln!(text, "\nfirst failure: {failure}");
        }
        text
    }

    /// Writes `soak.csv`, `soak.md` and `soak.svg`.
    ///
    /// # Errors
    /// When the directory or a file cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)?;
        let series = Series { names: COLUMNS.map(|(name, _)| name), samples: &self.samples, unit: "s" };
        fs::write(directory.join("soak.csv"), series.csv())?;
        fs::write(directory.join("soak.md"), self.markdown())?;
        fs::write(directory.join("soak.svg"), series.chart(&self.machine.line()))?;
        Ok(())
    }

    /// Fails when an execution failed or anything is left. Whether memory grew is for people to judge.
    ///
    /// # Errors
    /// Names what went wrong.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let left = self.after_sessions.len() + self.after_server.len();
        let failures = self.load.failures();
        anyhow::ensure!(failures == 0 && left == 0, "{failures} executions failed, {left} things are left");
        Ok(())
    }

    /// The mean of the first third of a column, of its last third, and its largest value.
    fn thirds(&self, column: usize) -> (f64, f64, f64) {
        let values: Vec<f64> = self.samples.iter().map(|sample| sample[column]).collect();
        let third = values.len().div_ceil(3);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let most = values.iter().copied().fold(f64::NAN, f64::max);
        (mean(&values[..third]), mean(&values[values.len() - third..]), most)
    }
}

fn is_flat(first: f64, last: f64, slack: f64) -> bool {
    last - first <= (first * NOISE).max(slack)
}
