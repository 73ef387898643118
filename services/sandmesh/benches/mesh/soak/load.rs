//! Full load: a mix of languages through both doors, in sessions that stay and in sessions that come and go.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use futures::future::{join_all, try_join};
use sandmesh_proto::executor::Language;

use crate::{
    stack::{Session, Stack},
    work::{Door, execute},
};

/// What is run, over and over: each language as often as it is here, and each through either door.
const MIX: [(Language, Door); 10] = [
    (Language::Python, Door::Gateway),
    (Language::Shell, Door::Rest),
    (Language::Python, Door::Rest),
    (Language::Python, Door::Gateway),
    (Language::Javascript, Door::Gateway),
    (Language::Python, Door::Rest),
    (Language::Shell, Door::Gateway),
    (Language::Python, Door::Gateway),
    (Language::Javascript, Door::Rest),
    (Language::Python, Door::Rest),
];

/// How many sessions come and go, one execution at a time in each.
const GUESTS: usize = 2;

/// How long each of these stays.
const STAY: Duration = Duration::from_secs(20);

/// After a failure, so that a server that is down is not asked without end.
const PAUSE: Duration = Duration::from_millis(100);

/// The load until its end, and what became of it.
#[derive(Debug)]
pub(crate) struct Load {
    end: Instant,
    /// The milliseconds of the executions that succeeded, by language.
    took: RefCell<Vec<(Language, f64)>>,
    failures: Cell<usize>,
    first_failure: RefCell<Option<String>>,
    sessions: Cell<usize>,
}

impl Load {
    /// Load until `end`.
    pub(crate) fn new(end: Instant) -> Self {
        Self {
            end,
            took: RefCell::default(),
            failures: Cell::new(0),
            first_failure: RefCell::default(),
            sessions: Cell::new(0),
        }
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// How many executions succeeded until now.
    pub(crate) fn executions(&self) -> usize {
        self.took.borrow().len()
    }

    /// How many executions failed until now.
    pub(crate) fn failures(&self) -> usize {
        self.failures.get()
    }

    /// The first failure.
    pub(crate) fn first_failure(&self) -> Option<String> {
        self.first_failure.borrow().clone()
    }

    /// How many sessions came and went until now.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.get()
    }

    /// The milliseconds of a language's executions, ascending.
    pub(crate) fn took(&self, language: Language) -> Vec<f64> {
        let took = self.took.borrow();
        let mut took: Vec<f64> = took.iter().filter(|(of, _)| *of == language).map(|(_, ms)| *ms).collect();
        took.sort_by(f64::total_cmp);
        took
    }

    /// Keeps that many executions in flight until the end.
    ///
    /// # Errors
    /// When a session cannot be created or ended.
    pub(crate) async fn run(&self, stack: &Stack, in_flight: usize) -> anyhow::Result<()> {
        let residents = (0..in_flight - GUESTS.min(in_flight)).map(|number| async move {
            let session = &stack.sessions[number % stack.sessions.len()];
            self.work(stack, session, number, self.end).await;
        });
        let guests = (0..GUESTS).map(|number| self.guest(stack, number));
        let residents = async { anyhow::Ok(join_all(residents).await) };
        let guests = async { join_all(guests).await.into_iter().collect::<anyhow::Result<()>>() };
        try_join(residents, guests).await.map(drop)
    }

    async fn guest(&self, stack: &Stack, number: usize) -> anyhow::Result<()> {
        while !self.is_over() {
            let id = stack.create_session().await?;
            // It is reached through the gateway alone, so its executor needs no connection.
            let session = Session { id, ..stack.sessions[0].clone() };
            let end = self.end.min(Instant::now() + STAY);
            self.work(stack, &session, number, end).await;
            stack.end_session(&session.id).await?;
            self.sessions.set(self.sessions.get() + 1);
        }
        Ok(())
    }

    async fn work(&self, stack: &Stack, session: &Session, first: usize, end: Instant) {
        let mut at = first;
        while Instant::now() < end {
            let (language, door) = MIX[at % MIX.len()];
            at += 1;
            match Box::pin(execute(stack, session, language, door)).await {
                Ok(took) => self.took.borrow_mut().push((language, took.as_secs_f64() * 1e3)),
                Err(error) => {
                    self.failures.set(self.failures.get() + 1);
                    self.first_failure.borrow_mut().get_or_insert_with(|| format!("{error:#}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
