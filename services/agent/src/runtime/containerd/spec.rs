//! The container of a sandbox, as an OCI runtime is told: all of its walls are here. Pure.

use serde_json::{Value, json};

use crate::runtime::container::plan::{
    Bind, Bounds, CPU_PERIOD, EXECUTOR, HOSTNAME, Plan, TMP_OPTIONS, TOOLS, Walls,
};

/// The version of the specification.
const VERSION: &str = "1.0.2";

/// What is not the same on every machine, and for every image.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    /// The name of the container, and of its control group.
    pub(super) name: &'a str,
    /// The environment, as pairs with `=`.
    pub(super) env: &'a [String],
    pub(super) seccomp: &'a Value,
    /// Swap can be limited.
    pub(super) counts_swap: bool,
}

/// What the runtime is to make.
pub(super) fn spec(plan: &Plan<'_>, walls: &Walls, setting: &Setting<'_>) -> Value {
    let mut mounts = furniture();
    mounts.extend(plan.places.binds().into_iter().map(bind));
    // The network is one of its own, in which there is nothing but a loopback.
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": VERSION,
        "process": process(plan, setting.env),
        // Where the container's own layer is needed for is to make mount points.
        "root": {"path": "rootfs", "readonly": true},
        "hostname": HOSTNAME,
        "mounts": mounts,
        "linux": {
            "cgroupsPath": format!("{}/{}", walls.cgroup_parent, setting.name),
            "namespaces": namespaces,
            "resources": resources(plan.bounds(walls), setting.counts_swap),
            "seccomp": setting.seccomp,
            // A jail has a /proc of its own, which the kernel allows only where none of it is hidden. What is
            // hidden otherwise is root's, which nobody in here is.
            "maskedPaths": [],
            "readonlyPaths": [],
        },
    })
}

fn process(plan: &Plan<'_>, env: &[String]) -> Value {
    let program = format!("{TOOLS}/{EXECUTOR}");
    let args: Vec<&str> =
        std::iter::once(program.as_str()).chain(plan.command.iter().map(String::as_str)).collect();
    json!({
        "terminal": false,
        "user": {"uid": plan.uid, "gid": plan.uid},
        "args": args,
        "env": env,
        "cwd": "/",
        "capabilities":
            {"bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": []},
        // Open files are limited in the jail, and here as the engine is.
        "rlimits": [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
        "noNewPrivileges": true,
    })
}

/// What any process finds.
fn furniture() -> Vec<Value> {
    let mount = |kind: &str, target: &str, options: &[&str]| json!({"type": kind, "source": kind, "destination": target, "options": options});
    vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]),
        mount(
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=64m"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        mount("tmpfs", "/tmp", &TMP_OPTIONS),
    ]
}

fn bind(Bind { source, target, read_only }: Bind<'_>) -> Value {
    let writing = if read_only { "ro" } else { "rw" };
    json!({
        "type": "bind",
        "source": source,
        "destination": target,
        "options": ["rbind", "rprivate", "nosuid", "nodev", writing],
    })
}

fn resources(Bounds { memory, cpu_quota, processes }: Bounds, counts_swap: bool) -> Value {
    let mut limits = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": memory},
        "cpu": {"quota": cpu_quota, "period": CPU_PERIOD},
        "pids": {"limit": processes},
    });
    if counts_swap {
        // Together with memory: there is none.
        limits["memory"]["swap"] = json!(memory);
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::container::plan::{OWN, tests::planned};

    fn made(counts_swap: bool) -> Value {
        let env = ["PATH=/bin".to_owned()];
        let seccomp = json!({"defaultAction": "SCMP_ACT_ERRNO"});
        let setting = Setting { name: "sandmesh-x", env: &env, seccomp: &seccomp, counts_swap };
        planned(None, |plan, walls| spec(plan, walls, &setting))
    }

    #[test]
    fn a_container_has_no_right_and_namespaces_of_its_own() {
        let spec = made(true);
        let process = &spec["process"];
        assert_eq!(process["noNewPrivileges"], true);
        for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
            assert_eq!(process["capabilities"][set], json!([]), "{set}");
        }
        assert_eq!(process["user"], json!({"uid": 200_001, "gid": 200_001}));
        assert_eq!(process["args"][0], "/run/sandmesh/tools/sandmesh-executor");
        assert_eq!(process["env"], json!(["PATH=/bin"]));
        assert_eq!(spec["root"]["readonly"], true);
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.iter().all(|space| space.get("path").is_none()));
        for kind in ["pid", "ipc", "uts", "mount", "network"] {
            assert!(namespaces.contains(&json!({"type": kind})), "{kind}");
        }
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(spec["linux"]["cgroupsPath"], "/sandmesh/sandmesh-x");
    }

    #[test]
    fn what_can_be_written_to_is_its_own_or_small() {
        let spec = made(true);
        for mount in spec["mounts"].as_array().unwrap() {
            let options = mount["options"].as_array().unwrap();
            let has = |word: &str| options.iter().any(|option| option.as_str().unwrap().starts_with(word));
            let target = mount["destination"].as_str().unwrap();
            match mount["type"].as_str().unwrap() {
                "bind" => assert_eq!(has("rw"), target == OWN || target == "/workspace", "{mount}"),
                "tmpfs" => assert!(has("size="), "{mount}"),
                _ => {}
            }
            assert!(has("nosuid"), "{mount}");
        }
    }

    #[test]
    fn limits_are_those_of_the_whole_and_without_swap_where_that_is_counted() {
        let resources = |counts_swap| made(counts_swap)["linux"]["resources"].clone();
        let memory = 256 << 20;
        assert_eq!(resources(true)["memory"], json!({"limit": memory, "swap": memory}));
        assert_eq!(resources(false)["memory"], json!({"limit": memory}));
        assert_eq!(resources(true)["cpu"], json!({"quota": 200_000, "period": 100_000}));
        assert_eq!(resources(true)["pids"], json!({"limit": 132}));
        assert_eq!(resources(true)["devices"][0]["allow"], false);
    }
}
