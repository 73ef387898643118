//! What the sandboxes of a node come to, kept up as they come and go. Pure.

use std::collections::BTreeMap;

use crate::placement::Promised;

/// What counts of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counted<'a> {
    /// Thousandths of a core.
    pub(crate) cpu_millis: u64,
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
    /// Whether it is being made or runs. One that does not takes a place until it is deleted, and nothing else.
    pub(crate) is_live: bool,
    /// Its template, where it runs.
    pub(crate) runs: Option<&'a str>,
    /// Whether no session has it.
    pub(crate) is_warm: bool,
}

/// A sum that loses nothing, so that what was added can be taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    sandboxes: u64,
    cpu_millis: u128,
    memory_bytes: u128,
}

impl Sum {
    /// One more.
    pub(crate) fn add(&mut self, cpu_millis: u64, memory_bytes: u64) {
        self.sandboxes += 1;
        self.cpu_millis += u128::from(cpu_millis);
        self.memory_bytes += u128::from(memory_bytes);
    }

    /// One that was added is gone.
    pub(crate) fn remove(&mut self, cpu_millis: u64, memory_bytes: u64) {
        self.sandboxes = self.sandboxes.saturating_sub(1);
        self.cpu_millis = self.cpu_millis.saturating_sub(cpu_millis.into());
        self.memory_bytes = self.memory_bytes.saturating_sub(memory_bytes.into());
    }

    /// As far as it can be told.
    pub(crate) fn promised(self) -> Promised {
        let told = |sum: u128| u64::try_from(sum).unwrap_or(u64::MAX);
        Promised {
            sandboxes: self.sandboxes,
            cpu_millis: told(self.cpu_millis),
            memory_bytes: told(self.memory_bytes),
        }
    }
}

/// How many sandboxes of a template run, and how many of these no session has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Running {
    all: u32,
    warm: u32,
}

/// The sandboxes of a node in sums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// All of them.
    sandboxes: u64,
    live: Sum,
    running: BTreeMap<String, Running>,
}

/// Whether there are running sandboxes of a template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Has {
    /// Any.
    pub(crate) any: bool,
    /// Some that no session has.
    pub(crate) warm: bool,
}

impl Tally {
    /// What is promised to them.
    pub(crate) fn promised(&self) -> Promised {
        Promised { sandboxes: self.sandboxes, ..self.live.promised() }
    }

    /// Whether there are running ones of a template.
    pub(crate) fn has(&self, template_id: &str) -> Has {
        let running = self.running.get(template_id).copied().unwrap_or_default();
        Has { any: running.all > 0, warm: running.warm > 0 }
    }

    /// One more.
    pub(crate) fn add(&mut self, one: &Counted<'_>) {
        self.sandboxes += 1;
        if one.is_live {
            self.live.add(one.cpu_millis, one.memory_bytes);
        }
        if let Some(template_id) = one.runs {
            let running = self.running.entry(template_id.to_owned()).or_default();
            running.all += 1;
            running.warm += u32::from(one.is_warm);
        }
    }

    /// One that was added is gone.
    pub(crate) fn remove(&mut self, one: &Counted<'_>) {
        self.sandboxes = self.sandboxes.saturating_sub(1);
        if one.is_live {
            self.live.remove(one.cpu_millis, one.memory_bytes);
        }
        let Some(template_id) = one.runs else { return };
        let Some(running) = self.running.get_mut(template_id) else { return };
        running.all = running.all.saturating_sub(1);
        running.warm = running.warm.saturating_sub(u32::from(one.is_warm));
        if running.all == 0 {
            self.running.remove(template_id);
        }
    }
}
