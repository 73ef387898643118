//! The order in which executions of a session are started: the one in which they were accepted.
//!
//! Drivers run side by side, so without this a later one could reach its executor first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Who is to start something, by session. Holds an entry for each session while somebody is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<String, Line>>>);

#[derive(Debug, Default)]
struct Line {
    next: u64,
    /// Those who stand in it, and where to tell that it is their turn.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place in the line of a session. The next comes when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    session_id: String,
    number: u64,
    /// `None`: it has come.
    comes: Option<oneshot::Receiver<()>>,
}

impl Turns {
    /// Takes the last place in the line of a session.
    pub(crate) fn take(&self, session_id: &str) -> Turn {
        let mut lines = self.lock();
        let line = lines.entry(session_id.to_owned()).or_default();
        let number = line.next;
        line.next += 1;
        let first = line.waiting.is_empty();
        let (tell, comes) = oneshot::channel();
        line.waiting.insert(number, tell);
        let comes = (!first).then_some(comes);
        Turn { turns: self.clone(), session_id: session_id.to_owned(), number, comes }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Waits until it is its turn. Cancellation safe.
    pub(crate) async fn come(&mut self) {
        if let Some(comes) = &mut self.comes {
            // The sender lives until it is told, as this place is in the line.
            let _ = comes.await;
            self.comes = None;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.turns.lock();
        let Some(line) = lines.get_mut(&self.session_id) else { return };
        let first = line.waiting.first_key_value().is_some_and(|(number, _)| *number == self.number);
        line.waiting.remove(&self.number);
        if line.waiting.is_empty() {
            lines.remove(&self.session_id);
        } else if first && let Some(mut next) = line.waiting.first_entry() {
            // It stays in the line: whoever comes after waits for its end.
            let _ = std::mem::replace(next.get_mut(), oneshot::channel().0).send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_waits_for_those_before_it_and_for_no_other_session() {
        let turns = Turns::default();
        let (mut a, mut b, mut c) = (turns.take("s"), turns.take("s"), turns.take("s"));
        assert!(turns.take("other").come().now_or_never().is_some());
        assert!(a.come().now_or_never().is_some());
        assert!(b.come().now_or_never().is_none());
        drop(a);
        assert!(c.come().now_or_never().is_none(), "one is before it still");
        b.come().await;
        let mut d = turns.take("s");
        drop(b);
        c.come().await;
        assert!(d.come().now_or_never().is_none());
        drop((c, d));
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn one_that_gives_up_lets_nobody_past_those_before_it() {
        let turns = Turns::default();
        let (first, second, mut third) = (turns.take("s"), turns.take("s"), turns.take("s"));
        drop(second);
        assert!(third.come().now_or_never().is_none());
        drop(first);
        third.come().await;
    }
}
