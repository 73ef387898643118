//! `sandmesh-executor serve`: builds the sandbox, serves it, ends it.

use std::{
    os::unix::net::UnixListener,
    process::ExitCode,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Context as _;
use sandmesh_proto::executor::{
    executor_service_server::ExecutorServiceServer, workspace_service_server::WorkspaceServiceServer,
};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    admission,
    cli::ServeOptions,
    clock, disk,
    grpc::Grpc,
    init,
    isolation::house::{self, Plan},
    replay::Keep,
    request::check_id,
    service::{Capacity, Service},
    turn::Turns,
    workspace::{self, Workspace},
};

/// The largest message, as everywhere in the mesh.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Streams at once on one connection: every execution that runs or waits has one, and its watchers too.
const MAX_STREAMS: u32 = 4096;

/// Output kept in memory per stream; more goes to the spool.
const MEMORY_BYTES: u64 = 64 << 10;

/// How long streams may take to hand out the last outcomes when the executor ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// Serves until it is told to end or expires.
pub(crate) fn run(options: &ServeOptions) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).init();
    check_id("--sandbox-id", &options.sandbox_id)
        .map_err(|_| anyhow::anyhow!("--sandbox-id is not an id"))?;
    let admission = options.isolation.entry.as_deref().map(admission::wait).transpose()?;
    // After the groups are entered, so that both processes are in them.
    if admission.is_some()
        && let init::Role::Over(code) = init::split()?
    {
        return Ok(code);
    }
    // Before the privileges are given up, and the way there is closed.
    let turns = options.warm_turns.as_deref().map(Turns::open).transpose();
    let turns = turns.context("cannot open the file of --warm-turns")?;
    let plan = Plan {
        dir: &options.dir,
        sandbox_id: &options.sandbox_id,
        limits: options.limits.limits(),
        disk_bytes: options.disk_bytes,
        disk_reserve_bytes: options.disk_reserve_bytes,
        isolation: &options.isolation,
        layers: options.layers.as_deref(),
        layer: options.layer.as_ref(),
        copies: options.copies.as_deref(),
        shares_snapshots: options.snapshots,
        proxy: options.proxy.as_deref(),
        workspace: options.workspace.as_deref(),
        admission,
    };
    let (sandbox, listener) = house::build(plan)?;
    let capacity = Capacity {
        max_executions: options.max_executions as usize,
        max_queued: options.max_queued as usize,
        keep: Keep { memory_bytes: MEMORY_BYTES, total_bytes: options.max_output_bytes },
    };
    let workspace = Workspace::open(&sandbox).context("cannot open the workspace")?;
    let from_outside = (options.known_versions.clone(), options.expires_at);
    let id = options.sandbox_id.clone();
    let service = Arc::new(Service::new(id, sandbox, workspace, capacity, from_outside));
    // One thread: what there is to do is short, and handing it to another takes longer than doing it. It
    // also starts the jails, which live no longer than it does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        clock::spawn(Arc::clone(service.warm()).tend(options.warm, turns));
        serve(service, listener).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(service: Arc<Service>, listener: UnixListener) -> anyhow::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let grpc = ExecutorServiceServer::new(Grpc(Arc::clone(&service)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let workspace = WorkspaceServiceServer::new(workspace::Grpc(service.workspace().clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (begin_farewell, farewell) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(grpc)
        .add_service(workspace)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async { drop(farewell.await) });
    tokio::pin!(server);
    clock::spawn(disk::watch(Arc::clone(&service)));
    tracing::info!(isolation = ?service.sandbox().isolation(), "serving");
    let reason = select! {
        served = &mut server => return served.context("cannot serve"),
        reason = end(service.expiry()) => reason?,
    };
    tracing::info!(reason, "ending");
    select! {
        served = &mut server => return served.context("cannot serve"),
        () = service.drain() => {}
    }
    let _ = begin_farewell.send(());
    // Streams that are not read to their end must not keep the sandbox alive.
    let _ = timeout(FAREWELL, server).await;
    Ok(())
}

/// Waits for a reason to end, and tells it.
async fn end(expires_at: watch::Receiver<Option<u64>>) -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    Ok(select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = expiry(expires_at) => "expired",
    })
}

/// Waits for a time of day that may be moved, whatever the machine's clock does meanwhile.
async fn expiry(mut expires_at: watch::Receiver<Option<u64>>) {
    const LONGEST_SLEEP: Duration = Duration::from_secs(10);
    loop {
        let at = expires_at.borrow_and_update().map(|at| UNIX_EPOCH + Duration::from_secs(at));
        let left = at.map(|at| at.duration_since(clock::now()).unwrap_or_default());
        if left.is_some_and(|left| left.is_zero()) {
            return;
        }
        // Its sender lives as long as the executor.
        let _ = timeout(left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP), expires_at.changed()).await;
    }
}
