//! The API of containerd as it was generated: `services/agent/containerd/` has its source.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    reason = "it is generated, and more than is used"
)]
#![allow(
    clippy::all,
    clippy::too_many_lines,
    clippy::restriction,
    clippy::pedantic,
    reason = "it is generated"
)]

include!(concat!(env!("OUT_DIR"), "/containerd.rs"));
