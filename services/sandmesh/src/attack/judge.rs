//! Reads what attack programs say and compares it with what must be. Pure.
//!
//! A program writes a line of JSON for each attempt, `{"try": "mount tmpfs", "got": "EPERM"}`, and at the
//! end `{"done": 12}`, the number of attempts. One that does not come to its end was stopped in the middle,
//! which proves nothing; so it counts as a failure.

use serde::Deserialize;

use super::verdict::{Check, Evidence, Witness};

/// What the kernel says where a call is not allowed or does not exist.
pub(super) const DENIED: &[&str] = &["EPERM", "ENOSYS", "EACCES"];
/// What there is to hear where nothing can be reached.
pub(super) const UNREACHABLE: &[&str] = &[
    "EPERM",
    "EACCES",
    "ENETUNREACH",
    "EHOSTUNREACH",
    "ECONNREFUSED",
    "EADDRNOTAVAIL",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "EPROTOTYPE",
    "ENOENT",
    "ENODEV",
    "EINVAL",
    "unresolved",
    "timeout",
];
/// What there is to hear of a file that is not there or not for user code.
pub(super) const ABSENT: &[&str] = &[
    "ENOENT", "EACCES", "EPERM", "EROFS", "ENXIO", "ENODEV", "ENOTDIR", "ELOOP", "EISDIR", "ETXTBSY",
    "ESRCH", "EIO", "EXDEV", "EINVAL",
];

/// One attempt, in the words of the program.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Attempt {
    #[serde(rename = "try")]
    pub(super) what: String,
    pub(super) got: String,
}

#[derive(Debug, Deserialize)]
struct Done {
    done: usize,
}

/// Everything a program said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) attempts: Vec<Attempt>,
    /// How many there should be; `None` when it did not come to its end.
    pub(super) done: Option<usize>,
}

impl Said {
    /// Reads the standard output; lines that are something else are left out.
    pub(super) fn read(stdout: &[u8]) -> Self {
        let mut said = Self::default();
        for line in stdout.split(|byte| *byte == b'\n') {
            if let Ok(attempt) = serde_json::from_slice(line) {
                said.attempts.push(attempt);
            } else if let Ok(Done { done }) = serde_json::from_slice(line) {
                said.done = Some(done);
            }
        }
        said
    }

    /// What came of one attempt.
    pub(super) fn got(&self, what: &str) -> Option<&str> {
        self.attempts.iter().find(|attempt| attempt.what == what).map(|attempt| attempt.got.as_str())
    }
}

/// Whether an answer is among the allowed ones. Several answers, as of several tries at the same thing, are
/// joined by `+` and all must be allowed.
fn allowed(got: &str, answers: &[&str]) -> bool {
    !got.is_empty() && got.split('+').all(|part| answers.contains(&part))
}

/// Every attempt must have one of these answers, there must be at least `least`, and the program must have
/// come to its end.
pub(super) fn attempts(evidence: &mut Evidence, stdout: &[u8], least: usize, answers: &[&str]) {
    let said = Said::read(stdout);
    let whole = said.done == Some(said.attempts.len()) && said.attempts.len() >= least;
    for Attempt { what, got } in &said.attempts {
        evidence.saw(Witness::Attacker, what, allowed(got, answers), got);
    }
    let told = match said.done {
        Some(done) => format!("{done} of at least {least} attempts"),
        None => format!("it stopped after {} attempts", said.attempts.len()),
    };
    evidence.saw(Witness::Attacker, "the attack comes to its end", whole, told);
}

/// These attempts must have exactly these answers.
pub(super) fn exactly(evidence: &mut Evidence, stdout: &[u8], expected: &[(&str, &str)]) {
    let said = Said::read(stdout);
    for (what, answer) in expected {
        let got = said.got(what).unwrap_or("nothing");
        evidence.saw(Witness::Attacker, *what, got == *answer, got);
    }
}

/// What a program says twice, before and after something, must be the same.
pub(super) fn unchanged(evidence: &mut Evidence, before: &[u8], after: &[u8]) {
    let (before, after) = (Said::read(before), Said::read(after));
    let whole = before.done.is_some_and(|done| done > 0) && before.done == after.done;
    let told = format!("{:?} and {:?} facts", before.done, after.done);
    evidence.saw(Witness::Attacker, "both looks come to their end", whole, told);
    for Attempt { what, got } in &after.attempts {
        let was = before.got(what).unwrap_or("nothing");
        let told = if was == got { got.clone() } else { format!("{got}, before {was}") };
        evidence.saw(Witness::Attacker, what, was == got, shortened(&told));
    }
}

/// Everything in these must be different from everything else: `(source, value)` of several runs.
pub(super) fn distinct(values: &[(String, String)]) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    let mut sources: Vec<&str> = values.iter().map(|(source, _)| source.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    for source in sources {
        let mut drawn: Vec<&str> =
            values.iter().filter(|(from, _)| from == source).map(|(_, value)| value.as_str()).collect();
        let total = drawn.len();
        drawn.sort_unstable();
        drawn.dedup();
        let got = format!("{} distinct of {total}", drawn.len());
        let held = drawn.len() == total && total > 1;
        checks.push(Check { what: source.to_owned(), got, held, witness: Witness::Attacker });
    }
    checks
}

/// None of these bytes may be in what was said.
pub(super) fn absent(evidence: &mut Evidence, what: &str, haystack: &[u8], secret: &str) {
    let found = contains(haystack, secret.as_bytes());
    evidence.client(what, !found, if found { "it is there" } else { "it is not there" });
}

/// Whether bytes are part of others.
pub(super) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle)
}

/// The beginning of a text that may be long.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 300;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The value that so many percent of the others are not above; zero of none.
pub(super) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(stdout: &str, least: usize) -> bool {
        let mut evidence = Evidence::default();
        attempts(&mut evidence, stdout.as_bytes(), least, DENIED);
        evidence.checks.iter().all(|check| check.held)
    }

    #[test]
    fn refused_attempts_hold_and_one_that_worked_does_not() {
        let refused = "{\"try\": \"mount\", \"got\": \"EPERM\"}\n{\"try\": \"bpf\", \"got\": \"ENOSYS\"}\n";
        assert!(held(&format!("{refused}{{\"done\": 2}}\n"), 2));
        assert!(!held(&format!("{refused}{{\"try\": \"x\", \"got\": \"done\"}}\n{{\"done\": 3}}\n"), 2));
        assert!(!held(&format!("{refused}{{\"try\": \"x\", \"got\": \"\"}}\n{{\"done\": 3}}\n"), 2));
    }

    #[test]
    fn an_attack_that_stopped_in_the_middle_proves_nothing() {
        let one = "{\"try\": \"mount\", \"got\": \"EPERM\"}\n";
        assert!(!held(one, 1), "no end");
        assert!(!held(&format!("{one}{{\"done\": 2}}\n"), 1), "an attempt is missing");
        assert!(!held(&format!("{one}{{\"done\": 1}}\n"), 2), "fewer than there should be");
        assert!(!held("", 0));
    }

    #[test]
    fn of_several_tries_at_one_thing_all_must_fail() {
        assert!(allowed("EPERM+ENOSYS", DENIED));
        assert!(!allowed("EPERM+done", DENIED));
        assert!(!allowed("", DENIED));
    }

    #[test]
    fn other_lines_are_no_attempts() {
        let said = Said::read(b"Traceback\n{\"try\": 1}\n{}\n\xff\n{\"try\": \"a\", \"got\": \"b\"}\n");
        assert_eq!(said.attempts.len(), 1);
        assert_eq!((said.got("a"), said.got("x"), said.done), (Some("b"), None, None));
    }

    #[test]
    fn what_changed_is_told_with_what_was_before() {
        let look = |value: &str| format!("{{\"try\": \"umask\", \"got\": \"{value}\"}}\n{{\"done\": 1}}\n");
        let mut evidence = Evidence::default();
        unchanged(&mut evidence, look("18").as_bytes(), look("0").as_bytes());
        let failed: Vec<_> = evidence.checks.iter().filter(|check| !check.held).collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].got, "0, before 18");
        let mut evidence = Evidence::default();
        unchanged(&mut evidence, b"", b"");
        assert!(!evidence.checks[0].held, "two looks that saw nothing");
    }

    #[test]
    fn a_number_drawn_twice_is_found() {
        let draw = |source: &str, value: &str| (source.to_owned(), value.to_owned());
        let checks =
            distinct(&[draw("uuid4", "a"), draw("uuid4", "b"), draw("random", "a"), draw("random", "a")]);
        let held: Vec<_> = checks.iter().map(|check| (check.what.as_str(), check.held)).collect();
        assert_eq!(held, [("random", false), ("uuid4", true)]);
        assert!(!distinct(&[draw("one", "a")])[0].held, "a single draw shows nothing");
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!((percentile(&mut values, 50), percentile(&mut values, 99)), (2.0, 4.0));
        assert!(percentile(&mut [], 50).abs() < f64::EPSILON);
    }
}
