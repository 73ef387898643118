# 31: what an execution finds at its start, to be compared with what one before it left. No prelude: what it
# imports could be poisoned, and then it must show here.
import sys

sys.path[:] = [place for place in sys.path if not place.startswith("/workspace")]
import builtins, gc, hashlib, json, os, random, resource, signal, site, socket, threading, time

told = 0


def tell(what, got):
    global told
    told += 1
    print(json.dumps({"try": what, "got": str(got)}), flush=True)


def tree(top):
    return sorted(os.path.join(dir, name) for dir, _, names in os.walk(top) for name in names)


for module in (builtins, json, os, random, sys, time, hashlib, socket, threading, signal, site):
    tell(f"file of {module.__name__}", getattr(module, "__file__", "built in"))
    # Functions replaced, names added or removed.
    kinds = ",".join(sorted(f"{name}:{type(value).__name__}" for name, value in vars(module).items() if not name.startswith("__")))
    tell(f"content of {module.__name__}", hashlib.sha256(kinds.encode()).hexdigest()[:16])
    foreign = [name for name, value in vars(module).items() if getattr(getattr(value, "__code__", None), "co_filename", "").startswith(("<code>", "/workspace", "<string>"))]
    tell(f"user code in {module.__name__}", foreign)
tell("modules from elsewhere", sorted(name for name, m in list(sys.modules.items()) if str(getattr(m, "__file__", "")).startswith(("/workspace", "/tmp", "/dev/shm"))))
tell("modules of the attack", sorted(name for name in sys.modules if "poison" in name))
tell("numbers", [2 + 2, 7, 256, True + True, len("abc"), None, hash(1)])
tell("sum of json", json.dumps({"a": [1, None, True]}))
tell("search path", sys.path)
tell("finders", [len(sys.meta_path), len(sys.path_hooks)])
tell("hooks", [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__, sys.gettrace(), sys.getprofile(), threading._trace_hook if hasattr(threading, "_trace_hook") else None])
tell("limits", [resource.getrlimit(kind) for kind in range(16)])
tell("recursion, switch", [sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()])
tell("environment", sorted((k, v) for k, v in os.environ.items() if not k.startswith("ATTACK_")))
tell("signals", [str(signal.getsignal(n)) for n in range(1, 65) if n not in (32, 33)])
tell("blocked signals", [sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))])
tell("umask", [os.umask(0o22), os.getcwd(), os.nice(0), sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)])
tell("threads", [threading.active_count(), len(os.listdir("/proc/self/task"))])
tell("descriptors", sorted(fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}") and int(fd) < 3))
token = os.urandom(16)


def is_other(pid):
    # What runs in the memory of this process, too, is no other: only some executions have such a one.
    try:
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            memory.seek(id(token) + bytes.__basicsize__ - 1)
            return memory.read(16) != token
    except OSError:
        return True


tell("processes", len([name for name in os.listdir("/proc") if name.isdigit() and is_other(name)]))
for top in ("/tmp", "/dev/shm", "/dev/mqueue", "/var/tmp", "/run"):
    tell(f"files in {top}", tree(top))
for name in ("shm", "msg", "sem"):
    tell(f"System V {name}", len(open(f"/proc/sysvipc/{name}").read().splitlines()) - 1)
for name in ("kernel/shmmax", "kernel/msgmax", "kernel/pid_max", "kernel/sem", "fs/mqueue/msg_max", "kernel/hostname", "net/ipv4/ip_local_port_range"):
    try:
        tell(name, open(f"/proc/sys/{name}").read().strip())
    except OSError as error:
        tell(name, error.errno)
tell("mounts", [line.split()[4] + " " + line.split()[5] for line in open("/proc/self/mountinfo")])
tell("listening", sum(line.split()[3] == "0A" for line in open("/proc/net/tcp").read().splitlines()[1:]))
tell("abstract sockets", [line.split()[-1] for line in open("/proc/net/unix") if "poison" in line])
tell("oom score", open("/proc/self/oom_score_adj").read().strip())
tell("name", open("/proc/self/comm").read().strip())
print(json.dumps({"done": told}), flush=True)
