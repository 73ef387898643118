//! Shims that their containerd forgot: one that is killed while it starts a shim does not know of it when it is back,
//! and nobody ends it.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// Kills the shim of a container that is to be removed and has no task. Does nothing where there is none, or where
/// this process does not see those of the host.
pub(super) fn end(namespace: &str, container: &str) {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries.filter(|entry| is_shim(&entry.path(), namespace, container)) {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            tracing::warn!(
                container,
                pid = pid.as_raw_nonzero(),
                "containerd forgot its shim, which is ended"
            );
            // One that is gone already is what is wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Whether a process is the shim of this container. User code, which can call itself anything, is of another user.
fn is_shim(process: &Path, namespace: &str, container: &str) -> bool {
    let is_ours = fs::metadata(process).is_ok_and(|found| found.uid() == geteuid().as_raw());
    is_ours && fs::read(process.join("cmdline")).is_ok_and(|words| names(&words, namespace, container))
}

/// Whether a command line is that of the shim of this container.
fn names(words: &[u8], namespace: &str, container: &str) -> bool {
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    let has =
        |flag: &str, value: &str| words.windows(2).any(|pair| pair == [flag.as_bytes(), value.as_bytes()]);
    let program = words.first().map(|word| String::from_utf8_lossy(word));
    program.is_some_and(|program| program.contains("containerd-shim"))
        && has("-namespace", namespace)
        && has("-id", container)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::CommandExt, process::Command};

    use super::*;

    #[test]
    fn the_shim_of_this_container_is_ended_and_no_other() {
        let start = |namespace: &str, id: &str| {
            let mut shim = Command::new("sh");
            shim.arg0("/usr/bin/containerd-shim-runc-v2").args(["-c", "sleep 60; true"]);
            shim.args(["-namespace", namespace, "-id", id]).process_group(0).spawn().unwrap()
        };
        let id = format!("sandmesh-of-a-test-{}", std::process::id());
        let (mut ours, others) = (start("sandmesh", &id), [("other", &*id), ("sandmesh", "another")]);
        let others = others.map(|(namespace, id)| start(namespace, id));
        end("sandmesh", &id);
        assert!(!ours.wait().unwrap().success());
        for mut other in others {
            assert!(other.try_wait().unwrap().is_none());
            end_group(&mut other);
        }
        // What the first one had started.
        end_group(&mut ours);
    }

    fn end_group(shim: &mut std::process::Child) {
        let _ = rustix::process::kill_process_group(Pid::from_child(shim), Signal::KILL);
        let _ = shim.wait();
    }
}
