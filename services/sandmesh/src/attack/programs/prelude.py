# What every attack has: system calls by name, and a line of JSON for each attempt.
import ctypes, errno, json, os, sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = os.uname().machine == "x86_64"
told = 0

# name: (x86-64, generic)
NUMBERS = {
    "accept": (43, 202), "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112), "clone": (56, 220), "clone3": (435, 435),
    "delete_module": (176, 106), "fanotify_init": (300, 262), "finit_module": (313, 273), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433), "init_module": (175, 105), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioctl": (16, 29), "ioperm": (173, None), "iopl": (172, None),
    "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "listmount": (458, 458),
    "lookup_dcookie": (212, 18), "mbind": (237, 235), "memfd_secret": (447, 447), "migrate_pages": (256, 238),
    "modify_ldt": (154, None), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239),
    "name_to_handle_at": (303, 264), "nfsservctl": (180, 42), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pivot_root": (155, 41), "prctl": (157, 167), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "reboot": (169, 142), "request_key": (249, 218), "seccomp": (317, 277), "set_mempolicy": (238, 237),
    "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268), "settimeofday": (164, 170), "socket": (41, 198),
    "socketpair": (53, 199), "statmount": (457, 457), "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116),
    "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282), "uselib": (134, None), "ustat": (136, None),
    "vhangup": (153, 58),
}


def word(code):
    return errno.errorcode.get(code, str(code))


def tell(what, got):
    global told
    told += 1
    print(json.dumps({"try": what, "got": str(got)}), flush=True)


def finish():
    print(json.dumps({"done": told}), flush=True)


def stage(name):
    """Stops until the host has looked."""
    print(json.dumps({"stage": name}), flush=True)
    sys.stdin.readline()


def attempt(what, function, *args):
    """Tells `done`, or why not."""
    try:
        function(*args)
        tell(what, "done")
    except OSError as error:
        tell(what, word(error.errno))


def number(name):
    return NUMBERS[name][0 if X86 else 1]


def raw(nr, *args):
    """The result of a system call, or minus its error."""
    ctypes.set_errno(0)
    fixed = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(nr), *fixed)
    return -ctypes.get_errno() if result == -1 else result


def call(what, name, *args):
    """Tells what a system call answers; one that this processor lacks does not exist."""
    nr = number(name)
    if nr is None:
        return tell(what, "ENOSYS")
    result = raw(nr, *args)
    tell(what, "done" if result >= 0 else word(-result))
    return result


def in_child(function, *args):
    """Runs it in a child of its own, and gives how that ended: `exit N` or `signal N`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
            os._exit(0)
        except BaseException:
            os._exit(99)
    status = os.waitpid(pid, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def text(value):
    return ctypes.create_string_buffer(value.encode())


# So that the host finds the processes of this attack, whatever they do to each other.
raw(number("prctl"), 15, text(os.environ.get("ATTACK_MARK", "attack")), 0, 0, 0)
