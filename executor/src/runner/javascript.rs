//! JavaScript: a handler or a script, CommonJS or ES module, run by `runner.js`.

use std::path::Path;

use super::{Plan, Request};
use crate::isolation::jail::Scene;

pub(super) const SOURCE: (&str, &str) = ("runner.js", include_str!("runner.js"));

pub(super) fn plan(interpreter: &Path, scene: &Scene, request: Request) -> Plan {
    let runner = scene.tools.join(SOURCE.0);
    request.into_plan(vec![interpreter.to_string_lossy(), runner.to_string_lossy()])
}
