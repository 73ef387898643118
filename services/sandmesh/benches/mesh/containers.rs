//! Sandboxes as containers: for each kind an engine that is started here, with an image that is made of Debian packages
//! as no registry is asked, and a server on it. What is compared with is `docker run` on the same Docker engine.

use std::{
    any::Any,
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    cgroup::Group,
    engine::{Kind, PYTHON, TestEngine, program},
    server::Server,
    stack::Stack,
    work::{On, Work},
};

/// The image that the template of the sessions names.
const IMAGE: &str = "python:3.11-slim";

/// A server on an engine. It ends before that does, and the group last.
#[derive(Debug)]
struct OnEngine {
    stack: Stack,
    engine: TestEngine,
    /// The engine and what it starts to hold containers; these are in that of the server.
    group: Group,
}

/// The engines, or why there are none.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    docker: Option<Result<OnEngine, String>>,
    containerd: Option<Result<OnEngine, String>>,
}

impl Containers {
    /// Starts what these kinds of work need; what cannot be started says why.
    pub(crate) async fn start(program: &Path, wanted: &[Work]) -> Self {
        let mut this = Self::default();
        let is_on = |on: On| wanted.iter().any(|work| work.on() == Some(on));
        if is_on(On::Docker) || wanted.iter().any(|work| matches!(work, Work::DockerRun)) {
            this.docker = Some(start(program, Kind::Docker).await);
        }
        if is_on(On::Containerd) {
            this.containerd = Some(start(program, Kind::Containerd).await);
        }
        this
    }

    /// Why this cannot be done; `None` where it can.
    pub(crate) fn why_not(&self, work: Work) -> Option<&str> {
        let on = match work {
            Work::DockerRun => &self.docker,
            _ => match work.on()? {
                On::Docker => &self.docker,
                On::Containerd => &self.containerd,
                _ => return None,
            },
        };
        on.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// The server on Docker or on containerd.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn stack(&self, on: On) -> anyhow::Result<&Stack> {
        let on = if on == On::Docker { &self.docker } else { &self.containerd };
        Ok(&on.as_ref().and_then(|on| on.as_ref().ok()).context("no engine of containers was started")?.stack)
    }

    /// The command line that runs a trivial command in a container of the image, without a network as a sandbox.
    ///
    /// # Errors
    /// When there is no Docker engine.
    pub(crate) fn docker_run(&self) -> anyhow::Result<Vec<CString>> {
        let on =
            self.docker.as_ref().and_then(|on| on.as_ref().ok()).context("no Docker engine was started")?;
        let docker = program("docker").display().to_string();
        let host = format!("--host=unix://{}", on.engine.socket().display());
        let words = [&*docker, &*host, "run", "--rm", "--network=none", IMAGE, "true"];
        Ok(words.into_iter().map(CString::new).collect::<Result<_, _>>()?)
    }

    /// The CPU time of all servers and engines until now.
    pub(crate) fn cpu(&self) -> Duration {
        let all = [&self.docker, &self.containerd].into_iter().flatten().flatten();
        all.map(|on| on.stack.server.group().cpu() + on.group.cpu()).sum()
    }

    /// Ends all of it in order.
    ///
    /// # Errors
    /// When a server does not end well.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let mut all = [&mut self.docker, &mut self.containerd].into_iter().flatten().flatten();
        all.try_for_each(|on| on.stack.server.stop())
    }
}

async fn start(program: &Path, kind: Kind) -> Result<OnEngine, String> {
    eprintln!("starting an engine: {}", kind.name());
    // What cannot be had there is a panic, as a test fails by.
    let engine = tokio::task::spawn_blocking(move || {
        let engine = TestEngine::own(kind, PYTHON, false);
        engine.tag(PYTHON, IMAGE);
        engine
    });
    let engine = engine.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => said(&*panic),
        Err(error) => error.to_string(),
    })?;
    serve(program, engine).await.map_err(|error| format!("{error:#}"))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the engine could not be started").lines().next().unwrap_or_default().to_owned()
}

async fn serve(program: &Path, engine: TestEngine) -> anyhow::Result<OnEngine> {
    let kind = engine.kind().name();
    let group = Group::create(&format!("sandmesh-bench-{}-{kind}", std::process::id()))?;
    group.admit(engine.pid().context("the engine is not ours")?)?;
    let socket_name = format!("SANDMESH_AGENT__{}__SOCKET", kind.to_uppercase());
    let (socket, executor) = (engine.socket(), static_executor(program));
    let settings = [
        ("SANDMESH_AGENT__RUNTIME", kind),
        (&*socket_name, &*socket.to_string_lossy()),
        ("SANDMESH_AGENT__EXECUTOR", &*executor.to_string_lossy()),
    ];
    let stack = Stack::connect(Server::start(program, &settings).await?).await?;
    Ok(OnEngine { stack, engine, group })
}

/// The executor that was linked statically for the same profile; the one beside the program where there is no
/// other, as that of a release is static anyway.
fn static_executor(program: &Path) -> PathBuf {
    let beside = program.with_file_name("sandmesh-executor");
    let of_profile = || {
        let (profile, target) = (program.parent()?.file_name()?, program.ancestors().nth(2)?);
        let places = fs::read_dir(target).ok()?.flatten();
        let places = places.filter(|place| place.file_name().to_string_lossy().contains("-linux-"));
        let mut built = places.map(|place| place.path().join(profile).join("sandmesh-executor"));
        built.find(|path| path.is_file())
    };
    of_profile().unwrap_or(beside)
}
