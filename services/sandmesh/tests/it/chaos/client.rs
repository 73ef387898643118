//! A client under fire: it asks until it knows, follows until it has everything, and notes what it was told.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng};
use sandmesh_proto::session::{ExecuteRequest, execute_response::Event as Executed};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    job::Job,
    log::{Accepted, Shared},
};
use crate::{
    harness::{Api, Grpc, Reply, api::is_active},
    streams_watch::{End, Front, Seen, Watcher},
};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(30);

/// How long anything may take in all, however often it is tried.
const PATIENCE: Duration = Duration::from_secs(100);

/// The pause before something is tried again.
const PAUSE: Duration = Duration::from_millis(40);

/// The place of a session, which several clients use.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<String>>);

/// One client.
pub(super) struct Client {
    pub(super) name: String,
    pub(super) api: Api,
    pub(super) address: String,
    pub(super) slot: Arc<Slot>,
    pub(super) rng: StdRng,
    /// Cuts the connection that it uses now.
    pub(super) cut: Arc<Notify>,
    pub(super) shared: Arc<Shared>,
}

/// What became of a request to run something.
enum Answer {
    Accepted(String),
    Ended(Value),
    Refused,
}

impl Client {
    /// Works until it is told to stop, and then ends what it has begun.
    pub(super) async fn work(mut self) {
        let mut number = 0_u32;
        while !self.shared.is_stopped() {
            let Some(session) = self.session().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            number += 1;
            let job = Job::random(format!("{}-{number}", self.name), &mut self.rng);
            let began = Instant::now();
            let done = match self.rng.random_range(0..4) {
                0 => self.wait(&session, &job).await,
                1 => self.poll(&session, &job).await,
                2 => self.watch(&session, &job, Front::Sse(self.api.clone())).await,
                _ => self.watch(&session, &job, Front::Grpc(self.address.clone())).await,
            };
            match done {
                Some((id, seen, told)) => {
                    let time = (began, Instant::now());
                    self.shared.log().accepted.push(Accepted { id, session, job, seen, told, time });
                }
                None => self.leave(&session).await,
            }
        }
    }

    /// The session of the slot; a new one where there is none. `None` when it could not be made.
    async fn session(&mut self) -> Option<String> {
        let slot = Arc::clone(&self.slot);
        let mut current = slot.0.lock().await;
        if current.is_none() {
            let request_id = format!("{}-{:016x}", self.name, self.rng.random::<u64>());
            let body = json!({"template_id": "python-basic", "timeout": 3600, "request_id": request_id});
            let created = self.insist("create session", "/sessions", &body).await;
            let id = created.body["id"].as_str()?.to_owned();
            self.shared.log().sessions.insert(id.clone());
            let path = format!("/sessions/{id}");
            let settled = self.until("session", &path, |session| session["status"] != "creating").await?;
            if settled["status"] != "running" {
                self.shared.retry("session that could not be created");
                return None;
            }
            *current = Some(id);
        }
        current.clone()
    }

    /// The session has ended: the next client makes a new one.
    async fn leave(&self, session: &str) {
        let mut current = self.slot.0.lock().await;
        if current.as_deref() == Some(session) {
            *current = None;
        }
    }

    /// Starts it and asks for it again and again.
    async fn poll(&mut self, session: &str, job: &Job) -> Option<(String, Option<Seen>, End)> {
        let id = self.start(session, job).await?;
        let told = self.told(&id).await;
        Some((id, None, told))
    }

    /// Runs it and waits for the answer.
    async fn wait(&mut self, session: &str, job: &Job) -> Option<(String, Option<Seen>, End)> {
        let path = format!("/sessions/{session}/execute-sync");
        match self.submit("execute-sync", &path, &job.request()).await {
            Answer::Ended(run) => {
                let id = run["id"].as_str().unwrap_or_default().to_owned();
                Some((id, None, end_of(&run)))
            }
            Answer::Accepted(id) => {
                let told = self.told(&id).await;
                Some((id, None, told))
            }
            Answer::Refused => None,
        }
    }

    /// Starts it and follows it, from where it was whenever the stream breaks.
    async fn watch(&mut self, session: &str, job: &Job, front: Front) -> Option<(String, Option<Seen>, End)> {
        let by_stream = matches!(front, Front::Grpc(_)) && self.rng.random_bool(0.5);
        let id = match by_stream {
            true => self.execute(session, job).await?,
            false => self.start(session, job).await?,
        };
        let mut watcher = Watcher::new(front, &id);
        let mut seen = Seen::default();
        let began = Instant::now();
        let end = loop {
            let mut take = |out, bytes: &[u8]| {
                seen.take(out, bytes);
                true
            };
            let end = self.unless_cut(watcher.once(&mut take)).await;
            match end.unwrap_or_else(|| End::Broken("cut".into())) {
                End::Broken(why) if began.elapsed() > PATIENCE => break End::Wrong(why),
                End::Broken(_) => self.shared.retry("stream taken up again"),
                end => break end,
            }
            tokio::time::sleep(PAUSE).await;
        };
        Some((id, Some(seen), end))
    }

    async fn start(&mut self, session: &str, job: &Job) -> Option<String> {
        let path = format!("/sessions/{session}/execute");
        match self.submit("execute", &path, &job.request()).await {
            Answer::Accepted(id) => Some(id),
            _ => None,
        }
    }

    /// Starts it by the stream of `Execute`, and leaves that once it is accepted.
    async fn execute(&mut self, session: &str, job: &Job) -> Option<String> {
        let request = ExecuteRequest {
            session_id: session.to_owned(),
            spec: Some(job.spec()),
            request_id: job.tag.clone(),
            ..Default::default()
        };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let accepted = async {
                let mut grpc = Grpc::try_connect(&self.address).await?;
                let mut stream = grpc.sessions.execute(request.clone()).await?.into_inner();
                stream.message().await
            };
            match self.unless_cut(accepted).await {
                Some(Ok(Some(first))) => match first.event {
                    Some(Executed::Accepted(accepted)) => return Some(accepted.execution_id),
                    other => self.shared.violation(format!("{}: first comes {other:?}", job.tag)),
                },
                Some(Err(status)) if reason(&status) == "SESSION_NOT_ACTIVE" => {
                    self.shared.log().refused += 1;
                    return None;
                }
                Some(Err(status)) if !is_passing(status.code()) => {
                    self.shared.violation(format!("Execute of {}: {status:?}", job.tag));
                }
                _ => self.shared.retry("Execute"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.shared.violation(format!("{}: neither accepted nor refused within {PATIENCE:?}", job.tag));
        None
    }

    /// Asks to run something until there is an answer.
    async fn submit(&mut self, what: &'static str, path: &str, body: &Value) -> Answer {
        let reply = self.insist(what, path, body).await;
        let id = || reply.body["execution_id"].as_str().unwrap_or_default().to_owned();
        match (reply.status, reply.body["error_code"].as_str()) {
            (201, _) => Answer::Accepted(id()),
            (200, _) => Answer::Ended(reply.body),
            (408, Some("Sandbox.SyncTimeout")) => Answer::Accepted(id()),
            (409, Some("Sandbox.SessionNotActive")) => {
                self.shared.log().refused += 1;
                Answer::Refused
            }
            _ => {
                self.shared.violation(format!("{what}: {} {}", reply.status, reply.text));
                Answer::Refused
            }
        }
    }

    /// Sends a request until it gets through; it must be idempotent.
    async fn insist(&mut self, what: &'static str, path: &str, body: &Value) -> Reply {
        let began = Instant::now();
        loop {
            let request = self.api.request("POST", path).timeout(REQUEST).json(body);
            let reply = self.unless_cut(self.api.try_send(request)).await.flatten();
            match reply {
                Some(reply) if !is_passing_status(&reply) => return reply,
                Some(reply) if began.elapsed() > PATIENCE => return reply,
                _ => self.shared.retry(what),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads until it is as wanted; `None` when it never is, which is a violation.
    async fn until(&self, what: &'static str, path: &str, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < PATIENCE {
            match self.unless_cut(self.api.try_get(path)).await.flatten() {
                Some(reply) if reply.status == 200 && wanted(&reply.body) => return Some(reply.body),
                Some(reply) if reply.status == 200 => last = reply.text,
                Some(reply) if !is_passing_status(&reply) => {
                    self.shared.violation(format!("{path}: {} {}", reply.status, reply.text));
                    return None;
                }
                _ => self.shared.retry(what),
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.shared.violation(format!("{path}: not decided within {PATIENCE:?}: {last}"));
        None
    }

    /// How an execution ended, asked for until it has.
    async fn told(&self, id: &str) -> End {
        let path = format!("/executions/{id}");
        let run = self.until("read", &path, |run| !is_active(run)).await;
        run.map_or_else(|| End::Wrong("it does not end".into()), |run| end_of(&run))
    }

    /// Does something, unless the connection is cut meanwhile.
    async fn unless_cut<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.cut.notified() => None,
        }
    }
}

fn end_of(run: &Value) -> End {
    let word = |name: &str| run[name].as_str().unwrap_or_default().to_owned();
    End::Ended { state: word("status"), cause: word("cause") }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// What a client tries again after.
fn is_passing_status(reply: &Reply) -> bool {
    matches!(reply.status, 429 | 502..=504)
}

fn is_passing(code: Code) -> bool {
    // The last two are what this client itself makes of a connection that breaks.
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Unknown
    )
}
