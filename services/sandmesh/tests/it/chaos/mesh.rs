//! The mesh that is attacked: one of everything, with processes or containers for sandboxes, or two.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::database::testing::OwnServer;
use serde_json::Value;

use super::Parts;
use crate::harness::{
    Api, Bucket, IN_CONTAINERS, Server, TestEngine, Wiring, engine::PYTHON, eventually, twofold::Twofold,
};

/// How long it may take until a mesh that nobody attacks does as it is asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub(super) enum Mesh {
    One(Server),
    /// The server ends before its engine does.
    InContainers(Box<(Server, TestEngine)>),
    Two(Box<Twofold>),
}

impl Mesh {
    pub(super) async fn start(parts: Parts, settings: &[(&str, &str)]) -> Self {
        match parts {
            Parts::One => Self::One(Wiring::Split.start_with(settings).await),
            Parts::InContainers(kind) => {
                let engine = TestEngine::own(kind, PYTHON, true);
                engine.tag(PYTHON, "python:3.11-slim");
                let same = Arc::new(TestEngine::of(&engine));
                let server = IN_CONTAINERS.scope(same, Wiring::Split.start_with(settings)).await;
                Self::InContainers(Box::new((server, engine)))
            }
            Parts::Two(kind) => Self::Two(Box::new(Twofold::start(kind, settings).await)),
        }
    }

    pub(super) fn server(&mut self) -> &mut Server {
        match self {
            Self::One(server) => server,
            Self::InContainers(both) => &mut both.0,
            Self::Two(twofold) => &mut twofold.server,
        }
    }

    /// Has sandboxes of the clients' sessions warm.
    pub(super) async fn set_pool(&mut self, pool: Value) {
        let api = self.server().api.clone();
        eventually("the pool is set", PATIENCE, async || {
            let set = api.try_send(api.request("PUT", "/pools/python-basic").json(&pool)).await;
            set.is_some_and(|reply| reply.status == 200)
        })
        .await;
    }

    /// What clients use, with its port.
    pub(super) fn doors(&self) -> Vec<(Api, u16)> {
        match self {
            Self::One(server) => vec![(server.api.clone(), server.port)],
            Self::InContainers(both) => vec![(both.0.api.clone(), both.0.port)],
            Self::Two(twofold) => twofold.doors.to_vec(),
        }
    }

    pub(super) fn database(&mut self) -> Option<&mut OwnServer> {
        match self {
            Self::Two(twofold) => Some(&mut twofold.database),
            _ => None,
        }
    }

    pub(super) fn bucket(&mut self) -> Option<&mut Bucket> {
        match self {
            Self::Two(twofold) => Some(&mut twofold.bucket),
            _ => None,
        }
    }

    pub(super) fn engine(&mut self) -> Option<&mut TestEngine> {
        match self {
            Self::InContainers(both) => Some(&mut both.1),
            _ => None,
        }
    }
}
