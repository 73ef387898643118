//! Where sandboxes go: asked of the index, and remembered, so that nobody else gets that room.

use sandmesh_proto::agent::SandboxSpec;

use super::Registry;
use crate::placement::{Refusal, Refusals, Wanted};

impl Registry {
    /// Whether there is room for a sandbox somewhere, as far as is known.
    pub(crate) fn has_room(&self, wanted: &Wanted) -> bool {
        self.known().index.best(wanted, &[]).is_some()
    }

    /// Has a sandbox go to the best node, but for those to `avoid`, and remembers that: nobody else gets that room.
    /// Returns the node, or the one that it went to before.
    pub(crate) fn reserve(
        &self,
        sandbox_id: &str,
        spec: &SandboxSpec,
        (wanted, avoid): (&Wanted, &[String]),
    ) -> Option<String> {
        let mut known = self.known();
        let node_id = known.index.best(wanted, avoid)?.to_owned();
        Some(known.bind(sandbox_id, &node_id, spec))
    }

    /// The same for a warm sandbox: only to nodes of which less than `crowded` percent are promised, those first that
    /// have the image. `None` also when it went somewhere before.
    pub(crate) fn reserve_for_warm(
        &self,
        sandbox_id: &str,
        spec: &SandboxSpec,
        (wanted, crowded, avoid): (&Wanted, u64, &[String]),
    ) -> Option<String> {
        let mut known = self.known();
        if known.node_of(sandbox_id).is_some() {
            return None;
        }
        let node_id = known.index.best_for_warm(wanted, crowded, avoid)?.to_owned();
        Some(known.bind(sandbox_id, &node_id, spec))
    }

    /// Whether there is a node that could run this, now or when others are gone, besides those that refused.
    pub(crate) fn could_run(&self, wanted: &Wanted, refused: &[Refusal]) -> bool {
        let refused: Vec<String> = refused.iter().map(|refusal| refusal.node_id.clone()).collect();
        self.known().index.could_run(wanted, &refused)
    }

    /// Why no node takes a sandbox: what those said that were `asked`, and what is known of the others. For a warm
    /// one, those are too `crowded` that would take others.
    pub(crate) fn refusals(&self, wanted: &Wanted, asked: Vec<Refusal>, crowded: Option<u64>) -> Refusals {
        let others = self.known().index.refusals(wanted, &asked, crowded);
        Refusals { named: asked.into_iter().chain(others.named).collect(), ..others }
    }
}
