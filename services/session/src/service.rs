//! What the session role does, apart from how it is asked: sessions here and in `create`, `recover` and `end`,
//! executions in `execute`, `drive`, `follow` and `interact`, the passing of time in `sweep`, other processes
//! of this role in `replicas`.

mod acknowledge;
mod artifacts;
mod ask;
mod create;
mod drive;
mod end;
mod execute;
mod files;
mod follow;
mod install;
mod interact;
mod leases;
mod leftovers;
mod list;
mod record;
mod recover;
mod replicas;
mod statistics;
mod sweep;
mod upload;
mod workspace;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use sandmesh_mesh::{Clock, Tasks};
use tokio::sync::{Semaphore, oneshot};

pub(crate) use self::{
    acknowledge::Recorded,
    drive::PROGRAMS_AT_ONCE,
    files::{Download, FileEntry, ListQuery},
    follow::{Followed, Offsets},
    leftovers::Leftovers,
    list::{Paging, label_filter, session_state},
    recover::Loss,
    replicas::{Place, Subject},
    workspace::Workspaces,
};
use crate::{
    config::Config,
    drivers::Drivers,
    error::Error,
    notify::{Locks, Topics},
    objects::Objects,
    peers::Peers,
    replica::Replica,
    retries::Retries,
    running::RunningSessions,
    store::{Store, execution, session},
    turns::Turns,
};

/// The session role at work.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) config: Config,
    pub(crate) store: Store,
    /// Set where several processes may share the database.
    pub(crate) replica: Option<Replica>,
    pub(crate) objects: Objects,
    pub(crate) peers: Peers,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: Tasks,
    /// Where output is collected.
    pub(crate) spool_dir: PathBuf,
    /// Who waits for sessions.
    pub(crate) session_changes: Topics,
    pub(crate) drivers: Drivers,
    /// Who is to start an execution.
    pub(crate) turns: Turns,
    /// Sessions that run.
    pub(crate) running: RunningSessions,
    /// Who makes or removes the sandbox of a session, or forgets the session.
    pub(crate) sandboxes: Locks,
    /// Who has packages installed into a session.
    pub(crate) installs: Locks,
    /// Who winds a session down.
    pub(crate) wind_downs: Locks,
    /// Whose sandbox could not be removed.
    pub(crate) removals: Retries,
    /// Workspaces as they are saved, and who saves them.
    pub(crate) workspaces: Workspaces,
    /// How many large programs may be on their way to executors.
    pub(crate) programs: Arc<Semaphore>,
    /// What executors are soon told to forget.
    pub(crate) recorded: Recorded,
    /// Where executors keep what is recorded.
    pub(crate) leftovers: Leftovers,
}

impl Service {
    /// Reads a session.
    pub(crate) async fn session(&self, id: &str) -> Result<session::Model, Error> {
        self.store.session(id).await?.ok_or_else(|| Error::SessionNotFound(id.to_owned()))
    }

    /// Reads the row of an execution.
    pub(crate) async fn execution_row(&self, id: &str) -> Result<execution::Model, Error> {
        let row = self.store.execution(id).await?.ok_or_else(|| Error::ExecutionNotFound(id.to_owned()))?;
        self.as_driven(row).await
    }

    /// Runs something to its end, also when the caller goes away: what was begun must not stay half done.
    async fn finish<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        // Pinned first, here and below: it is large, and each of what wraps it would move it and hold it twice.
        let work = Box::pin(work);
        let (done, result) = oneshot::channel();
        self.tasks.spawn(name, async move {
            // Nobody may be listening any more.
            let _ = done.send(work.await);
        });
        result
            .await
            .unwrap_or_else(|_| Err(Error::Unavailable("the session service failed at it".to_owned())))
    }

    /// Spawns work that the next process takes up where this one stopped: it is dropped when the service
    /// stops.
    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let (token, work) = (self.tasks.token(), Box::pin(work));
        self.tasks.spawn(name, async move {
            // Dropped or ended, both are well.
            let _ = token.run_until_cancelled(work).await;
        });
    }

    /// Waits, but not longer than until the service stops. False when it stops.
    async fn pause(&self, duration: Duration) -> bool {
        let token = self.tasks.token();
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = token.cancelled() => false,
        }
    }
}
