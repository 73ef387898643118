# 9: every way to new or other namespaces, and every way to change what is mounted.
FLAGS = {
    "time": 0x80, "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}
SIGCHLD = 17
stage("before")


def gone(pid):
    """A child that was made where none should be ends at once."""
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
    return pid


def clone(flags):
    result = raw(number("clone"), flags | SIGCHLD, 0, 0, 0, 0)
    return gone(result)


class CloneArgs(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid", "set_tid_size", "cgroup")]


def clone3(flags):
    args = CloneArgs(flags=flags, exit_signal=SIGCHLD)
    return gone(raw(number("clone3"), ctypes.byref(args), ctypes.sizeof(args)))


ways = {**FLAGS, "all": 0x7E020000, "user and mount": 0x10020000, "user and net": 0x50000000}
for name, flag in ways.items():
    # In a child, so that one that works does not spoil the next.
    for what, function in (("unshare", lambda: raw(number("unshare"), flag)), ("clone", lambda: clone(flag)), ("clone3", lambda: clone3(flag))):
        if what == "clone" and flag == 0x80:
            continue  # part of the exit signal there
        read, write = os.pipe()

        def go():
            result = function()
            os.write(write, (b"done" if result >= 0 else word(-result).encode()))

        in_child(go)
        os.close(write)
        tell(f"{what} {name}", os.read(read, 64).decode())
        os.close(read)
    # The flags again with other bits set that the kernel ignores or minds.
    tell(f"clone {name} with CLONE_PTRACE", word(-clone(flag | 0x2000)) if flag != 0x80 else "EPERM")

for pid in ("self", "1"):
    try:
        names = sorted(os.listdir(f"/proc/{pid}/ns"))
    except OSError as error:
        names = []
        tell(f"list /proc/{pid}/ns", word(error.errno))
    for name in names:
        try:
            fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        except OSError as error:
            tell(f"setns /proc/{pid}/ns/{name}", word(error.errno))
            continue
        call(f"setns /proc/{pid}/ns/{name}", "setns", fd, 0)
        # NS_GET_USERNS and NS_GET_PARENT lead out of the sandbox.
        for request, what in ((0xB701, "owner"), (0xB702, "parent")):
            other = raw(number("ioctl"), fd, request)
            if other >= 0:
                call(f"setns {what} of {pid} {name}", "setns", other, 0)
        os.close(fd)
for pid in (1, os.getppid()):
    fd = raw(number("pidfd_open"), pid, 0)
    if fd >= 0:
        call(f"setns pidfd of {pid}", "setns", fd, 0x7E020000)

NULL = ctypes.c_void_p(None)
mounts = {
    "tmpfs": ("none", "/tmp", "tmpfs", 0), "proc": ("proc", "/tmp", "proc", 0), "sysfs": ("sysfs", "/tmp", "sysfs", 0),
    "cgroup": ("cgroup", "/tmp", "cgroup", 0), "cgroup2": ("cgroup2", "/tmp", "cgroup2", 0), "devpts": ("devpts", "/tmp", "devpts", 0),
    "mqueue": ("mqueue", "/tmp", "mqueue", 0), "binfmt_misc": ("b", "/tmp", "binfmt_misc", 0), "fuse": ("f", "/tmp", "fuse", 0),
    "bpf": ("bpf", "/tmp", "bpf", 0), "ext4": ("/dev/vda", "/tmp", "ext4", 0), "bind": ("/", "/tmp", "", 0x1000),
    "recursive bind": ("/", "/tmp", "", 0x5000), "remount rw": ("", "/", "", 0x20), "remount rw bind": ("", "/usr", "", 0x1020),
    "remount suid dev": ("", "/workspace", "", 0x1020), "move": ("/workspace", "/tmp", "", 0x2000), "shared": ("", "/", "", 0x100000),
    "slave": ("", "/", "", 0x80000), "private": ("", "/", "", 0x40000),
}
for name, (source, target, kind, flags) in mounts.items():
    call(f"mount {name}", "mount", text(source), text(target), text(kind), flags, NULL)
call("mount overlay", "mount", text("o"), text("/tmp"), text("overlay"), 0, text("lowerdir=/usr,upperdir=/workspace,workdir=/tmp"))
for target in ("/proc", "/tmp", "/dev", "/workspace", "/", "/usr"):
    for flags, how in ((0, ""), (2, " detach")):
        call(f"umount {target}{how}", "umount2", text(target), flags)
call("pivot_root", "pivot_root", text("."), text("."))
call("chroot", "chroot", text("/tmp"))
call("fsopen tmpfs", "fsopen", text("tmpfs"), 0)
call("fsopen overlay", "fsopen", text("overlay"), 0)
call("fspick", "fspick", -100, text("/"), 0)
call("fsconfig", "fsconfig", 0, 6, 0, 0, 0)
call("fsmount", "fsmount", 0, 0, 0)
call("open_tree clone", "open_tree", -100, text("/"), 1)
call("open_tree", "open_tree", -100, text("/"), 0)
call("move_mount", "move_mount", -100, text("/workspace"), -100, text("/tmp"), 0)
call("mount_setattr", "mount_setattr", -100, text("/"), 0, text("\0" * 31), 32)
handle = ctypes.create_string_buffer(b"\x80\0\0\0" + b"\0" * 140, 144)
place = ctypes.c_int(0)
call("name_to_handle_at", "name_to_handle_at", -100, text("/workspace"), handle, ctypes.byref(place), 0)
call("open_by_handle_at", "open_by_handle_at", -100, handle, 0)
call("sethostname", "sethostname", text("owned"), 5)
call("setdomainname", "setdomainname", text("owned"), 5)
stage("after")
finish()
