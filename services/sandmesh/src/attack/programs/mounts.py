# 3: where the sandbox has mounts; none may lie where user code can put a link instead.
points = [line.split()[4] for line in open("/proc/self/mountinfo")]
for point in points:
    parent = os.path.dirname(point)
    place = "fixed"
    # Whoever can write the parent can replace the mount point before the next start.
    if point not in ("/",) and (point.startswith("/workspace/") or (os.access(parent, os.W_OK) and point != "/")):
        place = f"in {parent}, which can be written"
    tell(f"mount point {point}", place)
finish()
