//! Running an installer in a sandbox of its own, whatever makes that: the socket of its proxy, its command,
//! what it said and how it ended.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
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
    executor::{endpoint, with_log},
    installer::{self, Installer},
};
use crate::{Error, config, packages::PackageSet, sandbox::Resources, service::passed};

/// How much of what the installer says is kept while it runs.
const SAID: usize = 64 << 10;
/// No installation takes longer, whoever asks for it.
pub(in crate::runtime) const LONGEST: Duration = Duration::from_secs(3600);

/// Listens for the installer of a sandbox of this uid, if it has one of its own.
pub(in crate::runtime) fn listen(socket: &Path, uid: Option<u32>) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    if let Some(uid) = uid {
        chown(socket, Some(uid), Some(uid))?;
    }
    Ok(listener)
}

/// What went wrong that is nobody's fault.
pub(in crate::runtime) fn internal(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::internal(anyhow::Error::new(error).context(what))
}

/// Runs the installer to its end, or to the deadline, which may be moved meanwhile.
pub(in crate::runtime) async fn run(
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
pub(in crate::runtime) fn limits(config: &config::Packages) -> Resources {
    Resources {
        cpu_millis: config.cpu_millis,
        memory_bytes: config.memory.0,
        disk_bytes: config.disk.0,
        max_processes: config.max_processes,
    }
}
