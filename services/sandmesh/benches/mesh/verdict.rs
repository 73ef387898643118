//! What was got of each line, and whether that is enough.

use std::fmt;

use serde::Serialize;

use sandmesh_scheduler::simulation::Case;

use crate::{
    line::{Figure, Goal, Line},
    measure::Rounds,
    memory::Idle,
    stats::{Measured, Round, median, quantile},
    svg::short,
    work::Door,
};

/// Whether a goal is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The aim.
    Aim,
    /// What must be.
    Must,
    /// Neither, and why if it is not the figure.
    Missed(String),
    /// There is no figure, and why.
    Unknown(String),
    /// There is no goal.
    None,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aim => f.write_str("aim met"),
            Self::Must => f.write_str("must met"),
            Self::Missed(why) if why.is_empty() => f.write_str("missed"),
            Self::Missed(why) => write!(f, "missed: {why}"),
            Self::Unknown(why) => write!(f, "not measured: {why}"),
            Self::None => f.write_str("-"),
        }
    }
}

/// One row of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) must: Option<f64>,
    pub(crate) aim: Option<f64>,
    pub(crate) at_least: bool,
    /// The median of rounds.
    pub(crate) got: Option<f64>,
    /// Of each round.
    pub(crate) rounds: Vec<f64>,
    /// What it is made of, in milliseconds or what else was measured.
    pub(crate) measured: String,
    #[serde(serialize_with = "as_text")]
    pub(crate) verdict: Verdict,
}

fn as_text<S: serde::Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(verdict)
}

/// What a line comes to, before it is judged.
#[derive(Debug, Default)]
struct Got {
    rounds: Vec<f64>,
    measured: String,
    /// Why it does not count, whatever the figure.
    spoiled: Option<String>,
    /// Why there is no figure.
    unknown: Option<String>,
}

/// Everything that lines are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Results<'a> {
    pub(crate) rounds: &'a Rounds,
    pub(crate) idle: Option<&'a Idle>,
    pub(crate) decisions: &'a [Case],
    /// What could not be measured, and why.
    pub(crate) lacking: &'a [(&'static str, String)],
}

impl Results<'_> {
    /// The row of a line.
    pub(crate) fn row(&self, line: &Line) -> Row {
        let got = self.got(line);
        let value = Some(median(&got.rounds)).filter(|value| value.is_finite());
        Row {
            name: line.name,
            what: line.what,
            unit: line.unit,
            must: line.goal.map(|goal| goal.must),
            aim: line.goal.map(|goal| goal.aim),
            at_least: line.goal.is_some_and(|goal| goal.at_least),
            got: value,
            verdict: judge(line.goal, value, &got),
            rounds: got.rounds,
            measured: got.measured,
        }
    }

    fn got(&self, line: &Line) -> Got {
        match line.figure {
            Figure::P50 { of, over } => self.quotient((of, over), (Round::p50, Round::p50), "ms"),
            Figure::P99 { of, over } => self.quotient((of, over), (Round::p99, Round::p50), "ms"),
            Figure::Cpu { of, over } => self.quotient((of, over), (Round::cpu, Round::cpu), "ms"),
            Figure::Rate { of, over } => self.quotient((of, over), (Round::rate, Round::rate), "/s"),
            Figure::Tail { of } => self.tail(of),
            Figure::Difference { of, without, over } => steady(self.difference(of, without, over), line.goal),
            Figure::Memory => self.memory(),
            Figure::Streamed(door) => self.streamed(door),
            Figure::Decision => self.decision(line.name),
        }
    }

    fn quotient(
        &self,
        (of, over): (&str, &str),
        figures: (impl Fn(&Round) -> f64 + Copy, impl Fn(&Round) -> f64 + Copy),
        unit: &str,
    ) -> Got {
        let (Some(of), Some(over)) = (self.find(of), self.find(over)) else {
            return self.without(&[of, over]);
        };
        let (ours, theirs) = (of.each(figures.0), over.each(figures.1));
        Got {
            measured: format!("{} of {} {unit}", short(median(&ours)), short(median(&theirs))),
            rounds: ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect(),
            spoiled: spoiled(&[of, over]),
            unknown: None,
        }
    }

    fn tail(&self, of: &str) -> Got {
        let Some(of) = self.find(of) else { return not_chosen() };
        let (p99, p50) = (median(&of.each(Round::p99)), median(&of.each(Round::p50)));
        Got {
            rounds: of.each(|round| round.p99() / round.p50()),
            measured: format!("{} of {} ms", short(p99), short(p50)),
            spoiled: spoiled(&[of]),
            unknown: None,
        }
    }

    fn difference(&self, of: &str, without: &str, over: &str) -> Got {
        let (Some(of), Some(without), Some(over)) = (self.find(of), self.find(without), self.find(over))
        else {
            return not_chosen();
        };
        let [a, b, c] = [of, without, over].map(|measured| measured.each(Round::p50));
        let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        Got {
            measured: format!("{} of {} ms", short(median(&differences)), short(median(&c))),
            rounds: differences.iter().zip(&c).map(|(difference, c)| difference / c).collect(),
            spoiled: spoiled(&[of, without, over]),
            unknown: None,
        }
    }

    fn memory(&self) -> Got {
        let Some(idle) = self.idle else { return not_chosen() };
        let unknown = (idle.with_python < idle.sessions)
            .then(|| format!("{} of {} idle sessions keep an interpreter", idle.with_python, idle.sessions));
        Got {
            rounds: vec![idle.mib_each],
            measured: format!(
                "executor {:.1} of {:.1} MiB, {:.1} processes",
                idle.executor_mib_each, idle.mib_each, idle.processes_each
            ),
            spoiled: None,
            unknown,
        }
    }

    fn streamed(&self, door: Door) -> Got {
        let Some(streamed) = self.rounds.streamed.iter().find(|streamed| streamed.door == door) else {
            return not_chosen();
        };
        let failed = (streamed.failures > 0).then(|| {
            format!("{} failed: {}", streamed.failures, streamed.first_failure.clone().unwrap_or_default())
        });
        Got {
            rounds: streamed.streams.iter().map(|stream| stream.mb_per_second).collect(),
            measured: format!(
                "{} MiB; at its peak server +{:.0}, executor +{:.0} MiB",
                streamed.mib,
                streamed.median(|stream| stream.server_growth_mib),
                streamed.median(|stream| stream.executor_growth_mib),
            ),
            spoiled: failed.or_else(|| (!streamed.is_flat()).then(|| "memory is not flat".to_owned())),
            unknown: None,
        }
    }

    fn decision(&self, name: &str) -> Got {
        let Some(case) = self.decisions.iter().find(|case| case.name == name) else { return not_chosen() };
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|q| quantile(&case.micros, q));
        Got {
            rounds: vec![p99],
            measured: format!("p50 {}, at most {} us of {}", short(p50), short(most), case.micros.len()),
            ..Got::default()
        }
    }

    /// There is no figure of these: why.
    fn without(&self, names: &[&str]) -> Got {
        let why = self.lacking.iter().find(|(name, _)| names.contains(name));
        why.map_or_else(not_chosen, |(_, why)| Got { unknown: Some(why.clone()), ..Got::default() })
    }

    fn find(&self, name: &str) -> Option<&Measured> {
        self.rounds.measured.iter().find(|measured| measured.name == name)
    }
}

fn judge(goal: Option<Goal>, value: Option<f64>, got: &Got) -> Verdict {
    if let Some(why) = &got.unknown {
        return Verdict::Unknown(why.clone());
    }
    if let Some(why) = &got.spoiled {
        return Verdict::Missed(why.clone());
    }
    let Some(goal) = goal else { return Verdict::None };
    let Some(value) = value else { return Verdict::Unknown("there is no sample".to_owned()) };
    let reached = |bound: f64| if goal.at_least { value >= bound } else { value <= bound };
    match (reached(goal.aim), reached(goal.must)) {
        (true, _) => Verdict::Aim,
        (false, true) => Verdict::Must,
        (false, false) => Verdict::Missed(String::new()),
    }
}

/// A difference of two figures says nothing about the goal when more than a quarter of its rounds are
/// farther from the middle than the goal, or the middle is below zero.
fn steady(got: Got, goal: Option<Goal>) -> Got {
    let middle = median(&got.rounds);
    let mut apart: Vec<f64> = got.rounds.iter().map(|round| (round - middle).abs()).collect();
    apart.sort_by(f64::total_cmp);
    let unknown = match goal {
        _ if middle < 0.0 => Some("the difference is below zero, which is noise"),
        Some(goal) if quantile(&apart, 0.75) > goal.must => Some("rounds differ by more than the goal"),
        _ => None,
    };
    match unknown {
        Some(why) => Got { unknown: Some(why.to_owned()), ..got },
        None => got,
    }
}

/// A figure with failures in it does not count.
fn spoiled(measured: &[&Measured]) -> Option<String> {
    let failed = measured.iter().find(|measured| measured.failures() > 0)?;
    Some(format!("{} of `{}` failed", failed.failures(), failed.name))
}

fn not_chosen() -> Got {
    Got { unknown: Some("not chosen".to_owned()), ..Got::default() }
}
