# 32: somebody in the same session who minds its own business, with a secret in its environment and memory.
import time

secret = os.environ["VICTIM_SECRET"]
open("/tmp/sibling", "w").write(secret)
open("/dev/shm/sibling", "w").write(secret)
kept = [secret * 1000]
stage("here")
tell("nothing happened", "undisturbed" if kept[0] == secret * 1000 else "changed")
finish()
raise SystemExit(17)
