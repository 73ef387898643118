//! What is left of creations that failed while their engine was away: it is cleared away when that is back.

use super::ContainerRuntime;
use crate::{Error, runtime::Runtime, sandbox::SandboxId};

impl ContainerRuntime {
    /// Clears away a creation that failed; at a later time, if that is not possible now.
    pub(super) async fn give_up(&self, id: &SandboxId) {
        if let Err(error) = self.delete(id).await {
            tracing::warn!(sandbox.id = %id, %error, "left over from a failed start; it will be cleared away");
            self.left.lock().await.insert(id.clone());
        }
    }

    /// Clears away what was left of a creation before this one with the same id.
    pub(super) async fn take_place(&self, id: &SandboxId) -> Result<(), Error> {
        let mut left = self.left.lock().await;
        if left.contains(id) {
            let failed = |error: Error| Error::StartFailed { id: id.clone(), why: error.to_string() };
            self.delete(id).await.map_err(failed)?;
            left.remove(id);
        }
        Ok(())
    }

    /// Tries to clear away what is left. What cannot be cleared now awaits the next time.
    pub(super) async fn clear_left(&self) {
        let mut left = self.left.lock().await;
        for id in left.clone() {
            if self.delete(&id).await.is_err() {
                break;
            }
            tracing::info!(sandbox.id = %id, "what was left of it is cleared away");
            left.remove(&id);
        }
    }
}
