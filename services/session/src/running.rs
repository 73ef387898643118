//! The rows of sessions that run, as they were read last: an execution needs its session's, and most
//! sessions run more than one.
//!
//! What of such a row an execution needs does not change while the session runs. Whether it still does, the
//! database says: it takes an execution only for a session that is live, and for that very sandbox.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{lifecycle::SessionState, store::session::Model};

/// How many are remembered; with more, all are forgotten and read again.
const MOST: usize = 4096;

/// Remembers the sessions that run.
#[derive(Debug, Default)]
pub(crate) struct RunningSessions(Mutex<HashMap<String, Arc<Model>>>);

impl RunningSessions {
    /// The session, if it is remembered.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Model>> {
        self.lock().get(id).cloned()
    }

    /// Remembers a session, if it runs.
    pub(crate) fn remember(&self, session: &Arc<Model>) {
        if session.state != SessionState::Running {
            return;
        }
        let mut sessions = self.lock();
        if sessions.len() >= MOST {
            sessions.clear();
        }
        sessions.insert(session.id.clone(), Arc::clone(session));
    }

    /// Forgets a session.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Model>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
