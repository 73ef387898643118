//! The port to what makes sandboxes: processes, Docker, containerd.
//!
//! A runtime does what it is told and remembers nothing but what runs: who may create, and what becomes
//! of whom, is decided in `service.rs`. The rules that every runtime keeps are in `runtime/contract.rs`.

use std::{fmt::Debug, path::Path, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sandmesh_mesh::Tasks;
use serde::Deserialize;
use tokio::{sync::watch, time::Instant};

use crate::{
    Error,
    packages::{Layer, Package, PackageSet},
    sandbox::{Facts, Isolation, Language, Sandbox, SandboxId, Spec},
};

mod arrival;
pub(crate) mod container;
pub(crate) mod containerd;
#[cfg(test)]
pub(crate) mod contract;
pub(crate) mod docker;
mod executor;
pub(crate) mod inspect;
mod install;
mod installer;
mod life;
mod log;
pub(crate) mod process;
mod program;
mod record;
mod uids;

/// What a runtime can give on this machine, measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ability {
    /// The isolation of its sandboxes.
    pub(crate) isolation: Isolation,
    /// The languages that are there.
    pub(crate) languages: Vec<Language>,
    /// What works and could be better, for a person.
    pub(crate) warnings: Vec<String>,
}

/// Why a runtime cannot work on this machine: one line for each thing that is missing, with how to get
/// it or which setting weakens it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(crate) struct Problems(pub(crate) Vec<String>);

/// What to create.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// The id to create it under; free.
    pub(crate) id: SandboxId,
    /// What it is to be.
    pub(crate) spec: Spec,
    /// When it was asked for.
    pub(crate) created_at: DateTime<Utc>,
    /// The packages that it is to have from the start.
    pub(crate) layer: Option<Arc<Layer>>,
    /// Where the runtime tells what it waits for while that may take long, lowercase; and empty when it goes on.
    pub(crate) progress: watch::Sender<String>,
}

/// What an installer made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Contents {
    /// Everything that is installed, ordered by name.
    pub(crate) installed: Vec<Package>,
    /// What it takes of the disk.
    pub(crate) bytes: u64,
}

/// What a runtime found on the machine at its start.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// A sandbox of an agent before this one; its state is `Running` or `Dead`.
    Whole(Box<Sandbox>),
    /// What is left of a creation that did not come to its end; it awaits its deletion.
    HalfMade(SandboxId),
}

/// Where reading a log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogStart {
    /// So many bytes before its end, from the next beginning of a line on.
    Tail(u64),
    /// At this offset; at the beginning where the log has become shorter since.
    At(u64),
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogPart {
    /// The bytes, at most [`LOG_PART`].
    pub(crate) data: Vec<u8>,
    /// Where the next part begins.
    pub(crate) next: u64,
}

/// The most bytes of a part of a log.
pub(crate) const LOG_PART: u64 = 1 << 20;

/// Makes and destroys sandboxes on this machine.
#[async_trait]
pub(crate) trait Runtime: Debug + Send + Sync + 'static {
    /// Its name, for example `process`.
    fn name(&self) -> &'static str;

    /// Begins what it has to do all the time, if anything.
    fn start(&self, _: &Tasks) {}

    /// Measures now whether it can work here with the isolation that is configured, and what it can give.
    ///
    /// # Errors
    /// Each thing that is missing.
    async fn check(&self) -> Result<Ability, Problems>;

    /// The images that are present; empty where there are none to have.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    async fn images(&self) -> Result<Vec<String>, Error>;

    /// What exists already, and takes it over: sandboxes outlive their agent. Called once, before
    /// anything else; changes nothing on the machine.
    ///
    /// # Errors
    /// When the machine cannot be read.
    async fn adopt(&self) -> Result<Vec<Found>, Error>;

    /// Makes a sandbox and returns when its executor answers. To be run to its end; on an error nothing is
    /// left of it.
    ///
    /// # Errors
    /// `StartFailed` with the end of its log, `NoImage`, or `Full`.
    async fn create(&self, order: &Order) -> Result<Facts, Error>;

    /// Gives a warm sandbox that it knows as `home` to whoever ordered this, under another id; when this returns,
    /// that outlives the agent. Idempotent.
    ///
    /// # Errors
    /// `NotClaimed`: it is of no more use.
    async fn claim(&self, home: &SandboxId, order: &Order) -> Result<(), Error>;

    /// What packages for a language depend on in a sandbox of this: the interpreter. `None` while that is not
    /// known, as of an image that is not there yet.
    ///
    /// # Errors
    /// Why there is none.
    async fn interpreter(&self, spec: &Spec, language: Language) -> Result<Option<String>, String>;

    /// Installs packages for sandboxes like this one, in a sandbox of its own, which reaches the hosts that packages come from and nothing
    /// else, and puts what was installed at `files`, which must not exist. To be run to its end, or dropped
    /// when this process ends. On an error nothing is left but, perhaps, a part at `files`.
    ///
    /// # Errors
    /// `InstallFailed` with what the installer said.
    async fn install(
        &self,
        spec: &Spec,
        set: &PackageSet,
        files: &Path,
        deadline: watch::Receiver<Instant>,
    ) -> Result<Contents, Error>;

    /// Shows a running sandbox another layer: executions that start after that find its packages.
    ///
    /// # Errors
    /// `NotMounted`, and it has what it had.
    async fn mount_layer(&self, id: &SandboxId, layer: &Layer) -> Result<(), Error>;

    /// Keeps what sandboxes leave on the machine within its bounds. Called every few seconds.
    async fn tend(&self) {}

    /// Reads the log of a sandbox from a position on, or its last bytes; see [`LogPart`].
    ///
    /// # Errors
    /// When it has none, or it cannot be read.
    async fn log(&self, id: &SandboxId, from: LogStart) -> std::io::Result<LogPart>;

    /// Waits until a sandbox is no longer running, and says why: `expired`, or how it ended. Returns at
    /// once when it is not there. Cancel safe.
    async fn wait(&self, id: &SandboxId) -> String;

    /// Destroys a sandbox and all that is left of it. Idempotent; an unknown id is gone already.
    ///
    /// # Errors
    /// `DestroyFailed` when something is left; to try again is right.
    async fn delete(&self, id: &SandboxId) -> Result<(), Error>;
}
