//! The seccomp profile of containers as an OCI runtime takes it: Docker's form has conditions in it, which are
//! decided here for a container without capabilities. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

/// What conditions are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine<'a> {
    /// In the words of Rust.
    pub(super) processor: &'a str,
    /// Major and minor version.
    pub(super) kernel: (u32, u32),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Rule {
    /// Whether it is one for a container without capabilities on a machine.
    fn holds(&self, machine: Machine<'_>) -> bool {
        let processor = processor(machine.processor);
        let has = |arches: &[String]| arches.iter().any(|arch| arch == processor);
        let Condition { caps, arches, min_kernel } = &self.includes;
        let kernel = |wanted: &Option<String>| wanted.as_deref().map(|text| machine.kernel >= version(text));
        caps.is_empty()
            && (arches.is_empty() || has(arches))
            && kernel(min_kernel).unwrap_or(true)
            && !has(&self.excludes.arches)
            && !kernel(&self.excludes.min_kernel).unwrap_or(false)
    }

    fn told(self) -> Value {
        let mut rule = json!({"names": self.names, "action": self.action});
        if let Some(number) = self.errno_ret {
            rule["errnoRet"] = json!(number);
        }
        if let Some(args) = self.args.filter(|args| !args.is_empty()) {
            rule["args"] = json!(args);
        }
        rule
    }
}

/// A profile of Docker's form for a machine; `None` if it is not of that form.
pub(super) fn oci(profile: Value, machine: Machine<'_>) -> Option<Value> {
    let Profile { default_action, default_errno_ret, arch_map, syscalls } =
        serde_json::from_value(profile).ok()?;
    let own = seccomp_name(machine.processor);
    let architectures: Vec<String> = arch_map
        .into_iter()
        .filter(|found| found.architecture == own)
        .flat_map(|found| {
            std::iter::once(found.architecture).chain(found.sub_architectures.into_iter().flatten())
        })
        .collect();
    let rules: Vec<Value> = syscalls.into_iter().filter(|rule| rule.holds(machine)).map(Rule::told).collect();
    Some(json!({
        "defaultAction": default_action,
        "defaultErrnoRet": default_errno_ret.unwrap_or(1),
        "architectures": architectures,
        "syscalls": rules,
    }))
}

/// A processor in the words of the conditions.
fn processor(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn seccomp_name(rust: &str) -> String {
    format!("SCMP_ARCH_{}", rust.to_uppercase())
}

/// The first two numbers of the version of a kernel.
pub(super) fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::container::seccomp;

    const HERE: Machine<'static> = Machine { processor: "x86_64", kernel: (6, 1) };

    /// What is done about a call whatever its arguments are.
    fn action(profile: &Value, call: &str) -> Option<String> {
        let rules = profile["syscalls"].as_array().unwrap().iter();
        let about = |rule: &&Value| rule["names"].as_array().unwrap().iter().any(|name| name == call);
        let mut found = rules.filter(about).filter(|rule| rule.get("args").is_none());
        found.next().map(|rule| rule["action"].as_str().unwrap().to_owned())
    }

    #[test]
    fn what_needs_a_capability_is_refused_and_what_jails_need_is_not() {
        let profile = oci(seccomp::profile(), HERE).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let architectures = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        assert_eq!(profile["architectures"], architectures);
        for call in ["bpf", "setns", "open_by_handle_at", "init_module", "reboot", "perf_event_open"] {
            assert_eq!(action(&profile, call), None, "{call}");
        }
        for call in ["read", "execve", "mount", "pivot_root", "unshare", "arch_prctl"] {
            assert_eq!(action(&profile, call).as_deref(), Some("SCMP_ACT_ALLOW"), "{call}");
        }
        assert!(profile.to_string().len() < 40_000);
    }

    #[test]
    fn a_condition_is_decided_by_processor_and_kernel() {
        let profile = |machine| oci(seccomp::profile(), machine).unwrap();
        assert_eq!(action(&profile(Machine { processor: "aarch64", ..HERE }), "arch_prctl"), None);
        let rule = |text: &str| serde_json::from_str::<Rule>(text).unwrap();
        let since = rule(r#"{"names": ["x"], "action": "A", "includes": {"minKernel": "4.8"}}"#);
        assert!(since.holds(HERE) && !since.holds(Machine { kernel: (4, 7), ..HERE }));
        let not_here = rule(r#"{"names": ["x"], "action": "A", "excludes": {"arches": ["amd64"]}}"#);
        assert!(!not_here.holds(HERE));
        let without = rule(r#"{"names": ["x"], "action": "A", "excludes": {"caps": ["CAP_SYS_ADMIN"]}}"#);
        assert!(without.holds(HERE), "a container has no capability");
    }

    #[test]
    fn what_is_no_profile_makes_none() {
        assert_eq!(oci(json!({"syscalls": "all"}), HERE), None);
        assert_eq!((version("6.18.0-rc1+"), version("x")), ((6, 18), (0, 0)));
    }
}
