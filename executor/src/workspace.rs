//! The files of the sandbox, reached without trusting any of them.
//!
//! [`beneath`] is the one way to a path: under the root of the workspace, following no link. [`walk`] lists,
//! [`changes`] tells what an execution made or changed, [`incoming`] writes a file that is visible only when
//! it is whole, [`quota`] keeps all of it within the disk limit; [`grpc`] is the wire.

mod beneath;
mod changes;
mod error;
mod grpc;
mod incoming;
mod quota;
mod walk;

use std::{io, sync::Arc};

use self::{beneath::Root, quota::Quota};
pub(crate) use self::{
    changes::{Changes, Since},
    grpc::Grpc,
};
use crate::isolation::Sandbox;

/// The workspace of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: Arc<Root>,
    quota: Arc<Quota>,
}

impl Workspace {
    /// The workspace that a sandbox has.
    ///
    /// # Errors
    /// When its directory cannot be opened.
    pub(crate) fn open(sandbox: &Sandbox) -> io::Result<Self> {
        let root = Arc::new(Root::open(sandbox.workspace())?);
        let quota = Arc::new(Quota::new(sandbox.workspace().to_owned(), sandbox.disk_bytes()));
        Ok(Self { root, quota })
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        walk::Walk::below(Arc::clone(&self.root), beneath::RelPath::root(), 1).next(1).is_empty()
    }

    /// From now on, what is changed is what [`Workspace::changes`] tells.
    pub(crate) fn now(&self) -> Since {
        Since::now()
    }

    /// What was made or changed since then.
    pub(crate) async fn changes(&self, since: Since) -> Changes {
        changes::look(Arc::clone(&self.root), since).await
    }
}
