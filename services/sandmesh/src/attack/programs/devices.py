# 17, 18: devices, the knobs of the kernel, and control groups.
import stat

DEVICES = """kmsg mem kmem port kvm fuse net/tun vhost-net vhost-vsock vsock loop0 loop-control mapper/control
sda vda nvme0n1 dm-0 ram0 sr0 userfaultfd uinput input/event0 dri/card0 dri/renderD128 nvidia0 nvidiactl snd/control
cpu/0/msr cpu_dma_latency hpet rtc0 watchdog mcelog rfkill autofs btrfs-control snapshot uhid ppp tty0 tty1 ttyS0 console
vcs vcsa mqueue hugepages bus/usb/001/001 raw/rawctl zero_page efi_capsule_loader sgx_enclave udmabuf kfd xen/privcmd""".split()
for name in DEVICES:
    for flags, what in ((os.O_RDONLY | os.O_NONBLOCK, "read"), (os.O_WRONLY | os.O_NONBLOCK, "write")):
        path = f"/dev/{name}"
        if name in ("mqueue", "console"):
            continue
        attempt(f"{what} {path}", lambda: os.close(os.open(path, flags)))
nodes = [os.path.join(dir, name) for dir, _, names in os.walk("/dev") for name in names]
devices = {path for path in nodes if stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFBLK, stat.S_IFCHR)}
usual = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/pts/ptmx"}
for path in sorted(devices - usual):
    tell(f"device {path}", "it is there")
for kind, major, minor, what in ((stat.S_IFBLK, 254, 0, "disk"), (stat.S_IFBLK, 7, 0, "loop"), (stat.S_IFCHR, 1, 1, "mem"), (stat.S_IFCHR, 1, 11, "kmsg"), (stat.S_IFCHR, 10, 200, "tun"), (stat.S_IFCHR, 5, 1, "console")):
    for dir in ("/workspace", "/tmp", "/dev/shm", "/dev"):
        attempt(f"make {what} in {dir}", lambda: os.mknod(f"{dir}/atk-{what}", kind | 0o666, os.makedev(major, minor)))

for path in ("/sys", "/sys/kernel", "/sys/fs/cgroup", "/sys/kernel/debug", "/sys/kernel/security", "/sys/firmware", "/boot", "/root", "/home", "/run", "/var/run", "/var/lib", "/proc/kcore", "/proc/kmsg", "/proc/kallsyms/x", "/proc/sysrq-trigger", "/proc/kpagemap", "/proc/1/root/root", "/proc/acpi", "/proc/scsi/scsi", "/proc/timer_list", "/proc/keys", "/proc/key-users", "/proc/slabinfo", "/proc/vmallocinfo"):
    if path in ("/proc/keys", "/proc/key-users", "/proc/acpi", "/proc/timer_list"):
        continue  # readable by everybody on every Linux, and empty or without meaning here
    attempt(f"look into {path}", lambda: os.listdir(path) if os.path.isdir(path) else os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1))
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sys/vm/drop_caches", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/kernel/hostname", "/proc/sys/user/max_user_namespaces", "/proc/irq/0/smp_affinity", "/proc/1/oom_score_adj", "/proc/1/attr/current", "/proc/1/uid_map", "/proc/1/setgroups", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups", "/proc/1/mem", "/proc/1/clear_refs", "/proc/1/comm", "/proc/1/sched", "/proc/1/timens_offsets"):
    attempt(f"write {path}", lambda: os.write(os.open(path, os.O_WRONLY), b"1"))
# Those of its own IPC and pid namespaces may be its own business; the host says whether they are.
OWN = ("/proc/sys/fs/mqueue/", "/proc/sys/kernel/auto_msgmni", "/proc/sys/kernel/msg", "/proc/sys/kernel/sem", "/proc/sys/kernel/shm", "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/pid_max")
own = 0
for top in ("/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/driver", "/proc/tty"):
    for dir, _, names in os.walk(top):
        for name in names:
            path = os.path.join(dir, name)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            if not path.startswith(OWN):
                tell(f"write {path}", "done")
                continue
            own += 1
            try:
                os.write(fd, b"12345\n")
            except OSError:
                pass
tell("knobs beyond its own namespaces", "none")
print(f"{own} knobs of its own namespaces can be written")
finish()
