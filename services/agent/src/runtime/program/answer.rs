//! What `sandmesh-executor check` answers, and what is told of it.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{
    config::{Cgroups, IsolationPolicy},
    sandbox::{Isolation, Language},
};

/// The answer of `sandmesh-executor check`.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) ok: bool,
    #[serde(default)]
    pub(super) problems: Vec<Problem>,
    /// What works and could be better.
    #[serde(default)]
    pub(super) warnings: Vec<Problem>,
    #[serde(default)]
    pub(super) isolation: Isolation,
    #[serde(default)]
    pub(super) languages: Vec<Interpreter>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) missing: String,
    pub(super) fix: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Interpreter {
    pub(super) language: Language,
    #[serde(default)]
    pub(super) path: PathBuf,
    pub(super) version: String,
}

impl Interpreter {
    /// What packages for it depend on.
    pub(super) fn runtime(&self) -> String {
        let name = self.language.runtime_name(&self.version);
        format!("{name} {}", self.path.display())
    }
}

/// The versions that are known, in the words of `serve`.
pub(super) fn versions(interpreters: &[Interpreter]) -> String {
    let known = interpreters.iter().filter(|found| !found.version.is_empty());
    let words: Vec<_> = known.map(|found| format!("{}={}", found.language.as_str(), found.version)).collect();
    words.join(",")
}

pub(super) fn describe(problem: &Problem) -> String {
    let Problem { what, missing, fix } = problem;
    format!("{what}: missing is {missing}; {fix}")
}

/// One problem, with how to get what is missing and which setting does without.
pub(super) fn explain(problem: &Problem, policy: &IsolationPolicy) -> String {
    let (what, text) = (&problem.what, describe(problem));
    if text.contains("agent.isolation") {
        return text;
    }
    let about = |words: &[&str]| words.iter().any(|word| what.contains(word));
    let weaker = match what {
        _ if about(&["cgroup", "control group"]) && policy.cgroups == Cgroups::Required => {
            "cgroups = \"optional\""
        }
        _ if about(&["seccomp"]) => "seccomp = \"off\"",
        _ if about(&["bubblewrap", "bwrap", "namespace", "jail"]) => "jail = \"off\"",
        _ => return text,
    };
    format!("{text}; or accept weaker isolation with `agent.isolation.{weaker}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_how_to_get_it_and_how_to_do_without() {
        let problem = |what: &str| Problem {
            what: what.to_owned(),
            missing: "not found in PATH".to_owned(),
            fix: "apt-get install bubblewrap".to_owned(),
        };
        let text = explain(&problem("bubblewrap"), &IsolationPolicy::default());
        assert!(
            text.contains("apt-get install bubblewrap") && text.contains("agent.isolation.jail = \"off\"")
        );
        assert!(!explain(&problem("python"), &IsolationPolicy::default()).contains("agent.isolation"));
    }
}
