//! What is known of sandboxes, listed in pages and followed.

use futures::{Stream, StreamExt, stream};
use sandmesh_proto::agent::Sandbox;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::Service;
use crate::{Error, registry::Place};

impl Service {
    /// At most `limit` sandboxes, ordered by id and node, from after `after`; whether there are more; and the
    /// nodes whose sandboxes are missing.
    ///
    /// # Errors
    /// `NoNodes`, as an empty list would say that there are none.
    pub(crate) fn list(
        &self,
        after: &Place,
        limit: usize,
    ) -> Result<(Vec<Sandbox>, bool, Vec<String>), Error> {
        if !self.registry.has_nodes() {
            return Err(Error::NoNodes);
        }
        let (page, more) = self.registry.sandboxes(after, limit, |_| true);
        Ok((page, more, self.registry.unreachable()))
    }

    /// First each sandbox that is known, then every change, until the scheduler stops. A watcher that falls
    /// too far behind gets an error at the end, and is to list again.
    pub(crate) fn watch(&self) -> impl Stream<Item = Result<Sandbox, Error>> + Send + 'static {
        let (existing, changes) = self.registry.watch();
        let changes = BroadcastStream::new(changes).map(|change| {
            change.map_err(|BroadcastStreamRecvError::Lagged(missed)| Error::WatchLagged(missed))
        });
        let stopped = self.mesh.tasks().token().cancelled_owned();
        stream::iter(existing.into_iter().map(Ok)).chain(changes).take_until(stopped)
    }
}
