//! The list of cases, and how each is carried out.

mod answers;
mod control;
mod endings;
mod files;
mod handled;
mod kernel;
mod limits;
mod names;
mod network;
mod runs;
mod wire;

use sandmesh_proto::session::{ExecutionSpec, Session};

use super::{
    Case, Plan,
    arena::{Arena, Wish},
    host::Sandbox,
};

/// A case that is carried out, within so many seconds.
macro_rules! run {
    ($number:literal, $name:literal, $expected:literal, $seconds:literal, $drive:path) => {
        Case {
            number: $number,
            name: $name,
            expected: $expected,
            seconds: $seconds,
            plan: Plan::Run(|arena| Box::pin($drive(arena))),
        }
    };
}

/// A case that nothing here can be attacked with.
macro_rules! not_run {
    ($number:literal, $name:literal, $expected:literal, $reason:literal) => {
        Case { number: $number, name: $name, expected: $expected, seconds: 0, plan: Plan::NotRun($reason) }
    };
}

/// Every case, by number. A number that has parts has a case for each.
pub const CASES: &[Case] = &[
    run!(1, "links in the workspace, at its end", "host unchanged, all removed", 60, files::links_at_the_end),
    run!(1, "links as result files", "not followed, no hang", 60, files::result_files),
    run!(
        1,
        "links, read and written by a file service",
        "refused, host unchanged",
        90,
        handled::links_by_the_file_service
    ),
    run!(2, "chown and chmod through links", "host unchanged", 60, files::links_at_the_end),
    run!(3, "links where mounts are made", "no mount point in the workspace", 60, files::mount_points),
    run!(4, "names that are paths", "refused", 90, names::names_that_are_paths),
    run!(4, "paths of uploads and downloads", "400", 60, handled::paths_of_files),
    run!(5, "pipes, devices and sockets as files", "not opened, no hang", 60, files::result_files),
    run!(5, "the same as artifacts", "not opened, no hang", 60, handled::odd_artifacts),
    run!(6, "swapping a directory for a link", "host unchanged", 60, files::swapped_while_handled),
    run!(7, "another session by id or prefix", "unreachable, untouched", 60, files::other_sessions),
    not_run!(8, "archives", "no slip, no bomb", "nothing here unpacks archives"),
    run!(9, "namespaces and mounts", "refused; no new namespace", 60, kernel::namespaces_and_mounts),
    run!(10, "dangerous system calls", "EPERM or ENOSYS", 60, kernel::dangerous_calls),
    run!(11, "sockets of rare families", "refused", 60, kernel::strange_sockets),
    run!(12, "32-bit and x32 system calls", "killed by SIGSYS", 60, kernel::foreign_calls),
    run!(13, "setuid programs, capabilities", "uid and powers unchanged", 60, kernel::setuid_programs),
    run!(14, "terminal injection", "refused, high bits or not", 60, kernel::terminals),
    run!(15, "descriptors and ways through them", "none but its own streams", 60, kernel::descriptors),
    run!(16, "the executor's own program", "not writable, unchanged", 60, kernel::own_executable),
    run!(17, "devices and kernel knobs", "absent or read-only", 60, kernel::devices),
    run!(18, "control groups", "absent; none left its group", 60, kernel::control_groups),
    run!(19, "any network, names", "unreachable; nothing arrives", 60, network::any_network),
    run!(20, "metadata services", "unreachable", 60, network::metadata_services),
    run!(21, "control plane, host services", "unreachable", 60, network::control_plane),
    run!(21, "sockets of another session", "unreachable", 60, network::sibling_sandboxes),
    run!(22, "fork bomb", "pids limit; others unharmed", 110, limits::fork_bomb),
    run!(22, "pools of the whole machine", "others are still served", 90, limits::pools_of_the_machine),
    run!(23, "memory of every kind", "typed oom; the executor lives", 110, limits::memory),
    run!(24, "output without end", "truncated and said so", 90, limits::output),
    run!(25, "disk, inodes, holes", "disk_limit; the host is safe", 100, limits::disk),
    run!(25, "disk, out of sight", "disk_limit; the host is safe", 100, limits::hidden_disk),
    run!(26, "every core busy", "cancel works", 60, endings::cpu_hog),
    run!(27, "orphans that ignore signals", "nothing is left", 60, endings::orphans),
    run!(28, "zombies", "reaped", 60, endings::zombies),
    run!(29, "stopped and deaf processes", "the deadline ends them", 60, endings::deadlines),
    run!(30, "huge requests, many streams, slow readers", "bounded, clear errors", 110, wire::oversized),
    run!(31, "poison for the next run", "next run clean", 90, runs::poisoned_session),
    run!(32, "a sibling, the first process", "invisible, undisturbed", 60, runs::siblings),
    run!(33, "environment and keys of the host", "not readable", 60, runs::host_secrets),
    run!(34, "random state", "8 runs, all distinct", 60, runs::random_numbers),
    run!(35, "a former tenant", "nothing of it is left", 60, runs::former_tenant),
    run!(36, "a forged end", "the real exit state", 90, runs::forged_end),
    run!(37, "no key, wrong key", "401", 60, control::keys),
    not_run!(
        37,
        "other tenants, revoked keys",
        "404, 401",
        "there are no tenants; keys come from the configuration"
    ),
    run!(38, "open beyond loopback", "refuses to start", 60, control::exposed_servers),
    run!(39, "internal services", "refused", 60, control::internal_services),
    run!(40, "names with shell or YAML", "refused, or only text", 60, names::templates),
    run!(41, "package specs with options", "refused", 60, control::dependencies),
    not_run!(
        41,
        "build scripts of packages",
        "run only in a sandbox",
        "it needs an index with a hostile package, which the server asks for packages; its tests have one"
    ),
    run!(42, "control characters in output", "bytes intact, JSON harmless", 60, answers::bytes_intact),
    run!(43, "secrets in logs and errors", "nowhere", 60, answers::secret_values),
    run!(44, "other origins", "same origin only", 60, answers::other_origins),
    not_run!(
        45,
        "a stale sandbox token",
        "refused",
        "sandboxes of this runtime have no tokens: only the mesh reaches their sockets"
    ),
];

/// A session, and what the machine has of it.
async fn prepare(arena: &Arena, wish: Wish) -> anyhow::Result<(Session, Option<Sandbox>)> {
    let session = arena.session(wish).await?;
    let sandbox = arena.sandbox(&session)?;
    Ok((session, sandbox))
}

/// A program that stops at stages.
fn interactive(spec: ExecutionSpec) -> ExecutionSpec {
    ExecutionSpec { keep_stdin_open: true, ..spec }
}
