//! A user of the mesh: the calls that are measured, each checked for the right result.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sandmesh_proto::{
    executor::Language,
    session::{
        ExecuteRequest, Execution, ExecutionSpec, execute_response::Event, execution::State,
        session_service_client::SessionServiceClient,
    },
};
use serde_json::{Value, json};
use tonic::transport::Channel;

/// Which front door is used.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Door {
    /// `SessionService.Execute`, followed to its last event.
    Grpc,
    /// `POST /sessions/{id}/execute-sync`.
    Rest,
}

/// A client with a warm session.
pub(crate) struct Client {
    grpc: SessionServiceClient<Channel>,
    http: reqwest::Client,
    api: String,
    session_id: String,
}

/// The code that is run: as little as a handler can do, and something to check.
fn code(language: Language) -> &'static str {
    match language {
        Language::Javascript => "function handler(event) { return 42 }",
        Language::Shell => "echo 42 >\"$RESULT_FILE\"",
        Language::Python | Language::Unspecified => "def handler(event): return 42",
    }
}

fn word(language: Language) -> &'static str {
    match language {
        Language::Javascript => "javascript",
        Language::Shell => "shell",
        Language::Python | Language::Unspecified => "python",
    }
}

impl Client {
    /// Connects and creates the session that executions are measured in.
    ///
    /// # Errors
    /// When the server does not answer or makes no session.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        let grpc = SessionServiceClient::connect(format!("http://{address}")).await?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
        let mut this =
            Self { grpc, http, api: format!("http://{address}/api/v1"), session_id: String::new() };
        this.session_id = this.create().await?;
        Ok(this)
    }

    /// Runs code in the warm session and waits for its result.
    ///
    /// # Errors
    /// When the execution does not complete with the right result.
    pub(crate) async fn execute(&self, language: Language, door: Door) -> anyhow::Result<Duration> {
        let began = Instant::now();
        match door {
            Door::Grpc => self.execute_grpc(language).await?,
            Door::Rest => self.execute_rest(&self.session_id, language).await?,
        }
        Ok(began.elapsed())
    }

    /// Creates a session and, if wanted, runs code in it; ends it, which is not timed.
    ///
    /// # Errors
    /// When the session does not run, or the execution does not complete with the right result.
    pub(crate) async fn create_session(&self, execute: bool) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let session_id = self.create().await?;
        if execute {
            self.execute_rest(&session_id, Language::Python).await?;
        }
        let took = began.elapsed();
        self.post(&format!("/sessions/{session_id}/terminate"), &json!({})).await?;
        Ok(took)
    }

    async fn create(&self) -> anyhow::Result<String> {
        // As many cores as a session may have: the baseline is not throttled either.
        let wanted = json!({"template_id": "python-basic", "timeout": 3600, "cpu": "4"});
        let session = self.post("/sessions", &wanted).await?;
        ensure!(session["status"] == "running", "the session is not running: {session}");
        session["id"].as_str().map(str::to_owned).context("the session has no id")
    }

    async fn execute_grpc(&self, language: Language) -> anyhow::Result<()> {
        let spec = ExecutionSpec {
            code: code(language).to_owned(),
            language: language.into(),
            ..Default::default()
        };
        let request =
            ExecuteRequest { session_id: self.session_id.clone(), spec: Some(spec), ..Default::default() };
        let mut events = self.grpc.clone().execute(request).await?.into_inner();
        while let Some(response) = events.message().await? {
            if let Some(Event::Result(execution)) = response.event {
                return check(&execution);
            }
        }
        bail!("the stream ended without a result")
    }

    async fn execute_rest(&self, session_id: &str, language: Language) -> anyhow::Result<()> {
        let body = json!({"code": code(language), "language": word(language)});
        let execution = self.post(&format!("/sessions/{session_id}/execute-sync"), &body).await?;
        let right = execution["status"] == "completed" && execution["return_value"] == 42;
        ensure!(right, "the execution has another result: {execution}");
        Ok(())
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let response = self.http.post(format!("{}{path}", self.api)).json(body).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        ensure!(status.is_success(), "POST {path} answered {status}: {answer}");
        Ok(answer)
    }
}

fn check(execution: &Execution) -> anyhow::Result<()> {
    let right = execution.state() == State::Completed && execution.return_value_json.as_deref() == Some("42");
    ensure!(right, "the execution has another result: {execution:?}");
    Ok(())
}
