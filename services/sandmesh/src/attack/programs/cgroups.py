# 18: control groups, whose release_agent is a way out where it can be written.
kinds = [line.split(" - ")[1].split()[0] for line in open("/proc/self/mountinfo")]
tell("mounted control groups", sum(kind in ("cgroup", "cgroup2") for kind in kinds))
found = []
for top in ("/sys", "/proc/1/root", "/proc/self/root", "/mnt", "/run", "/dev", "/tmp", "/workspace"):
    for dir, dirs, names in os.walk(top):
        if dir.count("/") > 8:
            dirs.clear()
        if top.startswith("/proc") and dir == top:
            dirs[:] = [name for name in dirs if name not in ("proc", "usr", "workspace")]
        found += [os.path.join(dir, name) for name in names if name in ("release_agent", "notify_on_release", "cgroup.procs", "tasks", "cgroup.subtree_control")]
tell("files of control groups", len(found))
for kind, options in (("cgroup", "memory"), ("cgroup", "rdma"), ("cgroup", "none,name=atk"), ("cgroup2", "")):
    call(f"mount {kind} {options}", "mount", text(kind), text("/tmp"), text(kind), 0, text(options))
# Their paths are relative to the sandbox's own root; the host looks for what they must not name.
for path in ("/proc/self/cgroup", "/proc/1/cgroup"):
    print(path, open(path).read().split(), flush=True)
stage("look")
finish()
