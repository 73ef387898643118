//! What must hold after all the killing, checked on every execution that was accepted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use sandmesh_proto::{
    executor::Cause,
    session::{Execution, GetExecutionRequest, ListExecutionsRequest, execution::State},
};

use serde_json::json;

use super::{
    log::{Accepted, Log},
    mesh::Mesh,
};
use crate::{
    harness::{Grpc, Server, process::Launch, twofold::SECOND_NODE},
    streams_watch::End,
};

/// How long the removal of everything may take.
const REMOVAL: Duration = Duration::from_secs(30);

/// The same with an engine: what it refused is tried again ever more seldom, and an executor in a container that it
/// forgot while it made it ends by itself after a minute.
const REMOVAL_BY_ENGINE: Duration = Duration::from_secs(90);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// How many executions ended in each way.
    pub(super) ends: BTreeMap<String, u32>,
    /// How many executions the server lists.
    pub(super) listed: u64,
    /// How many have ended.
    pub(super) terminal: u64,
    /// How many sessions got a warm sandbox.
    pub(super) warm: u64,
    /// Watchers that saw more than is recorded, as the session role was killed before the executor was.
    pub(super) seen_beyond: u32,
    pub(super) violations: Vec<String>,
    pub(super) leftovers: Vec<String>,
    /// Containers that the engine itself forgot, and holds.
    pub(super) forgotten: usize,
}

impl Verdict {
    /// Checks every execution and every session; `runs` is how often each job noted that it ran.
    pub(super) async fn of(server: &Server, log: &Log, runs: &HashMap<String, u32>) -> Self {
        let mut verdict = Self::default();
        let mut grpc = server.grpc().await;
        let mut ends = HashMap::new();
        for accepted in &log.accepted {
            let Some(record) = record(&mut grpc, &accepted.id).await else {
                verdict.violation(accepted, "is not known");
                continue;
            };
            let ran = runs.get(&accepted.job.tag).copied().unwrap_or_default();
            verdict.check(log, accepted, &record, ran);
            ends.insert(accepted.id.clone(), (record.state, record.completed_at));
        }
        verdict.check_lists(&mut grpc, log).await;
        verdict.check_sessions(server, log).await;
        for accepted in &log.accepted {
            let record = record(&mut grpc, &accepted.id).await;
            let end = record.map(|record| (record.state, record.completed_at));
            if end != ends.get(&accepted.id).copied() {
                verdict.violation(accepted, "has ended a second time");
            }
        }
        verdict
    }

    fn violation(&mut self, accepted: &Accepted, what: impl std::fmt::Display) {
        let Accepted { id, session, job, told, .. } = accepted;
        self.violations.push(format!("{id} ({} in {session}, told {told:?}): {what}", job.tag));
    }

    fn check(&mut self, log: &Log, accepted: &Accepted, record: &Execution, ran: u32) {
        let (state, cause) = (record.state(), record.cause());
        let not_started = record.error.as_ref().is_some_and(|error| error.r#type == "ExecutionStartError");
        let end = match (state, cause) {
            (State::Completed, Cause::Unspecified) => "completed",
            (State::Crashed, Cause::ExecutorLost) => "crashed: executor_lost",
            (State::Failed, Cause::Unspecified) if not_started => "failed: could not be started",
            _ => {
                let error = record.error.as_ref();
                self.violation(
                    accepted,
                    format!("is {state:?} by {cause:?}, {error:?}, {}", record.cause_detail),
                );
                "any other"
            }
        };
        *self.ends.entry(end.to_owned()).or_default() += 1;
        self.terminal += u64::from(!matches!(state, State::Pending | State::Running));
        let most = u32::from(!not_started);
        if ran > most || (state == State::Completed && ran == 0) {
            self.violation(accepted, format!("{end}, ran {ran} times"));
        }
        self.check_output(log, accepted, record);
        self.check_told(log, accepted, record);
    }

    /// The record is whole, or the beginning of the whole.
    fn check_output(&mut self, log: &Log, accepted: &Accepted, record: &Execution) {
        let completed = record.state() == State::Completed;
        let job = &accepted.job;
        let streams = [
            ("stdout", &record.stdout, &job.output.stdout, accepted.seen.as_ref().map(|seen| &seen.stdout)),
            ("stderr", &record.stderr, &job.output.stderr, accepted.seen.as_ref().map(|seen| &seen.stderr)),
        ];
        let mut beyond = false;
        for (name, recorded, whole, seen) in streams {
            if !whole.starts_with(recorded) || (completed && recorded.len() != whole.len()) {
                let lengths = (recorded.len(), whole.len());
                self.violation(
                    accepted,
                    format!("the record of {name} is not what was written: {lengths:?}"),
                );
            }
            let Some(seen) = seen else { continue };
            if !whole.starts_with(seen) || (completed && seen.len() != whole.len()) {
                let lengths = (seen.len(), whole.len());
                self.violation(
                    accepted,
                    format!("what was seen of {name} is not what was written: {lengths:?}"),
                );
            }
            beyond |= seen.len() > recorded.len();
        }
        if beyond && !session_role_died(log, accepted) {
            self.violation(accepted, "more was seen than is recorded");
        }
        self.seen_beyond += u32::from(beyond);
        let returned = record.return_value_json.as_ref().and_then(|text| serde_json::from_str(text).ok());
        if completed && (returned != job.returns || record.exit_code != Some(0)) {
            self.violation(accepted, format!("returned {returned:?} and {:?}", record.exit_code));
        }
    }

    /// The client was told what is recorded.
    fn check_told(&mut self, log: &Log, accepted: &Accepted, record: &Execution) {
        match &accepted.told {
            End::Ended { state, cause } => {
                let word = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
                let recorded = (
                    word(record.state().as_str_name(), "STATE_"),
                    word(record.cause().as_str_name(), "CAUSE_").replace("unspecified", ""),
                );
                if (state, cause) != (&recorded.0, &recorded.1) {
                    self.violation(accepted, format!("is recorded as {recorded:?}"));
                }
            }
            End::Expired if session_role_died(log, accepted) => {}
            other => self.violation(accepted, format!("its client was told {other:?}")),
        }
    }

    /// What the server lists is what clients were told that it accepted: no more and no less.
    async fn check_lists(&mut self, grpc: &mut Grpc, log: &Log) {
        let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for accepted in &log.accepted {
            if !known.entry(&accepted.session).or_default().insert(&accepted.id) {
                self.violation(accepted, "was accepted twice");
            }
        }
        for session in &log.sessions {
            let mut request =
                ListExecutionsRequest { session_id: session.clone(), page_size: 200, ..Default::default() };
            let mut listed = BTreeSet::new();
            loop {
                let page = grpc.sessions.list_executions(request.clone()).await.unwrap().into_inner();
                listed.extend(page.executions.into_iter().map(|execution| execution.execution_id));
                request.page_token = page.next_page_token;
                if request.page_token.is_empty() {
                    break;
                }
            }
            self.listed += listed.len() as u64;
            let known = known.remove(session.as_str()).unwrap_or_default();
            if !listed.iter().map(String::as_str).eq(known.iter().copied()) {
                self.violations.push(format!("{session} lists {listed:?}, and accepted were {known:?}"));
            }
        }
    }

    /// A session that was used fails only when its executor was killed, and one that is said to run does.
    async fn check_sessions(&mut self, server: &Server, log: &Log) {
        for id in &log.sessions {
            let session = server.api.get(&format!("/sessions/{id}")).await.is(200);
            self.warm += u64::from(session["start_type"] == "warm");
            let used = log.accepted.iter().any(|accepted| accepted.session == *id);
            let bereft = log.bereft.contains(&(id.clone(), session["runtime_node"] == SECOND_NODE));
            let expected = match session["status"].as_str() {
                Some("running") => !bereft && runs(server, id).await,
                Some("failed") => bereft || !used,
                _ => false,
            };
            if !expected {
                self.violations.push(format!("executor killed: {bereft}, used: {used}, and it is {session}"));
            }
        }
    }

    /// After one pass of state-sync every sandbox is that of a session which runs, and each has one; with an engine
    /// after some more.
    pub(super) async fn check_sandboxes(&mut self, mesh: &mut Mesh) {
        let patience = mesh.engine().map_or(Duration::ZERO, |_| REMOVAL_BY_ENGINE);
        let (server, began) = (&*mesh.server(), Instant::now());
        loop {
            let violations = check_sandboxes(server).await;
            if violations.is_empty() || began.elapsed() >= patience {
                self.violations.extend(violations);
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Deletes every session; then nothing may be left of any.
    pub(super) async fn clean_up(&mut self, mesh: &mut Mesh, log: &Log) {
        mesh.set_pool(json!({"max": 0})).await;
        let server = &*mesh.server();
        for id in &log.sessions {
            let reply = server.api.delete(&format!("/sessions/{id}")).await;
            if reply.status != 204 {
                self.violations.push(format!("deleting {id}: {} {}", reply.status, reply.text));
            }
        }
        let (began, patience) = (Instant::now(), mesh.engine().map_or(REMOVAL, |_| REMOVAL_BY_ENGINE));
        loop {
            let forgotten = mesh.engine().map(|engine| engine.forgotten()).unwrap_or_default();
            self.leftovers = leftovers(mesh);
            self.leftovers.retain(|what| !forgotten.iter().any(|id| what.contains(id)));
            self.forgotten = forgotten.len();
            if self.leftovers.is_empty() || began.elapsed() > patience {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What is wrong with sandboxes after a pass of state-sync.
async fn check_sandboxes(server: &Server) -> Vec<String> {
    let mut violations = Vec::new();
    let pass = server.api.post("/health/sync", json!({})).await.is(200);
    if pass["result"]["errors"].as_array().is_none_or(|errors| !errors.is_empty()) {
        violations.push(format!("a pass of state-sync: {pass}"));
    }
    let listed = server.api.get("/containers?limit=200").await.is(200);
    let mut of_sessions = BTreeSet::new();
    for sandbox in listed["items"].as_array().unwrap() {
        // Without a session it is warm.
        let Some(id) = sandbox["session_id"].as_str() else { continue };
        let session = server.api.get(&format!("/sessions/{id}")).await;
        if session.body["status"] != "running" || !of_sessions.insert(id.to_owned()) {
            violations.push(format!("sandbox {sandbox} of {}", session.text));
        }
    }
    violations
}

/// Whether code runs in a session.
async fn runs(server: &Server, session: &str) -> bool {
    server.api.run(session, "shell", "echo on").await["stdout"] == "on\n"
}

/// Whether the session role was killed while this ran: what it had collected was lost with it.
fn session_role_died(log: &Log, accepted: &Accepted) -> bool {
    let (from, to) = accepted.time;
    log.session_role_killed.iter().any(|at| (from..=to).contains(at))
}

async fn record(grpc: &mut Grpc, id: &str) -> Option<Execution> {
    let request = GetExecutionRequest { execution_id: id.to_owned() };
    grpc.sessions.get_execution(request).await.ok()?.into_inner().execution
}

/// Everything there is of sandboxes and of what was recorded.
fn leftovers(mesh: &mut Mesh) -> Vec<String> {
    let mut objects = mesh.bucket().map(|bucket| bucket.keys()).unwrap_or_default();
    // Of each process there may be one, where it was killed while it looked whether the bucket is there.
    objects.retain(|object| !object.contains("/probes/"));
    let of_engine = mesh.engine().map(|engine| engine.left()).unwrap_or_default();
    let server = &*mesh.server();
    let mut left = [server.leftovers(), of_engine].concat();
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for (data_dir, _) in server.nodes() {
        let ours = format!("{}/sandboxes", data_dir.display());
        left.extend(sockets.lines().filter(|line| line.contains(&ours)).map(|line| format!("socket {line}")));
    }
    left.extend(processes_of_users(server).iter().map(|pid| format!("process {pid} of a sandbox's user")));
    let mut files = Vec::new();
    collect_files(&server.data_dir().join("objects"), &mut files);
    left.extend(files.iter().chain(&objects).map(|file| format!("object {file}")));
    left
}

/// The processes of the users that this server gives to sandboxes.
fn processes_of_users(server: &Server) -> Vec<String> {
    let uid = |status: String| -> Option<u32> {
        status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
    };
    let agents = server.processes.iter().filter(|process| process.launch.name.starts_with("agent"));
    let users: Vec<_> = agents.filter_map(|agent| users_of(&agent.launch)).collect();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let of_users = entries.filter(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok();
        status.and_then(uid).is_some_and(|uid| users.iter().any(|users| users.contains(&uid)))
    });
    of_users.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The users that an agent gives to sandboxes.
fn users_of(agent: &Launch) -> Option<Range<u32>> {
    let setting = |name: &str| agent.env.iter().rfind(|(key, _)| key == name)?.1.parse::<u32>().ok();
    let (base, count) = (setting("SANDMESH_AGENT__UID_BASE")?, setting("SANDMESH_AGENT__UID_COUNT")?);
    Some(base..base + count)
}

fn collect_files(dir: &Path, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_files(&entry.path(), files),
            _ => files.push(entry.path().display().to_string()),
        }
    }
}
