//! What came of a simulation: figures, and a table of them.

use std::fmt::Write;

/// What each sample has: the hour, and what it was like in the minutes before.
pub const COLUMNS: [&str; 8] = [
    "hours",
    "sandboxes of sessions",
    "arrivals per second",
    "places in use, %",
    "warm starts, %",
    "warm sandboxes",
    "waited or refused, per minute",
    "decision p99, us",
];

/// Figures of many.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures(Vec<f64>);

impl Figures {
    pub(super) fn add(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// Below which the fraction `q` lies; NaN when there are none.
    #[expect(clippy::cast_possible_truncation, reason = "a rank is at most the number of figures")]
    #[expect(clippy::cast_sign_loss, reason = "a fraction of a length is not negative")]
    pub(super) fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Sessions that were asked for.
    pub arrived: u64,
    /// Of these got one that was warm.
    pub warm: u64,
    /// Got one that was made.
    pub cold: u64,
    /// Got none, as there was no room in time.
    pub refused: u64,
    /// Came to their end.
    pub ended: u64,
    /// Were lost with their node.
    pub lost: u64,
    /// Still have their sandbox.
    pub alive: u64,
    /// Ended twice, or were not known any more: never, unless something is wrong.
    pub wrong: u64,
    /// How often more was on a node than it has.
    pub exceeded: u64,
    /// How often a node refused what the scheduler sent.
    pub refused_by_nodes: u64,
    /// Nodes that failed, and nodes that were drained.
    pub events: (u64, u64),
    /// Sandboxes that were made where the image was, of all that were made.
    pub image_hits: (u64, u64),
    /// The most sandboxes of sessions at once, and the most that were warm.
    pub peak: (u64, u64),
    /// Who still waited when all was over.
    pub waiting: u64,
    /// Pools outside their bounds when all was over.
    pub pools_outside: Vec<String>,
    /// Samples, as [`COLUMNS`].
    pub samples: Vec<[f64; COLUMNS.len()]>,
    /// How much real time it took, in seconds.
    pub seconds: f64,
    pub(super) decisions: Figures,
    pub(super) passes: Figures,
    pub(super) reports: Figures,
    pub(super) waits: Figures,
    pub(super) refills: Figures,
    pub(super) used: Figures,
}

impl Outcome {
    /// What is wrong, as no more may ever be on a node than it has, and nobody may be forgotten; empty when
    /// nothing is.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        let told = self.refused + self.ended + self.lost + self.alive;
        let checks = [
            (self.exceeded == 0, format!("capacity was exceeded {} times", self.exceeded)),
            (self.wrong == 0, format!("{} sessions ended that were not there", self.wrong)),
            (told == self.arrived, format!("{told} of {} sessions are accounted for", self.arrived)),
            (self.waiting == 0, format!("{} sessions wait for ever", self.waiting)),
            (self.pools_outside.is_empty(), format!("pools outside their bounds: {:?}", self.pools_outside)),
        ];
        checks.into_iter().filter(|(holds, _)| !holds).map(|(_, why)| why).collect()
    }

    /// The table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::from("| | |\n|---|--:|\n");
        for (what, value) in self.rows() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {what} | {value} |");
        }
        text
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let percent = |part: u64, all: u64| format!("{:.1} %", 100.0 * part as f64 / all.max(1) as f64);
        let two = |figures: &Figures, unit: &str| {
            let [p50, p99] = [0.5, 0.99].map(|q| figures.quantile(q));
            format!("{p50:.1} / {p99:.1} {unit}")
        };
        let three = |figures: &Figures| format!("{} / {:.0}", two(figures, "").trim(), figures.quantile(1.0));
        let mean = self.used.0.iter().sum::<f64>() / self.used.len().max(1) as f64;
        vec![
            ("sessions asked for", self.arrived.to_string()),
            (
                "most sandboxes of sessions at once; and warm ones",
                format!("{}; {}", self.peak.0, self.peak.1),
            ),
            ("nodes that failed; that were drained", format!("{}; {}", self.events.0, self.events.1)),
            ("decision, p50 / p99 / max, us", three(&self.decisions)),
            ("report of a node, p50 / p99 / max, us", three(&self.reports)),
            ("look at all pools, p50 / p99 / max, us", three(&self.passes)),
            ("warm starts, of all that started", percent(self.warm, self.warm + self.cold)),
            ("made where the image was, of all made", percent(self.image_hits.0, self.image_hits.1)),
            ("places in use, mean; at most", format!("{mean:.0} %; {:.0} %", self.used.quantile(1.0))),
            ("refill after a claim, p50 / p99", two(&self.refills, "s")),
            ("waited for room and got it; how long, p50 / p99", self.waited(&two)),
            (
                "refused for want of room",
                format!("{} ({})", self.refused, percent(self.refused, self.arrived)),
            ),
            ("lost with their node", self.lost.to_string()),
            ("refused by a node that was said to have room", self.refused_by_nodes.to_string()),
            ("**capacity exceeded**", format!("**{}**", self.exceeded)),
            ("real time", format!("{:.0} s", self.seconds)),
        ]
    }

    fn waited(&self, two: &impl Fn(&Figures, &str) -> String) -> String {
        match self.waits.len() {
            0 => "0".to_owned(),
            count => format!("{count}; {}", two(&self.waits, "s")),
        }
    }
}
