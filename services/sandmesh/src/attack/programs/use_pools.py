# 22: whether somebody else still gets a little of everything.
import fcntl, socket, tempfile

IO_SETUP = 206 if X86 else 0


def asynchronous():
    context = ctypes.c_ulong(0)
    result = raw(IO_SETUP, 128, ctypes.byref(context))
    if result < 0 and -result not in (errno.EPERM, errno.ENOSYS):
        raise OSError(-result, "")


def watch():
    fd = libc.inotify_init1(0)
    if fd < 0 or libc.inotify_add_watch(fd, b"/workspace", 0x100) < 0:
        raise OSError(ctypes.get_errno(), "")


def queue():
    if libc.msgget(0, 0o1666) < 0:
        raise OSError(ctypes.get_errno(), "")


attempt("asynchronous I/O", asynchronous)
attempt("terminals", os.openpty)
attempt("inotify", watch)
attempt("pipes", lambda: [os.pipe() for n in range(50)])
attempt("sockets", lambda: [socket.socketpair() for n in range(50)])
attempt("locks", lambda: fcntl.lockf(os.open("/workspace/l", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX))
attempt("open files", lambda: [os.open("/dev/null", os.O_RDONLY) for n in range(200)])
attempt("message queues", queue)
attempt("processes", lambda: os.waitpid(os.fork() or os._exit(0), 0))
attempt("memory files", lambda: os.write(os.memfd_create("x"), b"x" * 100000))
attempt("temporary files", lambda: tempfile.TemporaryFile().write(b"x"))
finish()
