//! What the facts of a machine mean for sandboxes. Pure: texts and numbers in, findings out.

use serde_json::Value;

use super::finding::{Finding, Level};

/// The first release of bubblewrap that follows no link while it sets up mounts.
const HARDENED_BUBBLEWRAP: (u32, u32) = (0, 12);
/// The longest data directory whose sockets have a path that fits.
pub(super) const LONGEST_DATA_DIR: usize = 62;
const GIB: u64 = 1 << 30;

/// The first two numbers of a version.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut numbers = text.get(start..)?.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Who the server would be.
pub(super) fn user(uid: u32) -> Finding {
    let finding = Finding::ok(
        "user",
        if uid == 0 { "root".to_owned() } else { format!("uid {uid}") },
        "started as root, every sandbox gets a uid of its own and the executor gives root up",
    );
    if uid == 0 {
        return finding;
    }
    let meaning = "all sandboxes would have this user's identity on the host, and control groups need a delegated subtree";
    finding.but(Level::Warning, meaning, "start the server as root (sudo), which it gives up by itself")
}

/// The switches of the kernel that forbid user namespaces; `jail_works` is what counts in the end.
pub(super) fn user_namespaces(
    most: Option<&str>,
    unprivileged: Option<&str>,
    apparmor: Option<&str>,
    jail_works: bool,
) -> Finding {
    let (forbidden, fix) = if most == Some("0") {
        (Some("user.max_user_namespaces is 0"), "sysctl -w user.max_user_namespaces=16384")
    } else if unprivileged == Some("0") {
        (
            Some("kernel.unprivileged_userns_clone is 0 (Debian)"),
            "sysctl -w kernel.unprivileged_userns_clone=1",
        )
    } else if apparmor == Some("1") {
        (
            Some("kernel.apparmor_restrict_unprivileged_userns is 1 (Ubuntu)"),
            "give bwrap an AppArmor profile with `userns,`, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    } else {
        (None, "allow them in the seccomp and AppArmor profiles of the container that this runs in")
    };
    let found =
        forbidden.map_or_else(|| format!("allowed, at most {}", most.unwrap_or("any number")), str::to_owned);
    let finding = Finding::ok("user namespaces", found, "each execution's jail is made of namespaces");
    match (jail_works, forbidden) {
        (true, None) => finding,
        (true, Some(_)) => finding.but(Level::Ok, "a jail can be built in spite of it", ""),
        (false, _) => finding.but(Level::Problem, "no jail can be built, so nothing would run", fix),
    }
}

/// The program that builds jails: its path, what it says its version is, whether it can be executed.
pub(super) fn bubblewrap(path: Option<&str>, executable: bool, setuid: bool, said: &str) -> Finding {
    let name = "bubblewrap";
    let Some(path) = path else {
        let finding = Finding::ok(name, "not found", "");
        return finding.but(
            Level::Problem,
            "each execution runs in a jail that bwrap builds",
            "apt-get install bubblewrap (dnf, apk, pacman: package bubblewrap)",
        );
    };
    let found =
        Finding::ok(name, format!("{} at {path}", said.trim()), "it builds the jail of each execution");
    if !executable {
        return found.but(
            Level::Problem,
            "the file is there and cannot be executed",
            format!("chmod 755 {path}"),
        );
    }
    if setuid {
        let meaning = "it is setuid root, which sandboxes do not need and which makes its mistakes root's";
        return found.but(
            Level::Warning,
            meaning,
            format!("chmod u-s {path}, where user namespaces are allowed"),
        );
    }
    if version(said).is_none_or(|version| version >= HARDENED_BUBBLEWRAP) {
        return found;
    }
    let meaning = "before 0.12.0 it follows links in the parents of a mount point (CVE-2026-87766); no sandbox is \
                   exposed to that, because none of its mount points is ever made in a directory that user code can write";
    found.but(Level::Warning, meaning, "nothing has to be done; a newer bubblewrap ends this warning")
}

/// The isolation of executions, in the words of the API.
pub(super) fn isolation(of: &Value) -> Finding {
    let word = |name: &str| of[name].as_str().unwrap_or("?");
    let layers = ["sandbox", "jail", "seccomp", "network", "user", "limits"];
    let found = layers.map(|name| format!("{name} {}", word(name))).join(", ");
    Finding::ok("effective isolation", found, "what each session reports in effective_isolation")
}

/// The filter's actions that the kernel has.
pub(super) fn seccomp(actions: &str) -> Finding {
    let name = "system call filter";
    let missing: Vec<_> = ["kill_process", "errno"]
        .into_iter()
        .filter(|action| !actions.split_whitespace().any(|a| a == *action))
        .collect();
    if missing.is_empty() {
        return Finding::ok(
            name,
            "seccomp with kill_process and errno",
            "user code reaches only listed system calls",
        );
    }
    Finding::ok(name, format!("without {}", missing.join(", ")), "").but(
        Level::Problem,
        "system calls of user code cannot be filtered",
        "use a kernel with CONFIG_SECCOMP_FILTER; in a container, one whose /proc is not masked",
    )
}

/// The hierarchies that are mounted, as in `/proc/self/mountinfo`, and the controllers of version 2.
pub(super) fn control_groups(mounts: &str, controllers: &str, needed_by: &str) -> Finding {
    let name = "control groups";
    let kind = |line: &&str| {
        line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned()
    };
    let v1: Vec<&str> = mounts.lines().filter(|line| kind(line) == "cgroup").collect();
    let has_v1 = |controller: &str| {
        v1.iter().any(|line| {
            line.rsplit(' ').next().unwrap_or_default().split(',').any(|option| option == controller)
        })
    };
    let has_v2 = |controller: &str| controllers.split_whitespace().any(|found| found == controller);
    let needed = ["memory", "pids", "cpu"];
    let (version, missing): (_, Vec<_>) = if has_v1("memory") && has_v1("pids") {
        ("version 1", needed.into_iter().filter(|controller| !has_v1(controller)).collect())
    } else if mounts.lines().any(|line| kind(&line) == "cgroup2") {
        ("version 2", needed.into_iter().filter(|controller| !has_v2(controller)).collect())
    } else {
        ("not mounted", needed.into())
    };
    if missing.is_empty() {
        return Finding::ok(
            name,
            format!("{version} with memory, pids and cpu"),
            "they hold the limits of a sandbox",
        );
    }
    let level = if needed_by == "required" { Level::Problem } else { Level::Warning };
    Finding::ok(name, format!("{version}, without {}", missing.join(", ")), "").but(
        level,
        "the limits of memory, processes and CPU would hold for each process only",
        "run as root; with systemd give the service Delegate=yes; on version 2 write +memory +pids +cpu to cgroup.subtree_control of the parents",
    )
}

/// Whether swap counts against the limit of memory.
pub(super) fn swap(total_kib: u64, accounted: bool) -> Finding {
    let name = "swap";
    if total_kib == 0 {
        return Finding::ok(name, "none", "the limit of memory is the limit of all memory");
    }
    let finding =
        Finding::ok(name, format!("{} MiB", total_kib >> 10), "it counts against the limit of memory");
    if accounted {
        return finding;
    }
    let meaning = "the kernel does not account for it: a sandbox at its limit of memory may go on in swap";
    finding.but(Level::Warning, meaning, "boot with swapaccount=1, or swapoff -a")
}

/// An interpreter and the oldest version of it that is supported.
pub(super) fn interpreter(name: &'static str, found: Option<(&str, &str)>, oldest: (u32, u32)) -> Finding {
    let Some((path, said)) = found else {
        let finding = Finding::ok(name, "not found", "");
        let fix = format!("install it where the system has its programs, or name it in agent.{name}");
        return finding.but(Level::Warning, format!("executions in {name} are refused"), fix);
    };
    let finding = Finding::ok(name, format!("{said} at {path}"), "executions in this language run with it");
    if version(said).is_none_or(|version| version >= oldest) {
        return finding;
    }
    let (major, minor) = oldest;
    finding.but(
        Level::Warning,
        format!("older than {major}.{minor}: some things may not work"),
        "install a newer one",
    )
}

/// The length of the data directory's path, in which sockets lie.
pub(super) fn socket_paths(data_dir: &str) -> Finding {
    let length = data_dir.len();
    let finding = Finding::ok(
        "socket paths",
        format!("data directory of {length} bytes"),
        "a socket's path has 107 bytes at most",
    );
    if length <= LONGEST_DATA_DIR {
        return finding;
    }
    let meaning = format!(
        "the sockets of sandboxes in it would have paths that are too long; {LONGEST_DATA_DIR} bytes fit"
    );
    finding.but(Level::Problem, meaning, "use a shorter --data-dir")
}

/// Owner and mode of the data directory, when it exists.
pub(super) fn data_dir(shown: &str, uid: u32, found: Option<(u32, u32)>) -> Finding {
    let name = "data directory";
    let Some((owner, mode)) = found else {
        return Finding::ok(name, format!("{shown}, not made yet"), "the server makes it at its first start");
    };
    let finding = Finding::ok(
        name,
        format!("{shown}, owner {owner}, mode {:o}", mode & 0o7777),
        "databases, output and workspaces are in it",
    );
    if owner != uid && uid != 0 {
        return finding.but(
            Level::Problem,
            "it belongs to another user",
            format!("chown -R {uid} {shown}, or another --data-dir"),
        );
    }
    if mode & 0o022 != 0 {
        return finding.but(
            Level::Problem,
            "others can write in it, and so replace what the server trusts",
            format!("chmod 700 {shown}"),
        );
    }
    if mode & 0o055 != 0 {
        let meaning = "others can list it; what is in it has modes of its own";
        return finding.but(Level::Warning, meaning, format!("chmod 700 {shown}"));
    }
    finding
}

/// Space and inodes of the file system under the data directory.
pub(super) fn disk(free_bytes: u64, total_bytes: u64, free_inodes: Option<u64>) -> Finding {
    let gib = |bytes: u64| bytes / GIB;
    let mut found = format!("{} of {} GiB free", gib(free_bytes), gib(total_bytes));
    if let Some(inodes) = free_inodes {
        found.push_str(&format!(", {inodes} inodes"));
    }
    let finding = Finding::ok("disk space", found, "workspaces and output are written there");
    let fix = "free some, or put the data directory elsewhere";
    if free_bytes < GIB / 4 || free_inodes.is_some_and(|inodes| inodes < 10_000) {
        return finding.but(Level::Problem, "the server could soon write nothing", fix);
    }
    if free_bytes < 4 * GIB {
        return finding.but(Level::Warning, "a few sandboxes at their limit would fill it", fix);
    }
    finding
}

/// The file system's magic number.
pub(super) fn file_system(magic: i64) -> Finding {
    let name = "file system";
    let known = [
        (0xEF53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683E, "btrfs"),
        (0x2FC1_2FC1, "zfs"),
        (0xF2F5_2010, "f2fs"),
    ];
    if let Some((_, kind)) = known.iter().find(|(number, _)| *number == magic) {
        return Finding::ok(name, *kind, "databases need one that keeps what was synced");
    }
    let weak = [
        (0x6969, "nfs", "databases on it can be damaged"),
        (0xFF53_4D42, "cifs", "databases on it can be damaged"),
        (0x0102_1994, "tmpfs", "everything is gone after a restart of the machine"),
        (0x6573_5546, "fuse", "it may not keep what was synced"),
    ];
    match weak.iter().find(|(number, _, _)| *number == magic) {
        Some((_, kind, meaning)) => {
            Finding::ok(name, *kind, "").but(Level::Warning, *meaning, "use a local disk")
        }
        None => {
            Finding::ok(name, format!("type {magic:#x}"), "databases need one that keeps what was synced")
        }
    }
}

/// The limits of open files, soft and hard.
pub(super) fn open_files(soft: Option<u64>, hard: Option<u64>) -> Finding {
    const ENOUGH: u64 = 65_536;
    const FEW: u64 = 4096;
    let show = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let finding = Finding::ok(
        "open files",
        format!("{}, at most {}", show(soft), show(hard)),
        "each execution and each client needs some",
    );
    let fix = "raise it: LimitNOFILE=65536 in a systemd unit, ulimit -n in a shell";
    if soft.is_some_and(|soft| soft < FEW) {
        return finding.but(Level::Warning, "the server runs out of them with some hundred clients", fix);
    }
    if hard.is_some_and(|hard| hard < ENOUGH) {
        return finding.but(Level::Warning, "an executor may keep two for each execution", fix);
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_user_namespaces_is_named_with_its_remedy() {
        let finding = user_namespaces(Some("0"), None, None, false);
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.fix.contains("user.max_user_namespaces"));
        assert!(user_namespaces(Some("9"), Some("0"), None, false).fix.contains("unprivileged_userns_clone"));
        assert!(user_namespaces(Some("9"), None, Some("1"), false).fix.contains("AppArmor"));
        assert!(user_namespaces(Some("9"), Some("1"), Some("0"), false).fix.contains("container"));
    }

    #[test]
    fn a_switch_that_does_not_matter_is_no_problem() {
        assert_eq!(user_namespaces(Some("9"), None, Some("1"), true).level, Level::Ok);
    }

    #[test]
    fn an_old_bubblewrap_is_told_with_its_weakness_and_why_it_does_not_matter() {
        let old = bubblewrap(Some("/usr/bin/bwrap"), true, false, "bubblewrap 0.8.0\n");
        assert_eq!(old.level, Level::Warning);
        assert!(old.meaning.contains("CVE-2026-87766") && old.meaning.contains("mount point"));
        assert_eq!(bubblewrap(Some("/usr/bin/bwrap"), true, false, "bubblewrap 0.12.1").level, Level::Ok);
        assert_eq!(bubblewrap(Some("/usr/bin/bwrap"), true, true, "bubblewrap 0.12.1").level, Level::Warning);
        assert_eq!(bubblewrap(Some("/usr/bin/bwrap"), false, false, "").level, Level::Problem);
        assert_eq!(bubblewrap(None, false, false, "").level, Level::Problem);
    }

    #[test]
    fn controllers_are_found_in_both_versions() {
        let v1 = "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup c rw,memory\n2 0 0:2 / /sys/fs/cgroup/pids rw - cgroup c rw,pids\n3 0 0:3 / /c rw - cgroup c rw,cpu,cpuacct";
        assert_eq!(control_groups(v1, "", "required").level, Level::Ok);
        let v2 = "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(control_groups(v2, "cpuset cpu io memory pids", "required").level, Level::Ok);
        let weak = control_groups(v2, "cpu io", "required");
        assert!(weak.level == Level::Problem && weak.found.contains("memory, pids"), "{weak:?}");
        assert_eq!(control_groups(v2, "", "optional").level, Level::Warning);
        assert_eq!(control_groups("", "", "required").level, Level::Problem);
    }

    #[test]
    fn a_data_directory_that_others_can_write_is_a_problem() {
        assert_eq!(data_dir("/d", 0, Some((0, 0o40700))).level, Level::Ok);
        assert_eq!(data_dir("/d", 0, Some((0, 0o40755))).level, Level::Warning);
        assert_eq!(data_dir("/d", 0, Some((0, 0o41777))).level, Level::Problem);
        assert_eq!(data_dir("/d", 1000, Some((0, 0o40700))).level, Level::Problem);
        assert_eq!(data_dir("/d", 1000, None).level, Level::Ok);
    }

    #[test]
    fn numbers_become_findings_at_their_limits() {
        assert_eq!(disk(100 << 20, GIB, None).level, Level::Problem);
        assert_eq!(disk(2 * GIB, 9 * GIB, None).level, Level::Warning);
        assert_eq!(disk(9 * GIB, 9 * GIB, Some(5)).level, Level::Problem);
        assert_eq!(disk(9 * GIB, 9 * GIB, Some(5_000_000)).level, Level::Ok);
        assert_eq!(socket_paths(&"x".repeat(62)).level, Level::Ok);
        assert_eq!(socket_paths(&"x".repeat(63)).level, Level::Problem);
        assert_eq!(open_files(Some(1024), Some(1 << 20)).level, Level::Warning);
        assert_eq!(open_files(Some(1 << 20), None).level, Level::Ok);
        assert_eq!(swap(0, false).level, Level::Ok);
        assert_eq!(swap(1 << 20, false).level, Level::Warning);
        assert_eq!(user(1000).level, Level::Warning);
        assert_eq!(file_system(0x6969).level, Level::Warning);
        assert_eq!(seccomp("kill_process kill_thread errno allow").level, Level::Ok);
        assert_eq!(seccomp("allow").level, Level::Problem);
        assert_eq!(interpreter("python", Some(("/usr/bin/python3", "3.8.1")), (3, 9)).level, Level::Warning);
        assert_eq!(interpreter("python", None, (3, 9)).level, Level::Warning);
    }

    #[test]
    fn versions_are_found_behind_words() {
        assert_eq!(version("bubblewrap 0.8.0\n"), Some((0, 8)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("unknown"), None);
    }
}
