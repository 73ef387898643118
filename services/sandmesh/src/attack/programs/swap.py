# 6: directories that turn into links and back while somebody handles them. $CANARY is a directory of the host.
import threading

canary = os.environ["CANARY"]
os.chdir("/workspace")
exchange = ctypes.CDLL(None, use_errno=True)
exchange.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
for n in range(8):
    os.makedirs(f"d{n}/inner")
    open(f"d{n}/secret", "w").write("bait")
    open(f"d{n}/inner/secret", "w").write("bait")
    os.symlink(canary, f"l{n}")
    open(f"f{n}", "w").write("bait")
    os.symlink(f"{canary}/secret", f"s{n}")


def swap(one, other):
    while True:
        exchange.renameat2(-100, one, -100, other, 2)


for n in range(8):
    threading.Thread(target=swap, args=(f"d{n}".encode(), f"l{n}".encode()), daemon=True).start()
    threading.Thread(target=swap, args=(f"f{n}".encode(), f"s{n}".encode()), daemon=True).start()
stage("swapping")
threading.Event().wait()
