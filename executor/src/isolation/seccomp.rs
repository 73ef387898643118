//! The system call filter on user code: a strict allow list.
//!
//! What is not on the list answers EPERM; `clone3` answers ENOSYS, so that libraries fall back to
//! `clone`, whose flags a filter can see; numbers newer than this list answer ENOSYS as an older
//! kernel would; another architecture's calls (32 bit, x32) kill the process.
//! The filter is compiled once when the executor starts and handed to each warm parent as bytes.

mod calls;

use std::collections::BTreeMap;

use self::calls::{ALLOWED_EVERYWHERE, ALLOWED_HERE};
use super::bpf::{Answer, Condition, Rule, assemble};

/// The highest system call number that this list was written with (mseal).
const NEWEST_KNOWN: u32 = 462;

/// This processor's `AUDIT_ARCH_*`.
const NATIVE: u32 = if cfg!(target_arch = "x86_64") { 0xC000_003E } else { 0xC000_00B7 };

/// Flags of `clone` that make namespaces. (`CLONE_NEWTIME` shares its bit with the exit signal and
/// can only be given to `clone3` and `unshare`.)
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// The filter in two parts, as the bytes of their BPF programs: the kernel lets through what both do.
///
/// Installing a filter takes the longer the larger it is, and the user's process is made for each execution.
/// So most of it is installed once, on the parent that it is forked from.
#[derive(Debug)]
pub(crate) struct Filters {
    /// Everything that is refused, but for what it takes to make nests.
    pub(crate) parent: Vec<u8>,
    /// What it takes to make nests.
    pub(crate) user: Vec<u8>,
}

/// Both filters.
pub(crate) fn compile() -> Filters {
    Filters { parent: assemble(NATIVE, &parent_rules()), user: assemble(NATIVE, &user_rules()) }
}

/// What it takes to make nests, and what user code has of it.
fn for_nests() -> [(i64, Rule); 3] {
    [
        (libc::SYS_clone, only_if(vec![vec![Condition::HasNone(0, NEW_NAMESPACES)]])),
        (libc::SYS_mount, Rule::Always(Answer::errno(libc::EPERM))),
        (libc::SYS_prctl, only_if(vec![vec![is_not(0, libc::PR_SET_SECCOMP)]])),
    ]
}

/// For a warm parent, and all that comes of it.
fn parent_rules() -> Vec<(u32, Rule)> {
    const X32_BIT: u32 = 0x4000_0000;
    let deny = Rule::Always(Answer::errno(libc::EPERM));
    let no_such_call = Rule::Always(Answer::errno(libc::ENOSYS));
    let for_nests = for_nests().map(|(call, _)| call);
    let allowed = ALLOWED_EVERYWHERE.iter().chain(ALLOWED_HERE).chain(&for_nests);
    let mut calls: BTreeMap<u32, Rule> =
        allowed.map(|call| (number(*call), Rule::Always(Answer::ALLOW))).collect();
    calls.extend(conditional().into_iter().map(|(call, rule)| (number(call), rule)));
    calls.extend(NOT_THERE.iter().map(|call| (number(*call), no_such_call.clone())));
    let known = (0..=NEWEST_KNOWN).map(|call| (call, calls.remove(&call).unwrap_or_else(|| deny.clone())));
    let mut rules: Vec<_> = known.collect();
    rules.push((NEWEST_KNOWN + 1, no_such_call));
    if cfg!(target_arch = "x86_64") {
        rules.push((X32_BIT, Rule::Always(Answer::KILL)));
    }
    merged(rules)
}

/// For the user's process besides.
fn user_rules() -> Vec<(u32, Rule)> {
    let mut calls: BTreeMap<u32, Rule> =
        for_nests().into_iter().map(|(call, rule)| (number(call), rule)).collect();
    let allow = || Rule::Always(Answer::ALLOW);
    merged((0..=NEWEST_KNOWN).map(|call| (call, calls.remove(&call).unwrap_or_else(allow))).collect())
}

/// Of neighbours with the same rule, the first stands for all.
fn merged(mut rules: Vec<(u32, Rule)>) -> Vec<(u32, Rule)> {
    rules.dedup_by(|next, first| next.1 == first.1);
    rules
}

/// Calls that answer as on a kernel without them: `clone3`, whose flags no filter can see, and asynchronous
/// I/O, of which a whole machine has one small supply.
const NOT_THERE: [i64; 6] = [
    libc::SYS_clone3,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
];

/// Calls that name a process, and which of their arguments does: never the init, which has the same user.
const ON_A_PROCESS: [(i64, u32); 13] = [
    (libc::SYS_kill, 0),
    (libc::SYS_tkill, 0),
    (libc::SYS_tgkill, 0),
    (libc::SYS_rt_sigqueueinfo, 0),
    (libc::SYS_rt_tgsigqueueinfo, 0),
    (libc::SYS_pidfd_open, 0),
    (libc::SYS_prlimit64, 0),
    (libc::SYS_sched_setaffinity, 0),
    (libc::SYS_sched_setparam, 0),
    (libc::SYS_sched_setscheduler, 0),
    (libc::SYS_sched_setattr, 0),
    (libc::SYS_setpriority, 1),
    (libc::SYS_ioprio_set, 1),
];

fn number(call: i64) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// The first process of the user's pid namespace.
const INIT: i32 = 1;

fn is(argument: u32, value: i32) -> Condition {
    Condition::Is(argument, value.cast_unsigned())
}

fn is_not(argument: u32, value: i32) -> Condition {
    Condition::IsNot(argument, value.cast_unsigned())
}

fn only_if(alternatives: Vec<Vec<Condition>>) -> Rule {
    Rule::AllowIf(alternatives, Answer::errno(libc::EPERM))
}

/// Calls whose arguments decide, with what neither a parent nor an init does.
fn conditional() -> Vec<(i64, Rule)> {
    let mut sockets = vec![
        vec![is(0, libc::AF_UNIX)],
        // getifaddrs, and with it os.networkInterfaces() of node.
        vec![is(0, libc::AF_NETLINK), is(2, libc::NETLINK_ROUTE)],
    ];
    for family in [libc::AF_INET, libc::AF_INET6] {
        // Only what the kernel has built in: a rare protocol would load its module.
        for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            // And only streams and datagrams (1 and 2, and 3, which takes a capability).
            sockets.push(vec![is(0, family), is(2, protocol), Condition::HasNone(1, 0xc)]);
        }
    }
    // Terminal injection (CVE-2017-5226).
    let ioctl = vec![is_not(1, ioctl_number(libc::TIOCSTI)), is_not(1, ioctl_number(libc::TIOCLINUX))];
    let not_on_init = |(call, argument): &(i64, u32)| (*call, only_if(vec![vec![is_not(*argument, INIT)]]));
    let mut rules = vec![
        (libc::SYS_ioctl, only_if(vec![ioctl])),
        (libc::SYS_socket, only_if(sockets)),
        (libc::SYS_socketpair, only_if(vec![vec![is(0, libc::AF_UNIX)]])),
    ];
    rules.extend(ON_A_PROCESS.iter().map(not_on_init));
    rules
}

fn ioctl_number(request: libc::Ioctl) -> i32 {
    // Both are small positive numbers.
    i32::try_from(request).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::bpf::tests::run, *};

    /// What the kernel makes of both answers: the more severe counts.
    fn both(filters: &Filters, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let answers = [&filters.parent, &filters.user];
        let answers = answers.map(|filter| run(filter, architecture, number, arguments).0);
        answers.into_iter().min_by_key(|answer| answer.cast_signed()).unwrap()
    }

    #[test]
    fn every_number_is_answered_as_the_lists_say() {
        let filters = compile();
        let (parent, user) = (filters.parent.len() / 8, filters.user.len() / 8);
        assert!(parent < 512 && user < 32, "{parent} and {user} instructions");
        let listed = |call| ALLOWED_EVERYWHERE.contains(&call) || ALLOWED_HERE.contains(&call);
        for call in 0..600 {
            let conditional = conditional().iter().chain(&for_nests()).any(|(number, _)| *number == call);
            let expected = match call {
                _ if conditional => continue,
                _ if NOT_THERE.contains(&call) => Answer::errno(libc::ENOSYS),
                _ if call > i64::from(NEWEST_KNOWN) => Answer::errno(libc::ENOSYS),
                _ if listed(call) => Answer::ALLOW,
                _ => Answer::errno(libc::EPERM),
            };
            assert_eq!(both(&filters, NATIVE, number(call), [0; 6]), expected.value(), "call {call}");
            let (_, steps) = run(&filters.parent, NATIVE, number(call), [0; 6]);
            assert!(steps < 32, "{steps} steps for call {call}");
        }
        assert_eq!(both(&filters, 0x4000_0003, 20, [0; 6]), Answer::KILL.value(), "32 bit");
        #[cfg(target_arch = "x86_64")]
        assert_eq!(both(&filters, NATIVE, 0x4000_0000, [0; 6]), Answer::KILL.value(), "x32");
    }

    #[test]
    fn arguments_decide_where_they_matter() {
        let filters = compile();
        let denied = Answer::errno(libc::EPERM).value();
        let ask = |call, a: i32, b: i32, c: i32| {
            let arguments = [a, b, c, 0, 0, 0].map(|argument| u64::from(argument.cast_unsigned()));
            both(&filters, NATIVE, number(call), arguments) != denied
        };
        assert!(ask(libc::SYS_clone, libc::SIGCHLD, 0, 0));
        assert!(!ask(libc::SYS_clone, libc::SIGCHLD | libc::CLONE_NEWUSER, 0, 0));
        assert!(ask(libc::SYS_socket, libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP));
        assert!(!ask(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP));
        assert!(!ask(libc::SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0));
        assert!(ask(libc::SYS_socket, libc::AF_NETLINK, 3, libc::NETLINK_ROUTE));
        assert!(!ask(libc::SYS_socket, libc::AF_NETLINK, 3, libc::NETLINK_XFRM));
        assert!(ask(libc::SYS_ioctl, 0, ioctl_number(libc::TCGETS), 0));
        assert!(!ask(libc::SYS_ioctl, 0, ioctl_number(libc::TIOCSTI), 0));
        assert!(!ask(libc::SYS_prctl, libc::PR_SET_SECCOMP, 2, 0));
        assert!(ask(libc::SYS_prctl, libc::PR_SET_NAME, 0, 0));
        assert!(!ask(libc::SYS_mount, 0, 0, 0));
        assert!(!ask(libc::SYS_socket, libc::AF_INET, libc::SOCK_DCCP, 0));
        assert!(ask(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0));
        for (call, argument) in ON_A_PROCESS {
            let on = |pid| if argument == 0 { ask(call, pid, 0, 0) } else { ask(call, 0, pid, 0) };
            assert!(on(0) && on(-1) && on(2) && !on(1), "call {call}");
        }
    }

    #[test]
    fn dangerous_calls_are_not_listed() {
        let dangerous = [
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_process_vm_readv,
            libc::SYS_open_by_handle_at,
            libc::SYS_personality,
            libc::SYS_clone3,
            libc::SYS_pidfd_getfd,
            libc::SYS_seccomp,
        ];
        for number in dangerous {
            assert!(!ALLOWED_EVERYWHERE.contains(&number) && !ALLOWED_HERE.contains(&number), "{number}");
        }
    }
}
