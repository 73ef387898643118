//! How an execution ended, and the writing of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sandmesh_mesh::datetime;
use sandmesh_proto::executor::{self, execution_exited::Status};

use super::Driver;
use crate::{
    drivers::Stop,
    encode,
    error::Error,
    lifecycle::{Cause, ExecutionEvent},
    peers::Backoff,
    service::artifacts::Changes,
    store::execution::{Ending, Model},
    values::UserError,
};

/// The most bytes of an error's text that are recorded, for its message and its traceback each.
const MAX_ERROR_TEXT: usize = 32 << 10;

/// The first and the longest pause before the object store or the database is tried again.
pub(super) const STORE_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// How an execution ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) event: ExecutionEvent,
    /// What goes into the row, without output and return value.
    pub(super) ending: Ending,
    pub(super) value: Option<Bytes>,
    /// The executor kept less of stdout, of stderr, than was written.
    pub(super) truncated: (bool, bool),
    /// What it made or changed.
    pub(super) changes: Changes,
    /// The executor may be running it, and must not.
    pub(super) cancel: bool,
    /// The executor has it and may forget it then.
    pub(super) acknowledge: bool,
}

impl End {
    /// It was cancelled before it started.
    pub(super) fn cancelled() -> Self {
        let ending = Ending { cause: Some(Cause::Cancelled), ..Ending::default() };
        Self::without_exit(ExecutionEvent::Cancelled, ending)
    }

    /// The executor is sure that it will not run.
    pub(super) fn not_started(message: &str) -> Self {
        Self::without_exit(ExecutionEvent::StartFailed, start_error(message.to_owned()))
    }

    /// What ran is lost, and its session is not. Should it run all the same, it must not go on.
    pub(super) fn lost(detail: String) -> Self {
        Self { cancel: true, acknowledge: true, ..Self::purged(detail) }
    }

    /// What ran is lost, and nobody knows its session any more.
    pub(super) fn purged(detail: String) -> Self {
        Self::by_loss(Cause::ExecutorLost, detail)
    }

    /// Its sandbox is lost, for `cause`, and its session has another.
    pub(super) fn by_loss(cause: Cause, detail: String) -> Self {
        let ending = Ending { cause: Some(cause), cause_detail: detail, ..Ending::default() };
        Self::without_exit(ExecutionEvent::SandboxLost, ending)
    }

    /// It ended without its executor telling how.
    pub(super) fn without_exit(event: ExecutionEvent, ending: Ending) -> Self {
        Self {
            event,
            ending,
            value: None,
            truncated: (false, false),
            changes: Changes::default(),
            cancel: false,
            acknowledge: false,
        }
    }

    /// It could not be started.
    pub(super) fn failed(failed: executor::ExecutionFailed, stop: Stop) -> Self {
        if failed.kind() == executor::FailureKind::Cancelled {
            let cause = if stop >= Stop::SessionEnded { Cause::SessionEnded } else { Cause::Cancelled };
            let ending = Ending { cause: Some(cause), cause_detail: failed.message, ..Ending::default() };
            return Self { acknowledge: true, ..Self::without_exit(ExecutionEvent::Cancelled, ending) };
        }
        let kind = failed.kind().as_str_name().trim_start_matches("FAILURE_KIND_").to_lowercase();
        let errno =
            if failed.errno_name.is_empty() { String::new() } else { format!(", {}", failed.errno_name) };
        let message = format!("{} ({kind} at {}{errno})", failed.message, failed.stage);
        Self { acknowledge: true, ..Self::without_exit(ExecutionEvent::StartFailed, start_error(message)) }
    }

    /// Its process ended.
    pub(super) fn exited(exited: executor::ExecutionExited, stop: Stop) -> Self {
        let cause = match encode::cause_from(exited.cause()) {
            Some(Cause::Cancelled) if stop >= Stop::SessionEnded => Some(Cause::SessionEnded),
            cause => cause,
        };
        let (code, signal) = match exited.status {
            Some(Status::ExitCode(code)) => (Some(code), None),
            Some(Status::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        let error = exited.error.map(user_error);
        let event = ExecutionEvent::Exited { cause, success: code == Some(0) && error.is_none() };
        let ending = Ending {
            cause,
            cause_detail: exited.cause_detail,
            // It did not exit, it was made to.
            exit_code: code.filter(|_| cause != Some(Cause::Timeout)),
            signal,
            error,
            metrics: exited.metrics.as_ref().map(encode::metrics_from),
            ended_at: exited.ended_at.as_ref().and_then(datetime),
            ..Ending::default()
        };
        Self {
            event,
            ending,
            value: exited.return_value_json,
            truncated: (exited.stdout_truncated, exited.stderr_truncated),
            changes: Changes { any: exited.workspace_changed, files: exited.changed_files },
            cancel: false,
            acknowledge: true,
        }
    }
}

fn start_error(message: String) -> Ending {
    let error = UserError { class: "ExecutionStartError".into(), message, traceback: String::new() };
    Ending { error: Some(user_text(error)), ..Ending::default() }
}

fn user_error(error: executor::UserError) -> UserError {
    user_text(UserError { class: error.r#type, message: error.message, traceback: error.traceback })
}

fn user_text(mut error: UserError) -> UserError {
    for text in [&mut error.class, &mut error.message, &mut error.traceback] {
        if text.len() > MAX_ERROR_TEXT {
            text.truncate(text.floor_char_boundary(MAX_ERROR_TEXT));
            text.push_str("...");
        }
    }
    error
}

impl Driver {
    /// Writes the end, tells who waits, and has the executor forget it.
    pub(super) async fn finish(&mut self, end: &End) -> Result<(), Error> {
        self.registration.finish();
        let service = &self.service;
        let live = Arc::clone(&self.registration.live);
        let Some(ending) = self.ending(end).await? else { return Ok(()) };
        let recorded = self.record(end.event, ending).await.inspect_err(|_| {
            // It may be written all the same. Then nobody drives it again, and the executor is told as of
            // what is left.
            service.leftovers.add([self.row.session_id.clone()]);
        });
        if let Some(row) = recorded? {
            live.end(row);
        }
        if end.cancel {
            // When it does not answer, it is told again once its leftovers are looked for.
            let _ = self.cancel_in_executor().await?;
        }
        if end.acknowledge {
            service.acknowledge_soon(&self.session, &self.row.id);
        }
        Ok(())
    }

    /// What goes into the row, once what does not fit there is in the object store, however long that is away:
    /// nobody else knows so well how it ended. `None`: it has an end meanwhile, or is not there any more.
    async fn ending(&self, end: &End) -> Result<Option<Ending>, Error> {
        let mut backoff = Backoff::between(STORE_PAUSES.0, STORE_PAUSES.1);
        loop {
            match self.stored(end).await {
                Err(Error::ObjectStore(_)) => {}
                stored => return stored.map(Some),
            }
            tokio::time::sleep(backoff.pause()).await;
            let row = self.service.store.execution(&self.row.id).await?;
            let Some(row) = row else { return Ok(None) };
            if row.state.is_final() {
                self.registration.live.end(row);
                return Ok(None);
            }
        }
    }

    async fn stored(&self, end: &End) -> Result<Ending, Error> {
        let (service, live, row) = (&self.service, &self.registration.live, &self.row);
        let mut ending = end.ending.clone();
        ending.stdout = service.record_output(row, "stdout", &live.stdout, end.truncated.0).await?;
        ending.stderr = service.record_output(row, "stderr", &live.stderr, end.truncated.1).await?;
        ending.started_at = live.started_at();
        if let Some(value) = &end.value {
            let (text, size) = service.record_value(row, value.clone()).await?;
            (ending.return_value, ending.return_value_bytes) = (text, Some(size));
        }
        ending.artifacts = service.artifacts(&self.session, &end.changes).await?;
        Ok(ending)
    }

    /// Writes the end into the row, unless it has one. Returns the row, if it is there still.
    async fn record(&self, event: ExecutionEvent, ending: Ending) -> Result<Option<Model>, Error> {
        let (store, now) = (&self.service.store, self.service.clock.now());
        let ended = store.end_execution(&self.row, event, &ending, now).await?;
        tracing::debug!(
            execution.id = self.row.id,
            session.id = self.row.session_id,
            ?event,
            ended,
            "execution ended"
        );
        if ended {
            return Ok(Some(ending.onto(self.row.clone(), event, now)));
        }
        Ok(store.execution_or_deleted(&self.row.id).await?.filter(|row| row.state.is_final()))
    }
}
