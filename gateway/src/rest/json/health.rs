//! Health in JSON.

use std::collections::BTreeMap;

use sandmesh_mesh::Probe;
use sandmesh_proto::{
    health::{CheckHealthResponse, check_health_response::Status},
    statesync::ReconcileResponse,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;

/// The process serves.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `healthy`.
    status: Well,
    /// The version of the program.
    version: String,
    /// Seconds since the process started.
    uptime: f64,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Well {
    /// It answers well.
    Healthy,
    /// Part of it does not.
    Degraded,
    /// It does not.
    Unhealthy,
}

/// What was measured.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Detailed {
    /// The whole.
    status: Well,
    /// The version of the program.
    version: String,
    /// Seconds since the process started.
    uptime: f64,
    /// What it depends on: `database`, `object_store`, `nodes` and each role.
    dependencies: BTreeMap<String, Dependency>,
}

/// One thing that was measured.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct Dependency {
    /// How it is.
    status: Well,
    /// What it said.
    message: String,
    /// How long the slowest probe of it took, in milliseconds.
    latency_ms: f64,
}

impl Health {
    /// This process, which serves as it answers.
    pub(crate) fn up(app: &App) -> Self {
        Self { status: Well::Healthy, version: app.version().to_owned(), uptime: app.uptime() }
    }
}

impl Detailed {
    /// What the health-probe role measured; without it nothing is known, and that is told.
    pub(crate) fn of(app: &App, measured: Result<CheckHealthResponse, tonic::Status>) -> Self {
        let (status, dependencies) = match measured {
            Ok(measured) => (well(measured.status()), gather(measured.probes)),
            Err(status) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "health cannot be measured");
                let probe = Probe {
                    name: "role/health-probe".into(),
                    message: "does not answer".into(),
                    ..Probe::default()
                };
                (Well::Degraded, gather(vec![probe]))
            }
        };
        Self { status, version: app.version().to_owned(), uptime: app.uptime(), dependencies }
    }
}

fn well(status: Status) -> Well {
    match status {
        Status::Healthy => Well::Healthy,
        Status::Degraded => Well::Degraded,
        Status::Unhealthy | Status::Unspecified => Well::Unhealthy,
    }
}

/// Probes by what they are about: several databases or nodes count as one thing, as well as its worst.
fn gather(probes: Vec<Probe>) -> BTreeMap<String, Dependency> {
    let mut gathered: BTreeMap<String, Dependency> = BTreeMap::new();
    for probe in probes {
        let (name, one) = match probe.name.split_once('/') {
            Some(("role", role)) => (role.to_owned(), None),
            Some(("database", of)) => ("database".to_owned(), Some(of)),
            Some(("node", id)) => ("nodes".to_owned(), Some(id)),
            _ => (probe.name.clone(), None),
        };
        let message = match one {
            Some(one) if !probe.message.is_empty() => format!("{one}: {}", probe.message),
            _ => probe.message.clone(),
        };
        let latency_ms = probe.latency_us as f64 / 1000.0;
        let status = if probe.healthy { Well::Healthy } else { Well::Unhealthy };
        let found =
            gathered.entry(name).or_insert_with(|| Dependency { status, message: String::new(), latency_ms });
        found.add(status, &message, latency_ms);
    }
    gathered
}

impl Dependency {
    fn add(&mut self, status: Well, message: &str, latency_ms: f64) {
        if self.status != status {
            self.status = Well::Degraded;
        }
        if !self.message.is_empty() && !message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(message);
        self.latency_ms = self.latency_ms.max(latency_ms);
    }
}

/// What a reconcile did.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Synced {
    /// `completed`, or `completed_with_errors`.
    status: &'static str,
    /// The same for people.
    message: String,
    /// What was done.
    result: SyncResult,
}

/// What a reconcile did, in numbers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SyncResult {
    /// Sessions looked at.
    checked: u32,
    /// Sessions whose sandbox was well.
    healthy: u32,
    /// Sessions whose sandbox was not.
    unhealthy: u32,
    /// Sessions that got a sandbox again.
    recovered: u32,
    /// Sessions that were ended because their sandbox was lost.
    failed: u32,
    /// What went wrong on the way.
    errors: Vec<String>,
}

impl From<ReconcileResponse> for Synced {
    fn from(done: ReconcileResponse) -> Self {
        let status = if done.errors.is_empty() { "completed" } else { "completed_with_errors" };
        let message = format!(
            "{} sessions checked, {} sandboxes without a session removed",
            done.checked, done.orphans_removed
        );
        let result = SyncResult {
            checked: done.checked,
            healthy: done.healthy,
            unhealthy: done.unhealthy,
            recovered: done.recovered,
            failed: done.failed,
            errors: done.errors,
        };
        Self { status, message, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(name: &str, healthy: bool, message: &str) -> Probe {
        Probe { name: name.into(), healthy, message: message.into(), latency_us: 1500, ..Probe::default() }
    }

    #[test]
    fn probes_are_gathered_by_what_they_are_about() {
        let gathered = gather(vec![
            probe("database/session", true, ""),
            probe("database/template", false, "locked"),
            probe("object_store", true, ""),
            probe("role/session", true, ""),
            probe("nodes", true, "1 of 1 nodes ready"),
        ]);
        let names: Vec<&str> = gathered.keys().map(String::as_str).collect();
        assert_eq!(names, ["database", "nodes", "object_store", "session"]);
        let database =
            Dependency { status: Well::Degraded, message: "template: locked".into(), latency_ms: 1.5 };
        assert_eq!(gathered["database"], database);
    }
}
