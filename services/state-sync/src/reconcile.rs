//! What to do so that the sandboxes that exist match the sessions that should have one.
//!
//! Pure: [`plan`] takes what was seen and the time, and says what to do. It is careful in one direction:
//! where it cannot know, it does nothing, because the next pass will know more, while a sandbox that was
//! removed wrongly takes somebody's work along.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

/// How far a session that has not ended is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its sandbox is being made, and may exist already.
    Creating,
    /// It has a sandbox.
    Running,
}

/// A session that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// Its id.
    pub(crate) session_id: String,
    /// Its sandbox; may be empty while it is being created.
    pub(crate) sandbox_id: String,
    /// The node of its sandbox; empty when it is not known.
    pub(crate) node_id: String,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Whether it gets another sandbox when it loses this one.
    pub(crate) can_recover: bool,
}

impl Session {
    /// Whether it runs on the sandbox of the same id on another node.
    fn has_another_than(&self, sandbox: &Sandbox) -> bool {
        self.phase == Phase::Running && !self.node_id.is_empty() && self.node_id != sandbox.node_id
    }
}

/// What became of a session that is not among those that have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It ended.
    Ended,
    /// It ended, and the session role has not saved all that is in its sandbox yet. It removes it then.
    Releasing,
    /// Nobody knows it (any more).
    Forgotten,
    /// It lives: it was created since the sessions were listed.
    Lives,
}

/// The sessions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desired {
    /// All that have not ended.
    pub(crate) sessions: Vec<Session>,
    /// What became of the others that sandboxes name. One that is missing here was not asked about.
    pub(crate) fates: BTreeMap<String, Fate>,
}

/// How a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Being made, or not known.
    Unsettled,
    /// Its executor answers.
    Running,
    /// It died by itself; its remains are there.
    Dead,
}

/// A sandbox that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// Its id.
    pub(crate) sandbox_id: String,
    /// The session it was made for or claimed by; empty for a warm one.
    pub(crate) session_id: String,
    /// Its node.
    pub(crate) node_id: String,
    /// How it is.
    pub(crate) condition: Condition,
    /// Why it is dead; empty otherwise.
    pub(crate) reason: String,
    /// Whether it is dead because its node is lost.
    pub(crate) node_lost: bool,
    /// When it was created; `None` when nobody knows.
    pub(crate) created_at: Option<DateTime<Utc>>,
}

impl Sandbox {
    fn place(&self) -> (&str, &str) {
        (&self.sandbox_id, &self.node_id)
    }
}

/// The sandboxes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// All on the nodes that answer, and maybe some on others.
    pub(crate) sandboxes: Vec<Sandbox>,
    /// The nodes that answer: what is not on these may still be on others.
    pub(crate) nodes: BTreeSet<String>,
    /// The nodes that are lost: what was on them is gone.
    pub(crate) lost_nodes: BTreeSet<String>,
    /// True when some node is known not to answer.
    pub(crate) some_unreachable: bool,
}

/// A session and the sandbox that it lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lost {
    /// The session.
    pub(crate) session_id: String,
    /// Its sandbox.
    pub(crate) sandbox_id: String,
    /// The sandbox's node; may be empty.
    pub(crate) node_id: String,
    /// How it was lost.
    pub(crate) how: How,
    /// Whether its whole node is lost.
    pub(crate) node_lost: bool,
}

/// How a sandbox was lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum How {
    /// It is dead, and something of it may be left to be removed.
    Dead {
        /// Why it died.
        reason: String,
    },
    /// It is not there: to be made sure of with its node.
    Absent,
}

/// Something to do. To adopt a sandbox nothing needs to be done here: agents adopt what they find at their
/// start, and the session role takes up every creation that is not at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// The session's sandbox is lost: tell the session role, which makes another one.
    Recover(Lost),
    /// The session's sandbox is lost once too often: tell the session role, which ends the session.
    End(Lost),
    /// No session has this sandbox: remove it.
    RemoveOrphan {
        /// The sandbox.
        sandbox_id: String,
        /// Its node.
        node_id: String,
    },
}

/// What was found and what to do about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Sessions looked at.
    pub(crate) checked: u32,
    /// Sessions that have their sandbox.
    pub(crate) healthy: u32,
    /// Sessions that do not have it.
    pub(crate) unhealthy: u32,
    /// Sessions about whose sandbox nothing can be said now, and why.
    pub(crate) undecided: Vec<String>,
    /// What to do; at most one action for each session and each sandbox.
    pub(crate) actions: Vec<Action>,
}

/// Says what to do about `desired` and `observed` at `now`. A sandbox whose session nobody knows is left
/// alone until it is older than `grace`: its session may not have been visible yet.
pub(crate) fn plan(desired: &Desired, observed: &Observed, now: DateTime<Utc>, grace: Duration) -> Plan {
    let sandboxes: Placed<'_> = observed.sandboxes.iter().map(|sandbox| (sandbox.place(), sandbox)).collect();
    let mut plan = Plan::default();
    for session in &desired.sessions {
        plan.checked = plan.checked.saturating_add(1);
        if session.phase == Phase::Running {
            judge(&mut plan, session, sandbox_of(session, &sandboxes), observed);
        }
    }
    let owners = Owners::new(desired);
    for sandbox in sandboxes.values() {
        if owners.is_orphan(sandbox, now, grace) {
            plan.actions.push(Action::RemoveOrphan {
                sandbox_id: sandbox.sandbox_id.clone(),
                node_id: sandbox.node_id.clone(),
            });
        }
    }
    plan
}

/// Sandboxes by id and node. An id is on two nodes where two schedulers placed it that did not know of each
/// other: one of them has the session, and the other is removed.
type Placed<'a> = BTreeMap<(&'a str, &'a str), &'a Sandbox>;

/// The sandbox that a session uses.
fn sandbox_of<'a>(session: &Session, sandboxes: &Placed<'a>) -> Option<&'a Sandbox> {
    let (id, node_id) = (session.sandbox_id.as_str(), session.node_id.as_str());
    let mut anywhere = sandboxes.range((id, "")..).take_while(|((found, _), _)| *found == id);
    match node_id {
        "" => anywhere.next().map(|(_, sandbox)| *sandbox),
        _ => sandboxes.get(&(id, node_id)).copied(),
    }
}

impl Plan {
    fn lost(&mut self, session: &Session, lost: Lost) {
        self.unhealthy = self.unhealthy.saturating_add(1);
        self.actions.push(if session.can_recover { Action::Recover(lost) } else { Action::End(lost) });
    }
}

/// Looks at a running session and its sandbox.
fn judge(plan: &mut Plan, session: &Session, sandbox: Option<&Sandbox>, observed: &Observed) {
    let Session { session_id, sandbox_id, node_id, .. } = session.clone();
    match sandbox.map(|sandbox| (sandbox, sandbox.condition)) {
        Some((_, Condition::Running)) => plan.healthy = plan.healthy.saturating_add(1),
        Some((_, Condition::Unsettled)) => {
            plan.undecided
                .push(format!("sandbox `{sandbox_id}` of session `{session_id}` is not settled yet"));
        }
        Some((sandbox, Condition::Dead)) => {
            let how = How::Dead { reason: sandbox.reason.clone() };
            let (node_id, node_lost) = (sandbox.node_id.clone(), sandbox.node_lost);
            plan.lost(session, Lost { session_id, sandbox_id, node_id, how, node_lost });
        }
        None if sandbox_id.is_empty() || !would_be_seen(&node_id, observed) => {
            plan.undecided.push(format!(
                "sandbox `{sandbox_id}` of session `{session_id}` may be on node `{node_id}`, which does not answer"
            ));
        }
        None => {
            let node_lost = observed.lost_nodes.contains(&node_id);
            plan.lost(session, Lost { session_id, sandbox_id, node_id, how: How::Absent, node_lost });
        }
    }
}

/// Whether a sandbox on this node would be among those observed if it existed. Nodes that nobody knows do
/// not count: a scheduler that has just started knows none.
fn would_be_seen(node_id: &str, observed: &Observed) -> bool {
    if node_id.is_empty() {
        return !observed.some_unreachable && !observed.nodes.is_empty();
    }
    observed.nodes.contains(node_id) || observed.lost_nodes.contains(node_id)
}

/// Who has which sandbox.
struct Owners<'a> {
    /// By their sandboxes.
    claims: BTreeMap<&'a str, Vec<&'a Session>>,
    sessions: BTreeMap<&'a str, &'a Session>,
    fates: &'a BTreeMap<String, Fate>,
}

impl<'a> Owners<'a> {
    fn new(desired: &'a Desired) -> Self {
        let sessions = desired.sessions.iter();
        let mut claims: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for session in sessions.clone() {
            claims.entry(session.sandbox_id.as_str()).or_default().push(session);
        }
        Self {
            claims,
            sessions: sessions.map(|session| (session.session_id.as_str(), session)).collect(),
            fates: &desired.fates,
        }
    }

    fn is_orphan(&self, sandbox: &Sandbox, now: DateTime<Utc>, grace: Duration) -> bool {
        if let Some(sessions) = self.claims.get(sandbox.sandbox_id.as_str()) {
            let elsewhere = sessions.iter().all(|session| session.has_another_than(sandbox));
            return elsewhere && is_older(sandbox, now, grace);
        }
        if sandbox.session_id.is_empty() {
            // Warm sandboxes belong to their pool, which cannot use a dead one.
            return sandbox.condition == Condition::Dead && is_older(sandbox, now, grace);
        }
        match self.sessions.get(sandbox.session_id.as_str()) {
            // It may be just about to become the session's sandbox.
            Some(session) if session.sandbox_id.is_empty() => return false,
            // The session runs on another one, or waits for another one.
            Some(_) => return is_older(sandbox, now, grace),
            None => {}
        }
        match self.fates.get(&sandbox.session_id) {
            Some(Fate::Ended) => true,
            Some(Fate::Forgotten) => is_older(sandbox, now, grace),
            Some(Fate::Lives | Fate::Releasing) | None => false,
        }
    }
}

/// A sandbox of unknown age is not older than anything.
fn is_older(sandbox: &Sandbox, now: DateTime<Utc>, grace: Duration) -> bool {
    let grace = TimeDelta::from_std(grace).unwrap_or(TimeDelta::MAX);
    sandbox.created_at.is_some_and(|created_at| now.signed_duration_since(created_at) > grace)
}

#[cfg(test)]
mod tests;
