//! The port to what makes containers: Docker, containerd.
//!
//! An engine makes a container as it is told and says what became of it. What a container is given, how its
//! executor is admitted and what a sandbox is, it does not know.

use std::{collections::HashMap, fmt::Debug, path::Path, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch::Sender;

use super::{
    plan::{Plan, Walls},
    watch::Notes,
};
use crate::{error::ImageProblem, runtime::Problems};

/// Why an engine did not do a thing.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::runtime) enum Trouble {
    /// Nobody is there, or the connection broke.
    #[error("{engine} at `{socket}` cannot be reached: {why}")]
    Away {
        /// What it is called.
        engine: &'static str,
        /// Where it should be.
        socket: String,
        /// What happened.
        why: String,
    },
    /// It did not answer in time.
    #[error("{engine} at `{socket}` did not answer in time")]
    Late {
        /// What it is called.
        engine: &'static str,
        /// Where it is.
        socket: String,
    },
    /// It refused.
    #[error("{engine} refused: {message}")]
    Refused {
        /// What it is called.
        engine: &'static str,
        /// Of what kind that is.
        kind: Refusal,
        /// What it said.
        message: String,
    },
}

/// Of what kind a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Refusal {
    /// It does not know what was asked about.
    NotFound,
    /// There is one already, or it is being worked on.
    Conflict,
    /// It cannot or may not.
    Other,
}

impl Trouble {
    /// Whether the engine does not know what was asked about.
    pub(in crate::runtime) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { kind: Refusal::NotFound, .. })
    }

    /// Whether there is one already, or it is being worked on.
    pub(in crate::runtime) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { kind: Refusal::Conflict, .. })
    }
}

/// What is not there is no trouble.
pub(in crate::runtime) fn absent<T>(found: Result<T, Trouble>) -> Result<Option<T>, Trouble> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(trouble) if trouble.is_not_found() => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

/// What is found out about an engine before its first container.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct Survey {
    /// Where the containers' control groups are, in the words of the engine.
    pub(in crate::runtime) cgroup_parent: String,
    /// The AppArmor profile that containers are to have, where one must be named.
    pub(in crate::runtime) apparmor: Option<String>,
    /// What works and could be better, for a person.
    pub(in crate::runtime) warnings: Vec<String>,
    /// What the engine says of itself: what each is about, and what it is.
    pub(in crate::runtime) about: Vec<(&'static str, String)>,
}

/// How the first process of a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::runtime) struct Ended {
    /// As a shell tells it: a signal is 128 and its number. `None` where nobody knows.
    pub(in crate::runtime) code: Option<i64>,
    /// Memory ran out in it.
    pub(in crate::runtime) oom: bool,
    /// What the engine has to say besides; empty for nothing.
    pub(in crate::runtime) error: String,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runtime) enum State {
    /// It runs, or is about to.
    Running,
    /// It ran.
    Ended(Ended),
}

/// Makes containers on this machine. Everything it is asked has an end, though it may take a minute.
#[async_trait]
pub(in crate::runtime) trait Engine: Debug + Send + Sync + 'static {
    /// The word for it in the configuration.
    fn name(&self) -> &'static str;

    /// What it is called.
    fn title(&self) -> &'static str;

    /// Whether its containers end when it does.
    fn takes_containers_along(&self) -> bool;

    /// Whether containers can be made with it at all, and what is to be known for that.
    ///
    /// # Errors
    /// Each thing that is missing, with what to do.
    async fn survey(&self) -> Result<Survey, Problems>;

    /// Whether it answers.
    ///
    /// # Errors
    /// When it does not.
    async fn ping(&self) -> Result<(), Trouble>;

    /// Takes what it tells of the containers of an owner into notes, until it tells no more, and says why.
    async fn listen(&self, owner: &str, notes: &Notes) -> Trouble;

    /// The names of the images that are there.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn images(&self) -> Result<Vec<String>, Trouble>;

    /// The id of an image; `None` where it is not there.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn image_id(&self, image: &str) -> Result<Option<String>, Trouble>;

    /// The id of an image, which is brought if it is not there and that is possible. What that waits for is told, and
    /// nothing more once it is there.
    ///
    /// # Errors
    /// Why it is not to be had.
    async fn have_image(&self, image: &str, progress: &Sender<String>) -> Result<String, ImageProblem>;

    /// What to name as an image for a container without any file.
    ///
    /// # Errors
    /// When it cannot be made.
    async fn empty_image(&self) -> Result<String, Trouble>;

    /// Makes a container, and answers with its id.
    ///
    /// # Errors
    /// A conflict, where there is one of this name.
    async fn create(&self, name: &str, plan: &Plan<'_>, walls: &Walls) -> Result<String, Trouble>;

    /// Starts a container; what it says goes where `said` finds it.
    ///
    /// # Errors
    /// Why it did not start.
    async fn start(&self, container: &str, dir: &Path) -> Result<(), Trouble>;

    /// What a container is doing; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn state(&self, container: &str) -> Result<Option<State>, Trouble>;

    /// The labels of a container; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn labels(&self, container: &str) -> Result<Option<HashMap<String, String>>, Trouble>;

    /// The labels of each container of an owner, whether they run or not.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn containers(&self, owner: &str) -> Result<Vec<HashMap<String, String>>, Trouble>;

    /// Kills and removes a container with what only it had. Returns when it is gone, or was.
    ///
    /// # Errors
    /// When it is not.
    async fn remove(&self, container: &str, within: Duration) -> Result<(), Trouble>;

    /// What a container of the sandbox in `dir` wrote to its own standard streams: before it was given a log,
    /// why it cannot run.
    ///
    /// # Errors
    /// When it cannot be had.
    async fn said(&self, container: &str, dir: &Path) -> Result<Vec<u8>, Trouble>;
}
