//! The report: tables for people, a chart, and JSON with every round.

use std::{fmt::Write, fs, path::Path};

use serde::Serialize;

use crate::{
    chart, line::LETTERS, machine::Machine, memory::Idle, settings::Amount, stats::Summary,
    streaming::Streamed, svg::short, verdict::Row,
};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// On what.
    pub(crate) machine: Machine,
    /// In how many rounds.
    pub(crate) rounds: u32,
    /// For how long in each, in milliseconds.
    pub(crate) milliseconds: u128,
    /// The goals.
    pub(crate) lines: Vec<Row>,
    /// What they are made of.
    pub(crate) subjects: Vec<Summary>,
    /// What was streamed.
    pub(crate) streamed: Vec<Streamed>,
    /// The memory of idle sessions.
    pub(crate) idle: Option<Idle>,
}

const LINES: &str = "\
| line | must | aim | got | measured | verdict |
|---|--:|--:|--:|---|---|
";

const SUBJECTS: &str = "\
| subject | samples | failures | min ms | p50 ms | p95 ms | p99 ms | per second | CPU ms |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
";

impl Report {
    /// How much was measured.
    pub(crate) fn amount(amount: Amount) -> (u32, u128) {
        (amount.rounds, amount.time.as_millis())
    }

    /// The tables, with what they were taken on.
    pub(crate) fn markdown(&self) -> String {
        let warning = self.machine.warning().map(|warning| format!("\n\n{warning}")).unwrap_or_default();
        let mut text = format!(
            "{}{warning}\n\n{} interleaved rounds of {} ms, medians of rounds; {LETTERS}.\n\n{LINES}",
            self.machine.line(),
            self.rounds,
            self.milliseconds
        );
        self.lines.iter().for_each(|row| text.push_str(&line(row)));
        text.push('\n');
        text.push_str(SUBJECTS);
        self.subjects.iter().for_each(|summary| text.push_str(&subject(summary)));
        self.failures(&mut text);
        text
    }

    /// Writes `bench.json`, `bench.md` and `bench.svg`.
    ///
    /// # Errors
    /// When the directory or a file cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("bench.json"), serde_json::to_string_pretty(self)?)?;
        fs::write(directory.join("bench.md"), self.markdown())?;
        fs::write(directory.join("bench.svg"), chart::bars(&self.lines, &self.machine.line()))?;
        Ok(())
    }

    fn failures(&self, text: &mut String) {
        for summary in &self.subjects {
            if let Some(failure) = &summary.first_failure {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "\nfirst failure of `{}`: {failure}", summary.name);
            }
        }
    }
}

/// A goal or figure with its unit; empty without one.
pub(crate) fn quantity(value: Option<f64>, unit: &str) -> String {
    match value {
        None => String::new(),
        // "4x", "0.25 A".
        Some(value) if unit == "x" => format!("{}x", plain(value)),
        Some(value) => format!("{} {unit}", plain(value)),
    }
}

fn plain(value: f64) -> String {
    let text = short(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn line(row: &Row) -> String {
    let bound = if row.at_least { ">= " } else { "<= " };
    let goal = |goal: Option<f64>| {
        let text = quantity(goal, row.unit);
        if text.is_empty() { text } else { format!("{bound}{text}") }
    };
    let got = quantity(row.got, row.unit);
    let (must, aim) = (goal(row.must), goal(row.aim));
    format!("| {} | {must} | {aim} | {got} | {} | {} |\n", row.what, row.measured, row.verdict)
}

fn subject(s: &Summary) -> String {
    let cpu = if s.cpu.is_finite() { short(s.cpu) } else { String::new() };
    let [min, p50, p95, p99, rate] = [s.min, s.p50, s.p95, s.p99, s.per_second].map(short);
    format!(
        "| {} | {} | {} | {min} | {p50} | {p95} | {p99} | {rate} | {cpu} |\n",
        s.name, s.samples, s.failures
    )
}
