//! Looks at this machine. What can really be had is asked of the executor, which does it to find out; the
//! rest are files of the kernel, the settings, and the file system of the data directory.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::{
    fs::{statfs, statvfs},
    process::{Resource, getrlimit, getuid},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;

use sandmesh_agent::config::RuntimeKind;

use super::{
    DoctorArgs, Failure, engines, facts,
    finding::{Finding, Level},
};
use crate::settings::Settings;

/// How long a program may take to tell what it is asked.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where distributions put bubblewrap; the executor looks there, too.
const BUBBLEWRAP: [&str; 3] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];

/// Everything that was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether there is no problem.
    pub(super) ok: bool,
    /// In the order of a text to read.
    pub(super) findings: Vec<Finding>,
    /// The runtime that the settings choose.
    runtime: RuntimeKind,
    /// The isolation that executions would get, in the words of the API; null when that is not known.
    isolation: Value,
    /// The drivers of sandboxes that can be used here.
    runtimes: Vec<&'static str>,
}

impl Report {
    /// What can be used, in words.
    pub(super) fn usable(&self) -> String {
        match self.runtimes.as_slice() {
            [] => "no runtime can be used here".to_owned(),
            some => format!("runtimes that can be used here: {}", some.join(", ")),
        }
    }
}

/// The answer of `sandmesh-executor check`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Answer {
    pub(super) ok: bool,
    #[serde(default)]
    pub(super) problems: Vec<Missing>,
    #[serde(default)]
    warnings: Vec<Missing>,
    #[serde(default)]
    pub(super) isolation: Value,
    #[serde(default)]
    languages: Vec<Language>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Missing {
    pub(super) what: String,
    pub(super) missing: String,
    fix: String,
}

#[derive(Debug, Deserialize)]
struct Language {
    language: String,
    path: String,
    version: String,
}

/// Looks at everything.
pub(super) async fn look(args: &DoctorArgs) -> Result<Report, Failure> {
    let settings = settings(args)?;
    let uid = getuid().as_raw();
    let runtime = settings.agent.runtime;
    let in_containers = runtime != RuntimeKind::Process;
    let (of_processes, answer) = executor(&settings, uid).await;
    let mut findings = vec![kernel(), facts::user(uid)];
    // What it lacks for processes is no matter where sandboxes are containers; there it has to be at all.
    findings.extend(of_processes.into_iter().take(if in_containers { 1 } else { usize::MAX }));
    let engines = engines::look(&settings, &answer).await?;
    findings.extend(engines.findings);
    // Where no container could be made, what processes have says whether the kernel lets a jail be.
    let jail = engines.isolation.as_ref().unwrap_or(&answer.isolation)["jail"] == "bubblewrap";
    let isolation = if in_containers { engines.isolation.unwrap_or_default() } else { answer.isolation };
    findings.push(facts::user_namespaces(
        setting("user/max_user_namespaces").as_deref(),
        setting("kernel/unprivileged_userns_clone").as_deref(),
        setting("kernel/apparmor_restrict_unprivileged_userns").as_deref(),
        jail || settings_word(&settings, "jail") == "off",
    ));
    findings.push(bubblewrap().await);
    findings.push(facts::seccomp(&setting("kernel/seccomp/actions_avail").unwrap_or_default()));
    findings.push(control_groups(&settings));
    findings.push(swap());
    // Containers have those of their images.
    let interpreters =
        [("python", "python", (3, 9)), ("node", "javascript", (18, 0)), ("shell", "shell", (0, 0))];
    for (name, word, oldest) in interpreters.into_iter().filter(|_| !in_containers) {
        let found = answer.languages.iter().find(|found| found.language == word);
        let found = found.map(|found| (found.path.as_str(), found.version.as_str()));
        findings.push(facts::interpreter(name, found, oldest));
    }
    findings.extend(storage(&settings.mesh.data_dir, uid));
    let limit = getrlimit(Resource::Nofile);
    findings.push(facts::open_files(limit.current, limit.maximum));
    let ok = !findings.iter().any(|finding| finding.level == Level::Problem);
    Ok(Report { ok, findings, runtime, isolation, runtimes: engines.usable })
}

/// The settings that a server started here would have.
pub(super) fn settings(args: &DoctorArgs) -> Result<Settings, Failure> {
    let mut flags = json!({});
    if let Some(dir) = &args.data_dir {
        flags["mesh"]["data_dir"] = json!(std::path::absolute(dir).unwrap_or_else(|_| dir.clone()));
    }
    if let Some(runtime) = &args.runtime {
        flags["agent"]["runtime"] = json!(runtime);
    }
    Settings::load(args.config.as_deref(), flags).map_err(|error| Failure::usage(error.to_string()))
}

/// A setting of the kernel; `None` where it has no such setting.
fn setting(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
}

/// The word for a kind of isolation, as the executor's flags have it.
fn settings_word(settings: &Settings, name: &str) -> String {
    let policy = serde_json::to_value(settings.agent.isolation).unwrap_or_default();
    policy[name].as_str().unwrap_or("required").to_owned()
}

fn kernel() -> Finding {
    let release = setting("kernel/osrelease").unwrap_or_default();
    let place =
        if fs::exists("/.dockerenv").unwrap_or(false) || fs::exists("/run/.containerenv").unwrap_or(false) {
            ", in a container"
        } else {
            ""
        };
    // Too old a kernel is among the executor's own findings.
    Finding::ok(
        "kernel",
        format!("Linux {release} on {}{place}", std::env::consts::ARCH),
        "sandboxes are made of its features",
    )
}

/// Asks the executor what this machine can give.
async fn executor(settings: &Settings, uid: u32) -> (Vec<Finding>, Answer) {
    let name = "executor";
    let program = executor_path(settings);
    let finding =
        Finding::ok(name, program.display().to_string(), "it makes sandboxes, and knows what they need");
    let mut command = Command::new(&program);
    command.arg("check").args(["--cgroup-parent", &settings.agent.cgroup_parent]);
    for kind in ["jail", "seccomp", "cgroups"] {
        command.args([format!("--{kind}"), settings_word(settings, kind)]);
    }
    if uid == 0 {
        let first = settings.agent.uid_base.to_string();
        command.args(["--uid", &first, "--gid", &first]);
    }
    for (flag, path) in [
        ("--python", &settings.agent.python),
        ("--node", &settings.agent.node),
        ("--shell", &settings.agent.shell),
    ] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    let output = match output(command).await {
        Ok(output) => output,
        Err(error) => {
            let fix = "put sandmesh-executor beside the sandmesh program, or name it in agent.executor";
            return (vec![finding.but(Level::Problem, error, fix)], Answer::default());
        }
    };
    match serde_json::from_slice::<Answer>(&output.stdout) {
        Ok(answer) => (of_answer(finding, &answer), answer),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let meaning = format!("its check ended with {} and said: {said}", output.status);
            (
                vec![finding.but(Level::Problem, meaning, "install both programs of one release")],
                Answer::default(),
            )
        }
    }
}

/// The executor's own findings; those of bubblewrap's version are told by [`facts::bubblewrap`].
fn of_answer(finding: Finding, answer: &Answer) -> Vec<Finding> {
    let mut findings = vec![finding];
    let lists = [(Level::Problem, &answer.problems), (Level::Warning, &answer.warnings)];
    for (level, list) in lists {
        for missing in list.iter().filter(|missing| level == Level::Problem || missing.what != "bubblewrap") {
            let found = format!("{}: {}", missing.what, missing.missing);
            let what = "isolation as configured";
            findings.push(Finding::ok(what, found, "").but(
                level,
                "this is missing for the isolation that is configured",
                missing.fix.clone(),
            ));
        }
    }
    if answer.ok {
        findings.push(facts::isolation(&answer.isolation));
    }
    findings
}

fn executor_path(settings: &Settings) -> PathBuf {
    if !settings.agent.executor.as_os_str().is_empty() {
        return settings.agent.executor.clone();
    }
    let beside =
        std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join("sandmesh-executor")));
    beside.unwrap_or_else(|| PathBuf::from("sandmesh-executor"))
}

pub(super) async fn output(mut command: Command) -> Result<std::process::Output, String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(format!("cannot run `{program}`: {error}")),
        Err(_) => Err(format!("`{program}` did not answer within {PATIENCE:?}")),
    }
}

async fn bubblewrap() -> Finding {
    let Some(path) = BUBBLEWRAP.into_iter().find(|path| fs::exists(path).unwrap_or(false)) else {
        return facts::bubblewrap(None, false, false, "");
    };
    let mode = fs::metadata(path).map(|meta| meta.permissions().mode()).unwrap_or_default();
    let mut command = Command::new(path);
    command.arg("--version");
    let said = output(command).await.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    // Others must be able to execute it: it runs with the uid of a sandbox.
    let executable = mode & 0o001 != 0 && said.is_ok();
    facts::bubblewrap(Some(path), executable, mode & 0o4000 != 0, &said.unwrap_or_default())
}

fn control_groups(settings: &Settings) -> Finding {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let root = Path::new("/sys/fs/cgroup");
    // As root from the top; otherwise below what was delegated to this process.
    let dir = if getuid().is_root() { root.to_owned() } else { root.join(own) };
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    facts::control_groups(&mounts, &controllers, &settings_word(settings, "cgroups"))
}

fn swap() -> Finding {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.lines().find_map(|line| line.strip_prefix("SwapTotal:")).unwrap_or_default();
    let total = total.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let accounted = fs::exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").unwrap_or(false)
        || fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false);
    facts::swap(total, accounted)
}

/// The data directory and what is under it; while it does not exist, the directory that it would be in.
fn storage(data_dir: &Path, uid: u32) -> Vec<Finding> {
    let shown = data_dir.display().to_string();
    let found = fs::metadata(data_dir).ok().map(|meta| (meta.uid(), meta.mode()));
    let mut findings = vec![facts::data_dir(&shown, uid, found), facts::socket_paths(&shown)];
    let Some(there) = data_dir.ancestors().find(|dir| dir.is_dir()) else { return findings };
    if let Ok(space) = statvfs(there) {
        // Some file systems do not count inodes.
        let inodes = (space.f_files > 0).then_some(space.f_favail);
        findings.push(facts::disk(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize, inodes));
    }
    if let Ok(kind) = statfs(there) {
        findings.push(facts::file_system(kind.f_type));
    }
    findings
}
