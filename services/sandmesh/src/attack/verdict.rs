//! What came of a case: single checks, who saw them, and the verdict they add up to. Pure values.

use std::fmt;

use serde::Serialize;

/// Who saw what a check is about. What the attacking code says counts against the sandbox, never alone for
/// it where somebody else can look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Witness {
    /// The attacking code itself.
    Attacker,
    /// The client at the front door: records, states, answers.
    Client,
    /// The machine that hosts the sandbox: files, processes, control groups.
    Host,
}

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was tried or looked at.
    pub what: String,
    /// What came of it.
    pub got: String,
    /// Whether that is as it should be.
    pub held: bool,
    /// Who saw it.
    pub witness: Witness,
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every check held.
    Held,
    /// At least one did not.
    Breached,
    /// The attack could not be carried out, so nothing is known.
    Broken,
    /// It did not come to its end in time.
    Hung,
    /// It does not apply here, and the row says why.
    NotRun,
}

impl Verdict {
    /// Whether this verdict makes the run a failure.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Breached | Self::Broken | Self::Hung)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Breached => "BREACHED",
            Self::Broken => "BROKEN",
            Self::Hung => "HUNG",
            Self::NotRun => "not run",
        })
    }
}

/// Everything that a case found out.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// The checks, in order.
    pub checks: Vec<Check>,
    /// Figures and properties worth reading that decide nothing.
    pub notes: Vec<String>,
    /// Set when the case does not apply to this deployment.
    pub not_run: Option<String>,
}

impl Evidence {
    /// A case that does not apply, and why.
    #[must_use]
    pub fn not_run(reason: impl Into<String>) -> Self {
        Self { not_run: Some(reason.into()), ..Self::default() }
    }

    /// Notes what somebody saw.
    pub fn saw(&mut self, witness: Witness, what: impl Into<String>, held: bool, got: impl Into<String>) {
        self.checks.push(Check { what: what.into(), got: got.into(), held, witness });
    }

    /// What the machine shows.
    pub fn host(&mut self, what: impl Into<String>, held: bool, got: impl Into<String>) {
        self.saw(Witness::Host, what, held, got);
    }

    /// What the client was told.
    pub fn client(&mut self, what: impl Into<String>, held: bool, got: impl Into<String>) {
        self.saw(Witness::Client, what, held, got);
    }

    /// Adds a note.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

/// One row of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The number of the case.
    pub number: u8,
    /// What is attacked.
    pub case: &'static str,
    /// The driver of the sandbox that was attacked.
    pub runtime: String,
    /// What must happen.
    pub expected: &'static str,
    /// What happened, in short; the reason where it was not run.
    pub got: String,
    /// The verdict.
    pub verdict: Verdict,
    /// How long it took.
    pub seconds: f64,
    /// Every check.
    pub checks: Vec<Check>,
}

/// How a case came to its end.
#[derive(Debug)]
pub(super) enum Ending {
    /// With evidence.
    Evidence(Evidence),
    /// With an error, which says what could not be done.
    Error(String),
    /// Not within this many seconds.
    Hung(u64),
}

/// The verdict on a case, and the words for it.
pub(super) fn judge(ending: &Ending) -> (Verdict, String) {
    let evidence = match ending {
        Ending::Evidence(evidence) => evidence,
        Ending::Error(error) => return (Verdict::Broken, error.clone()),
        Ending::Hung(seconds) => return (Verdict::Hung, format!("no end within {seconds} s")),
    };
    if let Some(reason) = &evidence.not_run {
        return (Verdict::NotRun, reason.clone());
    }
    if evidence.checks.is_empty() {
        return (Verdict::Broken, "nothing was checked".to_owned());
    }
    let failed: Vec<String> = evidence
        .checks
        .iter()
        .filter(|check| !check.held)
        .map(|c| format!("{}: {}", c.what, c.got))
        .collect();
    if failed.is_empty() {
        return (Verdict::Held, summary(evidence));
    }
    const SHOWN: usize = 4;
    let more = failed.len().saturating_sub(SHOWN);
    let mut text = failed.into_iter().take(SHOWN).collect::<Vec<_>>().join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    (Verdict::Breached, text)
}

fn summary(evidence: &Evidence) -> String {
    let seen = evidence.checks.iter().filter(|check| check.witness == Witness::Host).count();
    let mut text = format!("{} checks held", evidence.checks.len());
    if seen > 0 {
        text.push_str(&format!(", {seen} of them seen on the host"));
    }
    for note in &evidence.notes {
        text.push_str("; ");
        text.push_str(note);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(held: &[bool]) -> Ending {
        let mut evidence = Evidence::default();
        for (n, held) in held.iter().enumerate() {
            evidence.host(format!("thing {n}"), *held, "got");
        }
        Ending::Evidence(evidence)
    }

    #[test]
    fn one_check_that_does_not_hold_is_a_breach_and_is_named() {
        let (verdict, got) = judge(&evidence(&[true, false, true]));
        assert_eq!((verdict, got.as_str()), (Verdict::Breached, "thing 1: got"));
        assert!(verdict.is_failure());
    }

    #[test]
    fn a_case_without_checks_is_no_success() {
        assert_eq!(judge(&evidence(&[])).0, Verdict::Broken);
        assert_eq!(judge(&Ending::Error("cannot connect".to_owned())).0, Verdict::Broken);
        assert_eq!(judge(&Ending::Hung(60)), (Verdict::Hung, "no end within 60 s".to_owned()));
        assert!(Verdict::Hung.is_failure() && Verdict::Broken.is_failure());
    }

    #[test]
    fn a_case_that_is_not_run_is_neither_held_nor_failed() {
        let (verdict, got) = judge(&Ending::Evidence(Evidence::not_run("there is no file service")));
        assert_eq!((verdict, got.as_str()), (Verdict::NotRun, "there is no file service"));
        assert!(!verdict.is_failure());
        assert_ne!(verdict, Verdict::Held);
    }

    #[test]
    fn what_held_says_who_saw_it() {
        let (verdict, got) = judge(&evidence(&[true, true]));
        assert_eq!((verdict, got.as_str()), (Verdict::Held, "2 checks held, 2 of them seen on the host"));
    }
}
