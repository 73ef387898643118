//! Runs an installer in a sandbox of its own: an executor like that of any other, in whose jail there is a
//! socket that leads to the hosts of packages. What it makes is taken out only when all of it is dead.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sandmesh_mesh::{Link, MAX_MESSAGE_BYTES};
use sandmesh_proto::executor::{
    Cause, ExecuteRequest, ExecutionExited, ExecutionStart, execute_request, execute_response::Frame,
    execution_exited::Status as Exit, executor_service_client::ExecutorServiceClient,
};
use tokio::{net::UnixListener, sync::watch, time::Instant};
use tonic::Status;

use super::{
    ProcessRuntime, answered, endpoint,
    installer::{self, Installer, TARGET, installer},
    life::{self, Process},
    with_log,
};
use crate::{
    Error, config,
    packages::PackageSet,
    proxy,
    runtime::Contents,
    sandbox::{Resources, SandboxId},
    service::passed,
};

/// How much of what the installer says is kept while it runs.
const SAID: usize = 64 << 10;
/// No installation takes longer, whoever asks for it.
const LONGEST: Duration = Duration::from_secs(3600);

/// The sandbox of an installer.
struct Place {
    id: SandboxId,
    dir: PathBuf,
    uid: Option<u32>,
}

/// Where the sandboxes of installers are; shorter than that of others, whose sockets must fit.
pub(super) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("installs")
}

impl ProcessRuntime {
    /// Installs into `files`. However it ends, nothing is left of the sandbox.
    pub(super) async fn run_installer(
        &self,
        set: &PackageSet,
        files: &Path,
        deadline: watch::Receiver<Instant>,
    ) -> Result<Contents, Error> {
        let id = SandboxId::random();
        let uid = self.take_uid(&id)?;
        let place = Place { dir: self.installs.join(id.as_str()), id, uid };
        let outcome = self.install_in(&place, set, files, deadline).await;
        match self.program.destroy(&place.dir, &place.id).await {
            Ok(()) => self.free_uid(uid),
            Err(why) => tracing::error!(sandbox.id = %place.id, why, "left over from an installation"),
        }
        outcome
    }

    /// Destroys what is left of the installers of an agent before this one.
    pub(super) async fn clear_installers(&self) {
        for id in super::ids_in(&self.installs).unwrap_or_default() {
            if let Err(why) = self.program.destroy(&self.installs.join(id.as_str()), &id).await {
                tracing::error!(sandbox.id = %id, why, "left over from an installation");
            }
        }
    }

    async fn install_in(
        &self,
        place: &Place,
        set: &PackageSet,
        files: &Path,
        mut deadline: watch::Receiver<Instant>,
    ) -> Result<Contents, Error> {
        let Place { id, dir, uid } = place;
        let command = installer(set, self.program.config(), &self.program.python())
            .ok_or_else(|| Error::install_failed(format!("there are no packages for {}", set.language)))?;
        let (log, listener) =
            prepare(&self.installs, dir, *uid).map_err(internal("cannot make its directory"))?;
        let serving = proxy::serve(listener, Arc::clone(&self.hosts));
        let installing = async {
            let expires_at = self.clock.now() + LONGEST;
            let limits = limits(&self.program.config().packages);
            let child = self.program.serve_installer((id, dir, *uid), &limits, expires_at, log);
            let process = child.and_then(Process::of_child).map_err(internal("cannot run its executor"))?;
            let answer = tokio::select! {
                answer = answered(dir, id, self.start_timeout, None) => answer.map(drop),
                status = process.ended() => Err(life::describe(status)),
            };
            answer.map_err(|why| {
                Error::install_failed(with_log(&format!("its sandbox did not start: {why}"), dir))
            })?;
            run(dir, command, set, &mut deadline).await
        };
        tokio::select! {
            installed = installing => installed?,
            () = serving => {}
        }
        let sealed = self.program.seal((id, dir), TARGET, files, set.language).await;
        sealed.map_err(|why| Error::install_failed(format!("what was installed is not taken: {why}")))
    }
}

/// Makes the directory of an installer with its log and the socket of its proxy.
fn prepare(root: &Path, dir: &Path, uid: Option<u32>) -> io::Result<(fs::File, UnixListener)> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    DirBuilder::new().mode(0o700).create(dir)?;
    let socket = proxy_socket(dir);
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
    if let Some(uid) = uid {
        chown(&socket, Some(uid), Some(uid))?;
    }
    let log = OpenOptions::new().append(true).create_new(true).mode(0o600).open(super::log::path(dir))?;
    Ok((log, listener))
}

/// Where the proxy of an installer listens.
pub(super) fn proxy_socket(dir: &Path) -> PathBuf {
    dir.join("proxy.sock")
}

fn internal(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::internal(anyhow::Error::new(error).context(what))
}

/// Runs the installer to its end, or to the deadline, which may be moved meanwhile.
async fn run(
    dir: &Path,
    Installer { command, env }: Installer,
    set: &PackageSet,
    deadline: &mut watch::Receiver<Instant>,
) -> Result<(), Error> {
    let start = ExecutionStart {
        execution_id: "install".to_owned(),
        command,
        env,
        timeout: prost_types::Duration::try_from(LONGEST).ok(),
        ..ExecutionStart::default()
    };
    let mut said = Said::default();
    let ended = tokio::select! {
        ended = follow(dir, start, &mut said) => Some(ended),
        () = passed(deadline) => None,
    };
    let text = installer::told(said.best(), set);
    match ended {
        None => Err(Error::InstallFailed {
            message: joined("the installer was stopped at its time limit", &text),
            timed_out: true,
        }),
        Some(Ok(None)) => Ok(()),
        Some(Ok(Some(how))) => Err(Error::install_failed(joined(&how, &text))),
        Some(Err(status)) => {
            Err(Error::install_failed(with_log(&format!("its sandbox was lost: {}", status.message()), dir)))
        }
    }
}

fn joined(how: &str, text: &str) -> String {
    if text.is_empty() { how.to_owned() } else { format!("{how}:\n{text}") }
}

/// What the installer said last, on each of its streams.
#[derive(Debug, Default)]
struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Said {
    /// Complaints, or else whatever there is.
    fn best(&self) -> &[u8] {
        if self.stderr.trim_ascii().is_empty() { &self.stdout } else { &self.stderr }
    }
}

fn append(said: &mut Vec<u8>, data: &[u8]) {
    said.extend_from_slice(data);
    let cut = said.len().saturating_sub(SAID);
    drop(said.drain(..cut));
}

/// How the installer ended; `None` when it did what it should.
async fn follow(dir: &Path, start: ExecutionStart, said: &mut Said) -> Result<Option<String>, Status> {
    let link = Link::dial(&endpoint(dir)).map_err(|error| Status::internal(error.to_string()))?;
    let mut client = ExecutorServiceClient::new(link).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let first = ExecuteRequest { frame: Some(execute_request::Frame::Start(start)) };
    let mut frames = client.execute(futures::stream::iter([first])).await?.into_inner();
    while let Some(response) = frames.message().await? {
        match response.frame {
            Some(Frame::Stdout(chunk)) => append(&mut said.stdout, &chunk.data),
            Some(Frame::Stderr(chunk)) => append(&mut said.stderr, &chunk.data),
            Some(Frame::Exited(exited)) => return Ok(how(&exited)),
            Some(Frame::Failed(failed)) => {
                return Ok(Some(format!("it could not be run: {}", failed.message)));
            }
            Some(Frame::Started(_) | Frame::InputTaken(_)) | None => {}
        }
    }
    Err(Status::unavailable("its output ended early"))
}

/// How it ended, for a person; `None` when well.
fn how(exited: &ExecutionExited) -> Option<String> {
    let limit = match exited.cause() {
        Cause::Unspecified => None,
        Cause::Oom => Some("it needed more memory than `agent.packages.memory`"),
        Cause::DiskLimit => Some("it needed more disk than `agent.packages.disk`"),
        Cause::PidsLimit => Some("it started more processes than `agent.packages.max_processes`"),
        _ => Some("it was stopped"),
    };
    match (limit, exited.status.as_ref()) {
        (Some(limit), _) => Some(limit.to_owned()),
        (None, Some(Exit::ExitCode(0))) => None,
        (None, Some(Exit::ExitCode(code))) => Some(format!("the installer ended with exit code {code}")),
        (None, Some(Exit::Signal(signal))) => Some(format!("the installer was killed by signal {signal}")),
        (None, None) => Some("the installer ended".to_owned()),
    }
}

/// The limits of an installer.
fn limits(config: &config::Packages) -> Resources {
    Resources {
        cpu_millis: config.cpu_millis,
        memory_bytes: config.memory.0,
        disk_bytes: config.disk.0,
        max_processes: config.max_processes,
    }
}
