//! Whether containers can be made here as they must be: found out by making one, with a jail in it, in an image
//! that has nothing.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    ContainerRuntime, Ready,
    engine::State,
    plan::{Plan, entry_args, name},
};
use crate::{
    runtime::{Ability, LogStart, Problems, log, program::tail},
    sandbox::{Language, Resources, SandboxId},
};

/// How long the check in the container may take.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);
/// Limits of the container of a check.
const SMALL: Resources =
    Resources { cpu_millis: 1000, memory_bytes: 64 << 20, disk_bytes: 1 << 20, max_processes: 32 };

/// What is missing, with what to do.
fn problem(text: impl Into<String>) -> Problems {
    Problems(vec![text.into()])
}

impl ContainerRuntime {
    /// Makes a container like that of a sandbox, has the executor check in it what it can do, and removes it.
    pub(super) async fn probe(&self, ready: &Ready) -> Result<Ability, Problems> {
        let id = SandboxId::random();
        let probed = self.probe_in(&id, ready).await;
        self.put_away(&id, self.installs.join(id.as_str()), None).await;
        let mut ability = probed?;
        // What an image has is known when there is a sandbox of it.
        ability.languages = vec![Language::Python, Language::Javascript, Language::Shell];
        ability.warnings.extend(ready.warnings.iter().cloned());
        Ok(ability)
    }

    async fn probe_in(&self, id: &SandboxId, ready: &Ready) -> Result<Ability, Problems> {
        let cannot =
            |what: &str, why: String| problem(format!("a container cannot be {what} for a check: {why}"));
        let image = self.engine.empty_image().await;
        let image = image.map_err(|trouble| cannot("made", trouble.to_string()))?;
        let dir = self.installs.join(id.as_str());
        let uid = self.first_uid();
        let places = self.make_places(&dir, uid, ready).map_err(|error| cannot("made", error.to_string()))?;
        let mut command = vec!["check".to_owned(), "--without-interpreters".to_owned()];
        command.extend(entry_args());
        command
            .extend(self.program.policy_args().into_iter().map(|word| word.to_string_lossy().into_owned()));
        let plan = Plan {
            id,
            image: &image,
            uid,
            resources: &SMALL,
            at_once: 1,
            places: &places,
            command,
            spec: None,
        };
        let container = self.engine.create(&name(&self.owner(), id), &plan, &ready.walls).await;
        let container = container.map_err(|trouble| cannot("made", trouble.to_string()))?;
        let started = self.engine.start(&container, &dir).await;
        started.map_err(|trouble| cannot("started", trouble.to_string()))?;
        let admitted = self.admit(&dir, &container, uid, &SMALL).await;
        admitted.map_err(|why| problem(explain(&why)))?;
        let said = self.finished(&container, &dir).await.map_err(|why| cannot("run", why))?;
        self.program.read_check(&said, &format!("in a container said: {}", tail(&said)))
    }

    /// What the check printed, once it has ended.
    async fn finished(&self, container: &str, dir: &Path) -> Result<Vec<u8>, String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let state = self.engine.state(container).await.map_err(|trouble| trouble.to_string())?;
            if state != Some(State::Running) {
                let part = log::read(dir, LogStart::At(0)).map_err(|error| error.to_string())?;
                return Ok(last_object(&part.data).to_vec());
            }
            sleep(PAUSE).await;
        }
        Err(format!("it did not end within {PATIENCE:?}"))
    }
}

/// The last line that looks like what a check prints, or all of it.
fn last_object(said: &[u8]) -> &[u8] {
    said.split(|byte| *byte == b'\n').rfind(|line| line.starts_with(b"{")).unwrap_or(said)
}

/// What to do about control groups that cannot be made.
fn explain(why: &str) -> String {
    if why.contains("control group") {
        return format!(
            "{why}; run the agent as root on the host itself, or in a container that has the host's processes and \
             control groups (deploy/compose), or accept the container's limits alone with \
             `agent.isolation.cgroups = \"optional\"`"
        );
    }
    why.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_check_is_found_among_other_lines() {
        assert_eq!(last_object(b"warning\n{\"ok\":true}\n"), b"{\"ok\":true}");
        assert_eq!(last_object(b"nothing"), b"nothing");
    }
}
