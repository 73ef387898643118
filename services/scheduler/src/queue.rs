//! Who waits for room, and in which order they get it: in turn by whose they are, and of one line in the order
//! in which they came.
//!
//! [`Lines`] is the order and nothing else. [`Queue`] lets callers wait in it, for a bounded time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Whose somebody is who waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// The tenant; empty: of none.
    pub(crate) tenant: String,
    /// The template.
    pub(crate) template_id: String,
}

/// All who wait, line by line. The line whose turn it is next comes first.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    lines: VecDeque<(Line, VecDeque<T>)>,
    most: usize,
}

impl<T> Lines<T> {
    /// Nobody waits, and at most so many ever do.
    pub(crate) fn new(most: usize) -> Self {
        Self { lines: VecDeque::new(), most }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lines.iter().map(|(_, waiting)| waiting.len()).sum()
    }

    /// Takes the last place in a line. When as many wait as may, the last of the longest line leaves for it.
    ///
    /// # Errors
    /// Gives it back when its own line is as long as any.
    pub(crate) fn join(&mut self, line: Line, one: T) -> Result<(), T> {
        if self.len() >= self.most {
            let own = self.lines.iter().find(|(known, _)| *known == line).map_or(0, |(_, own)| own.len());
            let longest = self.lines.iter_mut().max_by_key(|(_, waiting)| waiting.len());
            let Some((_, longest)) = longest.filter(|(_, longest)| longest.len() > own + 1) else {
                return Err(one);
            };
            longest.pop_back();
        }
        match self.lines.iter_mut().find(|(known, _)| *known == line) {
            Some((_, waiting)) => waiting.push_back(one),
            None => self.lines.push_back((line, VecDeque::from([one]))),
        }
        Ok(())
    }

    /// All who wait, in the order in which they are to be served: the first of each line, then the second.
    fn order(&self) -> Vec<(usize, usize)> {
        let lines = self.lines.iter().enumerate();
        let mut places: Vec<(usize, usize)> =
            lines.flat_map(|(line, (_, waiting))| (0..waiting.len()).map(move |at| (line, at))).collect();
        places.sort_unstable_by_key(|(line, at)| (*at, *line));
        places
    }

    /// Serves those who can be, in order, each at most once; the lines of those who were come last from then
    /// on.
    pub(crate) fn serve(&mut self, mut can_be: impl FnMut(&T) -> bool) -> Vec<T> {
        let taken: Vec<(usize, usize)> =
            self.order().into_iter().filter(|(line, at)| can_be(&self.lines[*line].1[*at])).collect();
        let mut served: Vec<Option<T>> = taken.iter().map(|_| None).collect();
        let mut by_place: Vec<usize> = (0..taken.len()).collect();
        // From behind, so that places before keep their numbers.
        by_place.sort_by_key(|index| std::cmp::Reverse(taken[*index]));
        for index in by_place {
            let (line, at) = taken[index];
            served[index] = self.lines[line].1.remove(at);
        }
        // Who was served last comes last.
        let mut turns = vec![0; self.lines.len()];
        taken.iter().enumerate().for_each(|(turn, (line, _))| turns[*line] = turn + 1);
        let mut lines: Vec<_> = std::mem::take(&mut self.lines).into_iter().enumerate().collect();
        lines.sort_by_key(|(line, _)| turns[*line]);
        self.lines =
            lines.into_iter().map(|(_, line)| line).filter(|(_, waiting)| !waiting.is_empty()).collect();
        served.into_iter().flatten().collect()
    }

    /// Takes out who does not wait any more. Returns how many are served before.
    pub(crate) fn leave(&mut self, is_it: impl Fn(&T) -> bool) -> Option<usize> {
        let order = self.order();
        let position = order.iter().position(|(line, at)| is_it(&self.lines[*line].1[*at]))?;
        let (line, at) = order[position];
        self.lines[line].1.remove(at);
        self.lines.retain(|(_, waiting)| !waiting.is_empty());
        Some(position)
    }
}

/// Where callers wait.
#[derive(Debug)]
pub(crate) struct Queue<W, G>(Mutex<Lines<Waiting<W, G>>>);

/// One who waits: what for, and where to tell.
#[derive(Debug)]
struct Waiting<W, G> {
    ticket: Arc<()>,
    wants: W,
    granted: oneshot::Sender<G>,
}

/// A place in the queue, given up when it is dropped.
pub(crate) struct Place<'a, W, G> {
    queue: &'a Queue<W, G>,
    ticket: Arc<()>,
    granted: oneshot::Receiver<G>,
}

impl<W, G> Queue<W, G> {
    /// Nobody waits, and at most so many ever do.
    pub(crate) fn new(most: usize) -> Self {
        Self(Mutex::new(Lines::new(most)))
    }

    fn lines(&self) -> MutexGuard<'_, Lines<Waiting<W, G>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lines().len()
    }

    /// Takes the last place in a line; `None` when as many wait as may.
    pub(crate) fn join(&self, line: Line, wants: W) -> Option<Place<'_, W, G>> {
        let (granted, receiver) = oneshot::channel();
        let ticket = Arc::new(());
        let waiting = Waiting { ticket: Arc::clone(&ticket), wants, granted };
        self.lines().join(line, waiting).ok()?;
        Some(Place { queue: self, ticket, granted: receiver })
    }

    /// Gives what there is to those who wait for it, in turn: to each whatever `grant` has for what it wants.
    pub(crate) fn serve(&self, mut grant: impl FnMut(&W) -> Option<G>) {
        let mut grants = Vec::new();
        let served = self.lines().serve(|waiting| match grant(&waiting.wants) {
            Some(granted) => {
                grants.push(granted);
                true
            }
            None => false,
        });
        for (waiting, granted) in served.into_iter().zip(grants) {
            // What nobody takes gives itself back.
            let _ = waiting.granted.send(granted);
        }
    }
}

impl<W, G> Place<'_, W, G> {
    /// Waits until something is granted.
    pub(crate) async fn granted(&mut self) -> Option<G> {
        (&mut self.granted).await.ok()
    }

    /// Gives it up. Returns how many were to be served before.
    pub(crate) fn leave(self) -> usize {
        self.give_up().unwrap_or_default()
    }

    fn give_up(&self) -> Option<usize> {
        self.queue.lines().leave(|waiting| Arc::ptr_eq(&waiting.ticket, &self.ticket))
    }
}

impl<W, G> Drop for Place<'_, W, G> {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests;
