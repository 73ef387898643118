//! The real executor with real jails and control groups, through its socket. Must run as root, with
//! bubblewrap, python3 and node installed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test may")]

mod ending;
mod fuzz;
mod input;
mod isolation;
mod javascript;
mod large_pages;
mod layers;
mod lifecycle;
mod limits;
mod python;
mod shell;
mod snapshot;
mod streams;
mod support;
mod warm;
mod workspace;
