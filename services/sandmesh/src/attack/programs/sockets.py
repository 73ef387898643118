# 11: protocol families and protocols whose code no sandbox needs.
import socket

ORDINARY = (1, 2, 10, 16)
KINDS = {"stream": 1, "datagram": 2, "raw": 3, "rdm": 4, "seqpacket": 5, "dccp": 6, "packet": 10}


def make(family, kind, protocol):
    result = raw(number("socket"), family, kind, protocol)
    if result >= 0:
        os.close(result)
        return "done"
    return word(-result)


for family in range(64):
    if family not in ORDINARY:
        tell(f"family {family}", "+".join(make(family, kind, 0) for kind in KINDS.values()))
        # The kernel looks at 32 bits, whatever is above.
        tell(f"family {family} with high bits", "+".join(make(family | high, 5, 0) for high in (1 << 32, 0xFFFFFFFF << 32)))
for protocol in range(1, 32):
    tell(f"netlink protocol {protocol}", "+".join(make(16, kind, protocol) for kind in (2, 3)))
for family in (2, 10):
    for kind in ("raw", "rdm", "seqpacket", "dccp", "packet"):
        for protocol in (0, 1, 6, 17, 58, 132, 255):
            tell(f"inet {family} {kind} {protocol}", make(family, KINDS[kind], protocol))
    for protocol, name in ((1, "icmp"), (58, "icmpv6"), (33, "dccp"), (132, "sctp"), (136, "udplite"), (262, "mptcp"), (256, "smc"), (115, "l2tp")):
        tell(f"inet {family} {name}", "+".join(make(family, kind, protocol) for kind in (1, 2, 5)))
pair = (ctypes.c_int * 2)()
for family in range(2, 46):
    result = raw(number("socketpair"), family, 1, 0, pair)
    tell(f"socketpair {family}", "done" if result >= 0 else word(-result))
# The one netlink that is there for getifaddrs must not configure anything.
import struct

for name, kind, body in (
    ("add link", 16, struct.pack("<BxHiII", 0, 0, 0, 0, 0) + struct.pack("<HH", 10, 3) + b"dummy\0\0\0"),
    ("set link up", 16, struct.pack("<BxHiII", 0, 0, 1, 1, 1)),
    ("add address", 20, struct.pack("<BBBBi", 2, 24, 0, 0, 1) + struct.pack("<HH4s", 8, 2, b"\x0a\0\0\1")),
    ("add route", 24, struct.pack("<BBBBBBBBI", 2, 0, 0, 0, 254, 4, 0, 1, 0)),
    ("add neighbour", 28, struct.pack("<BxxxiHBB", 2, 1, 0x80, 0, 0)),
    ("add qdisc", 36, struct.pack("<BxxxiIIi", 0, 1, 0xFFFF0000, 0xFFFFFFFF, 0)),
):
    try:
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        link.settimeout(5)
        link.send(struct.pack("<IHHII", 16 + len(body), kind, 0x605, 1, 0) + body)
        answer = link.recv(4096)
        tell(f"netlink route {name}", word(-struct.unpack_from("<i", answer, 16)[0]) if struct.unpack_from("<i", answer, 16)[0] else "done")
    except OSError as error:
        tell(f"netlink route {name}", word(error.errno) if error.errno else "timeout")
finish()
