//! The values that sessions and executions are made of, as they are stored.
//!
//! They mirror messages of the wire where the meaning is the same; `encode.rs` goes between the two.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A language that user code is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// CPython.
    Python,
    /// Node.js.
    JavaScript,
    /// bash, or sh.
    Shell,
}

impl Language {
    pub(crate) const ALL: [Self; 3] = [Self::Python, Self::JavaScript, Self::Shell];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::Shell => "shell",
        }
    }

    /// The language of a template's runtime, such as "python3.11"; `None` when executions do not speak it.
    pub(crate) fn of_runtime(runtime: &str) -> Option<Self> {
        match runtime {
            "bash" => Some(Self::Shell),
            _ if runtime.starts_with("python") => Some(Self::Python),
            _ if runtime.starts_with("nodejs") => Some(Self::JavaScript),
            _ => None,
        }
    }
}

/// How code is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Call a function with the event.
    Handler,
    /// Run top to bottom.
    Script,
}

impl Mode {
    pub(crate) const ALL: [Self; 2] = [Self::Handler, Self::Script];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Script => "script",
        }
    }
}

/// The limits of a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// Thousandths of a core.
    pub(crate) cpu_millis: u32,
    /// Memory of all processes together.
    pub(crate) memory_bytes: u64,
    /// Size of the workspace.
    pub(crate) disk_bytes: u64,
    /// Processes and threads together.
    pub(crate) max_processes: u32,
}

/// The isolation that a sandbox really has, in the words of the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Isolation {
    /// The outer layer.
    pub(crate) sandbox: String,
    /// The inner layer.
    pub(crate) jail: String,
    /// The system call filter.
    pub(crate) seccomp: String,
    /// What the network can reach.
    pub(crate) network: String,
    /// Whose identity user code has.
    pub(crate) user: String,
    /// What enforces the limits.
    pub(crate) limits: String,
    /// Where the process of an execution comes from; empty in a record older than the word.
    #[serde(default)]
    pub(crate) interpreters: String,
}

/// An error of the user's code, or of its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserError {
    /// Its class.
    pub(crate) class: String,
    /// Its message.
    pub(crate) message: String,
    /// The traceback of the user's frames; may be empty.
    pub(crate) traceback: String,
}

/// What an execution used. Times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metrics {
    /// Wall clock from start to end.
    pub(crate) duration_us: u64,
    /// CPU time of the whole tree.
    pub(crate) cpu_time_us: u64,
    /// The peak of its memory.
    pub(crate) peak_memory_bytes: u64,
    /// Read from storage.
    pub(crate) io_read_bytes: u64,
    /// Written to storage.
    pub(crate) io_write_bytes: u64,
    /// Wait for a slot.
    pub(crate) queued_us: u64,
    /// From slot to running process.
    pub(crate) startup_us: u64,
}

/// Names and values: environments and labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pairs(pub(crate) BTreeMap<String, String>);

/// The words of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Words(pub(crate) Vec<String>);

/// A file that an execution made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    /// Its path below the workspace.
    pub(crate) path: String,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Of its content, as hex digits; `None`: it is not kept.
    pub(crate) checksum: Option<String>,
    /// When it was found, in microseconds since 1970.
    pub(crate) created_at_us: i64,
}

/// The files that an execution made or changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifacts(pub(crate) Vec<Artifact>);
