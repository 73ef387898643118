//! The attack suite: real attack programs, run through the front door of a deployment, and judged.
//!
//! [`CASES`] is the list, [`run`] carries it out against a [`Target`]. The attacks are files of their own in
//! `programs/`; `cases` starts them and looks at what they did; `judge` and `verdict` decide, without any
//! I/O. The word of the attacking code never stands alone where the client or the host can see the truth.
//! It knows nothing of how isolation is built, and nothing of the command line: see `cli/doctor.rs`.

mod arena;
mod cases;
mod host;
mod http;
mod judge;
mod live;
mod own_server;
mod target;
mod verdict;

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::time::timeout;

use self::arena::Arena;

pub use cases::CASES;
pub use own_server::OwnServer;
pub use target::{Local, Target};
pub use verdict::{Check, Evidence, Row, Verdict, Witness};

use verdict::{Ending, judge};

/// How a case is carried out.
type Drive = for<'a> fn(&'a Arena) -> BoxFuture<'a, anyhow::Result<Evidence>>;

/// One case of the suite.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its number; several cases may be parts of one number.
    pub number: u8,
    /// What is attacked.
    pub name: &'static str,
    /// What must happen.
    pub expected: &'static str,
    /// Within how many seconds it must come to its end.
    pub seconds: u64,
    plan: Plan,
}

#[derive(Clone, Copy)]
enum Plan {
    Run(Drive),
    NotRun(&'static str),
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("number", &self.number).field("name", &self.name).finish_non_exhaustive()
    }
}

/// How long the clean-up after a case may take.
const CLEANUP: Duration = Duration::from_secs(30);

/// Carries out one case. Everything it made in the deployment is removed afterwards.
///
/// # Errors
/// When the address of the deployment cannot be used.
pub async fn run(case: &Case, target: &Target) -> anyhow::Result<Row> {
    let began = Instant::now();
    let arena = Arena::new(target)?;
    let ending = match case.plan {
        Plan::NotRun(reason) => Ending::Evidence(Evidence::not_run(reason)),
        Plan::Run(drive) => match timeout(Duration::from_secs(case.seconds), drive(&arena)).await {
            Ok(Ok(evidence)) => Ending::Evidence(evidence),
            Ok(Err(error)) => Ending::Error(format!("{error:#}")),
            Err(_) => Ending::Hung(case.seconds),
        },
    };
    let cleaned = timeout(CLEANUP, arena.clean_up()).await;
    let (mut verdict, mut got) = judge(&ending);
    if !verdict.is_failure() && !matches!(cleaned, Ok(Ok(()))) {
        verdict = Verdict::Hung;
        got = format!("{got}; but its sessions could not be ended: {cleaned:?}");
    }
    let checks = match ending {
        Ending::Evidence(evidence) => evidence.checks,
        Ending::Error(_) | Ending::Hung(_) => Vec::new(),
    };
    Ok(Row {
        number: case.number,
        case: case.name,
        runtime: arena.runtime(),
        expected: case.expected,
        got,
        verdict,
        seconds: began.elapsed().as_secs_f64(),
        checks,
    })
}

/// Whether the sandboxes of a target are in the data directory that it names, and can be seen: a session is
/// made to find out, and removed.
///
/// # Errors
/// When no session can be made.
pub async fn is_local(target: &Target) -> anyhow::Result<bool> {
    let Some(local) = &target.local else { return Ok(false) };
    let arena = Arena::new(&Target { local: None, ..target.clone() })?;
    let session = arena.session(arena::Wish::default()).await;
    let seen = session.as_ref().is_ok_and(|session| {
        host::Host::open(local).is_ok_and(|host| host.sandbox(&session.sandbox_id).is_ok())
    });
    arena.clean_up().await?;
    session.map(|_| seen)
}
