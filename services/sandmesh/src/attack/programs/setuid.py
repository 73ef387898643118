# 13: programs that would change who we are, and changing it by hand.
import shutil, stat, subprocess

found = []
for top in ("/usr", "/bin", "/sbin", "/lib", "/workspace", "/tmp", "/etc"):
    for dir, _, names in os.walk(top):
        for name in names:
            path = os.path.join(dir, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISREG(mode) and mode & 0o6000:
                found.append(path)
before = (os.getresuid(), os.getresgid())
copy = "/workspace/copy"
shutil.copy(sys.executable, copy)
os.chmod(copy, 0o6755)
for what, function in {
    "setuid 0": lambda: os.setuid(0), "setgid 0": lambda: os.setgid(0), "setresuid 0": lambda: os.setresuid(0, 0, 0),
    "setresgid 0": lambda: os.setresgid(0, 0, 0), "setgroups 0": lambda: os.setgroups([0]), "setuid nobody": lambda: os.setuid(65534),
    "chown a copy to 0": lambda: os.chown(copy, 0, 0), "chown a copy to nobody": lambda: os.chown(copy, 65534, 65534),
    "file capabilities": lambda: os.setxattr(copy, "security.capability", b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\0\0\0\0"),
    "trusted attribute": lambda: os.setxattr(copy, "trusted.atk", b"x"),
}.items():
    attempt(what, function)


class Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


everything = (ctypes.c_uint32 * 6)(*([0xFFFFFFFF] * 6))
result = libc.capset(ctypes.byref(Header(0x20080522, 0)), everything)
tell("capset everything", "done" if result == 0 else word(ctypes.get_errno()))
for capability in (0, 7, 12, 21, 39):
    result = raw(number("prctl"), 47, 2, capability, 0, 0)
    tell(f"ambient capability {capability}", "done" if result >= 0 else word(-result))
result = raw(number("prctl"), 38, 0, 0, 0, 0)
tell("take no_new_privs back", "done" if result >= 0 else word(-result))
result = raw(number("prctl"), 28, 0x2F, 0, 0, 0)
tell("securebits", "done" if result >= 0 else word(-result))

# What a program with the bit becomes: its own view of itself, for those that can be made to show it.
show = "import os; print(os.getresuid(), os.getresgid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
shown = subprocess.run([copy, "-I", "-c", show], capture_output=True, text=True).stdout.strip()
tell("copy with the bit", "as before" if shown == f"{before[0]} {before[1]} {'0' * 16}" else shown)
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    tell(name, status[name].lstrip("0") or "none")
tell("NoNewPrivs", status["NoNewPrivs"])
suid = [line.split()[4] for line in open("/proc/self/mountinfo") if "nosuid" not in line.split()[5] and line.split()[4] not in ("/",)]
# One that waits at its end, so that the host can see who it became: every one that there is.
running = []
for path in found:
    try:
        running.append(subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    except OSError:
        pass
os.stat("/workspace")
tell("programs with the bit", len(found))
stage("running")
for process in running:
    process.kill()
finish()
