//! Warm parents and spare children: what makes an execution start at once.
//!
//! A parent is started for the language of the sandbox soon after the executor has started, and for others when
//! they are first asked for. Spare children, which wait for their request, are made while nothing runs, as soon as the
//! machine has time or after some seconds; an execution that finds none has one made for it. Nothing in here knows
//! what executions run.

mod demand;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use self::demand::{Demand, Rest, most};
use crate::{
    cli::Language,
    clock,
    isolation::{
        Sandbox,
        cgroup::Limits,
        parent::{Host, Parent, Rehearsal, SpawnError},
        process::{Keeper, Kinship, Process},
    },
    runner::{Kind, warm_node},
    turn::{Turns, is_busy},
};

/// A parent with so many children, or so old, is replaced.
const MAX_CHILDREN: u32 = 10_000;

/// After so many it pays to have a Python that held a rehearsal.
const MAX_PLAIN_CHILDREN: u32 = 100;
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// How often old parents and spares that are no longer wanted are looked for.
const TEND: Duration = Duration::from_secs(5);

/// How long after it could not be warm a Python is not tried again.
const COLD: Duration = Duration::from_secs(60);

/// How many empty control groups are kept while nothing runs.
const FREE_GROUPS: usize = 2;

/// How long nothing must have run before spares are made, and how much longer than before a busy machine is left alone
/// each time that it is. A spare costs more than a child that is made for its request: it is warmed up, and a
/// keeper takes it apart. So where there is always something to do they would be a loss.
const QUIET: Duration = Duration::from_millis(1);
const LONGER: u32 = 2;

/// Who makes shorter pauses than this would never have one then.
const SHORT: Duration = Duration::from_millis(2);

/// After which of these times it is left to [`TEND`].
const LONGEST: Duration = Duration::from_millis(500);

/// How long a spare may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The parents and the spares of a sandbox.
#[derive(Debug)]
pub(crate) struct Warm {
    sandbox: Arc<Sandbox>,
    slots: Arc<Semaphore>,
    max_executions: usize,
    /// How many slots are held by what is left of executions that have ended.
    leaving: AtomicUsize,
    /// How many processes were asked for so far.
    arrivals: AtomicUsize,
    rest: Mutex<Rest>,
    python: tokio::sync::Mutex<Option<Arc<Parent>>>,
    program: tokio::sync::Mutex<Option<Arc<Parent>>>,
    /// By [`Kind`].
    stocks: [Mutex<Stock>; 3],
    /// Whether a Python that was to hold a rehearsal did not get warm.
    cannot_rehearse: AtomicBool,
    /// When the Python of this sandbox could not be a warm parent.
    cold_python: Mutex<Option<Instant>>,
    ended: AtomicBool,
    /// Held by the one task that makes spares.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Stock {
    spares: VecDeque<Process>,
    demand: Demand,
}

/// An execution that has ended, and of which something is left.
#[derive(Debug)]
pub(crate) struct Leaving<'a>(&'a Warm);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leaving.fetch_sub(1, Ordering::Relaxed);
    }
}

const KINDS: [Kind; 3] = [Kind::Python, Kind::Node, Kind::Program];

fn host(kind: Kind) -> Host {
    match kind {
        Kind::Python => Host::Python,
        Kind::Node | Kind::Program => Host::Program,
    }
}

/// A Python that is made when its request is there has more to do with one than without; and where few processes are
/// allowed, a Node.js has better use for its place.
fn keeper(kind: Kind, kinship: Kinship, limits: Limits) -> Keeper {
    match (kind, kinship) {
        (Kind::Python, Kinship::Spare) => Keeper::Nest,
        (Kind::Node, _) if most(kind, limits) > 0 => Keeper::Child,
        _ => Keeper::Nobody,
    }
}

/// Whether nobody is there any more to take an order.
fn is_gone(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl Warm {
    /// Nothing warm yet. Executions hold permits of `slots` while they run.
    pub(crate) fn new(sandbox: Arc<Sandbox>, slots: Arc<Semaphore>) -> Self {
        Self {
            max_executions: slots.available_permits(),
            leaving: AtomicUsize::new(0),
            arrivals: AtomicUsize::new(0),
            rest: Mutex::default(),
            sandbox,
            slots,
            python: tokio::sync::Mutex::default(),
            program: tokio::sync::Mutex::default(),
            stocks: Default::default(),
            cannot_rehearse: AtomicBool::new(false),
            cold_python: Mutex::default(),
            ended: AtomicBool::new(false),
            making: tokio::sync::Mutex::default(),
        }
    }

    /// Warms up for a language when it is its turn, and from then on keeps things fresh. Never returns.
    pub(crate) async fn tend(self: Arc<Self>, language: Option<Language>, turns: Option<Turns>) {
        if !self.sandbox.is_warm() {
            return;
        }
        let interpreters = self.sandbox.interpreters();
        let kind = match language {
            Some(Language::Python) if self.sandbox.has_jail() && interpreters.python.is_some() => {
                Some(Kind::Python)
            }
            Some(Language::Javascript) if interpreters.node.is_some() => Some(Kind::Node),
            Some(Language::Shell) => Some(Kind::Program),
            _ => None,
        };
        if let Some(kind) = kind {
            self.stock(kind).demand.note(1, Instant::now());
        }
        let turn = match turns {
            Some(turns) => Some(turns.wait().await),
            None => None,
        };
        self.replenish().await;
        drop(turn);
        loop {
            sleep(TEND).await;
            self.retire().await;
            self.replenish().await;
        }
    }

    /// A process of this kind, and the kind that it really is: one that waits already, or a new one.
    pub(crate) async fn take(&self, kind: Kind) -> Result<(Process, Kind), SpawnError> {
        if !self.sandbox.is_warm() {
            let parent = Arc::new(Parent::start(Host::Program, Rehearsal::Skip, &self.sandbox)?);
            let child = self.sandbox.order(parent, Host::Program, Kinship::OnlyChild, Keeper::Nobody);
            return Ok((child.await?, Kind::Program));
        }
        let kind = if kind == Kind::Python && !self.python_is_warm().await { Kind::Program } else { kind };
        if let Some(process) = self.take_spare(kind) {
            return Ok((process, kind));
        }
        Ok((self.make(kind, Kinship::Siblings).await?, kind))
    }

    /// Replaces the parents, as what their jails show has changed: what is taken from now on comes of new ones,
    /// and what runs goes on.
    pub(crate) async fn renew(self: &Arc<Self>) -> Result<(), SpawnError> {
        for host in [Host::Python, Host::Program] {
            let mut slot = self.slot(host).lock().await;
            let Some(old) = slot.take() else { continue };
            old.condemn();
            *slot = Some(self.start_warm(host, Rehearsal::Skip).await?);
        }
        let warm = Arc::clone(self);
        clock::spawn(async move { warm.replenish().await });
        Ok(())
    }

    /// Makes spares in the background, once there is time.
    pub(crate) fn replenish_soon(self: &Arc<Self>) {
        if !self.sandbox.is_warm() || !self.is_idle() {
            return;
        }
        // One of these for each rest.
        if self.rest().begin(Instant::now()) && self.making.try_lock().is_ok() {
            let warm = Arc::clone(self);
            clock::spawn(async move {
                if warm.has_time().await {
                    warm.replenish().await;
                }
            });
        }
    }

    /// Waits until the machine has a processor to spare: now, for who runs one thing right after the other, otherwise
    /// when nothing was asked for in a while. False when something was asked for, or there is none for long.
    async fn has_time(&self) -> bool {
        let arrivals = || self.arrivals.load(Ordering::Relaxed);
        let (before, mut quiet) = (arrivals(), QUIET);
        clock::let_others_go_first().await;
        let is_short = self.rest().was_below(SHORT);
        // What has just ended, and whoever hears of it, are busy now too.
        if is_short && !is_busy(if self.wants_one_at_most() { 2 } else { 1 }) {
            return arrivals() == before;
        }
        while quiet <= LONGEST {
            sleep(quiet).await;
            if arrivals() != before {
                return false;
            }
            if !is_busy(1) {
                return true;
            }
            quiet *= LONGER;
        }
        false
    }

    fn wants_one_at_most(&self) -> bool {
        let now = Instant::now();
        KINDS.into_iter().all(|kind| self.stock(kind).demand.wanted(2, now) <= 1)
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every spare and every parent.
    pub(crate) async fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        for kind in KINDS {
            let spares = std::mem::take(&mut self.stock(kind).spares);
            for spare in spares {
                spare.dismantle(PATIENCE).await;
            }
        }
        for parent in [&self.python, &self.program] {
            if let Some(parent) = parent.lock().await.take() {
                parent.end().await;
            }
        }
        self.sandbox.keep_groups(0);
    }

    fn take_spare(&self, kind: Kind) -> Option<Process> {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
        self.rest().end(Instant::now());
        let running = self.running();
        let mut stock = self.stock(kind);
        stock.demand.note(running, Instant::now());
        while let Some(mut spare) = stock.spares.pop_front() {
            if spare.is_waiting() {
                spare.begin_account();
                return Some(spare);
            }
            clock::spawn(async move {
                let _ = spare.dismantle(PATIENCE).await;
            });
        }
        None
    }

    /// Whether the warm Python works; waits until that is known.
    async fn python_is_warm(&self) -> bool {
        let cold = || self.cold_python.lock().unwrap_or_else(PoisonError::into_inner);
        if cold().is_some_and(|since| since.elapsed() < COLD) {
            return false;
        }
        let Err(err) = self.warm_python().await else { return true };
        tracing::error!(stage = err.stage, error = %err.source, "python cannot be kept warm: executions start their own");
        cold().replace(Instant::now());
        false
    }

    async fn warm_python(&self) -> Result<(), SpawnError> {
        loop {
            let parent = self.parent(Host::Python).await?;
            let settled = self.settle(&parent).await;
            if let Ok(true) = settled {
                return Ok(());
            }
            parent.condemn();
            settled?;
        }
    }

    /// A parent that is warm.
    async fn start_warm(&self, host: Host, rehearsal: Rehearsal) -> Result<Arc<Parent>, SpawnError> {
        loop {
            let parent = Arc::new(Parent::start(host, rehearsal, &self.sandbox)?);
            if self.settle(&parent).await? {
                return Ok(parent);
            }
        }
    }

    /// Waits until a parent is warm; false if it did not get there for its snapshot, so that another is to be tried.
    async fn settle(&self, parent: &Parent) -> Result<bool, SpawnError> {
        let warmed = parent.is_warm().await;
        if parent.is_refused() || parent.is_restored() && warmed.is_err() {
            self.sandbox.forget_snapshots();
        }
        match warmed {
            Err(err) if parent.is_restored() && !self.ended.load(Ordering::Relaxed) => {
                tracing::warn!(stage = err.stage, error = %err.source, "a snapshot of python is no good");
                Ok(false)
            }
            warmed => warmed.map(|()| true),
        }
    }

    /// The parent of this host, made if there is none that is alive.
    async fn parent(&self, host: Host) -> Result<Arc<Parent>, SpawnError> {
        let mut slot = self.slot(host).lock().await;
        if let Some(parent) = slot.as_ref().filter(|parent| !parent.is_condemned()) {
            return Ok(Arc::clone(parent));
        }
        let parent = Arc::new(Parent::start(host, Rehearsal::Skip, &self.sandbox)?);
        *slot = Some(Arc::clone(&parent));
        Ok(parent)
    }

    fn slot(&self, host: Host) -> &tokio::sync::Mutex<Option<Arc<Parent>>> {
        match host {
            Host::Python => &self.python,
            Host::Program => &self.program,
        }
    }

    /// A new child. A parent that cannot be given the order is replaced, once.
    async fn make(&self, kind: Kind, kinship: Kinship) -> Result<Process, SpawnError> {
        let (host, keeper) = (host(kind), keeper(kind, kinship, self.sandbox.limits()));
        let parent = self.parent(host).await?;
        let ordered = match self.sandbox.order(Arc::clone(&parent), host, kinship, keeper).await {
            Err(SpawnError { stage: "order_child", source }) if is_gone(&source) => {
                parent.condemn();
                self.sandbox.order(self.parent(host).await?, host, kinship, keeper).await
            }
            ordered => ordered,
        };
        let process = ordered?;
        if let (Kind::Node, Some(node), Some(request)) =
            (kind, &self.sandbox.interpreters().node, &process.request)
        {
            // If it is gone already, whoever takes it finds out.
            let _ = request.write(&warm_node(node, &process.scene, process.keeper));
        }
        Ok(process)
    }

    /// Makes the spares that are wanted, as long as nothing runs.
    async fn replenish(&self) {
        let _making = self.making.lock().await;
        for kind in KINDS {
            while self.wants(kind) && self.is_idle() {
                if kind == Kind::Python && !self.python_is_warm().await {
                    break;
                }
                match self.make(kind, Kinship::Spare).await {
                    Ok(spare) if !self.ended.load(Ordering::Relaxed) => {
                        self.stock(kind).spares.push_back(spare)
                    }
                    Ok(spare) => drop(spare.dismantle(PATIENCE).await),
                    Err(err) => {
                        tracing::warn!(stage = err.stage, error = %err.source, "cannot make a spare process");
                        return;
                    }
                }
            }
        }
    }

    fn wants(&self, kind: Kind) -> bool {
        let stock = self.stock(kind);
        let wanted =
            stock.demand.wanted(most(kind, self.sandbox.limits()).min(self.max_executions), Instant::now());
        stock.spares.len() < wanted && !self.ended.load(Ordering::Relaxed)
    }

    /// Ends the spares that are dead or not wanted any more, and replaces old parents.
    async fn retire(&self) {
        for kind in KINDS {
            let surplus = {
                let mut stock = self.stock(kind);
                let wanted = stock.demand.wanted(most(kind, self.sandbox.limits()), Instant::now());
                let spares = std::mem::take(&mut stock.spares);
                let (mut kept, mut surplus): (VecDeque<_>, VecDeque<_>) =
                    spares.into_iter().partition(Process::is_waiting);
                surplus.extend(kept.split_off(wanted.min(kept.len())));
                stock.spares = kept;
                surplus
            };
            for spare in surplus {
                spare.dismantle(PATIENCE).await;
            }
        }
        if self.is_idle() {
            self.sandbox.keep_groups(FREE_GROUPS);
        }
        for host in [Host::Python, Host::Program] {
            if let Err(err) = self.recycle(host).await {
                tracing::warn!(stage = err.stage, error = %err.source, "cannot replace a warm parent");
            }
        }
    }

    /// Replaces a parent that is old, by one that held a rehearsal if it is a Python and that pays.
    async fn recycle(&self, host: Host) -> Result<(), SpawnError> {
        let Some(old) = self.slot(host).lock().await.clone() else { return Ok(()) };
        let (children, age) = old.age();
        let pays = host == Host::Python
            && children >= MAX_PLAIN_CHILDREN
            && !self.cannot_rehearse.load(Ordering::Relaxed);
        let is_old = children >= MAX_CHILDREN || (age >= MAX_AGE && children > 0);
        let is_plain = old.rehearsal() == Rehearsal::Skip;
        if !(is_old || pays && is_plain) {
            return Ok(());
        }
        let rehearsal = if pays { Rehearsal::Hold } else { Rehearsal::Skip };
        let next = self.start_warm(host, rehearsal).await;
        self.cannot_rehearse.fetch_or(pays && next.is_err(), Ordering::Relaxed);
        let next = next?;
        let mut slot = self.slot(host).lock().await;
        // Meanwhile another may have taken its place, which shows what this one does not, or all may have ended.
        let is_last = slot.as_ref().is_some_and(|last| Arc::ptr_eq(last, &old));
        if is_last && !self.ended.load(Ordering::Relaxed) {
            *slot = Some(next);
            // What it runs goes on; its spares are not taken any more. Its jail ends with the last of both.
            old.condemn();
        }
        Ok(())
    }

    /// How many executions run.
    pub(crate) fn running(&self) -> usize {
        let held = self.max_executions - self.slots.available_permits();
        held.saturating_sub(self.leaving.load(Ordering::Relaxed))
    }

    /// An execution has ended and still holds its slot, until the answer is dropped.
    pub(crate) fn leave(&self) -> Leaving<'_> {
        self.leaving.fetch_add(1, Ordering::Relaxed);
        Leaving(self)
    }

    fn is_idle(&self) -> bool {
        self.running() == 0
    }

    fn stock(&self, kind: Kind) -> MutexGuard<'_, Stock> {
        // No change in here is left half done by a panic.
        self.stocks[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
