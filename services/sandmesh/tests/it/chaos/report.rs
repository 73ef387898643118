//! The table that a campaign ends with.

use std::{collections::BTreeMap, fmt, time::Duration};

/// How many broken promises are told in full.
const TOLD: usize = 60;

/// What a campaign has come to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(super) seed: u64,
    pub(super) took: Duration,
    pub(super) kills: BTreeMap<String, u32>,
    pub(super) sessions: usize,
    pub(super) sessions_warm: u64,
    pub(super) sessions_bereft: usize,
    pub(super) accepted: usize,
    pub(super) listed: u64,
    pub(super) terminal: u64,
    pub(super) refused: u64,
    pub(super) ends: BTreeMap<String, u32>,
    pub(super) watched: usize,
    pub(super) seen_beyond: u32,
    pub(super) retries: BTreeMap<&'static str, u64>,
    pub(super) violations: Vec<String>,
    pub(super) leftovers: Vec<String>,
    pub(super) forgotten: usize,
}

impl Report {
    /// Nothing was lost, doubled, made up or left over.
    pub(crate) fn is_clean(&self) -> bool {
        let counted = self.accepted as u64 == self.terminal && self.terminal == self.listed;
        counted && self.violations.is_empty() && self.leftovers.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "| {name:<56} | {value:>9} |");
        row("chaos", &format!("seed {}", self.seed))?;
        row(&"-".repeat(56), &"-".repeat(9))?;
        row("seconds", &self.took.as_secs())?;
        // What was not killed but ended by itself is told below the others.
        let killed = self.kills.iter().filter(|(victim, _)| !victim.starts_with(' '));
        row("kills", &killed.map(|(_, count)| count).sum::<u32>())?;
        for (victim, count) in &self.kills {
            row(&format!("  {victim}"), count)?;
        }
        row("sessions", &self.sessions)?;
        row("  that got a warm sandbox", &self.sessions_warm)?;
        row("  whose executor was killed", &self.sessions_bereft)?;
        row("executions accepted, as clients were told", &self.accepted)?;
        row("executions listed by the server", &self.listed)?;
        row("executions that ended", &self.terminal)?;
        for (end, count) in &self.ends {
            row(&format!("  {end}"), count)?;
        }
        row("requests refused, as their session had ended", &self.refused)?;
        row("executions followed by stream", &self.watched)?;
        row("  which saw more than a record that was lost twice over", &self.seen_beyond)?;
        row("tries again", &self.retries.values().sum::<u64>())?;
        for (what, count) in &self.retries {
            row(&format!("  {what}"), count)?;
        }
        row("broken promises", &self.violations.len())?;
        row("left over", &self.leftovers.len())?;
        row("empty containers that the engine itself forgot", &self.forgotten)?;
        for what in self.leftovers.iter().take(TOLD).chain(self.violations.iter().take(TOLD)) {
            writeln!(f, "! {what}")?;
        }
        Ok(())
    }
}
