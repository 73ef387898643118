//! Python: a handler or a script, run by `runner.py`.

use std::path::Path;

use super::{Plan, Request};
use crate::isolation::jail::Scene;

pub(super) const SOURCE: (&str, &str) = ("runner.py", include_str!("runner.py"));

/// `-B`: no bytecode into the workspace, where it would be an artifact. `-s`: no site directory of
/// the user's, which outlives the execution. Not `-I`: the variables of Python that the caller gives
/// are meant to count.
pub(super) fn plan(interpreter: &Path, scene: &Scene, request: Request) -> Plan {
    let runner = scene.tools.join(SOURCE.0);
    request.into_plan(vec![interpreter.to_string_lossy(), "-B".into(), "-s".into(), runner.to_string_lossy()])
}
