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

/// Makes the tests of the attack suite, in parts that each fit in the time of a test. `$within` says where the
/// sandboxes are.
macro_rules! attack_suite {
    ($within:path) => {
        attack_suite!(
            @ $within,
            files_of_tenants_lead_nowhere: Numbers(&[1, 2, 3, 4, 5, 6, 7]),
            the_kernel_is_out_of_reach: Numbers(&[9, 10, 11, 12, 13, 14, 15, 16, 17, 18]),
            nothing_is_reached_over_a_network: Numbers(&[19, 20, 21]),
            fork_bombs_are_bounded: Name("fork bomb"),
            pools_of_the_whole_machine_are_not_emptied: Name("pools of the whole machine"),
            memory_of_every_kind_is_bounded: Numbers(&[23]),
            endless_output_is_bounded: Numbers(&[24]),
            disks_are_not_filled: Name("disk, inodes, holes"),
            disks_are_not_filled_out_of_sight: Name("disk, out of sight"),
            what_does_not_want_to_end_ends: Numbers(&[26, 27, 28, 29]),
            huge_requests_and_slow_readers_are_bounded: Numbers(&[30]),
            a_run_neither_harms_the_next_nor_the_one_beside: Numbers(&[31, 32, 33, 34, 35, 36]),
            only_who_may_gets_in: Numbers(&[37, 38, 39, 40, 41, 42, 43, 44]),
        );
    };
    (@ $within:path, $($rule:ident: $part:ident($cases:expr)),+ $(,)?) => {
        $(#[tokio::test]
        async fn $rule() {
            $within(crate::attack::holds_embedded(crate::attack::Part::$part($cases))).await;
        })+

        #[test]
        fn every_case_is_in_a_part() {
            crate::attack::expect_all_of(&[$(crate::attack::Part::$part($cases)),+]);
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
mod profiles;
mod pulls;
mod recovery;
mod replicas;
mod slow_readers;
mod snapshots;
mod streams;
mod streams_input;
mod streams_interact;
mod streams_large;
mod streams_resume;
mod streams_watch;
mod wiring;
