//! What callers do with executions: start, read, wait and cancel.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sandmesh_proto::session as pb;

use super::Service;
use crate::{
    drivers::Stop,
    encode::View,
    error::Error,
    id,
    lifecycle::ExecutionState,
    objects::Objects,
    peers::Backoff,
    store::{
        execution::{Inserted, Model},
        session,
    },
    validate::{NewExecution, new_execution},
    values::Words,
};

/// How much output of each stream an answer holds; a stream delivers all of it.
pub(super) const SHOWN: u64 = 1 << 20;

/// How long a cancelled execution may take to end before its caller is told to ask again.
const CANCEL_LIMIT: Duration = Duration::from_secs(20);

/// How often a new id is tried when the one that was made is taken.
const ID_ATTEMPTS: usize = 8;

impl Service {
    /// Accepts an execution: it is durable, and driven to its end, when this returns. A repeat returns the
    /// first.
    pub(crate) async fn start_execution(
        self: &Arc<Self>,
        request: pb::StartExecutionRequest,
    ) -> Result<Model, Error> {
        let new = new_execution(request)?;
        let service = Arc::clone(self);
        self.finish("start execution", async move { service.start_checked(new).await }).await
    }

    async fn start_checked(self: Arc<Self>, new: NewExecution) -> Result<Model, Error> {
        let (id, request_id) = (new.execution_id.as_deref(), new.request_id.as_deref());
        if let Some(first) = self.store.execution_of_request(&new.session_id, id, request_id).await? {
            // A deleted session is not found, nor what ran in it.
            self.session(&new.session_id).await?;
            return Ok(first);
        }
        let session = self.session_to_use(&new.session_id).await?;
        if session.state.is_final() {
            return Err(Error::SessionNotActive { id: session.id.clone(), state: session.state.as_str() });
        }
        let given = new.execution_id.is_some();
        let mut row = self.execution_from(new);
        self.spill_input(&mut row).await?;
        let spilled = row.code.is_none() || row.event.is_none() || row.stdin.is_none();
        let accepted = self.accept(&mut row, session, given).await;
        let refused = match &accepted {
            Ok(first) => first.is_some(),
            Err(error) => is_refusal(error),
        };
        if spilled && refused {
            // Not needed: another was first, or nothing runs.
            self.objects.delete_below(&row.object_prefix).await?;
        }
        Ok(accepted?.unwrap_or(row))
    }

    fn execution_from(&self, new: NewExecution) -> Model {
        let now = self.clock.now();
        let id = new.execution_id.unwrap_or_else(|| id::execution(now));
        Model {
            object_prefix: Objects::prefix(&new.session_id, &id),
            id,
            session_id: new.session_id,
            request_id: new.request_id,
            state: ExecutionState::Pending,
            cause: None,
            cause_detail: String::new(),
            language: new.language,
            mode: new.mode,
            code: Some(new.code),
            event: Some(new.event),
            stdin: Some(new.stdin.into()),
            keep_stdin_open: new.keep_stdin_open,
            entrypoint: new.entrypoint,
            command: Words(new.command),
            env: new.env,
            timeout_seconds: i32::try_from(new.timeout_seconds).unwrap_or(i32::MAX),
            exit_code: None,
            signal: None,
            stdout: Vec::new(),
            stdout_kept: 0,
            stdout_truncated: false,
            stderr: Vec::new(),
            stderr_kept: 0,
            stderr_truncated: false,
            return_value: None,
            return_value_bytes: None,
            error: None,
            metrics: None,
            retry_count: 0,
            max_retries: i32::try_from(new.max_retries).unwrap_or(i32::MAX),
            retried_at: None,
            created_at: now.into(),
            started_at: None,
            completed_at: None,
            artifacts: None,
        }
    }

    /// The session that an execution is for: as it is remembered, or as it is.
    pub(super) async fn session_to_use(&self, id: &str) -> Result<Arc<session::Model>, Error> {
        if let Some(session) = self.running.get(id) {
            return Ok(session);
        }
        let session = Arc::new(self.session(id).await?);
        self.running.remember(&session);
        Ok(session)
    }

    /// Adds an execution and begins to drive it; `Some` when it was there before.
    async fn accept(
        self: &Arc<Self>,
        row: &mut Model,
        mut session: Arc<session::Model>,
        given: bool,
    ) -> Result<Option<Model>, Error> {
        let limit = self.config.max_executions_per_session;
        for _ in 0..ID_ATTEMPTS {
            // Before the row is there: whoever ends the session from then on finds its driver.
            let registration = self.register_driver(&row.id, &row.session_id);
            match self.store.insert_execution(row, &session, limit).await? {
                Inserted::New => {
                    // Where another request has the same id and no luck, the sweep drives it.
                    if let Some(registration) = registration {
                        self.drive_accepted(registration, row.clone(), session);
                    }
                    return Ok(None);
                }
                Inserted::Repeat(first) if given || same_request(&first, row) => {
                    return Ok(Some(*first));
                }
                Inserted::IdTaken if given => break,
                Inserted::Repeat(_) | Inserted::IdTaken => row.id = id::execution(self.clock.now()),
                Inserted::NotActive => session = self.instead_of(&session).await?,
                Inserted::TooMany => {
                    return Err(Error::TooManyExecutions { id: row.session_id.clone(), limit });
                }
            }
        }
        Err(Error::ExecutionExists(row.id.clone()))
    }

    /// The session that has the place of one that takes no executions any more, where that was only
    /// remembered; else why it takes none.
    async fn instead_of(&self, session: &session::Model) -> Result<Arc<session::Model>, Error> {
        let remembered = self.running.get(&session.id).is_some();
        self.running.forget(&session.id);
        let now = self.session(&session.id).await?;
        if remembered && !now.state.is_final() && now.sandbox_id != session.sandbox_id {
            return Ok(Arc::new(now));
        }
        Err(match now.state.is_final() && now.sandbox_id == session.sandbox_id {
            true => Error::SessionNotActive { id: now.id, state: now.state.as_str() },
            // Deleted, and made again since.
            false => Error::SessionNotFound(now.id),
        })
    }

    /// Reads an execution with the first part of its output.
    pub(crate) async fn execution(&self, id: &str) -> Result<View, Error> {
        let row = self.execution_row(id).await?;
        self.shown(row).await
    }

    /// An execution with the first part of its output.
    pub(crate) async fn shown(&self, row: Model) -> Result<View, Error> {
        self.view(row, SHOWN).await
    }

    /// An execution with up to `shown` bytes of each stream of its output.
    pub(super) async fn view(&self, row: Model, shown: u64) -> Result<View, Error> {
        let code = match &row.code {
            Some(code) => code.clone(),
            None => {
                String::from_utf8_lossy(&self.objects.get(&row.object_prefix, "code").await?).into_owned()
            }
        };
        let return_value = match (&row.return_value, row.return_value_bytes) {
            (None, Some(_)) => {
                let value = self.objects.get(&row.object_prefix, "return_value").await?;
                Some(String::from_utf8_lossy(&value).into_owned())
            }
            (value, _) => value.clone(),
        };
        let stdout = self.output(&row, "stdout", 0, shown).await?;
        let stderr = self.output(&row, "stderr", 0, shown).await?;
        Ok(View { code, stdout, stderr, return_value, row })
    }

    /// Up to `most` recorded bytes of a stream, from `offset`.
    pub(super) async fn output(
        &self,
        row: &Model,
        name: &str,
        offset: u64,
        most: u64,
    ) -> Result<Bytes, Error> {
        let (inline, kept) = match name {
            "stdout" => (&row.stdout, row.stdout_kept),
            _ => (&row.stderr, row.stderr_kept),
        };
        let kept = u64::try_from(kept).unwrap_or(0);
        let (start, end) = (offset.min(kept), offset.saturating_add(most).min(kept));
        let whole = inline.len() as u64;
        if end <= whole {
            let range = usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
            return Ok(Bytes::copy_from_slice(&inline[range]));
        }
        self.objects.range(&row.object_prefix, name, start, end).await
    }

    /// Waits for the end of an execution, for `limit` at most.
    pub(crate) async fn wait_execution(self: &Arc<Self>, id: &str, limit: Duration) -> Result<View, Error> {
        let row = self.ended_execution(id, limit).await?;
        self.shown(row).await
    }

    /// Waits for the end of an execution, for `limit` at most or until the service stops. What is driven
    /// here needs no look into the database.
    async fn ended_execution(self: &Arc<Self>, id: &str, limit: Duration) -> Result<Model, Error> {
        let deadline = tokio::time::Instant::now() + limit;
        let token = self.tasks.token();
        let mut backoff = Backoff::new(self.config.retry_max.0);
        loop {
            let driver = self.drivers.get(id);
            if let Some(driver) = &driver {
                tokio::select! {
                    ended = driver.live().ended() => if let Some(row) = ended {
                        return Ok(Arc::unwrap_or_clone(row));
                    },
                    () = tokio::time::sleep_until(deadline) => {}
                    () = token.cancelled() => {}
                }
            }
            let row = self.execution_row(id).await?;
            let over = tokio::time::Instant::now() >= deadline || token.is_cancelled();
            if row.state.is_final() || over {
                return Ok(row);
            }
            if driver.is_some() {
                // It left without an end, as when the database fails: not at once again.
                self.pause(backoff.pause()).await;
            }
            self.spawn_driver(&row.id, &row.session_id);
        }
    }

    /// Cancels an execution and waits for its end.
    pub(crate) async fn cancel_execution(self: &Arc<Self>, id: &str) -> Result<View, Error> {
        let row = self.execution_row(id).await?;
        if row.state.is_final() {
            return Err(Error::ExecutionEnded { id: row.id, state: row.state.as_str() });
        }
        // It has one already, unless that crashed and the sweep did not come by yet.
        self.spawn_driver(&row.id, &row.session_id);
        if let Some(driver) = self.drivers.get(id) {
            driver.stop(Stop::Cancel);
        }
        let ended = self.ended_execution(id, CANCEL_LIMIT).await?;
        match ended.state {
            ExecutionState::Cancelled => self.execution(id).await,
            state if state.is_final() => Err(Error::ExecutionEnded { id: ended.id, state: state.as_str() }),
            _ => {
                Err(Error::Unavailable(format!("execution `{id}` does not end: its sandbox does not answer")))
            }
        }
    }
}

/// Says for sure that nothing was accepted. After another error, as of the database, it may have been: then
/// it needs its program, which is deleted with its session.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::TooManyExecutions { .. }
            | Error::SessionNotActive { .. }
            | Error::SessionNotFound(_)
            | Error::ExecutionExists(_)
    )
}

/// Made by the same request; ids that are equal by chance are not.
fn same_request(first: &Model, row: &Model) -> bool {
    row.request_id.is_some() && first.request_id == row.request_id
}
