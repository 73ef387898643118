//! What is left of containers that could not be removed when they were to go, as their engine was away: it is
//! cleared away when that is back.

use std::path::PathBuf;

use super::{ContainerRuntime, lock};
use crate::{Error, runtime::Runtime, sandbox::SandboxId};

/// What is left of one.
#[derive(Debug, Clone)]
pub(super) enum Left {
    /// Of the creation of a sandbox.
    Sandbox,
    /// Of an installer or a check: its directory, and the uid that it holds.
    Other(PathBuf, Option<u32>),
}

impl ContainerRuntime {
    /// Clears away a creation that failed; at a later time, if that is not possible now.
    pub(super) async fn give_up(&self, id: &SandboxId) {
        if let Err(error) = self.delete(id).await {
            tracing::warn!(sandbox.id = %id, %error, "left over from a failed start; it will be cleared away");
            self.left.lock().await.insert(id.clone(), Left::Sandbox);
        }
    }

    /// Clears away the container of an installer or a check; at a later time, if that is not possible now.
    pub(super) async fn put_away(&self, id: &SandboxId, dir: PathBuf, uid: Option<u32>) {
        let left = Left::Other(dir, uid);
        if let Err(why) = self.clear_one(id, &left).await {
            tracing::warn!(sandbox.id = %id, why, "left over from an installation or a check; it will be cleared away");
            self.left.lock().await.insert(id.clone(), left);
        }
    }

    /// Clears away what was left of a creation before this one with the same id.
    pub(super) async fn take_place(&self, id: &SandboxId) -> Result<(), Error> {
        let mut left = self.left.lock().await;
        if left.contains_key(id) {
            let failed = |error: Error| Error::StartFailed { id: id.clone(), why: error.to_string() };
            self.delete(id).await.map_err(failed)?;
            left.remove(id);
        }
        Ok(())
    }

    /// Tries to clear away what is left. What cannot be cleared now awaits the next time.
    pub(super) async fn clear_left(&self) {
        let mut all = self.left.lock().await;
        for (id, left) in all.clone() {
            if self.clear_one(&id, &left).await.is_ok() {
                tracing::info!(sandbox.id = %id, "what was left of it is cleared away");
                all.remove(&id);
            }
        }
    }

    async fn clear_one(&self, id: &SandboxId, left: &Left) -> Result<(), String> {
        match left {
            Left::Sandbox => self.delete(id).await.map_err(|error| error.to_string()),
            Left::Other(dir, uid) => {
                self.clear(id, dir).await?;
                if let Some(uid) = uid {
                    lock(&self.uids).free(*uid);
                }
                Ok(())
            }
        }
    }
}
