//! `sandmesh-executor check`: whether this host can isolate executions as asked, found out by doing
//! it, and what is missing otherwise. Prints one JSON object.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{ExitCode, Stdio},
};

use anyhow::Context as _;
use nix::unistd::Uid;
use sandmesh_proto::executor as pb;
use serde::Serialize;

use crate::{
    admission::{self, Admission},
    cli::CheckOptions,
    isolation::{
        IsolationOptions, Need, Outer,
        bubblewrap::Bubblewrap,
        cgroup::{Group, Limits},
        interpreters::Interpreters,
        jail,
    },
};

/// The first release of bubblewrap that follows no link while it sets up mounts. An older one is
/// safe here too, because no mount point lies in a tenant's directory; it is still told.
const HARDENED_BUBBLEWRAP: (u32, u32) = (0, 12);
/// The first that can forbid further user namespaces.
const OLDEST_BUBBLEWRAP: (u32, u32) = (0, 8);
/// The first kernel with every system call the executor needs.
const OLDEST_KERNEL: (u32, u32) = (5, 9);

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Findings {
    ok: bool,
    problems: Vec<Problem>,
    /// What works and could be better.
    warnings: Vec<Problem>,
    isolation: Isolation,
    languages: Vec<Language>,
}

/// Something that is missing.
#[derive(Debug, Serialize)]
struct Problem {
    what: &'static str,
    missing: String,
    fix: String,
}

/// The isolation that executions would get; the words of the API.
#[derive(Debug, Default, Serialize)]
struct Isolation {
    sandbox: &'static str,
    jail: &'static str,
    seccomp: &'static str,
    network: &'static str,
    user: &'static str,
    limits: &'static str,
    interpreters: &'static str,
}

/// An interpreter.
#[derive(Debug, Serialize)]
struct Language {
    language: &'static str,
    path: String,
    version: String,
}

/// Checks and prints; the exit code is 0 if nothing is missing.
pub(crate) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let admission = options.isolation.entry.as_deref().map(admission::wait).transpose()?;
    let CheckOptions { without_interpreters, isolation: options } = options;
    let mut findings = Findings::default();
    findings.isolation.sandbox = Outer::of(options).name();
    findings.isolation.interpreters = options.interpreters.name();
    findings.kernel();
    findings.jail(options);
    findings.seccomp(options);
    findings.limits(options, admission.as_ref());
    findings.user(options);
    if !without_interpreters {
        findings.languages(options)?;
    }
    findings.ok = findings.problems.is_empty();
    println!("{}", serde_json::to_string(&findings)?);
    Ok(if findings.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Findings {
    fn problem(&mut self, what: &'static str, missing: impl Into<String>, fix: impl Into<String>) {
        self.problems.push(Problem { what, missing: missing.into(), fix: fix.into() });
    }

    fn kernel(&mut self) {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
            let (major, minor) = OLDEST_KERNEL;
            self.problem(
                "kernel",
                format!("Linux {major}.{minor}, this is {}", release.trim()),
                "use a newer kernel",
            );
        }
    }

    fn jail(&mut self, options: &IsolationOptions) {
        if !options.jail.is_on() {
            (self.isolation.jail, self.isolation.network) = ("none", Outer::of(options).network());
            return;
        }
        let Some(program) = Bubblewrap::find(options.bubblewrap.as_deref()) else {
            self.problem(
                "bubblewrap",
                "the program bwrap",
                "apt-get install bubblewrap (dnf, apk, pacman: package bubblewrap)",
            );
            return;
        };
        let output = match program.command().arg("--version").output() {
            Ok(output) => output,
            Err(err) => {
                let missing = format!("{} cannot be executed: {err}", program.name());
                return self.problem(
                    "bubblewrap",
                    missing,
                    "allow it to be executed, or install the package bubblewrap anew",
                );
            }
        };
        let release = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = release.trim().trim_start_matches("bubblewrap ");
        if version(found).is_some_and(|version| version < OLDEST_BUBBLEWRAP) {
            let missing = format!("bubblewrap 0.8, this is {found}");
            self.problem("bubblewrap", missing, "install a newer bubblewrap");
        } else if version(found).is_some_and(|version| version < HARDENED_BUBBLEWRAP) {
            self.warnings.push(Problem {
                what: "bubblewrap",
                missing: format!("the hardening of bubblewrap 0.12, this is {found}"),
                fix: "nothing has to be done: no mount point lies where a tenant can write".to_owned(),
            });
        }
        match try_jail(&program, options) {
            Ok(()) => (self.isolation.jail, self.isolation.network) = ("bubblewrap", "none"),
            Err(complaint) => self.problem("user namespaces", complaint, namespace_fix()),
        }
    }

    fn seccomp(&mut self, options: &IsolationOptions) {
        self.isolation.seccomp = "none";
        if !options.seccomp.is_on() {
            return;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if status.contains("\nSeccomp:") {
            self.isolation.seccomp = "strict";
        } else {
            self.problem("seccomp", "a kernel with CONFIG_SECCOMP_FILTER", "use another kernel");
        }
    }

    fn limits(&mut self, options: &IsolationOptions, admission: Option<&Admission>) {
        self.isolation.limits = Outer::of(options).limits();
        if options.cgroups == Need::Off {
            return;
        }
        let fix = "run as root, or give the service a delegated cgroup v2 subtree (systemd: Delegate=yes), or allow weaker limits";
        let tried = match admission {
            Some(given) => try_given_group(given),
            None => try_group(options),
        };
        match tried {
            Ok(name) => self.isolation.limits = name,
            Err(err) => {
                let problem =
                    Problem { what: "control groups", missing: format!("{err:#}"), fix: fix.to_owned() };
                let list =
                    if options.cgroups == Need::Required { &mut self.problems } else { &mut self.warnings };
                list.push(problem);
            }
        }
    }

    fn user(&mut self, options: &IsolationOptions) {
        let taken = options.uid.is_some() && Uid::effective().is_root();
        // A container has the uid that it was made with, and nobody else has it.
        let dedicated = taken || Outer::of(options) == Outer::Container;
        self.isolation.user = if dedicated { "dedicated" } else { "service" };
    }

    fn languages(&mut self, options: &IsolationOptions) -> anyhow::Result<()> {
        let interpreters = match Interpreters::find(options) {
            Ok(interpreters) => interpreters,
            Err(err) => {
                self.problem("interpreter", format!("{err:#}"), "install it or correct the path");
                return Ok(());
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let found = runtime.context("cannot start the runtime")?.block_on(interpreters.describe(&[]));
        self.languages = found.into_iter().map(Language::from).collect();
        if self.languages.is_empty() {
            self.problem("interpreter", "any of python3, node and sh", "apt-get install python3 nodejs bash");
        }
        Ok(())
    }
}

impl From<pb::LanguageRuntime> for Language {
    fn from(runtime: pb::LanguageRuntime) -> Self {
        let language = match runtime.language() {
            pb::Language::Python => "python",
            pb::Language::Javascript => "javascript",
            pb::Language::Shell => "shell",
            pb::Language::Unspecified => "unspecified",
        };
        Self { language, path: runtime.path, version: runtime.version }
    }
}

/// Runs a program in a jail like that of an execution, as the user it would have.
fn try_jail(program: &Bubblewrap, options: &IsolationOptions) -> Result<(), String> {
    let mut command = program.command();
    command
        .args(jail::Arguments::probe(own_program(options).as_deref()).as_slice())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null());
    if let (Some(uid), true) = (options.uid, Uid::effective().is_root()) {
        command.uid(uid).gid(options.gid.unwrap_or(uid));
    }
    let output = command.output().map_err(|err| format!("cannot run {}: {err}", program.name()))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("a jail cannot be built: {}", complaint.trim().trim_start_matches("bwrap: ")))
}

/// The advice that fits what this host forbids.
fn namespace_fix() -> String {
    let is = |file: &str, value: &str| fs::read_to_string(file).is_ok_and(|text| text.trim() == value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return "sysctl -w user.max_user_namespaces=16384".to_owned();
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "sysctl -w kernel.unprivileged_userns_clone=1".to_owned();
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return "give bwrap an AppArmor profile with `userns,`, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            .to_owned();
    }
    "allow unprivileged user namespaces; inside a container its seccomp and AppArmor profiles must let bubblewrap in"
        .to_owned()
}

/// The program that a jail can show in an image that may have none.
fn own_program(options: &IsolationOptions) -> Option<PathBuf> {
    options.entry.as_ref().and_then(|_| std::env::current_exe().ok())
}

/// Makes a group below that of executions which was handed in, and removes it.
fn try_given_group(admission: &Admission) -> anyhow::Result<&'static str> {
    let groups = admission.groups.as_ref().context("none could be made for the container")?;
    let group = groups.runs.run(0);
    let tried = group
        .create()
        .and_then(|()| group.limit(Limits { max_processes: 16, ..Limits::default() }))
        .context("those of the container cannot be used");
    group.remove();
    tried.map(|()| groups.runs.name())
}

/// Makes a group with limits, as a sandbox would get, and removes it.
fn try_group(options: &IsolationOptions) -> anyhow::Result<&'static str> {
    let root = Group::root()?;
    let parent = root.child(&options.cgroup_parent);
    let group = parent.child(&format!("check-{}", std::process::id()));
    // It stays, also if it was made for this: a sandbox that starts meanwhile makes its own group there.
    parent.create()?;
    let tried =
        root.hand_down().and_then(|()| parent.hand_down()).and_then(|()| group.create()).and_then(|()| {
            group.limit(Limits { memory_bytes: 64 << 20, cpu_millis: 1000, max_processes: 16 })
        });
    group.remove();
    tried?;
    Ok(root.name())
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("0.8.0\n"), Some((0, 8)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert!(
            version("0.11.0") < Some(HARDENED_BUBBLEWRAP) && version("0.12.1") >= Some(HARDENED_BUBBLEWRAP)
        );
        assert_eq!(version("unknown"), None);
    }
}
