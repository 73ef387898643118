//! The system call filter on user code: a strict allow list.
//!
//! What is not on the list answers EPERM; `clone3` answers ENOSYS, so that libraries fall back to
//! `clone`, whose flags a filter can see; numbers newer than this list answer ENOSYS as an older
//! kernel would; another architecture's calls (32 bit, x32) kill the process.
//! The filter is compiled once when the executor starts and handed to each warm parent as bytes.

use anyhow::Context;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

/// The highest system call number that this list was written with (mseal).
const NEWEST_KNOWN: u32 = 462;
/// `fchmodat2`, which older headers do not name.
const FCHMODAT2: i64 = 452;

/// This processor's `AUDIT_ARCH_*`; seccompiler refuses every processor that is neither.
const NATIVE: u32 = if cfg!(target_arch = "x86_64") { 0xC000_003E } else { 0xC000_00B7 };

/// Flags of `clone` that make namespaces. (`CLONE_NEWTIME` shares its bit with the exit signal and
/// can only be given to `clone3` and `unshare`.)
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The filter as the bytes of its BPF program.
pub(crate) fn compile() -> anyhow::Result<Vec<u8>> {
    let rules = ALLOWED_EVERYWHERE
        .iter()
        .chain(ALLOWED_HERE)
        .map(|number| (*number, Vec::new()))
        .chain(conditional()?)
        .collect();
    let arch = std::env::consts::ARCH.try_into().context("this processor is not supported by the filter")?;
    let deny = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, deny, SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(preamble().iter().chain(&program).flat_map(encode).collect())
}

/// Instructions that run before the list: answers other than "allow" and EPERM.
fn preamble() -> Vec<sock_filter> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const X32_BIT: u32 = 0x4000_0000;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let die = op(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let mut ops = vec![op(LOAD_WORD, 0, 0, ARCHITECTURE), op(JUMP_EQUAL, 1, 0, NATIVE), die.clone()];
    ops.push(op(LOAD_WORD, 0, 0, NUMBER));
    if cfg!(target_arch = "x86_64") {
        ops.extend([op(JUMP_GREATER_OR_EQUAL, 0, 1, X32_BIT), die]);
    }
    ops.extend([
        op(JUMP_GREATER_OR_EQUAL, 1, 0, NEWEST_KNOWN + 1),
        op(JUMP_EQUAL, 0, 1, u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX)),
        op(RETURN, 0, 0, no_such_call),
    ]);
    ops
}

fn encode(op: &sock_filter) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (op.code.to_ne_bytes(), op.k.to_ne_bytes());
    [a, b, op.jt, op.jf, c, d, e, f]
}

/// Calls whose arguments decide. Each rule is an "or", the conditions of a rule an "and".
fn conditional() -> anyhow::Result<Vec<(i64, Vec<SeccompRule>)>> {
    let is = |index, value: i32| word(index, SeccompCmpOp::Eq, value);
    let is_not = |index, value: i32| word(index, SeccompCmpOp::Ne, value);
    let mut sockets = vec![
        rule(vec![is(0, libc::AF_UNIX)?])?,
        // getifaddrs, and with it os.networkInterfaces() of node.
        rule(vec![is(0, libc::AF_NETLINK)?, is(2, libc::NETLINK_ROUTE)?])?,
    ];
    for family in [libc::AF_INET, libc::AF_INET6] {
        // Only what the kernel has built in: a rare protocol would load its module.
        for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            sockets.push(rule(vec![is(0, family)?, is(2, protocol)?])?);
        }
    }
    let no_namespaces =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(NEW_NAMESPACES), 0)?;
    // Terminal injection (CVE-2017-5226). The kernel looks at the low 32 bits only, so does this.
    let ioctl = vec![is_not(1, ioctl_number(libc::TIOCSTI))?, is_not(1, ioctl_number(libc::TIOCLINUX))?];
    Ok(vec![
        (libc::SYS_clone, vec![rule(vec![no_namespaces])?]),
        (libc::SYS_ioctl, vec![rule(ioctl)?]),
        (libc::SYS_prctl, vec![rule(vec![is_not(0, libc::PR_SET_SECCOMP)?])?]),
        (libc::SYS_socket, sockets),
        (libc::SYS_socketpair, vec![rule(vec![is(0, libc::AF_UNIX)?])?]),
    ])
}

fn rule(conditions: Vec<SeccompCondition>) -> anyhow::Result<SeccompRule> {
    Ok(SeccompRule::new(conditions)?)
}

fn word(index: u8, op: SeccompCmpOp, value: i32) -> anyhow::Result<SeccompCondition> {
    Ok(SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, u64::from(value.cast_unsigned()))?)
}

fn ioctl_number(request: libc::Ioctl) -> i32 {
    // Both are small positive numbers.
    i32::try_from(request).unwrap_or(i32::MAX)
}

/// Calls that are allowed whatever their arguments are, on every architecture.
const ALLOWED_EVERYWHERE: &[i64] = &[
    // files
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    // waiting
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // memory
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_mseal,
    libc::SYS_membarrier,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_get_mempolicy,
    // processes and threads
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_setparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_getattr,
    libc::SYS_sched_setattr,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval,
    // signals
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sigaltstack,
    // time
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    // sockets that exist, and System V and POSIX communication: all of a private namespace
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semctl,
    libc::SYS_semtimedop,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_notify,
    libc::SYS_mq_getsetattr,
];

/// The older twins of calls above, which only x86-64 has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_mknod,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_inotify_init,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_getpgrp,
    libc::SYS_pause,
    libc::SYS_alarm,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];

#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_fits_the_kernel() {
        let bytes = compile().unwrap();
        assert_eq!(bytes.len() % 8, 0);
        assert!(bytes.len() / 8 < 4096, "{} instructions", bytes.len() / 8);
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
