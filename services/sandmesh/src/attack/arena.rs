//! A client of the deployment under attack: sessions, executions, and whether all is well afterwards.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use sandmesh_mesh::{Link, MAX_MESSAGE_BYTES};
use sandmesh_proto::{
    executor::{Cause, Language, Mode, Resources},
    session::{
        CreateSessionRequest, DeleteSessionRequest, ExecuteRequest, Execution, ExecutionSpec,
        GetSessionRequest, Session, TerminateSessionRequest, execution::State, session,
        session_service_client::SessionServiceClient,
    },
    template::template_service_client::TemplateServiceClient,
};
use tokio::time::sleep;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
};

use super::{
    host::{Canary, Host, Sandbox},
    http::Door,
    live::Live,
    target::Target,
    verdict::Evidence,
};

/// How long an answer that is not a stream may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a session may take to run, from when it last told of something else that it waits for.
const CREATION: Duration = Duration::from_secs(30);

/// The languages' words for what every attack needs.
const PRELUDE: &str = include_str!("programs/prelude.py");

/// The name of the variable that carries the mark of an attack.
const MARK: &str = "ATTACK_MARK";

pub(super) type Sessions = SessionServiceClient<InterceptedService<Link, Key>>;
pub(super) type Templates = TemplateServiceClient<InterceptedService<Link, Key>>;

/// Shows the key on every call.
#[derive(Debug, Clone)]
pub(super) struct Key(Option<MetadataValue<Ascii>>);

impl Key {
    /// A key that may be wrong; an error names no key.
    pub(super) fn new(key: Option<&str>) -> anyhow::Result<Self> {
        let value = key.map(|key| format!("Bearer {key}").parse()).transpose();
        Ok(Self(value.ok().context("the API key holds characters that cannot be sent")?))
    }
}

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// The deployment, as one case works with it.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) target: Target,
    pub(super) host: Option<Host>,
    /// What marks the processes and files of this case on the machine; short enough for a process's name.
    pub(super) mark: String,
    link: Link,
    made: Mutex<Vec<String>>,
    runtime: OnceLock<String>,
}

/// What a session is to have; zero means the template's.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub(super) id: String,
    pub(super) memory_mib: u64,
    pub(super) disk_mib: u64,
    pub(super) processes: u32,
    pub(super) cpu_millis: u32,
    pub(super) env: HashMap<String, String>,
}

/// What came of an execution.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What was streamed, up to a bound.
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// The record at the end.
    pub(super) result: Execution,
}

impl Outcome {
    /// Its state, cause, code and signal in words.
    pub(super) fn ending(&self) -> String {
        let word = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
        let mut text = word(self.result.state().as_str_name(), "STATE_");
        if self.result.cause() != Cause::Unspecified {
            text.push_str(&format!(", cause {}", word(self.result.cause().as_str_name(), "CAUSE_")));
        }
        if let Some(code) = self.result.exit_code {
            text.push_str(&format!(", exit code {code}"));
        }
        if let Some(signal) = self.result.signal {
            text.push_str(&format!(", signal {signal}"));
        }
        if let Some(error) = &self.result.error {
            text.push_str(&format!(", {}: {:.80}", error.r#type, error.message));
        }
        text
    }

    /// The end of what it wrote to the standard error.
    pub(super) fn complaint(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        text.trim().lines().last().unwrap_or_default().to_owned()
    }
}

impl Arena {
    pub(super) fn new(target: &Target) -> anyhow::Result<Self> {
        let host = target.local.as_ref().map(Host::open).transpose()?;
        Ok(Self {
            link: Link::dial(&target.url)?,
            target: target.clone(),
            host,
            mark: format!("atk{:08x}", rand::random::<u32>()),
            made: Mutex::default(),
            runtime: OnceLock::new(),
        })
    }

    /// The driver of the sandboxes; a dash before there was one.
    pub(super) fn runtime(&self) -> String {
        self.runtime.get().cloned().unwrap_or_else(|| "-".to_owned())
    }

    /// A link of its own, for what is not to share a connection.
    pub(super) fn own_link(&self) -> anyhow::Result<Link> {
        Ok(Link::dial(&self.target.url)?)
    }

    fn keyed(&self) -> anyhow::Result<InterceptedService<Link, Key>> {
        let key = Key::new(self.target.api_key.as_ref().map(|key| key.expose()))?;
        Ok(InterceptedService::new(self.link.clone(), key))
    }

    /// The service of sessions.
    pub(super) fn sessions(&self) -> anyhow::Result<Sessions> {
        Ok(SessionServiceClient::new(self.keyed()?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The service of templates.
    pub(super) fn templates(&self) -> anyhow::Result<Templates> {
        Ok(TemplateServiceClient::new(self.keyed()?))
    }

    /// Plain HTTP to the same gateway.
    pub(super) fn door(&self) -> anyhow::Result<Door> {
        Door::new(&self.target.url, self.target.api_key.as_ref().map(|key| key.expose()))
    }

    /// A running session, ended at the latest when the case ends.
    pub(super) async fn session(&self, wish: Wish) -> anyhow::Result<Session> {
        let request = CreateSessionRequest {
            session_id: wish.id,
            template_id: self.target.template.clone(),
            resources: Some(Resources {
                cpu_millis: wish.cpu_millis,
                memory_bytes: wish.memory_mib << 20,
                disk_bytes: wish.disk_mib << 20,
                max_processes: wish.processes,
            }),
            timeout_seconds: Some(600),
            env: wish.env,
            ..CreateSessionRequest::default()
        };
        let created =
            self.sessions()?.create_session(timed(request)).await.context("cannot create a session")?;
        let mut session = created.into_inner().session.context("the server made no session")?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(session.session_id.clone());
        let mut since = std::time::Instant::now();
        while session.state() == session::State::Creating && since.elapsed() < CREATION {
            sleep(Duration::from_millis(10)).await;
            let now = self.look(&session.session_id).await?;
            if now.status_reason != session.status_reason {
                since = std::time::Instant::now();
            }
            session = now;
        }
        if session.state() != session::State::Running {
            bail!("session {} is {:?}: {}", session.session_id, session.state(), session.status_reason);
        }
        let _ = self.runtime.set(session.runtime_type.clone());
        Ok(session)
    }

    /// A session as it is now.
    pub(super) async fn look(&self, session_id: &str) -> anyhow::Result<Session> {
        let request = GetSessionRequest { session_id: session_id.to_owned() };
        let answer = self.sessions()?.get_session(timed(request)).await?;
        answer.into_inner().session.context("the server gave no session")
    }

    /// What the machine has of a session; `None` where it cannot be seen.
    pub(super) fn sandbox(&self, session: &Session) -> anyhow::Result<Option<Sandbox>> {
        self.host.as_ref().map(|host| host.sandbox(&session.sandbox_id)).transpose()
    }

    /// Ends a session and waits until its sandbox is gone.
    pub(super) async fn terminate(&self, session_id: &str) -> anyhow::Result<()> {
        let request = TerminateSessionRequest { session_id: session_id.to_owned() };
        self.sessions()?.terminate_session(timed(request)).await.context("cannot end the session")?;
        Ok(())
    }

    /// Removes every session of this case.
    pub(super) async fn clean_up(&self) -> anyhow::Result<()> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for session_id in made {
            let request = DeleteSessionRequest { session_id };
            match self.sessions()?.delete_session(timed(request)).await {
                Err(status) if status.code() != tonic::Code::NotFound => return Err(status.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// A program in Python that uses the prelude, with a mark on its processes.
    pub(super) fn python(&self, program: &str) -> ExecutionSpec {
        let code = format!("{PRELUDE}\n{program}");
        ExecutionSpec { mode: Mode::Script.into(), ..self.code(Language::Python, &code) }
    }

    /// A program as it is.
    pub(super) fn code(&self, language: Language, code: &str) -> ExecutionSpec {
        ExecutionSpec {
            code: code.to_owned(),
            language: language.into(),
            timeout_seconds: Some(60),
            env: HashMap::from([(MARK.to_owned(), self.mark.clone())]),
            ..ExecutionSpec::default()
        }
    }

    /// Starts an execution and follows it.
    pub(super) async fn open(&self, session: &Session, spec: ExecutionSpec) -> anyhow::Result<Live> {
        let request = ExecuteRequest {
            session_id: session.session_id.clone(),
            spec: Some(spec),
            ..ExecuteRequest::default()
        };
        let stream = self.sessions()?.execute(request).await.context("cannot start an execution")?;
        Ok(Live::new(self.sessions()?, stream.into_inner()))
    }

    /// Runs something to its end.
    pub(super) async fn run(&self, session: &Session, spec: ExecutionSpec) -> anyhow::Result<Outcome> {
        self.open(session, spec).await?.end().await
    }

    /// The sandbox still does as it is told, and the executor is the same process as before.
    pub(super) async fn still_well(
        &self,
        evidence: &mut Evidence,
        session: &Session,
        before: Option<&Sandbox>,
    ) -> anyhow::Result<()> {
        let outcome = self.run(session, self.code(Language::Shell, "echo $((6 * 7))")).await?;
        let answered = outcome.result.state() == State::Completed && outcome.stdout == b"42\n";
        evidence.client("the sandbox still answers", answered, outcome.ending());
        if let Some(before) = before {
            let now = before.executor_pid();
            let told = format!("pid {:?}, before {:?}", now, before.executor);
            evidence.host("the executor is the same process", now == before.executor && now.is_some(), told);
        }
        Ok(())
    }

    /// Something on the host that an attack would like to read, change or remove.
    pub(super) fn canary(&self) -> anyhow::Result<Option<Canary>> {
        self.host.as_ref().map(|_| Canary::new()).transpose()
    }
}

/// A request with a deadline.
pub(super) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// The same program with more in its environment.
pub(super) fn with_env(mut spec: ExecutionSpec, more: &[(&str, &str)]) -> ExecutionSpec {
    spec.env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    spec
}

/// The same program with a time limit.
pub(super) fn within(spec: ExecutionSpec, seconds: u32) -> ExecutionSpec {
    ExecutionSpec { timeout_seconds: Some(seconds), ..spec }
}
