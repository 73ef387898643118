//! Whether the engine is there, and why a container ended.
//!
//! That a container ended is seen by its first process, at once and with no engine. Why it did is for the
//! engine to say, by its events and by the state that is left; or it is the engine that ended it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::{
    models::{ContainerState, EventMessage},
    query_parameters::EventsOptions,
};
use futures::StreamExt;
use sandmesh_mesh::CancellationToken;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    container::LABEL_SANDBOX,
    engine::{Engine, Trouble},
};

/// How long the engine may take to say why a container ended: it is to be known within a second.
const PATIENCE: Duration = Duration::from_millis(800);
/// How soon it is asked again.
const PAUSE: Duration = Duration::from_millis(15);
/// How soon an engine that is away is looked for again, and how long it may take to answer then.
const RETRY: Duration = Duration::from_millis(250);
const PING: Duration = Duration::from_secs(5);
/// How many containers something is known of, which is forgotten otherwise.
const MOST_NOTES: usize = 4096;

/// What the engine told of a container before it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Note {
    /// Memory ran out in it.
    oom: bool,
    /// The last signal that somebody had the engine send.
    signal: Option<String>,
}

/// Follows the engine.
#[derive(Debug)]
pub(super) struct Watch {
    engine: Arc<Engine>,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// The connection broke, and there is no other yet.
    away: bool,
    /// By the id of a sandbox.
    notes: HashMap<String, Note>,
}

impl Watch {
    /// A watch of an engine; it begins with [`follow`](Self::follow).
    pub(super) fn of(engine: Arc<Engine>) -> Self {
        Self { engine, inside: Mutex::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // No change in here is left half done by a panic.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what happens to the containers with a label until the agent stops.
    pub(super) async fn follow(self: Arc<Self>, label: String, stopped: CancellationToken) {
        let forever = async {
            loop {
                if matches!(timeout(PING, self.engine.ping()).await, Ok(Ok(()))) {
                    self.set_away(false);
                    let trouble = self.listen(&label).await;
                    tracing::warn!(%trouble, "the engine is lost; looking for it");
                    self.set_away(true);
                }
                sleep(RETRY).await;
            }
        };
        stopped.run_until_cancelled(forever).await;
    }

    fn set_away(&self, away: bool) {
        let mut inside = self.inside();
        if inside.away && !away {
            tracing::info!("the engine is there again");
        }
        inside.away = away;
    }

    /// Takes events until there are no more, and says why.
    async fn listen(&self, label: &str) -> Trouble {
        let client = match self.engine.client().await {
            Ok(client) => client,
            Err(trouble) => return trouble,
        };
        let wanted = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let filters = HashMap::from([
            ("type".to_owned(), wanted(&["container"])),
            ("label".to_owned(), wanted(&[label])),
            ("event".to_owned(), wanted(&["oom", "kill"])),
        ]);
        let mut events = client.events(Some(EventsOptions { filters: Some(filters), ..Default::default() }));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.note(&event),
                Err(error) => return self.engine.trouble(error),
            }
        }
        Trouble::Away { socket: self.engine.name(), why: "it closed the connection".to_owned() }
    }

    fn note(&self, event: &EventMessage) {
        let attributes = event.actor.as_ref().and_then(|actor| actor.attributes.as_ref());
        let attribute = |name: &str| attributes.and_then(|attributes| attributes.get(name)).cloned();
        let Some(sandbox) = attribute(LABEL_SANDBOX) else { return };
        let mut inside = self.inside();
        if inside.notes.len() >= MOST_NOTES {
            inside.notes.clear();
        }
        let note = inside.notes.entry(sandbox).or_default();
        match event.action.as_deref() {
            Some("oom") => note.oom = true,
            Some("kill") => note.signal = attribute("signal"),
            _ => {}
        }
    }

    /// Forgets a container.
    pub(super) fn forget(&self, sandbox: &str) {
        self.inside().notes.remove(sandbox);
    }

    /// Why a container ended whose first process has just ended.
    pub(super) async fn cause(&self, sandbox: &str, container: &str) -> String {
        let was_away = self.inside().away;
        let deadline = Instant::now() + PATIENCE;
        let mut state = None;
        while Instant::now() < deadline {
            match timeout_at(deadline, self.engine.state(container)).await {
                Ok(Ok(Some(found))) if found.running == Some(true) => {}
                Ok(Ok(Some(found))) => {
                    state = Some(found);
                    break;
                }
                Ok(Ok(None)) => return "its container was removed".to_owned(),
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(PAUSE).await;
        }
        let note = self.inside().notes.get(sandbox).cloned().unwrap_or_default();
        told(state.as_ref(), &note, was_away)
    }
}

/// Why a container ended, for a person. Without a state the engine did not say in time.
fn told(state: Option<&ContainerState>, note: &Note, engine_lost: bool) -> String {
    let how = state.map(|state| ended(state, note));
    match (engine_lost, how) {
        (true, Some(how)) => format!("the Docker engine was lost, and the container with it: {how}"),
        (_, None) => "the Docker engine was lost, and the container with it".to_owned(),
        (false, Some(how)) => how,
    }
}

/// How the first process of a container ended: as a shell, it ends as the executor did.
pub(super) fn of_state(state: &ContainerState) -> String {
    ended(state, &Note::default())
}

fn ended(state: &ContainerState, note: &Note) -> String {
    let code = state.exit_code.unwrap_or_default();
    let how = match code {
        129..=192 => format!("executor was killed by signal {}", code - 128),
        _ => format!("executor exited with status {code}"),
    };
    let error = state.error.as_deref().filter(|error| !error.is_empty());
    if note.oom || state.oom_killed == Some(true) {
        return format!("the container ran out of memory: {how}");
    }
    match (&note.signal, error) {
        (_, Some(error)) => format!("{how}: {error}"),
        (Some(signal), None) => format!("{how}; the engine was told to send its container signal {signal}"),
        (None, None) => how,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(exit_code: i64, oom_killed: bool) -> ContainerState {
        ContainerState { exit_code: Some(exit_code), oom_killed: Some(oom_killed), ..Default::default() }
    }

    #[test]
    fn a_death_is_told_with_its_cause() {
        let told = |state: &ContainerState, note: &Note, lost| told(Some(state), note, lost);
        let nothing = Note::default();
        assert_eq!(told(&state(137, false), &nothing, false), "executor was killed by signal 9");
        assert_eq!(told(&state(3, false), &nothing, false), "executor exited with status 3");
        assert!(told(&state(137, true), &nothing, false).contains("memory"));
        assert!(told(&state(137, false), &Note { oom: true, signal: None }, false).contains("memory"));
        let killed = Note { oom: false, signal: Some("9".to_owned()) };
        assert!(told(&state(137, false), &killed, false).contains("the engine was told"));
        assert!(told(&state(137, false), &nothing, true).contains("engine was lost"));
        assert!(super::told(None, &nothing, false).contains("engine was lost"));
    }
}
