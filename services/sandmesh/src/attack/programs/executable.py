# 16: the program that guards us, overwritten for the next run (CVE-2019-5736).
import shutil

paths = ["/proc/1/exe", f"/proc/{os.getppid()}/exe"]
for dir, _, names in os.walk("/.sandmesh"):
    paths += [os.path.join(dir, name) for name in names]
paths += ["/proc/self/exe", sys.executable, os.path.realpath(sys.executable), "/usr/bin/bwrap", "/bin/sh", "/lib64/ld-linux-x86-64.so.2"]
paths += sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line})
for path in paths:
    for flags, what in ((os.O_WRONLY, "write"), (os.O_RDWR | os.O_TRUNC, "truncate"), (os.O_WRONLY | os.O_APPEND, "append")):
        attempt(f"{what} {path}", lambda: os.close(os.open(path, flags)))
    if path.startswith("/proc"):
        # Opened for reading first, then again through the descriptor.
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            tell(f"reopen {path}", word(error.errno))
            continue
        attempt(f"reopen {path}", lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)))
        attempt(f"map {path} for writing", lambda: __import__("mmap").mmap(fd, 4096, 1, 3))
        os.close(fd)
        continue
    attempt(f"mode of {path}", lambda: os.chmod(path, 0o777))
    attempt(f"remove {path}", lambda: os.unlink(path))
    attempt(f"rename {path}", lambda: os.rename(path, path + ".old"))
    attempt(f"truncate by name {path}", lambda: os.truncate(path, 0))
for dir in ("/", "/.sandmesh", "/usr/bin", "/usr/lib", "/usr/local/bin", "/etc", "/etc/ld.so.preload", "/lib", "/proc", "/dev"):
    attempt(f"new file in {dir}", lambda: os.close(os.open(f"{dir}/atk", os.O_CREAT | os.O_WRONLY)))
    attempt(f"new directory in {dir}", lambda: os.mkdir(f"{dir}/atk"))
finish()
