# 23: memory of every kind. $ATTACK_WAY says which; $ATTACK_MIB is twice and more of what there is.
import mmap, resource, socket, time

way, wanted = os.environ["ATTACK_WAY"], int(os.environ["ATTACK_MIB"]) << 20
piece = b"x" * (1 << 20)
print("begun", flush=True)
kept = []


def fill(path):
    with open(path, "wb", 0) as file:
        for _ in range(wanted >> 20):
            file.write(piece)


if way == "heap":
    while len(kept) << 20 < wanted:
        kept.append(bytearray(piece))
elif way == "children":
    for n in range(8):
        if os.fork() == 0:
            while len(kept) << 20 < wanted // 4:
                kept.append(bytearray(piece))
            time.sleep(3)
            os._exit(0)
    raise SystemExit(any([os.wait()[1] for n in range(8)]) or "no child was killed")
elif way == "shared mapping":
    memory = mmap.mmap(-1, wanted)
    for n in range(wanted >> 20):
        memory.write(piece)
elif way == "populated mapping":
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap(None, ctypes.c_size_t(wanted), 3, 0x8022, -1, ctypes.c_long(0))
    time.sleep(1)
elif way == "memfd":
    fd = os.memfd_create("x")
    for n in range(wanted >> 20):
        os.write(fd, piece)
elif way == "locked":
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],) * 2)
    libc.mlockall(7)
    while len(kept) << 20 < wanted:
        kept.append(bytearray(piece))
elif way == "System V":
    libc.shmat.restype = ctypes.c_void_p
    for n in range(wanted >> 23):
        id = libc.shmget(0, ctypes.c_size_t(8 << 20), 0o1600)
        address = libc.shmat(id, None, 0)
        ctypes.memset(ctypes.c_void_p(address), 1, 8 << 20)
elif way in ("/tmp", "/dev/shm"):
    fill(f"{way}/x")
elif way == "both tmpfs and heap":
    for path in ("/tmp/x", "/dev/shm/x"):
        try:
            fill(path)
        except OSError:
            pass
    while len(kept) << 20 < wanted:
        kept.append(bytearray(piece))
elif way == "page cache":
    fill("/workspace/x")
    for _ in range(3):
        with open("/workspace/x", "rb", 0) as file:
            while file.read(1 << 20):
                pass
    os.unlink("/workspace/x")
elif way == "pipes":
    for n in range(4000):
        read, write = os.pipe()
        kept.append((read, write))
        for size in (1 << 20, 1 << 16):
            try:
                __import__("fcntl").fcntl(write, 1031, size)
                break
            except OSError:
                pass
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, piece[:65536])
        except OSError:
            pass
elif way == "socket buffers":
    for n in range(2000):
        pair = socket.socketpair()
        kept.append(pair)
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
        pair[0].setblocking(False)
        try:
            while True:
                pair[0].send(piece)
        except OSError:
            pass
elif way == "descriptors in flight":
    import array
    for n in range(2000):
        pair = socket.socketpair()
        kept.append(pair)
        fd = os.memfd_create("x")
        os.write(fd, piece)
        pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)
elif way == "message queues":
    for n in range(4000):
        id = libc.msgget(0, 0o1666)
        message = ctypes.create_string_buffer(b"\1" + b"\0" * 7 + b"x" * 8000)
        while libc.msgsnd(id, message, 8000, 0o4000) == 0:
            pass
elif way == "directory entries":
    for n in range(10**6):
        os.mkdir(f"/tmp/{n:0200}")
elif way == "stacks of threads":
    import threading
    threading.stack_size(wanted // 4)
    start = threading.Event()

    def use():
        # As deep as the stack goes, page by page.
        sys.setrecursionlimit(10**9)
        deep = lambda n: n and deep(n - 1)
        deep(60000)
        time.sleep(600)

    for n in range(8):
        threading.Thread(target=use, daemon=True).start()
    time.sleep(2)
print("had all of it", flush=True)
