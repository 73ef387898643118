//! The gateway through its front door: requests go into its router, and fake roles answer behind it.

mod fakes;
mod fuzz;
mod grpc;
mod openapi;
mod operators;
mod rest;
mod stream;

use axum::{Router, body::Body};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use sandmesh_mesh::{Mesh, RoleName, Secret};
use serde_json::Value;
use tower::ServiceExt;

use crate::config::Config;
use fakes::Fakes;

const KEY: &str = "0123456789abcdef";

/// A gateway with fake roles behind it.
struct Door {
    router: Router,
    fakes: Fakes,
}

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Door {
    fn new() -> Self {
        Self::with(&Config::default())
    }

    fn with_keys() -> Self {
        Self::with(&Config { api_keys: vec![Secret::new(KEY)], ..Config::default() })
    }

    fn with(config: &Config) -> Self {
        let fakes = Fakes::default();
        let roles = [
            RoleName::Session,
            RoleName::Template,
            RoleName::Scheduler,
            RoleName::HealthProbe,
            RoleName::StateSync,
        ];
        let mesh = roles.into_iter().fold(Mesh::builder("/"), |mesh, role| mesh.link(role, fakes.link()));
        Self { router: crate::router(config, &mesh.build()).unwrap(), fakes }
    }

    async fn call(&self, request: Request<Body>) -> Answer {
        let head = request.method() == "HEAD";
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if let Some(length) = parts.headers.get("content-length").filter(|_| !head) {
            assert_eq!(
                length.to_str().unwrap(),
                body.len().to_string(),
                "the length is not that of the body"
            );
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.call(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        self.call(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, body).await
    }
}
