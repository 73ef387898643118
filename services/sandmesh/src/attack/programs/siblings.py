# 32: another execution of the same session, its parent, and the first process: read, traced, signalled.
import signal

own = os.getpid()
visible = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
secret = os.environ["ATTACK_SECRET"][::-1]
found = []
for pid in range(1, 4000):
    for name in ("environ", "cmdline", "maps", "mem", "stack", "auxv", "syscall", "io", "wchan", "root/workspace/sibling", "cwd/sibling", "root/tmp/sibling"):
        try:
            fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            content = os.read(fd, 1 << 16)
        except OSError:
            content = b""
        os.close(fd)
        if secret.encode() in content and not name.endswith("workspace/sibling"):
            found.append(f"{pid} {name}")
tell("the secret of the other", "not found" if not found else found)
for name in ("mem", "environ", "maps", "stack", "syscall", "auxv", "clear_refs", "pagemap", "personality", "io"):
    for flags, how in ((os.O_RDONLY, "read"), (os.O_RDWR, "write")):
        if (name, how) in (("environ", "write"), ("maps", "write"), ("auxv", "write"), ("clear_refs", "read")):
            continue
        def use():
            fd = os.open(f"/proc/1/{name}", flags)
            # Some of these open and say nothing.
            data = os.read(fd, 64) if how == "read" else b"x"
            if not data or data in (b"\0",):
                raise OSError(errno.EACCES, "")
        attempt(f"{how} /proc/1/{name}", use)
for what in ("exe", "cwd", "root"):
    attempt(f"follow /proc/1/{what}", lambda: os.readlink(f"/proc/1/{what}"))
for request, name in ((16, "attach"), (0x4206, "seize"), (1, "peek"), (5, "poke"), (12, "registers")):
    for pid in (1, os.getppid()):
        call(f"ptrace {name} {pid}", "ptrace", request, pid, 0, 0)
# Services of the sandbox itself that listen in the network namespace.
import socket

for line in open("/proc/net/unix").read().splitlines()[1:]:
    place = line.split()[-1]
    if place.startswith("@"):
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as s:
                attempt(f"connect to {place}", s.connect, "\0" + place[1:])
listening = [line.split()[1] for name in ("tcp", "tcp6", "udp", "udp6") for line in open(f"/proc/net/{name}").read().splitlines()[1:]]
tell("ports that listen", "not found" if not listening else listening)
buffer = ctypes.create_string_buffer(64)
for pid in (1, os.getppid()):
    call(f"process_vm_readv {pid}", "process_vm_readv", pid, buffer, 1, buffer, 1, 0)
    call(f"process_vm_writev {pid}", "process_vm_writev", pid, buffer, 1, buffer, 1, 0)
for pid in visible:
    if pid not in (own, 1):
        tell(f"process {pid} beside us", open(f"/proc/{pid}/cmdline").read().replace("\0", " ") or "a thread")
# Everything that a signal could do, to the first process, the parent and everybody else there may be.
for n in range(1, 65):
    if n in (32, 33):
        continue
    for pid in {1, os.getppid()} | set(range(2, 300)):
        if pid != own:
            try:
                os.kill(pid, n)
            except OSError:
                pass
    for pid in (1, os.getppid()):
        fd = raw(number("pidfd_open"), pid, 0)
        if fd >= 0:
            try:
                signal.pidfd_send_signal(fd, n)
            except OSError:
                pass
            os.close(fd)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for target in (-1, -os.getppid(), -2, -3):
    for n in (signal.SIGSTOP, signal.SIGKILL):
        try:
            os.kill(target, n) if target != -os.getpgrp() else None
        except OSError:
            pass
finish()
os._exit(3)
