//! Compares and acts: at the start, every interval, and when asked; one pass at a time.
//!
//! Owns when a pass runs, who shares it, and how its actions are done. What to do is decided in
//! [`crate::reconcile`], what is seen in [`crate::observe`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use sandmesh_mesh::{Clock, Fault, Lease, Link, Tasks};
use sandmesh_proto::{
    scheduler::{DeleteSandboxRequest, GetSandboxRequest, scheduler_service_client::SchedulerServiceClient},
    session::{ReportSandboxLostRequest, session_event_service_client::SessionEventServiceClient},
};
use tokio::{sync::watch, time::sleep};
use tonic::{Code, Status};

use crate::{
    Config,
    observe::{Observer, Unseen},
    reconcile::{Action, How, Lost, plan},
};

/// How many errors a report names; of the others it tells how many there were.
const MAX_ERRORS: usize = 100;
/// The pause after a pass that could not do everything; doubled each time, up to the interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no report.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// The world was not seen whole, and so nothing was done.
    #[error(transparent)]
    Unseen(#[from] Unseen),
    /// The process stops.
    #[error("state-sync is shutting down")]
    Stopping,
}

impl Fault for Error {
    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn reason(&self) -> &'static str {
        "UNAVAILABLE"
    }

    fn retry_after(&self) -> Option<Duration> {
        Some(FIRST_PAUSE)
    }
}

/// What a pass did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// Sessions looked at.
    pub(crate) checked: u32,
    /// Sessions whose sandbox was well.
    pub(crate) healthy: u32,
    /// Sessions whose sandbox was not.
    pub(crate) unhealthy: u32,
    /// Sessions that get another sandbox.
    pub(crate) recovered: u32,
    /// Sessions that were ended because their sandbox was lost.
    pub(crate) failed: u32,
    /// Sandboxes without a session that were removed.
    pub(crate) orphans_removed: u32,
    /// What went wrong, or could not be decided.
    pub(crate) errors: Vec<String>,
    /// When it was done.
    pub(crate) completed_at: DateTime<Utc>,
}

/// What one action came to.
#[derive(Debug, Default)]
struct Outcome {
    recovered: u32,
    failed: u32,
    orphans_removed: u32,
    error: Option<String>,
}

type Outlook = watch::Receiver<Option<Result<Report, Error>>>;

/// Reconciles; see the module.
#[derive(Debug)]
pub(crate) struct Reconciler {
    observer: Observer,
    sessions: Link,
    scheduler: Link,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    config: Config,
    lease: Lease,
    /// The pass that runs, or ran last.
    pass: Mutex<Option<Outlook>>,
}

impl Reconciler {
    /// Compares what `sessions` and `scheduler` tell; passes run on `tasks`.
    pub(crate) fn new(
        sessions: Link,
        scheduler: Link,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        config: Config,
    ) -> Self {
        let observer = Observer::new(sessions.clone(), scheduler.clone(), &config);
        let lease = Lease::new("state-sync", sessions.clone());
        Self { observer, sessions, scheduler, clock, tasks, config, lease, pass: Mutex::default() }
    }

    /// Asks for the lease of [`Reconciler::run`], until the process stops.
    pub(crate) async fn keep_lease(self: Arc<Self>) {
        self.lease.keep(self.tasks.token()).await;
    }

    /// Runs passes until the process stops, while it has the lease. After one that could not do everything the next one comes
    /// soon: at the start the scheduler may not know its nodes yet.
    pub(crate) async fn run(self: Arc<Self>) {
        let token = self.tasks.token();
        let (mut pause, mut was_complete) = (FIRST_PAUSE, true);
        while token.run_until_cancelled(self.lease.held()).await.is_some() {
            let report = self.reconcile().await;
            log(&report, was_complete);
            let complete = report.is_ok_and(|report| report.errors.is_empty());
            let interval = self.config.interval.0;
            let wait = if complete { interval } else { pause.min(interval) };
            pause = if complete { FIRST_PAUSE } else { (pause * 2).min(interval) };
            was_complete = complete;
            let _ = token.run_until_cancelled(sleep(wait)).await;
        }
    }

    /// The report of the pass that runs now, or of a new one. The pass goes on when its caller does not.
    ///
    /// # Errors
    /// When sessions, sandboxes or nodes cannot be listed, or the process stops.
    pub(crate) async fn reconcile(self: &Arc<Self>) -> Result<Report, Error> {
        let mut outlook = self.join_or_start();
        let report = outlook.wait_for(Option::is_some).await;
        report.ok().and_then(|report| report.clone()).unwrap_or(Err(Error::Stopping))
    }

    fn join_or_start(self: &Arc<Self>) -> Outlook {
        let mut pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        // One that ended without a report, by a panic, has closed its side.
        if let Some(running) =
            pass.as_ref().filter(|pass| pass.borrow().is_none() && pass.has_changed().is_ok())
        {
            return running.clone();
        }
        let (sender, outlook) = watch::channel(None);
        let this = Arc::clone(self);
        self.tasks.spawn("reconcile", async move {
            let token = this.tasks.token();
            let report = token.run_until_cancelled(this.pass()).await;
            let _ = sender.send(Some(report.unwrap_or(Err(Error::Stopping))));
        });
        *pass = Some(outlook.clone());
        outlook
    }

    /// One pass: see, plan, act.
    async fn pass(&self) -> Result<Report, Error> {
        let (desired, observed) = self.observer.observe().await?;
        let plan = plan(&desired, &observed, self.clock.now(), self.config.orphan_grace.0);
        let mut report = Report {
            checked: plan.checked,
            healthy: plan.healthy,
            unhealthy: plan.unhealthy,
            errors: plan.undecided,
            ..Report::default()
        };
        let mut outcomes = stream::iter(plan.actions)
            .map(|action| self.act(action))
            .buffer_unordered(self.config.max_concurrent_calls);
        while let Some(outcome) = outcomes.next().await {
            report.recovered = report.recovered.saturating_add(outcome.recovered);
            report.failed = report.failed.saturating_add(outcome.failed);
            report.orphans_removed = report.orphans_removed.saturating_add(outcome.orphans_removed);
            report.errors.extend(outcome.error);
        }
        shorten(&mut report.errors);
        report.completed_at = self.clock.now();
        Ok(report)
    }

    async fn act(&self, action: Action) -> Outcome {
        let outcome = match &action {
            Action::Recover(lost) | Action::End(lost) => self.settle(lost).await,
            Action::RemoveOrphan { sandbox_id, node_id } => self
                .remove(sandbox_id, node_id)
                .await
                .map(|()| Outcome { orphans_removed: 1, ..Outcome::default() }),
        };
        match outcome {
            Ok(outcome) => {
                tracing::info!(?action, outcome.recovered, outcome.failed, "reconciled");
                outcome
            }
            Err((sandbox_id, status)) => {
                let error = format!("sandbox `{sandbox_id}`: {}: {}", status.code(), status.message());
                Outcome { error: Some(error.to_lowercase()), ..Outcome::default() }
            }
        }
    }

    /// Tells the session role of a lost sandbox: it knows best whether the session gets another one.
    async fn settle(&self, lost: &Lost) -> Result<Outcome, Failure> {
        match &lost.how {
            How::Dead { reason } => {
                let reason = if reason.is_empty() { "sandbox died" } else { reason };
                let outcome = self.report_lost(lost, reason).await?;
                self.remove(&lost.sandbox_id, &lost.node_id).await?;
                Ok(outcome)
            }
            // The list may be older than the sandbox, so its node has the last word.
            How::Absent if self.is_there(lost).await? => Ok(Outcome::default()),
            How::Absent => self.report_lost(lost, "sandbox is gone").await,
        }
    }

    async fn is_there(&self, lost: &Lost) -> Result<bool, Failure> {
        let mut client = SchedulerServiceClient::new(self.scheduler.clone());
        let (sandbox_id, node_id) = (lost.sandbox_id.clone(), lost.node_id.clone());
        match self.observer.call(client.get_sandbox(GetSandboxRequest { sandbox_id, node_id })).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err((lost.sandbox_id.clone(), status)),
        }
    }

    /// Tells the session role, and returns what became of the session.
    async fn report_lost(&self, lost: &Lost, reason: &str) -> Result<Outcome, Failure> {
        let mut client = SessionEventServiceClient::new(self.sessions.clone());
        let request = ReportSandboxLostRequest {
            session_id: lost.session_id.clone(),
            sandbox_id: lost.sandbox_id.clone(),
            reason: reason.to_owned(),
            node_lost: lost.node_lost,
            node_id: lost.node_id.clone(),
        };
        match self.observer.call(client.report_sandbox_lost(request)).await {
            Ok(answer) if answer.recovering => Ok(Outcome { recovered: 1, ..Outcome::default() }),
            Ok(answer) => Ok(Outcome { failed: answer.applied.into(), ..Outcome::default() }),
            Err(status) if status.code() == Code::NotFound => Ok(Outcome::default()),
            Err(status) => Err((lost.sandbox_id.clone(), status)),
        }
    }

    async fn remove(&self, sandbox_id: &str, node_id: &str) -> Result<(), Failure> {
        let mut client = SchedulerServiceClient::new(self.scheduler.clone());
        let (id, node_id) = (sandbox_id.to_owned(), node_id.to_owned());
        let request = DeleteSandboxRequest { sandbox_id: id, node_id, only_there: true };
        let removed = self.observer.call(client.delete_sandbox(request)).await;
        removed.map(|_| ()).map_err(|status| (sandbox_id.to_owned(), status))
    }
}

/// A sandbox for which a call failed.
type Failure = (String, Status);

/// One pass that could not do everything is usual while roles start; several in a row are for people.
fn log(report: &Result<Report, Error>, was_complete: bool) {
    let trouble = match report {
        Ok(report) if report.errors.is_empty() => return tracing::debug!(?report, "reconciled"),
        Ok(report) => report.errors.join("; "),
        Err(Error::Stopping) => return,
        Err(error) => error.to_string(),
    };
    if was_complete {
        tracing::debug!(trouble, "could not reconcile everything");
    } else {
        tracing::warn!(trouble, "could not reconcile everything");
    }
}

fn shorten(errors: &mut Vec<String>) {
    if errors.len() > MAX_ERRORS {
        let more = errors.len() - MAX_ERRORS;
        errors.truncate(MAX_ERRORS);
        errors.push(format!("and {more} more"));
    }
}
