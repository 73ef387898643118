//! The executor: the daemon inside one sandbox that runs executions and keeps their output.
//!
//! It is dialled and never dials. `cli` reads the command line; `isolation` builds the sandbox;
//! `grpc` is the wire and `feed` takes input from it; `service` decides who gets in; `run` runs one execution with a `runner` and
//! watches it with `supervise`; `replay` keeps what it wrote; `warm` keeps processes ready for it, with a `snapshot` of a Python; `workspace` serves its files. In a
//! container, `admission` is how the host gives it what it needs, and `init` is the first process. In the jail, `native` and `parent` turn a child of a warm parent into a process of the user.

mod admission;
mod check;
mod cli;
mod clock;
mod destroy;
mod disk;
mod execution;
mod feed;
#[cfg(test)]
mod fuzz;
mod grpc;
mod init;
mod isolation;
#[path = "../native/mod.rs"]
mod native;
mod outcome;
mod parent;
mod process_id;
mod recent;
mod registry;
mod relay;
mod replay;
mod request;
mod run;
mod runner;
mod seal;
mod serve;
mod service;
mod snapshot;
mod status;
mod stdin;
mod supervise;
mod turn;
mod warm;
mod workspace;

pub use cli::main;
