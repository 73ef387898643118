# 26 to 29: processes that do not want to end. $ATTACK_WAY says how.
import resource, signal, time

way = os.environ["ATTACK_WAY"]


def deaf():
    for n in range(1, 65):
        try:
            signal.signal(n, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))


def family(work, children=6):
    """Grandchildren in sessions of their own, deaf and without streams, whose parents are gone."""
    for n in range(children):
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.setsid() if os.getpid() != os.getsid(0) else None
            deaf()
            if n % 2:
                os.closerange(0, 100)
            while True:
                work()


spin = lambda: None
rest = lambda: time.sleep(0.05)
if way == "spin":
    deaf()
    family(spin, 8)
    stage("spinning")
    while True:
        pass
if way == "orphans":
    family(rest)
    print("begun", flush=True)
    raise SystemExit(5)
if way == "orphans and a deadline":
    deaf()
    family(rest)
    print("begun", flush=True)
    while True:
        time.sleep(1)
if way == "orphans that fork on":
    def breed():
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            pass
        os.setsid() if os.getpid() != os.getsid(0) else None

    family(breed, 8)
    print("begun", flush=True)
    time.sleep(600)
if way == "a name like another":
    deaf()
    family(rest)
    raw(number("prctl"), 15, text("sandmesh-execut"), 0, 0, 0)
    print("begun", flush=True)
    time.sleep(600)
if way == "uninterruptible":
    # vfork: the parent waits for its child in a state that no signal but one ends.
    print("begun", flush=True)
    if X86:
        machine = __import__("mmap").mmap(-1, 4096, prot=7)
        # mov eax, 58 (vfork); syscall; test eax, eax; jnz out; again: mov eax, 34 (pause); syscall; jmp again; out: ret
        machine.write(bytes.fromhex("b83a0000000f0585c07509b8220000000f05ebf7c3"))
        ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(machine)))()
    time.sleep(600)
if way == "zombies":
    for n in range(40):
        if os.fork() == 0:
            os._exit(0)
    for n in range(400):  # orphans: the first process is to reap these
        try:
            pid = os.fork()
        except OSError:
            time.sleep(0.01)
            continue
        if pid == 0:
            if os.fork():
                os._exit(0)
            os._exit(0)
        os.waitpid(pid, 0)
    time.sleep(0.5)
    stage("dead")
    raise SystemExit(6)
if way == "stop self":
    print("begun", flush=True)
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)
if way == "stop everybody":
    family(rest)
    print("begun", flush=True)
    while True:
        os.kill(-1, signal.SIGSTOP)
        os.kill(0, signal.SIGSTOP)
if way == "stop by terminal":
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGTSTP)
    os.kill(os.getpid(), signal.SIGTTIN)
    time.sleep(600)
if way == "clock tricks":
    print("begun", flush=True)
    for name in ("clock_settime", "settimeofday", "adjtimex"):
        raw(number(name), 0, 0)
    signal.setitimer(signal.ITIMER_REAL, 10**6)
    resource.setrlimit(resource.RLIMIT_CPU, (10**6,) * 2) if resource.getrlimit(resource.RLIMIT_CPU)[1] < 0 else None
    os.sched_setscheduler(0, 5, os.sched_param(0))  # SCHED_IDLE
    os.nice(19)
    while True:
        time.sleep(10**6)
if way == "deaf":
    deaf()
    print("begun", flush=True)
    while True:
        signal.sigtimedwait([], 600)
