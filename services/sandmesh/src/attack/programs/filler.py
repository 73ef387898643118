# 25: more on the disk than allowed, slowly enough for whoever watches. $ATTACK_WAY says how; nothing goes
# beyond $ATTACK_MIB, so that a host without limits survives this.
import threading, time

way, most = os.environ["ATTACK_WAY"], int(os.environ["ATTACK_MIB"])
os.chdir("/workspace")
piece = b"x" * (1 << 20)
# Small things, several times as many as the limit has room for.
MANY = 40_000
kept = []
print("begun", flush=True)


def slowly(size=4):
    """Numbers of files of so many MiB each, at some 60 MiB/s."""
    for n in range(most // size):
        time.sleep(size / 60)
        yield n


def write(path, size=4):
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    for _ in range(size):
        os.write(fd, piece)
    return fd


if way == "one file":
    fd = os.open("one", os.O_CREAT | os.O_WRONLY)
    for n in slowly(1):
        os.write(fd, piece)
elif way == "many files":
    for n in slowly():
        os.close(write(f"f{n}"))
elif way == "deleted files kept open":
    for n in slowly():
        kept.append(write(f"f{n}"))
        os.unlink(f"f{n}")
elif way == "files without a name":
    for n in slowly():
        fd = os.open("/workspace", os.O_TMPFILE | os.O_RDWR, 0o600)
        kept.append(fd)
        for _ in range(4):
            os.write(fd, piece)
elif way == "a directory nobody may read":
    os.mkdir("hidden", 0o300)
    for n in slowly():
        os.close(write(f"hidden/f{n}"))
elif way == "files that only a descriptor reaches":
    os.makedirs("hidden/inner")
    dir = os.open("hidden/inner", os.O_RDONLY)
    os.chmod("hidden", 0)
    for n in slowly():
        fd = os.open(f"f{n}", os.O_CREAT | os.O_WRONLY, dir_fd=dir)
        for _ in range(4):
            os.write(fd, piece)
        os.close(fd)
elif way == "many names for one file":
    os.mkdir("hidden", 0o300)
    for n in slowly():
        os.close(write(f"f{n}"))
        for m in range(64):
            os.link(f"f{n}", f"hidden/l{n}-{m}")
elif way == "a directory that moves":
    os.mkdir("d")
    os.mkdir("d/e")

    def move():
        n = 0
        while True:
            os.rename("d", f"m{n % 2}")
            os.rename(f"m{n % 2}", "d")
            n += 1

    dir = os.open("d/e", os.O_RDONLY)
    threading.Thread(target=move, daemon=True).start()
    for n in slowly():
        fd = os.open(f"f{n}", os.O_CREAT | os.O_WRONLY, dir_fd=dir)
        for _ in range(4):
            os.write(fd, piece)
        os.close(fd)
elif way == "reserved space":
    for n in slowly(8):
        fd = os.open(f"f{n}", os.O_CREAT | os.O_RDWR)
        os.posix_fallocate(fd, 0, 8 << 20)
        os.close(fd)
elif way == "space beyond the end":  # FALLOC_FL_KEEP_SIZE
    for n in slowly(8):
        fd = os.open(f"f{n}", os.O_CREAT | os.O_RDWR)
        raw(285 if X86 else 47, fd, 1, 0, 8 << 20)
        os.close(fd)
elif way == "tiny files":
    for n in range(MANY):
        os.close(os.open(f"t{n}", os.O_CREAT | os.O_WRONLY))
elif way == "tiny directories":
    for n in range(MANY):
        os.mkdir(f"t{n}")
elif way == "links to nowhere":
    for n in range(MANY):
        os.symlink("x" * 4000, f"t{n}")
elif way == "a very deep directory":
    # Five files are within the limit; the rest hides deeper than a path can reach.
    for n in range(200):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    for n in slowly():
        os.close(write(f"f{n}"))
elif way == "a hole of a terabyte":
    fd = os.open("sparse", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 1 << 40)
elif way == "many holes":
    for n in range(1000):
        fd = os.open(f"s{n}", os.O_CREAT | os.O_RDWR)
        os.ftruncate(fd, 8 << 20)
        os.close(fd)
    raise SystemExit(0)
print("full", flush=True)
# A look at very many files takes its time, and so does the pause after it.
time.sleep(12)
