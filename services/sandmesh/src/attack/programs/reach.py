# 19 to 21: everything that could be reached over a network or a socket. $ATTACK_TARGETS names it:
# a list of [label, how, place, port].
import select, socket, struct

QUERY = struct.pack(">HHHHHH", 0x1234, 0x100, 1, 0, 0, 0) + b"\x07example\x03com\0\0\x01\0\x01"


def reach(how, place, port):
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    if how == "name":
        try:
            socket.getaddrinfo(place, port)
        except socket.gaierror:
            raise OSError("unresolved") from None
        return
    if how == "unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(3)
            return s.connect(place.replace("@", "\0", 1) if place.startswith("@") else place)
    if how == "unix datagram":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            return s.sendto(b"x", place)
    if how in ("icmp", "raw"):
        kind = socket.SOCK_RAW if how == "raw" else socket.SOCK_DGRAM
        with socket.socket(family, kind, 58 if family == socket.AF_INET6 else 1) as s:
            return s.sendto(b"\x08\0\0\0\0\0\0\0", (place, 0))
    kind = socket.SOCK_DGRAM if how in ("udp", "dns", "broadcast") else socket.SOCK_STREAM
    with socket.socket(family, kind) as s:
        s.settimeout(1.5)
        if how == "broadcast":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            return s.sendto(b"x", (place, port))
        if how == "fast open":
            try:
                s.sendto(b"x", 0x20000000, (place, port))
            except BlockingIOError:
                select.select([], [s], [], 1.5)
                code = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, "")
            return s.getpeername()
        if how == "from elsewhere":  # IP_FREEBIND
            s.setsockopt(socket.SOL_IP, 15, 1)
            s.bind(("10.1.2.3" if family == socket.AF_INET else "fd00::1", 0))
        if how == "to a device":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        s.connect((place, port))
        s.send(QUERY)
        s.recv(64)


for label, how, place, port in json.loads(os.environ["ATTACK_TARGETS"]):
    try:
        reach(how, place, port)
        tell(label, "done")
    except socket.timeout:
        tell(label, "timeout")
    except OSError as error:
        tell(label, word(error.errno) if error.errno else str(error))
tell("interfaces", "+".join(sorted(name for _, name in socket.if_nameindex() if name not in ("sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"))))
routes = open("/proc/net/route").read().splitlines()[1:]
tell("routes", len(routes))
finish()
