//! The files that an execution made or changed: kept as they were when it ended, and read for as long as it
//! is remembered.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sandmesh_proto::executor::Entry;

use super::{
    Service,
    files::{Pieces, part},
};
use crate::{
    error::Error,
    store::session::Model,
    values::{Artifact, Artifacts},
    workspace::{EntryPath, Same, Saved},
};

/// What an executor said an execution changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) any: bool,
    pub(super) files: Vec<Entry>,
}

impl Service {
    /// Saves the workspace that an execution changed, and tells what of it is its own. Where its sandbox is
    /// gone already, what it changed is told and not kept.
    pub(super) async fn artifacts(
        &self,
        session: &Model,
        changes: &Changes,
    ) -> Result<Option<Artifacts>, Error> {
        if !changes.any {
            return Ok(None);
        }
        let saved = match self.save_workspace(session, None, Same::Version).await? {
            Ok(saved) => saved,
            Err(status) => {
                tracing::warn!(session.id, %status, "the workspace could not be saved");
                Arc::default()
            }
        };
        let now = self.clock.now();
        let artifacts: Vec<_> = changes.files.iter().filter_map(|file| artifact(file, &saved, now)).collect();
        Ok(Some(Artifacts(artifacts)).filter(|artifacts| !artifacts.0.is_empty()))
    }

    /// Reads an artifact.
    pub(crate) async fn download_artifact(
        &self,
        execution_id: &str,
        path: &str,
        range: (u64, Option<u64>),
    ) -> Result<(Artifact, Pieces), Error> {
        let row = self.execution_row(execution_id).await?;
        let missing = || Error::ArtifactNotFound { id: execution_id.to_owned(), path: path.to_owned() };
        let artifacts = row.artifacts.unwrap_or_default().0;
        let artifact = artifacts.into_iter().find(|artifact| artifact.path == path).ok_or_else(missing)?;
        let checksum = artifact.checksum.clone().ok_or_else(missing)?;
        let bytes = self.objects.kept(&row.session_id, &checksum, part(path, artifact.size, range)?).await?;
        Ok((artifact, bytes))
    }
}

fn artifact(file: &Entry, saved: &Saved, now: DateTime<Utc>) -> Option<Artifact> {
    let path = EntryPath::from(&file.path[..]);
    let kept = saved.entries.get(&path);
    Some(Artifact {
        path: path.text()?.to_owned(),
        size: kept.map_or(file.size_bytes, |kept| kept.size),
        checksum: kept.and_then(|kept| kept.checksum.clone()),
        created_at_us: now.timestamp_micros(),
    })
}
