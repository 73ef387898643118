//! The file formats of both versions against a directory that looks like a hierarchy, and v1 for real
//! where the test runs as root. Limits firing for real are tested through the executor.

use super::*;

/// A directory with the files of a v2 group.
fn fake_v2() -> (tempfile::TempDir, Group) {
    let root = tempfile::tempdir().unwrap();
    for name in
        ["cgroup.procs", "cgroup.subtree_control", "memory.max", "memory.swap.max", "pids.max", "cpu.max"]
    {
        fs::write(root.path().join(name), "").unwrap();
    }
    fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids rdma\n").unwrap();
    let mounts =
        format!("30 20 0:26 / {} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n", root.path().display());
    let group = Group::detect(&mounts, "0::/user.slice\n").unwrap();
    (root, group)
}

fn content(root: &tempfile::TempDir, name: &str) -> String {
    fs::read_to_string(root.path().join(name)).unwrap()
}

const LIMITS: Limits = Limits { memory_bytes: 64 << 20, cpu_millis: 1500, max_processes: 20 };

#[test]
fn v2_limits_are_written_in_its_formats() {
    let (root, group) = fake_v2();
    assert_eq!(group.name(), "cgroup-v2");
    group.limit(LIMITS).unwrap();
    group.hand_down().unwrap();
    assert_eq!(content(&root, "memory.max"), "67108864");
    assert_eq!(content(&root, "memory.swap.max"), "0");
    assert_eq!(content(&root, "pids.max"), "20");
    assert_eq!(content(&root, "cpu.max"), "150000 100000");
    assert_eq!(content(&root, "cgroup.subtree_control"), "+memory +pids +cpu");
    group.enter().unwrap();
    assert_eq!(content(&root, "cgroup.procs"), "0");
}

#[test]
fn zero_limits_nothing() {
    let (root, group) = fake_v2();
    group.limit(Limits::default()).unwrap();
    for name in ["memory.max", "pids.max", "cpu.max"] {
        assert_eq!(content(&root, name), "");
    }
}

#[test]
fn v2_usage_and_limit_hits_are_read() {
    let (root, group) = fake_v2();
    let files = [
        ("cpu.stat", "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n"),
        ("memory.current", "1000\n"),
        ("memory.peak", "5000\n"),
        ("pids.current", "3\n"),
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"),
        ("pids.events", "max 4\n"),
    ];
    for (name, text) in files {
        fs::write(root.path().join(name), text).unwrap();
    }
    let usage =
        Usage { cpu: Duration::from_millis(1500), memory_bytes: 1000, peak_memory_bytes: 5000, processes: 3 };
    assert_eq!(group.usage(), usage);
    assert_eq!(Meters::open(&group).limit_hits(), LimitHits { oom_kills: 1, refused_forks: 4 });
    // A kernel before 5.19 has no peak: what is in use now is all that is known.
    fs::remove_file(root.path().join("memory.peak")).unwrap();
    assert_eq!(group.usage().peak_memory_bytes, 1000);
}

#[test]
fn what_may_linger_is_read_whether_the_kernel_tells_it_in_one_or_in_parts() {
    let (root, group) = fake_v2();
    for (text, expected) in [
        ("anon 7\nfile 900\nkernel 40\nkernel_stack 16\nshmem 2\nslab 20\n", 42),
        ("anon 7\nfile 900\nkernel_stack 16\nshmem 2\nslab_reclaimable 20\nslab 24\n", 42),
        ("", 0),
    ] {
        fs::write(root.path().join("memory.stat"), text).unwrap();
        assert_eq!(Meters::open(&group).lingering_bytes(), expected, "{text}");
    }
}

#[test]
fn v2_kills_through_its_file() {
    let (root, group) = fake_v2();
    fs::write(root.path().join("cgroup.kill"), "").unwrap();
    assert_eq!(group.kill(), 0);
    assert_eq!(content(&root, "cgroup.kill"), "1");
}

#[test]
fn missing_controller_is_named() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.controllers"), "hugetlb pids\n").unwrap();
    let mounts = format!("30 20 0:26 / {} rw - cgroup2 cgroup2 rw\n", root.path().display());
    let err = Group::detect(&mounts, "0::/\n").unwrap_err().to_string();
    assert!(err.contains("the controller memory is not available"), "{err}");
    assert!(Group::detect("", "").unwrap_err().to_string().contains("no cgroup file system"));
}

#[test]
fn v1_is_chosen_where_it_has_the_memory_controller() {
    let mounts = "\
35 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
36 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
37 30 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory
38 30 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";
    let group = Group::detect(mounts, "").unwrap();
    assert_eq!(group.name(), "cgroup-v1");
    let run = group.child("a").child("b");
    let door = |dir: &str| PathBuf::from(format!("/sys/fs/cgroup/{dir}/a/b/tasks"));
    assert_eq!(run.doors(), [door("memory"), door("pids"), door("cpu,cpuacct")]);
    assert_eq!(run.shared_doors(), Vec::<PathBuf>::new(), "counted and limited in one place");
    assert_eq!(group.run(7).doors().len(), 3);
}

#[test]
fn run_shares_the_group_that_only_limits_the_cpu() {
    let mounts = ["memory", "pids", "cpu", "cpuacct"]
        .map(|name| format!("1 1 0:1 / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"));
    let runs = Group::detect(&mounts.concat(), "").unwrap().child("runs");
    let at = |dir: &str| PathBuf::from(format!("/sys/fs/cgroup/{dir}/tasks"));
    assert_eq!(runs.run(7).doors(), [at("memory/runs/7"), at("pids/runs/7"), at("cpuacct/runs/7")]);
    assert_eq!(runs.shared_doors(), [at("cpu/runs")]);
}

#[test]
fn v1_formats() {
    let root = tempfile::tempdir().unwrap();
    let mut mounts = String::new();
    for name in ["memory", "pids", "cpu", "cpuacct"] {
        fs::create_dir(root.path().join(name)).unwrap();
        mounts += &format!("1 1 0:1 / {}/{name} rw - cgroup cgroup rw,{name}\n", root.path().display());
    }
    let file = |name: &str| root.path().join(name);
    for name in
        ["memory/memory.limit_in_bytes", "pids/pids.max", "cpu/cpu.cfs_period_us", "cpu/cpu.cfs_quota_us"]
    {
        fs::write(file(name), "").unwrap();
    }
    let group = Group::detect(&mounts, "").unwrap();
    group.limit(LIMITS).expect("a kernel without swap accounting has no memsw file");
    assert_eq!(fs::read_to_string(file("cpu/cpu.cfs_quota_us")).unwrap(), "150000");
    fs::write(file("memory/memory.memsw.limit_in_bytes"), "").unwrap();
    group.limit(LIMITS).unwrap();
    assert_eq!(fs::read_to_string(file("memory/memory.memsw.limit_in_bytes")).unwrap(), "67108864");
    fs::write(file("memory/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
    fs::write(file("cpuacct/cpuacct.usage"), "12345\n").unwrap();
    assert_eq!(Meters::open(&group).limit_hits().oom_kills, 2);
    assert_eq!(group.usage().cpu, Duration::from_nanos(12345));
}

#[test]
fn destroying_what_is_not_there_succeeds() {
    let (_root, group) = fake_v2();
    assert!(group.child("no").child("such").destroy(Duration::ZERO));
}

#[test]
fn of_a_container_no_hierarchy_keeps_a_group() {
    let root = tempfile::tempdir().unwrap();
    let mut mounts = String::new();
    for (name, kind) in
        [("memory", "cgroup"), ("pids", "cgroup"), ("devices", "cgroup"), ("unified", "cgroup2")]
    {
        fs::create_dir_all(root.path().join(name).join("parent/sandbox/deeper")).unwrap();
        mounts += &format!("1 1 0:1 / {}/{name} rw - {kind} {kind} rw,{name}\n", root.path().display());
    }
    let group = Group::detect(&mounts, "").unwrap().with_others(&mounts);
    assert!(group.child("parent").child("sandbox").destroy(Duration::ZERO));
    for name in ["memory", "pids", "devices", "unified"] {
        let left = fs::read_dir(root.path().join(name).join("parent")).unwrap().count();
        assert_eq!(left, 0, "{name}");
    }
}
