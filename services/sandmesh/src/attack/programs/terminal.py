# 14: characters put into a terminal that others read, and line disciplines.
import fcntl, pty

INJECT, LINUX = 0x5412, 0x541C
fds = {"stdin": 0, "stdout": 1, "stderr": 2}
for name in ("/dev/tty", "/dev/console", "/dev/ptmx"):
    try:
        fds[name] = os.open(name, os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        if name != "/dev/ptmx":
            tell(f"open {name}", word(error.errno))
try:
    fds["own master"], fds["own slave"] = pty.openpty()
except OSError as error:
    tell("open a terminal", word(error.errno))
letter = text("x")
for name, fd in fds.items():
    for request, what in ((INJECT, "TIOCSTI"), (LINUX, "TIOCLINUX")):
        # The kernel looks at the low 32 bits only (CVE-2017-5226 came back as CVE-2019-10063).
        for high in (0, 1 << 32, 0xFFFFFFFF << 32, 1 << 63):
            value = request | high
            value = value - (1 << 64) if value >= 1 << 63 else value
            call(f"{what} {high >> 32:#x} on {name}", "ioctl", fd, value, letter)
finish()
