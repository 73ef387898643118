# 22: what the whole machine has one pool of. $ATTACK_WAY says which; all that can be had is taken and held.
import fcntl, socket, time

way = os.environ["ATTACK_WAY"]
kept = []
IO_SETUP = 206 if X86 else 0


def contexts(events):
    context = ctypes.c_ulong(0)
    result = raw(IO_SETUP, events, ctypes.byref(context))
    if result < 0:
        raise OSError(-result, "")
    return context


def take(function, *args):
    taken, end = 0, time.monotonic() + 4
    while taken < 100_000 and time.monotonic() < end:
        try:
            kept.append(function(*args))
        except OSError:
            break
        taken += 1
    return taken


taken = 0
if way == "asynchronous I/O":
    for events in (65536, 4096, 256, 16, 1):
        taken += take(contexts, events)
elif way == "terminals":
    taken = take(os.openpty)
elif way == "inotify":
    taken = take(lambda: libc.inotify_init1(0) if libc.inotify_init1(0) >= 0 else (_ for _ in ()).throw(OSError(24, "")))
elif way == "pipes":
    def pipe():
        pair = os.pipe()
        fcntl.fcntl(pair[1], 1031, 1 << 20)
        return pair
    taken = take(pipe)
elif way == "sockets":
    taken = take(socket.socketpair)
elif way == "locks":
    fd = os.open("/workspace/locked", os.O_CREAT | os.O_RDWR)
    def lock(n=[0]):
        n[0] += 2
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, n[0])
    taken = take(lock)
elif way == "timers":
    class Event(ctypes.Structure):
        _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("pad", ctypes.c_char * 48)]
    def timer():
        id = ctypes.c_int()
        result = raw(222 if X86 else 107, 1, ctypes.byref(Event(None, 0, 1)), ctypes.byref(id))
        if result < 0:
            raise OSError(-result, "")
    taken = take(timer)
elif way == "open files":
    taken = take(os.open, "/dev/null", os.O_RDONLY)
elif way == "message queues":
    taken = take(lambda: libc.msgget(0, 0o1666) if libc.msgget(0, 0o1666) >= 0 else (_ for _ in ()).throw(OSError(28, "")))
print("taken", taken, flush=True)
stage("taken")
