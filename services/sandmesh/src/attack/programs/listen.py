# 21: a service in one session, which another session must not reach. It says how many came.
import select, socket, time

tcp = socket.socket()
tcp.bind(("127.0.0.1", 5177))
tcp6 = socket.socket(socket.AF_INET6)
tcp6.bind(("::1", 5178))
named = socket.socket(socket.AF_UNIX)
named.bind("\0" + os.environ["ATTACK_NAME"])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 5177))
sockets = [tcp, tcp6, named]
for path in ("/workspace/sock", "/tmp/sock"):
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    os.chmod(path, 0o777)
    sockets.append(s)
for s in sockets:
    s.listen(16)


def arrived():
    count = 0
    while True:
        ready = select.select([*sockets, udp], [], [], 0.3)[0]
        if not ready:
            return count
        for s in ready:
            s.recv(100) if s is udp else s.accept()[0].close()
            count += 1


# That it can be reached at all: from here.
for s in (tcp, tcp6, named):
    socket.socket(s.family).connect(s.getsockname())
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 5177))
for path in ("/workspace/sock", "/tmp/sock"):
    socket.socket(socket.AF_UNIX).connect(path)
tell("from its own session", arrived())
stage("listening")
tell("from another session", arrived())
finish()
