//! Python: a handler or a script, run by `runner.py`.

use std::path::Path;

use crate::{
    cli::Language,
    isolation::{jail::Scene, layer::PACKAGES},
    parent::Spec,
};

pub(super) const SOURCE: (&str, &str) = ("runner.py", include_str!("runner.py"));

/// An interpreter that starts afresh.
///
/// `-B`: no bytecode into the workspace, where it would be an artifact. `-s`: no site directory of
/// the user's, which outlives the execution. Not `-I`: the variables of Python that the caller gives
/// are meant to count.
pub(super) fn spec(interpreter: &Path, scene: &Scene) -> Spec {
    let runner = scene.tools.join(SOURCE.0).display().to_string();
    let mut argv = vec![interpreter.display().to_string(), "-B".to_owned(), "-s".to_owned(), runner];
    if scene.layer.as_ref().is_some_and(|layer| layer.is_for(Language::Python)) {
        argv.extend(["fresh", PACKAGES].map(str::to_owned));
    }
    Spec { argv, has_result: true, has_request: true, ..Spec::default() }
}
