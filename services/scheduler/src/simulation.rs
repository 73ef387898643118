//! The scheduler at the size of a data centre, on one machine: the real registry, placement, queue and pools, with
//! nodes that are values and a clock that is moved. Compiled for tests and with the feature `simulation` only.
//!
//! `cases.rs` measures decisions one by one, the usual and the bad ones. `day.rs` lives through a day of arrivals,
//! with what happens to nodes meanwhile.

mod agents;
mod cases;
mod day;
mod demand;
mod outcome;
mod pooled;
mod sessions;

#[cfg(test)]
mod tests;

pub use self::{
    cases::{Case, cases, kinds},
    day::run,
    outcome::{COLUMNS, Outcome},
};

/// How large a simulation is.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How many nodes there are.
    pub nodes: u32,
    /// How many hours pass.
    pub hours: f64,
    /// How many sandboxes there are to be at the busiest time, without bursts.
    pub sandboxes: u32,
    /// What is random follows from this alone.
    pub seed: u64,
}
