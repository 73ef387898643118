//! What is written beside a sandbox, so that the next agent on this data directory can take it over.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use chrono::{DateTime, Utc};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::life::Mark;
use crate::sandbox::{Facts, Sandbox, SandboxId, Spec, State};

const NAME: &str = "sandbox.json";
const NEW_NAME: &str = "sandbox.json.new";
/// More than any record has: specs are bounded where they come in.
const MAX_BYTES: u64 = 1 << 20;

/// The record of one sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::runtime) struct Record {
    pub(in crate::runtime) spec: Spec,
    /// The uid of its own, when it has one.
    pub(in crate::runtime) uid: Option<u32>,
    pub(in crate::runtime) created_at: DateTime<Utc>,
    /// Its executor. Absent until it is started: without it, the creation did not come to its end.
    pub(in crate::runtime) process: Option<Mark>,
    /// Its container, where it has one. Records of older agents do not have it.
    #[serde(default)]
    pub(in crate::runtime) container: Option<Container>,
    /// The id that it was claimed under, if it was warm before.
    #[serde(default)]
    pub(in crate::runtime) claimed_as: Option<SandboxId>,
    /// What it got. Absent until its executor answered.
    pub(in crate::runtime) facts: Option<Facts>,
}

/// The container of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime) struct Container {
    /// The id that the engine gave it.
    pub(in crate::runtime) id: String,
    /// The name of the tools that it uses.
    pub(in crate::runtime) tools: String,
}

impl Record {
    /// Writes it whole or not at all.
    pub(in crate::runtime) fn save(&self, dir: &Path) -> io::Result<()> {
        let (new, path) = (dir.join(NEW_NAME), dir.join(NAME));
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }

    /// The sandbox as the next agent finds it: with what its executor says now, or why that ended.
    pub(in crate::runtime) fn taken_over(
        &self,
        home: SandboxId,
        found: Result<Facts, String>,
        now: DateTime<Utc>,
    ) -> Sandbox {
        let known = self.facts.clone().unwrap_or_default();
        let (state, reason, facts) = match found {
            Ok(found) => {
                let facts = Facts { layers: known.layers, layer: known.layer, ..found };
                (State::Running, String::new(), facts)
            }
            Err(why) => (State::Dead, why_dead(self.spec.expires_at, why, now), known),
        };
        let (id, spec) = (self.claimed_as.clone().unwrap_or_else(|| home.clone()), self.spec.clone());
        Sandbox { id, home, spec, state, reason, created_at: self.created_at, facts }
    }

    /// Reads it back.
    pub(in crate::runtime) fn load(dir: &Path) -> io::Result<Self> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(dir.join(NAME))?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Why a sandbox is dead: its time was over, or else `why`.
pub(in crate::runtime) fn why_dead(
    expires_at: Option<DateTime<Utc>>,
    why: String,
    now: DateTime<Utc>,
) -> String {
    if expires_at.is_some_and(|end| now >= end) { "expired".to_owned() } else { why }
}
