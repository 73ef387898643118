# 34: random numbers of every kind; eight of these run at once.
import hashlib, random, secrets, tempfile, uuid

try:
    import ssl
    tell("ssl", ssl.RAND_bytes(16).hex())
except ImportError:
    tell("ssl", os.urandom(16).hex())
tell("random", random.getrandbits(128))
tell("random float", [random.random(), random.random()])
tell("SystemRandom", random.SystemRandom().getrandbits(128))
tell("uuid4", uuid.uuid4())
tell("uuid1", uuid.uuid1())
tell("secrets", secrets.token_hex(16))
tell("urandom", os.urandom(16).hex())
tell("temporary name", next(tempfile._get_candidate_names()))
tell("shuffle", random.sample(range(1000), 12))
value = (ctypes.c_uint64 * 2)()
libc.getrandom(value, 16, 0)
tell("getrandom", list(value))
tell("AT_RANDOM or its like", hashlib.sha256(open("/dev/urandom", "rb").read(16)).hexdigest())
finish()
