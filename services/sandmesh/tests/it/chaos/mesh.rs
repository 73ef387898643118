//! The mesh that is attacked: one of everything, or two.

use sandmesh_mesh::database::testing::OwnServer;

use super::Parts;
use crate::harness::{Api, Bucket, Server, Wiring, twofold::Twofold};

/// See the module.
pub(super) enum Mesh {
    One(Server),
    Two(Box<Twofold>),
}

impl Mesh {
    pub(super) async fn start(parts: Parts, settings: &[(&str, &str)]) -> Self {
        match parts {
            Parts::One => Self::One(Wiring::Split.start_with(settings).await),
            Parts::Two(kind) => Self::Two(Box::new(Twofold::start(kind, settings).await)),
        }
    }

    pub(super) fn server(&mut self) -> &mut Server {
        match self {
            Self::One(server) => server,
            Self::Two(twofold) => &mut twofold.server,
        }
    }

    /// What clients use, with its port.
    pub(super) fn doors(&self) -> Vec<(Api, u16)> {
        match self {
            Self::One(server) => vec![(server.api.clone(), server.port)],
            Self::Two(twofold) => twofold.doors.to_vec(),
        }
    }

    pub(super) fn database(&mut self) -> Option<&mut OwnServer> {
        match self {
            Self::One(_) => None,
            Self::Two(twofold) => Some(&mut twofold.database),
        }
    }

    pub(super) fn bucket(&mut self) -> Option<&mut Bucket> {
        match self {
            Self::One(_) => None,
            Self::Two(twofold) => Some(&mut twofold.bucket),
        }
    }
}
