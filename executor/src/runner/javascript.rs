//! JavaScript: a handler or a script, run by `runner.js`.

use std::path::Path;

use crate::{isolation::jail::Scene, parent::Spec};

pub(super) const SOURCE: (&str, &str) = ("runner.js", include_str!("runner.js"));

/// Tells a Node.js, as its last argument, to make a keeper of its memory and to end at once.
pub(super) const WITH_KEEPER: &str = "keeper";

/// A Node.js that reads one request; it may be started before there is one.
pub(super) fn spec(interpreter: &Path, scene: &Scene) -> Spec {
    let runner = scene.tools.join(SOURCE.0).display().to_string();
    let argv = vec![interpreter.display().to_string(), runner];
    Spec { argv, has_result: true, has_request: true, ..Spec::default() }
}
