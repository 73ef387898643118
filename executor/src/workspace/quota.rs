//! Keeps what is written from outside within the disk limit. What user code writes is watched in `disk`.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use super::error::Error;
use crate::disk;

/// How long the size of the workspace is believed: user code may write meanwhile.
const BELIEVED: Duration = Duration::from_millis(500);

/// The room in a workspace.
#[derive(Debug)]
pub(super) struct Quota {
    workspace: PathBuf,
    /// Zero: there is none.
    limit: u64,
    /// What is being written, and has no name in the tree yet.
    coming: AtomicU64,
    size: Mutex<Size>,
}

#[derive(Debug, Default)]
struct Size {
    measured_at: Option<Instant>,
    used: u64,
}

impl Quota {
    pub(super) fn new(workspace: PathBuf, limit: u64) -> Self {
        Self { workspace, limit, coming: AtomicU64::new(0), size: Mutex::default() }
    }

    /// Takes room for something that will be written.
    async fn take(&self, bytes: u64) -> Result<(), Error> {
        let mut size = self.size.lock().await;
        if self.limit != 0 && size.measured_at.is_none_or(|at| at.elapsed() > BELIEVED) {
            let (workspace, enough) = (self.workspace.clone(), self.limit);
            let tree = tokio::task::spawn_blocking(move || disk::tree_size(workspace, enough));
            size.used = tree.await.unwrap_or(u64::MAX).saturating_add(self.coming.load(Ordering::Relaxed));
            size.measured_at = Some(Instant::now());
        }
        let used = size.used.saturating_add(bytes);
        if self.limit != 0 && used > self.limit {
            return Err(Error::DiskLimit(self.limit));
        }
        size.used = used;
        self.coming.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// The room that one file takes while it is written, until it is in the tree or will never be.
#[derive(Debug)]
pub(super) struct Taken {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Taken {
    pub(super) fn none(quota: Arc<Quota>) -> Self {
        Self { quota, bytes: 0 }
    }

    pub(super) async fn more(&mut self, bytes: u64) -> Result<(), Error> {
        self.quota.take(bytes).await?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.quota.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
