# 33, 35: everything readable, printed, for the host to look for what must not be there. $ATTACK_HIDDEN is
# what a session before this one wrote, reversed, so that it is not found in this program's own words.
import glob

hidden = os.environ.get("ATTACK_HIDDEN", "")[::-1].encode()
seen = 0
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/task/*/environ"):
    try:
        print(path, open(path, "rb").read())
        seen += 1
    except OSError:
        pass
print(dict(os.environ))
found = []
for top in ("/",):
    for dir, dirs, names in os.walk(top):
        if dir in ("/proc", "/usr", "/sys"):
            dirs.clear()
            continue
        for name in names:
            path = os.path.join(dir, name)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                content = os.read(fd, 1 << 20)
            except OSError:
                content = b""
            os.close(fd)
            seen += 1
            if hidden and hidden in content:
                found.append(path)
            if not path.startswith("/etc/ssl") and not path.startswith("/dev/") and len(content) < 20000:
                print(path, content)
tell("what a former session wrote", "not found" if not found else found)
for path in ("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/root/.ssh/id_rsa", "/root/.bash_history", "/root/.aws/credentials", "/root/.docker/config.json", "/root/.kube/config", "/home", "/var/run/secrets/kubernetes.io/serviceaccount/token", "/run/secrets", "/etc/kubernetes", "/etc/ssh", "/etc/machine-id", "/etc/fstab", "/var/lib/docker", "/var/log", "/proc/1/environ", "/proc/1/cwd", "/proc/cmdline/x"):
    attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else os.close(os.open(path, os.O_RDONLY)))
print("looked at", seen)
finish()
