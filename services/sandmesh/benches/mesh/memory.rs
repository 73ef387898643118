//! The memory of idle sessions.

use std::time::Duration;

use sandmesh_proto::executor::Language;
use serde::Serialize;

use crate::{
    kernel, process,
    stack::{Session, Stack},
    work::{Door, execute},
};

/// How long sessions are left alone before they count as idle.
const IDLE: Duration = Duration::from_secs(3);

/// The memory of idle sessions, each of which has run Python once. Proportional set sizes: what several
/// share is divided among them.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    /// How many.
    pub(crate) sessions: usize,
    /// All processes of a session's sandbox, in MiB, the mean of all.
    pub(crate) mib_each: f64,
    /// The executor's part of it.
    pub(crate) executor_mib_each: f64,
    /// How many processes a session has, those that run in the memory of another left out.
    pub(crate) processes_each: f64,
    /// In how many sessions an interpreter is kept.
    pub(crate) with_python: usize,
    /// The server itself, in MiB.
    pub(crate) server_mib: f64,
}

/// Creates that many sessions, runs Python once in each, leaves them alone and measures them.
///
/// # Errors
/// When a session cannot be created or does not work.
pub(crate) async fn measure(stack: &Stack, sessions: u32) -> anyhow::Result<Idle> {
    let mut opened = Vec::new();
    for _ in 0..sessions {
        let session = stack.open_session().await?;
        execute(stack, &session, Language::Python, Door::Rest).await?;
        opened.push(session);
    }
    tokio::time::sleep(IDLE).await;
    let idle = read(stack, &opened);
    for session in &opened {
        stack.end_session(&session.id).await?;
    }
    Ok(idle)
}

fn read(stack: &Stack, sessions: &[Session]) -> Idle {
    let group = stack.server.group();
    let processes: Vec<Vec<i32>> =
        sessions.iter().map(|session| without_sharers(group.processes_of(&session.sandbox))).collect();
    let executors = sessions.iter().filter_map(|session| group.executor_of(&session.sandbox));
    let each = |bytes: u64| bytes as f64 / f64::from(1 << 20) / sessions.len() as f64;
    let pss = |pids: &mut dyn Iterator<Item = i32>| pids.map(process::memory).map(|m| m.pss).sum::<u64>();
    Idle {
        sessions: sessions.len(),
        mib_each: each(pss(&mut processes.iter().flatten().copied())),
        executor_mib_each: each(pss(&mut executors.into_iter())),
        processes_each: processes.iter().map(Vec::len).sum::<usize>() as f64 / sessions.len() as f64,
        with_python: processes.iter().filter(|pids| pids.iter().any(|pid| process::is_python(*pid))).count(),
        server_mib: process::memory(stack.server.pid()).pss as f64 / f64::from(1 << 20),
    }
}

/// One of each that run in the same memory, which each of them would count whole: the init of a nest runs in
/// its parent's.
fn without_sharers(pids: Vec<i32>) -> Vec<i32> {
    let mut kept: Vec<i32> = Vec::new();
    for pid in pids {
        if !kept.iter().any(|other| kernel::share_memory(*other, pid)) {
            kept.push(pid);
        }
    }
    kept
}
