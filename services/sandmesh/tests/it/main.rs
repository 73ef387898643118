//! The front door: the real program, started as a user starts it, asked over REST, gRPC, gRPC-web and
//! its command line.
//!
//! One binary, so that it is linked once. A body that takes a [`harness::Wiring`] is a test in both
//! wirings of the mesh: all roles in one process, and roles in several processes on unix sockets and TCP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::large_futures,
    reason = "a test fails by panicking, tells the time by the real clock, and need not be lean"
)]

/// Makes two tests of each body: `embedded::NAME` and `split::NAME`. A thread besides the test's own keeps
/// its connections alive while the test blocks, as when it stops a server.
macro_rules! in_both_wirings {
    ($($body:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn $body() {
                super::$body(crate::harness::Wiring::Embedded).await;
            })+
        }
        mod split {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn $body() {
                super::$body(crate::harness::Wiring::Split).await;
            })+
        }
    };
}

mod harness;

mod attack;
mod bad_input;
mod bad_input_grpc;
mod behaviours_executions;
mod behaviours_files;
mod behaviours_results;
mod behaviours_sessions;
mod behaviours_templates;
mod behaviours_workspace;
mod chaos;
mod cli;
mod clients;
mod containers;
mod control;
mod copy;
mod crash;
mod crash_roles;
mod creation;
mod database_down;
mod databases;
mod dependencies;
mod files_grpc;
mod files_kept;
mod grpc_executions;
mod grpc_sessions;
mod health;
mod machines;
mod nodes;
mod object_store;
mod operators;
mod pools;
mod recovery;
mod replicas;
mod slow_readers;
mod streams;
mod streams_input;
mod streams_interact;
mod streams_large;
mod streams_resume;
mod streams_watch;
mod wiring;
