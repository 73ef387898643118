//! Finding the sandboxes of an agent before this one, and why those are dead that are.

use std::{path::Path, sync::Arc};

use super::{
    ADOPT_TIMEOUT, ContainerRuntime, Held,
    engine::{State, Trouble},
    plan::LABEL_SANDBOX,
    watch::Note,
};
use crate::{
    runtime::{
        Found,
        executor::{answered, facts, open_to},
        life::Process,
        record::Record,
    },
    sandbox::{Facts, SandboxId},
};

impl ContainerRuntime {
    /// The sandboxes that have a container of ours, and those containers.
    pub(super) async fn own_containers(&self) -> Result<Vec<SandboxId>, Trouble> {
        let found = self.engine.containers(&self.owner()).await?;
        Ok(found.iter().filter_map(|labels| labels.get(LABEL_SANDBOX)?.parse().ok()).collect())
    }

    pub(super) async fn adopt_one(&self, id: SandboxId) -> Found {
        let dir = self.dir(&id);
        let record = match Record::load(&dir) {
            Ok(record @ Record { facts: Some(_), container: Some(_), .. }) => record,
            Ok(_) => return Found::HalfMade(id),
            Err(error) => {
                tracing::warn!(sandbox.id = %id, %error, "no record of a container found; it will be destroyed");
                return Found::HalfMade(id);
            }
        };
        let (process, found) = match self.take_over(&record, &id, &dir).await {
            Ok((process, found)) => (Some(Arc::new(process)), Ok(found)),
            Err(why) => (None, Err(why)),
        };
        let sandbox = record.taken_over(id, found, self.clock.now());
        let held = Held {
            process,
            container: record.container.map(|container| container.id),
            reason: (!sandbox.reason.is_empty()).then(|| sandbox.reason.clone()),
            uid: record.uid,
            expires_at: record.spec.expires_at,
        };
        self.hold(&sandbox.home, held);
        Found::Whole(Box::new(sandbox))
    }

    /// The process of a container that still runs, and what its executor says; or why it does not.
    async fn take_over(
        &self,
        record: &Record,
        id: &SandboxId,
        dir: &Path,
    ) -> Result<(Process, Facts), String> {
        let process = record.process.map(Process::adopt).transpose();
        let process = process.map_err(|error| format!("executor cannot be watched: {error}"))?;
        let Some(process) = process.flatten() else { return Err(self.found_dead(record).await) };
        let answer = answered(dir, id, ADOPT_TIMEOUT, None).await?;
        open_to(dir, self.config.socket_group)?;
        Ok((process, facts(dir, record.spec.language, answer)))
    }

    /// How a container ended while no agent ran.
    async fn found_dead(&self, record: &Record) -> String {
        let container = record.container.as_ref().map_or("", |container| container.id.as_str());
        match self.engine.state(container).await {
            Ok(Some(State::Ended(ended))) => {
                format!("{} while no agent ran", ended.told(&Note::default()))
            }
            Ok(Some(State::Running)) => "executor ended while no agent ran".to_owned(),
            Ok(None) => "its container was removed while no agent ran".to_owned(),
            Err(trouble) => format!("executor ended while no agent ran; {trouble}"),
        }
    }
}
