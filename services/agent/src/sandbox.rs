//! The values that the agent speaks of: a sandbox, what was asked for, and what it got.
//!
//! They are what a runtime records beside a sandbox, so they read back after a restart; the wire types
//! are made of them in `grpc.rs` and nowhere else.

use std::{collections::BTreeMap, fmt, str::FromStr};

use chrono::{DateTime, Utc};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::packages::LayerKey;

/// Where user code sees its workspace, in every runtime.
pub(crate) const WORKSPACE_PATH: &str = "/workspace";

const ID_PREFIX: &str = "sbx_";
const ID_DIGITS: usize = 16;

/// The id of a sandbox: `sbx_` and 16 lowercase hex digits. It is safe as a file and cgroup name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct SandboxId(String);

impl SandboxId {
    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// One that nobody has.
    pub(crate) fn random() -> Self {
        Self(format!("{ID_PREFIX}{:016x}", rand::rng().random::<u64>()))
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not the id of a sandbox.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{0}` is not a sandbox id, which is `sbx_` and 16 lowercase hex digits")]
pub(crate) struct InvalidSandboxId(String);

impl FromStr for SandboxId {
    type Err = InvalidSandboxId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let digits = text.strip_prefix(ID_PREFIX).unwrap_or_default();
        if digits.len() == ID_DIGITS && digits.bytes().all(is_digit) {
            return Ok(Self(text.to_owned()));
        }
        // What was sent may be anything: show no more than an id's worth and a little.
        Err(InvalidSandboxId(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for SandboxId {
    type Error = InvalidSandboxId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// A language that a sandbox can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Language {
    /// CPython.
    Python,
    /// Node.js.
    Javascript,
    /// bash or sh.
    Shell,
}

impl Language {
    /// The name, as the executor prints it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Javascript => "javascript",
            Self::Shell => "shell",
        }
    }

    /// The name of a runtime of this language at `version`: `python3.11`, `nodejs20`, `bash5.2`.
    pub(crate) fn runtime_name(self, version: &str) -> String {
        let (name, parts) = match self {
            Self::Python => ("python", 2),
            Self::Javascript => ("nodejs", 1),
            Self::Shell => ("bash", 2),
        };
        let version: Vec<&str> = version.trim_start_matches('v').split('.').take(parts).collect();
        format!("{name}{}", version.join("."))
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The limits of one sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// CPU time per wall time, in thousandths of a core.
    pub(crate) cpu_millis: u32,
    /// Memory of all its processes together, in bytes.
    pub(crate) memory_bytes: u64,
    /// Size of the workspace, in bytes.
    pub(crate) disk_bytes: u64,
    /// Processes and threads together.
    pub(crate) max_processes: u32,
}

/// What a sandbox is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The image; the process runtime ignores it.
    pub(crate) image: String,
    /// The limits.
    pub(crate) resources: Resources,
    /// The language whose interpreter must be there.
    pub(crate) language: Language,
    /// Free labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// The session it is for; empty for a warm one.
    pub(crate) session_id: String,
    /// The template it comes from.
    pub(crate) template_id: String,
    /// How many executions may run at once; 0 means the node's default.
    pub(crate) max_concurrent_executions: u32,
    /// When it ends by itself.
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// How many sandboxes the session had before this one. Records of older agents do not have it.
    #[serde(default)]
    pub(crate) restarts: u32,
    /// The key of the layer of packages that it is to have, if that is there.
    #[serde(default)]
    pub(crate) packages: Option<LayerKey>,
}

impl Spec {
    /// Whether a sandbox of this is one of `other`, too. What packages it is to have at first is not asked:
    /// they may be others by now.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let alike = Self { packages: other.packages.clone(), ..self.clone() };
        alike == *other
    }

    /// Whether a warm sandbox of this can be given to whoever wants `other`. Packages can be shown later.
    pub(crate) fn can_become(&self, other: &Self) -> bool {
        let who = Self {
            labels: other.labels.clone(),
            session_id: other.session_id.clone(),
            expires_at: other.expires_at,
            restarts: other.restarts,
            ..self.clone()
        };
        self.session_id.is_empty() && !other.session_id.is_empty() && who.is_same(other)
    }
}

/// The isolation that a sandbox, or a node, really has; see the proto for the words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Isolation {
    /// The outer layer.
    pub(crate) sandbox: String,
    /// The inner layer around each execution.
    pub(crate) jail: String,
    /// The system call filter.
    pub(crate) seccomp: String,
    /// What the network can reach.
    pub(crate) network: String,
    /// Whose identity user code has.
    pub(crate) user: String,
    /// What enforces the limits.
    pub(crate) limits: String,
    /// Where the process of an execution comes from.
    pub(crate) interpreters: String,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Being made.
    Creating,
    /// Its executor answers.
    Running,
    /// It ended by itself; what is left of it awaits its deletion.
    Dead,
    /// It is destroyed.
    Deleted,
}

impl State {
    /// Whether it holds CPU and memory of the node.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Creating | Self::Running)
    }
}

/// One sandbox of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// Its id.
    pub(crate) id: SandboxId,
    /// What the runtime knows it by: the id that it was made under, as a warm one if it was claimed.
    pub(crate) home: SandboxId,
    /// What was asked for.
    pub(crate) spec: Spec,
    /// Its state.
    pub(crate) state: State,
    /// Why it is dead, or what its creation waits for where that may take long, lowercase; empty otherwise.
    pub(crate) reason: String,
    /// When it was created.
    pub(crate) created_at: DateTime<Utc>,
    /// What it got; empty until it runs.
    pub(crate) facts: Facts,
}

/// What a sandbox got when it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Where its executor is dialled.
    pub(crate) endpoint: String,
    /// The isolation it really has.
    pub(crate) isolation: Isolation,
    /// The language runtime that its executor found.
    pub(crate) language_runtime: String,
    /// The layers of packages that it has, had, or was about to have.
    #[serde(default)]
    pub(crate) layers: Vec<LayerKey>,
    /// The one of them that executions find that start now.
    #[serde(default)]
    pub(crate) layer: Option<LayerKey>,
}

impl Sandbox {
    /// Whether it was warm before its session claimed it.
    pub(crate) fn was_claimed(&self) -> bool {
        self.home != self.id
    }
}

impl Facts {
    /// It is about to have this layer.
    pub(crate) fn expect_layer(&mut self, key: &LayerKey) {
        if !self.layers.contains(key) {
            self.layers.push(key.clone());
        }
    }

    /// It has this layer from now on.
    pub(crate) fn show_layer(&mut self, key: &LayerKey) {
        self.expect_layer(key);
        self.layer = Some(key.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_of_ours_is_an_id() {
        assert!("sbx_0123456789abcdef".parse::<SandboxId>().is_ok());
        for text in [
            "",
            "sbx_",
            "sbx_0123456789abcde",
            "sbx_0123456789ABCDEF",
            "sbx_0123456789abcdef0",
            "sbx_../../../../etc/",
            "sess_0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_language_runtime_is_named_after_its_version() {
        assert_eq!(Language::Python.runtime_name("3.11.2"), "python3.11");
        assert_eq!(Language::Javascript.runtime_name("v20.19.1"), "nodejs20");
        assert_eq!(Language::Shell.runtime_name("5.2.15"), "bash5.2");
        assert_eq!(Language::Shell.runtime_name(""), "bash");
    }
}
