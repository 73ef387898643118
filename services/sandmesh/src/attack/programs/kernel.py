# 10: parts of the kernel that no ordinary program needs and that exploits like.
import struct, time

params = ctypes.create_string_buffer(256)
call("io_uring_setup", "io_uring_setup", 8, params)
call("io_uring_enter", "io_uring_enter", 0, 1, 0, 0, 0, 0)
call("io_uring_register", "io_uring_register", 0, 0, 0, 0)
for command in range(38):
    call(f"bpf command {command}", "bpf", command, params, 128)
attr = ctypes.create_string_buffer(struct.pack("<IIQ", 1, 128, 0) + b"\0" * 112, 128)
for pid, cpu in ((0, -1), (-1, 0), (1, -1)):
    call(f"perf_event_open pid {pid} cpu {cpu}", "perf_event_open", attr, pid, cpu, -1, 0)
for flags in (0, 1, 0x80000, 0x80001):
    call(f"userfaultfd {flags:#x}", "userfaultfd", flags)
for operation in range(33):
    call(f"keyctl {operation}", "keyctl", operation, -3, 0, 0, 0)
for kind in ("user", "keyring", "asymmetric", "big_key", "logon", "trusted"):
    call(f"add_key {kind}", "add_key", text(kind), text("atk"), text("x"), 1, -3)
    call(f"request_key {kind}", "request_key", text(kind), text("atk"), 0, -3)
call("kexec_load", "kexec_load", 0, 0, 0, 0)
call("kexec_file_load", "kexec_file_load", 0, 0, 0, 0, 0)
call("init_module", "init_module", params, 16, text(""))
call("finit_module", "finit_module", 0, text(""), 0)
call("delete_module", "delete_module", text("loop"), 0x800)
# Attach, seize, trace me, and the rest; to pid 1, the parent, and pids beyond the sandbox.
for pid in (1, os.getppid(), 2, 3, 1000):
    for request, name in ((16, "attach"), (0x4206, "seize"), (1, "peek"), (4, "poke")):
        call(f"ptrace {name} {pid}", "ptrace", request, pid, 0, 0)
    call(f"process_vm_readv {pid}", "process_vm_readv", pid, params, 1, params, 1, 0)
    call(f"process_vm_writev {pid}", "process_vm_writev", pid, params, 1, params, 1, 0)
    call(f"kcmp {pid}", "kcmp", pid, os.getpid(), 0, 0, 0)
    call(f"move_pages {pid}", "move_pages", pid, 0, 0, 0, 0, 0)
    call(f"migrate_pages {pid}", "migrate_pages", pid, 0, 0, 0)
call("ptrace traceme", "ptrace", 0, 0, 0, 0)
pidfd = raw(number("pidfd_open"), 1, 0)
for fd in range(8):
    call(f"pidfd_getfd {fd}", "pidfd_getfd", pidfd, fd, 0)
call("process_madvise", "process_madvise", pidfd, 0, 0, 0, 0)
call("process_mrelease", "process_mrelease", pidfd, 0)
for persona in (0xFFFFFFFF, 0, 0x0040000, 0x0400000, 0x8000000):
    call(f"personality {persona:#x}", "personality", persona)
call("acct", "acct", text("/workspace/acct"))
call("swapon", "swapon", text("/workspace/swap"), 0)
call("swapoff", "swapoff", text("/workspace/swap"))
# Wrong magic numbers: where it is allowed, it is refused for them and nothing reboots.
call("reboot", "reboot", 0, 0, 0, 0)
call("quotactl", "quotactl", 0x80000100, text("/dev/vda"), 0, params)
call("quotactl_fd", "quotactl_fd", 0, 0, 0, 0)
for action in (2, 3, 5, 10):
    call(f"syslog {action}", "syslog", action, params, 16)
now = struct.pack("<qq", int(time.time()), 0)
call("settimeofday", "settimeofday", ctypes.create_string_buffer(now), 0)
call("clock_settime", "clock_settime", 0, ctypes.create_string_buffer(now))
call("adjtimex", "adjtimex", ctypes.create_string_buffer(b"\xff\x3f\0\0" + b"\0" * 204))
call("clock_adjtime", "clock_adjtime", 0, ctypes.create_string_buffer(b"\xff\x3f\0\0" + b"\0" * 204))
for name, args in {
    "fanotify_init": (0, 0), "lookup_dcookie": (0, 0, 0), "vhangup": (), "nfsservctl": (0, 0, 0), "uselib": (0,), "ustat": (0, params),
    "iopl": (3,), "ioperm": (0x70, 2, 1), "modify_ldt": (1, params, 16), "mbind": (0, 0, 0, 0, 0, 0), "set_mempolicy": (0, 0, 0),
    "memfd_secret": (0,), "statmount": (params, params, 64, 0), "listmount": (params, params, 1, 0),
}.items():
    call(name, name, *args)
# A filter of its own that would hand decisions to user code, and speculation controls aside.
for operation in (0, 1, 2, 3):
    call(f"seccomp {operation}", "seccomp", operation, 0, params)
call("prctl set seccomp", "prctl", 22, 2, params, 0, 0)
# To go before everybody else on the machine.
for policy, name in ((1, "first in, first out"), (2, "round robin")):
    attempt(f"schedule {name}", lambda: os.sched_setscheduler(0, policy, os.sched_param(50)))
attempt("schedule before all", lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
attempt("killed last", lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"))
import resource

for kind in ("NOFILE", "CORE", "MEMLOCK", "FSIZE", "RTPRIO", "NICE"):
    limit = getattr(resource, f"RLIMIT_{kind}", {"NICE": 13}.get(kind))
    hard = resource.getrlimit(limit)[1]
    if hard != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(limit, (hard + 1, hard + 1))
            tell(f"more than the limit of {kind}", "done")
        except (OSError, ValueError) as error:
            tell(f"more than the limit of {kind}", "EPERM")
# Numbers that do not exist today may exist tomorrow.
for nr in (463, 470, 500, 548, 600, 1000, 9999):
    result = raw(nr, 0, 0, 0, 0, 0, 0)
    tell(f"system call {nr}", "done" if result >= 0 else word(-result))
finish()
