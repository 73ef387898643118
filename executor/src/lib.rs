//! The executor: the daemon inside one sandbox that runs executions and keeps their output.
//!
//! It is dialled and never dials. `cli` reads the command line; `isolation` builds the sandbox;
//! `grpc` is the wire; `service` decides who gets in; `run` runs one execution with a `runner` and
//! watches it with `supervise`; `replay` keeps what it wrote; `init` is the first process in the jail.

mod check;
mod cli;
mod clock;
mod destroy;
mod disk;
mod execution;
mod grpc;
mod init;
mod isolation;
mod outcome;
mod process_id;
mod replay;
mod request;
mod run;
mod runner;
mod serve;
mod service;
mod status;
mod stdin;
mod supervise;

pub use cli::main;
