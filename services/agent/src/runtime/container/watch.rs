//! Whether the engine is there, and why a container ended.
//!
//! That a container ended is seen by its first process, at once and with no engine. Why it did is for the
//! engine to say, by its events and by the state that is left; or it is the engine that ended it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sandmesh_mesh::CancellationToken;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::engine::{Ended, Engine, State};

/// How long the engine may take to say why a container ended: it is to be known within a second.
const PATIENCE: Duration = Duration::from_millis(800);
/// How soon it is asked again.
const PAUSE: Duration = Duration::from_millis(15);
/// How soon an engine that is away is looked for again, and how long it may take to answer then.
const RETRY: Duration = Duration::from_millis(250);
const PING: Duration = Duration::from_secs(5);
/// How soon a process is dead that is killed because memory ran out, on a busy machine.
const OOM_KILLS_WITHIN: Duration = Duration::from_secs(5);
/// How a process ends that is killed.
const KILLED: i64 = 137;
/// How many containers something is known of, which is forgotten otherwise.
const MOST_NOTES: usize = 4096;

/// What the engine told of a container before it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::runtime) struct Note {
    /// When memory ran out in it. With control groups of version 2 that is told, too, when it was only that of
    /// an execution, which its container survives.
    pub(in crate::runtime) oom: Option<Instant>,
    /// The last signal that somebody had the engine send.
    pub(in crate::runtime) signal: Option<String>,
}

/// What the engine told, by the name of a container.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Notes(Mutex<HashMap<String, Note>>);

impl Notes {
    fn inside(&self) -> MutexGuard<'_, HashMap<String, Note>> {
        // No change in here is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down something of a container.
    pub(in crate::runtime) fn note(&self, container: String, note: impl FnOnce(&mut Note)) {
        let mut inside = self.inside();
        if inside.len() >= MOST_NOTES {
            inside.clear();
        }
        note(inside.entry(container).or_default());
    }

    /// What was taken down.
    pub(in crate::runtime) fn of(&self, container: &str) -> Note {
        self.inside().get(container).cloned().unwrap_or_default()
    }
}

/// Follows the engine.
#[derive(Debug)]
pub(super) struct Watch {
    engine: Arc<dyn Engine>,
    /// The connection broke, and there is no other yet.
    away: Mutex<bool>,
    notes: Notes,
}

impl Watch {
    /// A watch of an engine; it begins with [`follow`](Self::follow).
    pub(super) fn of(engine: Arc<dyn Engine>) -> Self {
        Self { engine, away: Mutex::default(), notes: Notes::default() }
    }

    fn away(&self) -> MutexGuard<'_, bool> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what happens to the containers of an owner until the agent stops.
    pub(super) async fn follow(self: Arc<Self>, owner: String, stopped: CancellationToken) {
        let forever = async {
            loop {
                if matches!(timeout(PING, self.engine.ping()).await, Ok(Ok(()))) {
                    self.set_away(false);
                    let trouble = self.engine.listen(&owner, &self.notes).await;
                    tracing::warn!(%trouble, "the engine is lost; looking for it");
                    self.set_away(true);
                }
                sleep(RETRY).await;
            }
        };
        stopped.run_until_cancelled(forever).await;
    }

    fn set_away(&self, away: bool) {
        let mut was_away = self.away();
        if *was_away && !away {
            tracing::info!("the engine is there again");
        }
        *was_away = away;
    }

    /// Forgets a container.
    pub(super) fn forget(&self, container: &str) {
        self.notes.inside().remove(container);
    }

    /// Why a container ended whose first process has just ended.
    pub(super) async fn cause(&self, name: &str, container: &str) -> String {
        let was_away = *self.away();
        let deadline = Instant::now() + PATIENCE;
        let mut ended = None;
        while Instant::now() < deadline {
            match timeout_at(deadline, self.engine.state(container)).await {
                Ok(Ok(Some(State::Running))) => {}
                Ok(Ok(Some(State::Ended(found)))) => {
                    ended = Some(found);
                    break;
                }
                Ok(Ok(None)) => return "its container was removed".to_owned(),
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(PAUSE).await;
        }
        let note = self.notes.of(name);
        match self.engine.takes_containers_along() {
            true => told(ended.as_ref(), &note, self.engine.title(), was_away),
            false => ended.map_or_else(
                || format!("executor ended, and {} was not there to say how", self.engine.title()),
                |ended| ended.told(&note),
            ),
        }
    }
}

/// Why a container ended that ends with its engine, for a person. Without an end the engine did not say in
/// time.
fn told(ended: Option<&Ended>, note: &Note, engine: &str, engine_lost: bool) -> String {
    match (engine_lost, ended.map(|ended| ended.told(note))) {
        (true, Some(how)) => format!("{engine} was lost, and the container with it: {how}"),
        (_, None) => format!("{engine} was lost, and the container with it"),
        (false, Some(how)) => how,
    }
}

impl Ended {
    /// How the first process of a container ended: as a shell, it ends as the executor did.
    pub(in crate::runtime) fn told(&self, note: &Note) -> String {
        let how = match self.code {
            Some(code @ 129..=192) => format!("executor was killed by signal {}", code - 128),
            Some(code) => format!("executor exited with status {code}"),
            None => "executor ended".to_owned(),
        };
        let ran_out = note.oom.is_some_and(|at| at.elapsed() < OOM_KILLS_WITHIN);
        if self.oom || ran_out && self.code == Some(KILLED) {
            return format!("the container ran out of memory: {how}");
        }
        match (&note.signal, self.error.as_str()) {
            (Some(signal), "") => format!("{how}; the engine was told to send its container signal {signal}"),
            (None, "") => how,
            (_, error) => format!("{how}: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_told_with_its_cause() {
        let ended = |code, oom| Ended { code: Some(code), oom, error: String::new() };
        let told = |ended: &Ended, note: &Note, lost| told(Some(ended), note, "the Docker engine", lost);
        let nothing = Note::default();
        let ran_out = Note { oom: Some(Instant::now()), signal: None };
        assert_eq!(told(&ended(137, false), &nothing, false), "executor was killed by signal 9");
        assert_eq!(told(&ended(3, false), &nothing, false), "executor exited with status 3");
        assert!(told(&ended(137, true), &nothing, false).contains("memory"));
        assert!(told(&ended(137, false), &ran_out, false).contains("memory"));
        assert!(!told(&ended(3, false), &ran_out, false).contains("memory"), "it survived that");
        let long_ago = Note { oom: Instant::now().checked_sub(Duration::from_secs(60)), signal: None };
        assert!(!told(&ended(137, false), &long_ago, false).contains("memory"));
        let killed = Note { oom: None, signal: Some("9".to_owned()) };
        assert!(told(&ended(137, false), &killed, false).contains("the engine was told"));
        assert!(told(&ended(137, false), &nothing, true).contains("the Docker engine was lost"));
        assert!(super::told(None, &nothing, "containerd", false).contains("containerd was lost"));
    }

    #[test]
    fn what_is_noted_is_bounded_and_can_be_forgotten() {
        let notes = Notes::default();
        notes.note("a".to_owned(), |note| note.signal = Some("9".to_owned()));
        assert_eq!(notes.of("a"), Note { oom: None, signal: Some("9".to_owned()) });
        for n in 0..=MOST_NOTES {
            notes.note(n.to_string(), |note| note.oom = Some(Instant::now()));
        }
        assert_eq!(notes.of("a"), Note::default());
        assert!(notes.inside().len() <= MOST_NOTES);
    }
}
