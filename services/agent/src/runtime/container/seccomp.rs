//! The seccomp profile of containers: Docker's default one, and what a jail needs that is built inside.
//!
//! What is added takes a capability in a user namespace, which only the jail has: user code is behind a
//! stricter filter of its own, which has none of these calls.

use serde_json::{Value, json};

/// Docker's default profile; see the file beside it.
const DEFAULT: &str = include_str!("seccomp/default.json");

/// To make the namespaces of a jail and of the nests in it, and to furnish them.
const FOR_JAILS: [&str; 6] = ["clone", "unshare", "mount", "umount2", "pivot_root", "sethostname"];

/// The profile, in the form that Docker takes.
pub(in crate::runtime) fn profile() -> Value {
    let mut profile: Value = serde_json::from_str(DEFAULT).unwrap_or_default();
    if let Some(calls) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        calls.push(json!({"names": FOR_JAILS, "action": "SCMP_ACT_ALLOW"}));
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_calls_are_added_and_the_rest_is_dockers() {
        let ours = profile();
        let theirs: Value = serde_json::from_str(DEFAULT).unwrap();
        let (ours_calls, theirs_calls) =
            (ours["syscalls"].as_array().unwrap(), theirs["syscalls"].as_array().unwrap());
        assert_eq!(ours_calls[..theirs_calls.len()], theirs_calls[..]);
        assert_eq!(ours_calls.len(), theirs_calls.len() + 1);
        assert_eq!(ours["defaultAction"], "SCMP_ACT_ERRNO");
        for never in ["bpf", "setns", "keyctl", "io_uring_setup", "kexec_load", "open_by_handle_at", "ptrace"]
        {
            assert!(!FOR_JAILS.contains(&never));
        }
    }
}
