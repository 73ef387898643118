//! A server under test with the ways to reach it, and the sessions that executions are measured in.

use std::time::Duration;

use anyhow::{Context, ensure};
use sandmesh_proto::{
    executor::executor_service_client::ExecutorServiceClient,
    session::session_service_client::SessionServiceClient,
};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;

use crate::server::Server;

/// How many sessions are kept for executions. What is measured with several in flight at full load is
/// spread over them; all else uses the first.
const SESSIONS: usize = 2;

/// The largest message that a client here takes.
const MAX_MESSAGE: usize = 64 << 20;

/// A session, and a connection to the executor of its sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The session.
    pub(crate) id: String,
    /// The sandbox.
    pub(crate) sandbox: String,
    /// Its executor, on its unix socket.
    pub(crate) executor: ExecutorServiceClient<Channel>,
}

/// A server, the connections to it, and warm sessions.
#[derive(Debug)]
pub(crate) struct Stack {
    /// The server.
    pub(crate) server: Server,
    /// The session role through the gateway, on TCP.
    pub(crate) gateway: SessionServiceClient<Channel>,
    /// The session role on the mesh's own unix socket.
    pub(crate) session_role: SessionServiceClient<Channel>,
    /// The health service on the same socket: a call that does nothing.
    pub(crate) health: HealthClient<Channel>,
    /// The sessions.
    pub(crate) sessions: Vec<Session>,
    http: reqwest::Client,
    api: String,
}

impl Stack {
    /// Connects to a server and creates the sessions.
    ///
    /// # Errors
    /// When the server does not answer or makes no session.
    pub(crate) async fn connect(server: Server) -> anyhow::Result<Self> {
        let gateway = connect(&format!("http://{}", server.address())).await?;
        let mesh = connect(&server.mesh_address()).await?;
        let mut this = Self {
            gateway: SessionServiceClient::new(gateway).max_decoding_message_size(MAX_MESSAGE),
            session_role: SessionServiceClient::new(mesh.clone()).max_decoding_message_size(MAX_MESSAGE),
            health: HealthClient::new(mesh),
            sessions: Vec::new(),
            http: reqwest::Client::builder().timeout(Duration::from_secs(120)).build()?,
            api: format!("http://{}/api/v1", server.address()),
            server,
        };
        for _ in 0..SESSIONS {
            let session = this.open_session().await?;
            this.sessions.push(session);
        }
        Ok(this)
    }

    /// Creates a session and finds its sandbox, which is the one that was not there before.
    ///
    /// # Errors
    /// When the session does not run, or its executor does not answer.
    pub(crate) async fn open_session(&self) -> anyhow::Result<Session> {
        let before = self.server.sandboxes();
        let id = self.create_session().await?;
        let new = self.server.sandboxes().into_iter().find(|sandbox| !before.contains(sandbox));
        let sandbox = new.context("the session has no sandbox of its own")?;
        let socket = self.server.data_dir().join("sandboxes").join(&sandbox).join("executor.sock");
        let executor = connect(&format!("unix:{}", socket.display())).await?;
        Ok(Session { id, sandbox, executor: ExecutorServiceClient::new(executor) })
    }

    /// Creates a session through REST and returns its id.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) async fn create_session(&self) -> anyhow::Result<String> {
        // As many cores as a session may have: the baseline is not throttled either.
        let wanted = json!({"template_id": "python-basic", "timeout": 3600, "cpu": "4", "memory": "1Gi"});
        let session = self.post("/sessions", &wanted).await?;
        ensure!(session["status"] == "running", "the session is not running: {session}");
        session["id"].as_str().map(str::to_owned).context("the session has no id")
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn end_session(&self, id: &str) -> anyhow::Result<()> {
        self.post(&format!("/sessions/{id}/terminate"), &json!({})).await.map(drop)
    }

    /// Reads JSON at a path below the API.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        answered(path, self.http.get(format!("{}{path}", self.api)).send().await?).await
    }

    /// Posts JSON to a path below the API.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        answered(path, self.post_for_stream(path, body).await?).await
    }

    /// Puts JSON to a path below the API.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        answered(path, self.http.put(format!("{}{path}", self.api)).json(body).send().await?).await
    }

    /// Posts JSON and returns the answer as it comes.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn post_for_stream(
        &self,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<reqwest::Response> {
        Ok(self.http.post(format!("{}{path}", self.api)).json(body).send().await?)
    }
}

async fn answered(path: &str, response: reqwest::Response) -> anyhow::Result<Value> {
    let status = response.status();
    let answer: Value = response.json().await?;
    ensure!(status.is_success(), "`{path}` answered {status}: {answer}");
    Ok(answer)
}

/// One connection, with windows as large as a client that streams would choose.
async fn connect(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned())?
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    endpoint.connect().await.with_context(|| format!("cannot connect to `{address}`"))
}
