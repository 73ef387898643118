//! What an engine of containers on this machine is, for somebody who wants to know before an agent starts. It is
//! looked at as an agent does at its start.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sandmesh_mesh::SystemClock;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    Ability, Problems, Runtime,
    container::{ContainerRuntime, engine::Engine, tools},
    containerd, docker,
    program::Program,
};
use crate::{
    Config,
    config::{Pull, RuntimeKind},
};

/// How long an engine may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found out about an engine. What is missing and what could be better is told as an agent tells it at
/// its start: what, `; `, and what to do about it where there is something to do.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Where it should be.
    pub socket: PathBuf,
    /// Whether there is anything at all.
    pub is_there: bool,
    /// What the engine says of itself: what each is about, and what it is. Empty where it is not fit.
    pub about: Vec<(&'static str, String)>,
    /// Each thing that is missing.
    pub problems: Vec<String>,
    /// What works and could be better.
    pub warnings: Vec<String>,
    /// The images that were asked about, and whether each is there.
    pub images: Vec<(String, bool)>,
    /// How an image comes that is not there; `None` where the agent has it pulled.
    pub bring: Option<String>,
    /// The isolation that sandboxes have, in the words of the API, where one was made; null otherwise.
    pub isolation: Value,
}

/// Looks at the engine of a runtime as it is configured, and whether these images are there. With an empty
/// directory to do it in, a container like that of a sandbox is made and removed, which shows what is really to be
/// had. `None` for a runtime that has no engine.
pub async fn inspect(
    config: &Config,
    kind: RuntimeKind,
    images: &[String],
    scratch: Option<&Path>,
) -> Option<Inspection> {
    let (engine, socket, bring) = match kind {
        RuntimeKind::Process => return None,
        RuntimeKind::Docker => {
            let never = (config.docker.pull == Pull::Never)
                .then(|| "bring it there with `docker pull NAME`".to_owned());
            (Ok(docker::engine(config)), &config.docker.socket, never)
        }
        RuntimeKind::Containerd => {
            (containerd::engine(config), &config.containerd.socket, Some(containerd::advice(config)))
        }
    };
    let mut found = Inspection {
        socket: socket.clone(),
        is_there: fs::metadata(socket).is_ok(),
        about: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
        images: Vec::new(),
        bring,
        isolation: Value::Null,
    };
    match engine {
        Ok(engine) => found.look(config, &engine, images).await,
        Err(error) => found.problems.push(format!("{error:#}")),
    }
    if let Some(scratch) = scratch.filter(|_| found.problems.is_empty()) {
        found.measure(made(config, kind, scratch)).await;
    }
    Some(found)
}

/// The runtime on a directory of its own.
fn made(config: &Config, kind: RuntimeKind, scratch: &Path) -> anyhow::Result<ContainerRuntime> {
    let make = if kind == RuntimeKind::Docker { docker::runtime } else { containerd::runtime };
    make(config, scratch, "", Arc::new(SystemClock))
}

impl Inspection {
    /// What can be known without a container.
    async fn look(&mut self, config: &Config, engine: &Arc<dyn Engine>, images: &[String]) {
        match timeout(PATIENCE, engine.survey()).await {
            Ok(Ok(survey)) => (self.about, self.warnings) = (survey.about, survey.warnings),
            Ok(Err(Problems(problems))) => self.problems.extend(problems),
            Err(_) => self.problems.push(format!(
                "{} at `{}` did not answer within {PATIENCE:?}; start it anew",
                engine.title(),
                self.socket.display()
            )),
        }
        self.problems.extend(without_tools(config));
        if self.about.is_empty() {
            return;
        }
        for image in images {
            // What cannot be asked is not there, and a container would say why.
            let there = timeout(PATIENCE, engine.image_id(image)).await;
            self.images.push((image.clone(), matches!(there, Ok(Ok(Some(_))))));
        }
    }

    /// What a container shows.
    async fn measure(&mut self, runtime: anyhow::Result<ContainerRuntime>) {
        let measured = match runtime {
            Ok(runtime) => runtime.check().await,
            Err(error) => Err(Problems(vec![format!("{error:#}")])),
        };
        match measured {
            Ok(Ability { isolation, warnings, .. }) => {
                self.isolation = serde_json::to_value(isolation).unwrap_or_default();
                self.warnings = warnings;
            }
            Err(Problems(problems)) => self.problems.extend(problems),
        }
    }
}

/// What is missing of that which every container is given.
fn without_tools(config: &Config) -> Vec<String> {
    // A directory matters to nothing but commands, and none is run.
    let program = Program::locate(config, Path::new("/"), std::env::current_exe().ok().as_deref());
    match program.map(|program| tools::collect(program.path())) {
        Ok(Ok(_)) => Vec::new(),
        Ok(Err(missing)) => vec![missing],
        Err(Problems(problems)) => problems,
    }
}
