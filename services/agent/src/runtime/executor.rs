//! The executor in a directory, dialled: whether it answers, what it is, and what it is told.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use sandmesh_mesh::{Link, timestamp};
use sandmesh_proto::executor::{
    ClaimRequest, GetExecutorRequest, GetExecutorResponse, MountLayerRequest,
    executor_service_client::ExecutorServiceClient,
};
use tokio::time::{Instant, sleep, timeout};

use super::{Order, arrival::Arrivals, log, program, record::Record};
use crate::{
    Error,
    convert::{isolation_from_pb, language_from_pb, language_pb},
    packages::{Layer, LayerKey},
    sandbox::{Facts, Language, SandboxId, Spec},
};

/// How often a new executor's socket is looked for, when nothing was heard of it.
const POLL: Duration = Duration::from_millis(10);
/// How soon it is tried again, when it is there and refuses.
const RETRY: Duration = Duration::from_millis(1);
/// How long an executor may take to serve another user.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an executor may take to show other packages: it starts its interpreters anew.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the executor in `dir` is dialled.
pub(in crate::runtime) fn endpoint(dir: &Path) -> String {
    format!("unix:{}", socket_path(dir).display())
}

fn socket_path(dir: &Path) -> PathBuf {
    dir.join("executor.sock")
}

/// Lets the members of a group dial the executor in `dir`, and see nothing else that is there.
pub(in crate::runtime) fn open_to(dir: &Path, group: Option<u32>) -> Result<(), String> {
    let Some(group) = group else { return Ok(()) };
    let open = |path: &Path, mode| {
        chown(path, None, Some(group))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    let ways = dir.parent().into_iter().chain([dir]);
    let opened = ways.map(|way| open(way, 0o710)).chain([open(&socket_path(dir), 0o660)]);
    let opened: io::Result<()> = opened.collect();
    opened.map_err(|error| {
        format!("its socket cannot be given to group {group} (`agent.socket_group`): {error}")
    })
}

/// Waits until the executor in `dir` answers, and is the one that it should be.
pub(in crate::runtime) async fn answered(
    dir: &Path,
    id: &SandboxId,
    within: Duration,
    arrivals: Option<&Arrivals>,
) -> Result<GetExecutorResponse, String> {
    let deadline = Instant::now() + within;
    let mut last = "nothing listens on its socket".to_owned();
    while Instant::now() < deadline {
        let there = fs::symlink_metadata(socket_path(dir)).is_ok();
        if there {
            match timeout(deadline - Instant::now(), ask(dir)).await {
                Ok(Ok(answer)) if answer.sandbox_id == id.as_str() => return Ok(answer),
                Ok(Ok(answer)) => return Err(format!("executor is that of `{}`", answer.sandbox_id)),
                Ok(Err(why)) => last = why,
                Err(_) => "it does not answer".clone_into(&mut last),
            }
        }
        // What arrives is not only its socket, and that is a file a moment before it listens.
        tokio::select! {
            () = sleep(if there { RETRY } else { POLL }) => {}
            Ok(()) = arrived(arrivals), if !there => {}
        }
    }
    Err(format!("executor did not answer within {within:?}: {last}"))
}

async fn arrived(arrivals: Option<&Arrivals>) -> io::Result<()> {
    match arrivals {
        Some(arrivals) => arrivals.next().await,
        None => std::future::pending().await,
    }
}

async fn ask(dir: &Path) -> Result<GetExecutorResponse, String> {
    let link = Link::dial(&endpoint(dir)).map_err(|error| error.to_string())?;
    let answer = ExecutorServiceClient::new(link).get_executor(GetExecutorRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}

/// What a sandbox got, by the answer of its executor.
pub(in crate::runtime) fn facts(dir: &Path, language: Language, answer: GetExecutorResponse) -> Facts {
    let runtime = answer.languages.iter().find(|found| language_from_pb(found.language()) == Some(language));
    Facts {
        endpoint: endpoint(dir),
        isolation: isolation_from_pb(answer.isolation.unwrap_or_default()),
        language_runtime: runtime.map(|found| language.runtime_name(&found.version)).unwrap_or_default(),
        layers: Vec::new(),
        layer: None,
    }
}

/// Has the executor in `dir` show another layer, and notes it in the record there.
///
/// # Errors
/// `NotMounted`, and it has what it had.
pub(in crate::runtime) async fn mount_noted(dir: &Path, id: &SandboxId, layer: &Layer) -> Result<(), Error> {
    let failed = |why: String| Error::NotMounted { id: id.clone(), why };
    let note = |note: fn(&mut Facts, &LayerKey)| {
        let mut record = Record::load(dir)?;
        record.facts.iter_mut().for_each(|facts| note(facts, &layer.key));
        record.save(dir)
    };
    let not_noted = |error: io::Error| failed(format!("cannot record it: {error}"));
    // First that it is to be kept, then the use of it, and only then that it is used.
    note(Facts::expect_layer).map_err(not_noted)?;
    mount(dir, layer).await.map_err(failed)?;
    note(Facts::show_layer).map_err(not_noted)
}

/// Has the executor in `dir` serve another user from now on, and notes that in the record there.
///
/// # Errors
/// `NotClaimed`.
pub(in crate::runtime) async fn claim_noted(
    dir: &Path,
    home: &SandboxId,
    Order { id, spec, created_at, .. }: &Order,
) -> Result<(), Error> {
    let failed = |why: String| Error::NotClaimed { id: home.clone(), why };
    // The executor first: of two who claim it one is refused, whatever is recorded.
    claim(dir, id, spec).await.map_err(failed)?;
    let note = || {
        let record = Record::load(dir)?;
        let (claimed_as, spec, created_at) = (Some(id.clone()), spec.clone(), *created_at);
        Record { claimed_as, spec, created_at, ..record }.save(dir)
    };
    note().map_err(|error| failed(format!("cannot record it: {error}")))
}

async fn claim(dir: &Path, id: &SandboxId, spec: &Spec) -> Result<(), String> {
    let link = Link::dial(&endpoint(dir)).map_err(|error| error.to_string())?;
    let request = ClaimRequest { claimant: id.to_string(), expires_at: spec.expires_at.map(timestamp) };
    let claimed = timeout(CLAIM_TIMEOUT, ExecutorServiceClient::new(link).claim(request)).await;
    let claimed = claimed.map_err(|_| format!("its executor did not answer within {CLAIM_TIMEOUT:?}"))?;
    claimed.map(drop).map_err(|status| status.message().to_owned())
}

/// Has the executor in `dir` show another layer.
async fn mount(dir: &Path, layer: &Layer) -> Result<(), String> {
    let link = Link::dial(&endpoint(dir)).map_err(|error| error.to_string())?;
    let request =
        MountLayerRequest { key: layer.key.to_string(), language: language_pb(layer.language).into() };
    let mounted = timeout(MOUNT_TIMEOUT, ExecutorServiceClient::new(link).mount_layer(request)).await;
    let mounted = mounted.map_err(|_| format!("its executor did not do it within {MOUNT_TIMEOUT:?}"))?;
    mounted.map(drop).map_err(|status| status.message().to_owned())
}

/// `why`, with the end of the executor's log.
pub(in crate::runtime) fn with_log(why: &str, dir: &Path) -> String {
    match log_tail(dir) {
        Ok(tail) if !tail.is_empty() => format!("{why}; its log ends with: {tail}"),
        _ => why.to_owned(),
    }
}

/// The end of the executor's log.
pub(in crate::runtime) fn log_tail(dir: &Path) -> io::Result<String> {
    Ok(program::tail(&log::end(dir, program::TAIL_BYTES as u64)?))
}

/// The sandboxes that have a directory; anything else there is not ours to touch.
pub(in crate::runtime) fn ids_in(root: &Path) -> io::Result<Vec<SandboxId>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        match name.to_string_lossy().parse() {
            Ok(id) => ids.push(id),
            Err(error) => tracing::warn!(%error, "left alone in `{}`", root.display()),
        }
    }
    Ok(ids)
}
