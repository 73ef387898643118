//! What clients run: programs whose whole output is known, and which note in the workspace that they ran.

use std::fmt::Write as _;

use rand::{Rng, rngs::StdRng};
use sandmesh_proto::{
    executor::{Language, Mode},
    session::ExecutionSpec,
};
use serde_json::{Value, json};

use crate::{harness::code_spec, streams_watch::Seen};

/// The file in the workspace that every run adds a line to.
pub(super) const RUNS: &str = "runs";

/// How long an execution may take by itself, in seconds; none takes nearly as long.
const TIMEOUT: u32 = 90;

/// One program, and what becomes of it when nobody disturbs it.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Its name: no two are the same.
    pub(super) tag: String,
    language: Language,
    mode: Mode,
    code: String,
    /// All that it writes.
    pub(super) output: Seen,
    /// What it returns.
    pub(super) returns: Option<Value>,
}

impl Job {
    /// A random one: some are over at once, some take seconds, some write more than a record keeps inline.
    pub(super) fn random(tag: String, rng: &mut StdRng) -> Self {
        let (count, milliseconds) = match rng.random_range(0..4) {
            0 => (rng.random_range(0..3), 0),
            1 => (rng.random_range(5..20), rng.random_range(1..20)),
            2 => (rng.random_range(20..60), rng.random_range(5..25)),
            _ => (rng.random_range(5..15), rng.random_range(50..200)),
        };
        match rng.random_range(0..3) {
            0 => Self::shell(tag, count, milliseconds),
            1 => Self::script(tag, count, milliseconds, rng.random_range(0..9_000)),
            _ => Self::handler(tag, count, milliseconds),
        }
    }

    fn shell(tag: String, count: usize, milliseconds: u32) -> Self {
        let code = format!(
            "echo {tag} >> {RUNS}; i=0; while [ $i -lt {count} ]; do echo \"out {tag} $i\"; \
             echo \"err {tag} $i\" >&2; i=$((i+1)); sleep {}; done",
            f64::from(milliseconds) / 1000.0
        );
        let output = Seen { stdout: numbered("out", &tag, count), stderr: numbered("err", &tag, count) };
        Self { language: Language::Shell, mode: Mode::Script, code, output, returns: None, tag }
    }

    /// Writes bytes of every value.
    fn script(tag: String, count: usize, milliseconds: u32, size: usize) -> Self {
        let mut code = noting(&tag);
        let _ = write!(
            code,
            "import sys, time\n\
             for i in range({count}):\n    \
                 sys.stdout.buffer.write(bytes((i + j) & 255 for j in range({size})))\n    \
                 sys.stdout.buffer.flush()\n    \
                 sys.stderr.write('err {tag} %d\\n' % i)\n    sys.stderr.flush()\n    \
                 time.sleep({milliseconds} / 1000)\n"
        );
        let piece = |i: usize| (0..size).map(move |j| u8::try_from((i + j) & 255).unwrap());
        let stdout = (0..count).flat_map(piece).collect();
        let output = Seen { stdout, stderr: numbered("err", &tag, count) };
        Self { language: Language::Python, mode: Mode::Script, code, output, returns: None, tag }
    }

    /// Returns a value.
    fn handler(tag: String, count: usize, milliseconds: u32) -> Self {
        let mut code = noting(&tag);
        let _ = write!(
            code,
            "import time\n\
             def handler(event):\n    \
                 for i in range({count}):\n        \
                     print('out {tag} %d' % i, flush=True)\n        \
                     time.sleep({milliseconds} / 1000)\n    \
                 return {{'tag': '{tag}', 'count': {count}}}\n"
        );
        let output = Seen { stdout: numbered("out", &tag, count), stderr: Vec::new() };
        let returns = Some(json!({"tag": tag, "count": count}));
        Self { language: Language::Python, mode: Mode::Handler, code, output, returns, tag }
    }

    /// The REST request, which its tag makes idempotent.
    pub(super) fn request(&self) -> Value {
        let word = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
        json!({
            "language": word(self.language.as_str_name(), "LANGUAGE_"),
            "mode": word(self.mode.as_str_name(), "MODE_"),
            "code": self.code,
            "timeout": TIMEOUT,
            "request_id": self.tag,
        })
    }

    /// The same for gRPC.
    pub(super) fn spec(&self) -> ExecutionSpec {
        ExecutionSpec {
            mode: self.mode.into(),
            timeout_seconds: Some(TIMEOUT),
            ..code_spec(self.language, &self.code)
        }
    }
}

/// Python that notes that it runs, with one write to the end of the file.
fn noting(tag: &str) -> String {
    format!(
        "import os\n\
         noted = os.open('{RUNS}', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)\n\
         os.write(noted, b'{tag}\\n')\nos.close(noted)\n"
    )
}

fn numbered(word: &str, tag: &str, count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| format!("{word} {tag} {n}\n").into_bytes()).collect()
}
