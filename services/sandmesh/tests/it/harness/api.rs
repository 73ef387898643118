//! A client of the REST API, as a stranger would write it, with what every answer must have checked.

use std::time::{Duration, Instant};

use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

/// How long an execution or a session may take to get where it should.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of one server.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    client: reqwest::Client,
    base: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// The body as JSON; null when it is none.
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Reply {
    async fn of(response: reqwest::Response) -> reqwest::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Self { status, headers, body, text })
    }

    /// A header as text; empty when it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The body of an answer with this status.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert!(!self.header("x-request-id").is_empty(), "every answer has an X-Request-ID");
        self.body
    }

    /// An error with this status and code, in the one shape that errors have; gives its body.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, error_code: &str) -> Value {
        let request_id = self.header("x-request-id").to_owned();
        let body = self.is(status);
        assert_eq!(body["error_code"], error_code, "{body}");
        for field in ["description", "solution"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "`{field}` in {body}");
        }
        assert!(body.get("detail").is_some(), "`detail` in {body}");
        assert_eq!(body["request_id"], request_id.as_str(), "{body}");
        body
    }

    /// A 422 that names the field at `loc`, for example `body.timeout` or `body.dependencies.0.name`.
    #[track_caller]
    pub(crate) fn names(self, loc: &str) {
        let body = self.refused(422, "Sandbox.InvalidArgument");
        let told = body["detail"].as_array().unwrap_or_else(|| panic!("`detail` is no list: {body}"));
        for violation in told {
            let complete = violation["msg"].is_string() && violation["type"].is_string();
            assert!(complete && violation["loc"].is_array(), "{violation}");
        }
        let step = |step: &Value| step.as_str().map_or_else(|| step.to_string(), str::to_owned);
        let dotted = |violation: &Value| {
            violation["loc"].as_array().unwrap().iter().map(step).collect::<Vec<_>>().join(".")
        };
        assert!(told.iter().any(|violation| dotted(violation) == loc), "no `{loc}` in {body}");
    }
}

impl Api {
    pub(crate) fn new(port: u16) -> Self {
        // The client wants to know one, also where it speaks no TLS. Where there is one already, that will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(120)).no_proxy().build().unwrap();
        Self { client, base: format!("http://127.0.0.1:{port}") }
    }

    /// A request that is not sent yet; `path` below `/api/v1`.
    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method: Method = method.parse().unwrap();
        self.client.request(method, format!("{}/api/v1{path}", self.base))
    }

    /// A request outside `/api/v1`.
    pub(crate) fn request_root(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse().unwrap(), format!("{}{path}", self.base))
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        Reply::of(request.send().await.unwrap()).await.unwrap()
    }

    /// As `send`, and `None` when the server is not there.
    pub(crate) async fn try_send(&self, request: reqwest::RequestBuilder) -> Option<Reply> {
        Reply::of(request.send().await.ok()?).await.ok()
    }

    /// As `get`, and `None` when the server is not there.
    pub(crate) async fn try_get(&self, path: &str) -> Option<Reply> {
        self.try_send(self.request("GET", path).timeout(Duration::from_secs(5))).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(self.request("POST", path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(self.request("PUT", path).json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(self.request("DELETE", path)).await
    }

    /// Creates a session and waits until it runs.
    pub(crate) async fn create(&self, body: Value) -> Value {
        let session = self.post("/sessions", body).await.is(201);
        self.session_is(session["id"].as_str().unwrap(), "running").await
    }

    /// A running session of the template `python-basic` for all languages; gives its id.
    pub(crate) async fn session(&self) -> String {
        let session = self.create(json!({"template_id": "python-basic"})).await;
        session["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a session has a status.
    pub(crate) async fn session_is(&self, id: &str, status: &str) -> Value {
        let start = Instant::now();
        loop {
            let session = self.get(&format!("/sessions/{id}")).await.is(200);
            if session["status"] == status {
                return session;
            }
            let ended = session["status"] != "creating" && session["status"] != "running";
            assert!(!ended && start.elapsed() < PATIENCE, "session is not {status}: {session}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Uploads a file.
    pub(crate) async fn upload(&self, session: &str, path: &str, data: impl Into<Vec<u8>>) -> Reply {
        let part = reqwest::multipart::Part::bytes(data.into()).file_name("name.bin");
        let form = reqwest::multipart::Form::new().part("file", part);
        let request = self.request("POST", &format!("/sessions/{session}/files/upload"));
        self.send(request.query(&[("path", path)]).multipart(form)).await
    }

    /// The names of the files of a session, at or below a path.
    pub(crate) async fn files(&self, session: &str, path: &str) -> Vec<String> {
        let request = self.request("GET", &format!("/sessions/{session}/files")).query(&[("path", path)]);
        let list = self.send(request).await.is(200);
        let files = list["files"].as_array().unwrap();
        assert_eq!(list["count"], files.len(), "{list}");
        files.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The content of a file below a path such as `/sessions/ID/files/PATH`.
    pub(crate) async fn content(&self, path: &str) -> Vec<u8> {
        let response = self.request("GET", path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap().to_vec()
    }

    /// Runs code to its end.
    pub(crate) async fn run(&self, session: &str, language: &str, code: &str) -> Value {
        self.execute(session, json!({"language": language, "code": code})).await
    }

    /// Runs Python code to its end.
    pub(crate) async fn python(&self, session: &str, code: &str) -> Value {
        self.run(session, "python", code).await
    }

    /// Runs a whole request to its end.
    pub(crate) async fn execute(&self, session: &str, body: Value) -> Value {
        self.post(&format!("/sessions/{session}/execute-sync"), body).await.is(200)
    }

    /// Starts an execution and does not wait; gives its id.
    pub(crate) async fn start(&self, session: &str, body: Value) -> String {
        let accepted = self.post(&format!("/sessions/{session}/execute"), body).await.is(201);
        accepted["execution_id"].as_str().unwrap().to_owned()
    }

    /// Waits until an execution has ended.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        self.execution_when(id, |execution| !is_active(execution)).await
    }

    /// Waits until an execution is as `condition` says.
    pub(crate) async fn execution_when(&self, id: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let execution = self.get(&format!("/executions/{id}")).await.is(200);
            if condition(&execution) {
                return execution;
            }
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {execution}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until an execution runs and has written `text` to its standard output.
    pub(crate) async fn wrote(&self, id: &str, text: &str) {
        let mut events = self.follow(id, None).await;
        events.until_stdout_has(text).await;
    }

    /// Follows an execution as server-sent events, perhaps from a cursor.
    pub(crate) async fn follow(&self, id: &str, cursor: Option<&str>) -> super::Events {
        let mut request = self.request("GET", &format!("/executions/{id}/stream"));
        if let Some(cursor) = cursor {
            request = request.header("Last-Event-ID", cursor);
        }
        super::Events::open(request).await
    }
}

/// True while an execution has not ended.
pub(crate) fn is_active(execution: &Value) -> bool {
    execution["status"] == "pending" || execution["status"] == "running"
}
