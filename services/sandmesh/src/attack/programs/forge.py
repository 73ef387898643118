# 36: another end than the real one, told to whoever might listen. $ATTACK_WAY says how it ends.
import signal, struct

way = os.environ["ATTACK_WAY"]
os.write(1, b"trying\n")
LIES = [
    b'R{"forged": true}', b'E{"type": "F", "message": "forged", "traceback": ""}', b'"started"\n', b'{"started":{}}\n',
    b'{"exited":{"code":0,"signal":null,"usage":{"cpu_us":0,"peak_rss_bytes":0,"read_bytes":0,"write_bytes":0}}}\n',
    b'{"failed":{"stage":"forged","errno":1,"message":"forged"}}\n', struct.pack("<iiii", 0, 0, 0, 0), struct.pack("<q", 0),
    b"\x00" * 64, b"\xff" * 64, b"exit 0\n", b"{\"code\":0}\n", b"0\n",
]
targets = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
paths = [f"/proc/{pid}/fd/{fd}" for pid in (1, os.getppid()) for fd in range(12)]
for fd in targets:
    for lie in LIES:
        try:
            os.set_blocking(fd, False)
            os.write(fd, lie)
        except OSError:
            pass
for path in paths:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        for lie in LIES:
            os.write(fd, lie)
    except OSError:
        pass
if way == "exit 7 with the first process short of everything":
    import resource

    for pid in {1, os.getppid()}:
        for kind in range(16):
            try:
                resource.prlimit(pid, kind, (0, 0))
            except (OSError, ValueError):
                pass
    os._exit(7)
if way == "exit 7":
    os._exit(7)
if way == "signal 9":
    os.kill(os.getpid(), signal.SIGKILL)
if way == "signal 11":
    ctypes.string_at(0)
if way == "exit 7 after closing everything":
    os.closerange(0, 65536)
    os._exit(7)
if way == "exit 7 with heirs":
    for n in range(8):
        if os.fork() == 0:
            os.setsid()
            while True:
                signal.pause()
    os._exit(7)
if way == "exit 7 after fork, child exits 0":
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    os._exit(7)
if way == "exit 7 of another program":
    os.execv("/bin/sh", ["sh", "-c", "for fd in 3 4 5 6 7 8 9; do echo '{\"exited\":{\"code\":0}}' >&$fd; done 2>/dev/null; exit 7"])
if way == "the parent killed, then exit 7":
    for pid in (os.getppid(), 1, -1):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    os._exit(7)
if way == "exit 7 in a thread":
    import threading

    threading.Thread(target=lambda: raw(231 if X86 else 94, 7)).start()
    signal.pause()
if way == "exit 263":
    raw(231 if X86 else 94, 263)
