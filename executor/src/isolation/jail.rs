//! The jail around the executions of a sandbox: the command line of bubblewrap and the files it shows.
//!
//! Every namespace is new, the system is read-only, `/workspace` is the only writable place that
//! lasts and no mount point lies in it. In it is a warm parent, which keeps two capabilities over the
//! jail's own user namespace: with them it makes further namespaces for each execution, whose processes
//! have none.

use std::{
    ffi::OsString,
    fs, io,
    os::{fd::RawFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    Outer,
    house::{Rooms, put},
    interpreters::Interpreters,
    large_pages,
    layer::{Layer, PACKAGES},
};
use crate::cli::Language;

/// Name of the executor in the jail's tools directory.
pub(crate) const EXECUTOR: &str = "executor";

/// Where the jail shows the tools; a dot, since it is not the user's business.
pub(crate) const TOOLS: &str = "/.sandmesh";

/// Where the jail of an installer shows the socket of the proxy.
pub(crate) const PROXY: &str = "/.proxy";

/// What of the host's `/etc` is shown as it is, and not copied: hundreds of links, and much text. What an image has
/// there may be a link that leads anywhere, and is copied.
const SHOWN: [&str; 2] = [ALTERNATIVES, "/etc/ssl/certs/ca-certificates.crt"];
const ALTERNATIVES: &str = "/etc/alternatives";

/// The identity of user code inside the jail.
const JAIL_USER: &str = "1000";

/// Where user code finds things: paths inside the jail, or real ones without a jail.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) workspace: PathBuf,
    pub(crate) tmp: PathBuf,
    pub(crate) tools: PathBuf,
    /// For the files of one execution, which vanish with it.
    pub(crate) scratch: PathBuf,
    /// The packages that are there.
    pub(crate) layer: Option<Layer>,
}

impl Scene {
    pub(crate) fn inside(layer: Option<Layer>) -> Self {
        Self {
            workspace: "/workspace".into(),
            tmp: "/tmp".into(),
            tools: TOOLS.into(),
            scratch: "/tmp/.sandmesh".into(),
            layer,
        }
    }

    pub(crate) fn outside(rooms: &Rooms, number: u64) -> Self {
        Self {
            workspace: rooms.workspace.clone(),
            tmp: "/tmp".into(),
            tools: rooms.tools.clone(),
            scratch: rooms.spool.join(number.to_string()),
            layer: None,
        }
    }

    /// Where a program may leave its result.
    pub(crate) fn result_file(&self) -> PathBuf {
        self.scratch.join("result.json")
    }
}

/// What a jail runs for the warm parent that is a Python interpreter: arguments of the interpreter, with what kind of
/// parent the runner is to be.
pub(crate) fn python_parent(role: &str, layer: Option<&Layer>) -> Vec<OsString> {
    let runner = Path::new(TOOLS).join(crate::runner::PYTHON_RUNNER);
    let packages = layer.filter(|layer| layer.is_for(Language::Python)).map(|_| PACKAGES.into());
    ["-B".into(), "-s".into(), runner.into(), role.into()].into_iter().chain(packages).collect()
}

/// What a jail runs before that to have it made of a snapshot, whose template has no packages.
pub(crate) fn loader(snapshot: RawFd, layer: Option<&Layer>) -> Vec<OsString> {
    let mut words = vec![
        Path::new(TOOLS).join(EXECUTOR).into(),
        "restore".into(),
        format!("--snapshot={snapshot}").into(),
    ];
    if let Some(layer) = layer {
        let [(_, path), ..] = crate::runner::base_environment(&Scene::inside(Some(layer.clone())));
        words.push(format!("--path={path}").into());
        if layer.is_for(Language::Python) {
            words.push(format!("--packages={PACKAGES}").into());
        }
    }
    words.push("--".into());
    words
}

/// What a jail runs for the warm parent that executes programs.
pub(crate) fn program_parent() -> [OsString; 2] {
    [Path::new(TOOLS).join(EXECUTOR).into(), "parent".into()]
}

/// The arguments of `bwrap`, up to the command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arguments {
    words: Vec<OsString>,
    /// Where the layers of packages are.
    layers: Option<PathBuf>,
    /// Where copies of Python are, and what they are copies of.
    copies: Option<(PathBuf, PathBuf)>,
    /// The size of a temporary file system of an execution.
    temporary_bytes: u64,
}

impl Arguments {
    pub(crate) fn new(
        rooms: &Rooms,
        interpreters: &Interpreters,
        outer: Outer,
        (memory_bytes, disk_bytes): (u64, u64),
    ) -> Self {
        // For the warm parent: to make namespaces, and to take these two away from its children.
        let mut args = Self::walls(outer, &["CAP_SYS_ADMIN", "CAP_SETPCAP"]);
        args.temporary_bytes = temporary_bytes(memory_bytes, disk_bytes);
        args.layers.clone_from(&rooms.layers);
        args.copies = rooms.copies.clone().zip(interpreters.python.clone());
        args.bind("--ro-bind", &rooms.etc, "/etc");
        SHOWN.iter().map(Path::new).filter(|path| is_shown(path, outer)).for_each(|path| {
            // It may go while the sandbox lives.
            args.bind("--ro-bind-try", path, path);
        });
        args.bind("--ro-bind", &rooms.tools, TOOLS);
        args.bind("--ro-bind", &rooms.executor, Path::new(TOOLS).join(EXECUTOR));
        args.add(&["--proc", "/proc", "--dev", "/dev"]);
        // Every execution has its own above these.
        for dir in ["/dev/shm", "/tmp"] {
            args.add(&["--perms", "1777", "--size", "65536", "--tmpfs", dir]);
        }
        args.add(&["--remount-ro", "/dev"]);
        for (here, there) in &rooms.prefixes {
            args.bind("--ro-bind", here, there);
        }
        if rooms.prefixes.is_empty() {
            // Without a mount namespace of our own the configured prefixes are where they are.
            interpreters.prefixes.iter().for_each(|prefix| args.bind("--ro-bind", prefix, prefix));
        }
        if let Some(proxy) = &rooms.proxy {
            args.bind("--ro-bind", proxy, PROXY);
        }
        args.bind("--bind", &rooms.workspace, "/workspace");
        args
    }

    /// All of them, for a jail that shows this layer of packages, with one more variable.
    pub(crate) fn with_layer(&self, layer: Option<&Layer>, more: Option<(&str, &str)>) -> Vec<OsString> {
        let mut args = self.clone();
        if let (Some(layers), Some(layer)) = (&self.layers, layer) {
            args.bind("--ro-bind", &layer.files(layers), PACKAGES);
            if layer.is_for(Language::Javascript) {
                // Every directory looks for modules here at last, `import` too, which knows no variable.
                args.show_modules(&layer.files(layers));
            }
        }
        if let Some((copies, python)) = &self.copies
            && let Some((copy, place)) = large_pages::find(copies, python)
        {
            args.bind("--ro-bind-try", &copy, place);
        }
        args.add(&["--chdir", "/workspace", "--remount-ro", "/"]);
        for (name, value) in crate::runner::base_environment(&Scene::inside(layer.cloned())) {
            args.add(&["--setenv", name, &value]);
        }
        if let Some((name, value)) = more {
            args.add(&["--setenv", name, value]);
        }
        // So that the children of a warm parent find every function of a library resolved.
        args.add(&["--setenv", "LD_BIND_NOW", "1", "--"]);
        args.words
    }

    /// The options of an execution's temporary file systems. What is in them counts as memory of the
    /// sandbox too; the size turns most of the kills into an honest "no space left".
    pub(crate) fn temporary(&self) -> String {
        format!("mode=1777,size={}", self.temporary_bytes)
    }

    /// A jail in which the executor measures a workspace: with the right to look into every directory of the
    /// sandbox's user, which holds nowhere outside, and with nothing else to see.
    pub(crate) fn measuring(rooms: &Rooms, outer: Outer, enough: u64) -> Self {
        let mut args = Self::walls(outer, &["CAP_DAC_READ_SEARCH"]);
        args.bind("--ro-bind", &rooms.executor, "/executor");
        args.bind("--ro-bind", &rooms.workspace, "/workspace");
        args.add(&["--remount-ro", "/", "--", "/executor", "measure", "/workspace"]);
        args.add(&["--enough", &enough.to_string()]);
        args
    }

    /// A jail like that of an execution, without a sandbox, in which a program does nothing: `true`, or this
    /// one, where the system may have none.
    pub(crate) fn probe(own: Option<&Path>) -> Self {
        let outer = if own.is_some() { Outer::Container } else { Outer::Process };
        let mut args = Self::walls(outer, &["CAP_SYS_ADMIN", "CAP_SETPCAP"]);
        args.add(&["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        if let Some(own) = own {
            args.bind("--ro-bind", own, "/executor");
        }
        args.add(&["--remount-ro", "/", "--"]);
        args.add(if own.is_some() { &["/executor", "--version"] } else { &["/usr/bin/true"] });
        args
    }

    /// Every namespace, no capability but these, a fixed identity, and the read-only system.
    fn walls(outer: Outer, capabilities: &[&str]) -> Self {
        let mut args =
            Self { words: Vec::with_capacity(128), layers: None, copies: None, temporary_bytes: 0 };
        args.add(&["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]);
        args.add(&["--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"]);
        args.add(&["--clearenv", "--cap-drop", "ALL", "--hostname", "sandbox"]);
        capabilities.iter().for_each(|capability| args.add(&["--cap-add", capability]));
        args.add(&["--uid", JAIL_USER, "--gid", JAIL_USER, "--as-pid-1"]);
        match outer {
            Outer::Process => args.system(),
            Outer::Container => args.image(Path::new("/")),
        }
        args
    }

    pub(crate) fn as_slice(&self) -> &[OsString] {
        &self.words
    }

    fn add(&mut self, words: &[&str]) {
        self.words.extend(words.iter().map(OsString::from));
    }

    fn bind(&mut self, how: &str, here: &Path, there: impl AsRef<Path>) {
        self.words.extend([how.into(), here.into(), there.as_ref().into()]);
    }

    /// Shows modules in the place of those that an image has there, if it has.
    fn show_modules(&mut self, files: &Path) {
        let place = Path::new("/node_modules");
        if self.words.iter().any(|word| word == place) {
            self.bind("--ro-bind", &files.join("node_modules"), place);
        } else {
            self.add(&["--symlink", &format!("{PACKAGES}/node_modules")[1..], "/node_modules"]);
        }
    }

    /// All of an image, but for what the jail has of its own and what is nobody's business.
    fn image(&mut self, root: &Path) {
        const OWN: [&str; 9] =
            [".proxy", ".sandmesh", "dev", "etc", "packages", "proc", "sys", "tmp", "workspace"];
        // What people and services leave on a system, which is no part of an environment. In `/run` a container
        // has what it was given besides its image.
        const PRIVATE: [&str; 5] = ["boot", "home", "root", "run", "var"];
        let mut names: Vec<_> =
            fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        names.retain(|name| !OWN.iter().chain(&PRIVATE).any(|hidden| name == hidden));
        names.sort_unstable();
        for name in names {
            let path = root.join(name);
            if let Ok(target) = fs::read_link(&path) {
                self.bind("--symlink", &target, &path);
            } else if path.is_dir() {
                self.bind("--ro-bind", &path, &path);
            }
        }
    }

    /// `/usr` and the directories beside it, which are links into it on a merged system.
    fn system(&mut self) {
        self.bind("--ro-bind", Path::new("/usr"), "/usr");
        for name in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
            let path = Path::new(name);
            if let Ok(target) = fs::read_link(path) {
                self.bind("--symlink", &target, path);
            } else if path.is_dir() {
                self.bind("--ro-bind", path, path);
            }
        }
    }
}

/// The size of each temporary file system: half of the memory, and never more than the disk limit.
fn temporary_bytes(memory_bytes: u64, disk_bytes: u64) -> u64 {
    const UNLIMITED: u64 = 256 << 20;
    let sizes = [memory_bytes / 2, disk_bytes].into_iter().filter(|bytes| *bytes > 0);
    sizes.min().unwrap_or(UNLIMITED)
}

/// Writes the jail's `/etc`: its own users and hosts, and the few of the host's files that programs
/// need, none of which is secret, but for those that are [`SHOWN`].
pub(crate) fn write_etc(etc: &Path, outer: Outer) -> io::Result<()> {
    let passwd = format!(
        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n\
         sandbox:x:{JAIL_USER}:{JAIL_USER}:sandbox:/workspace:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    let group = format!("root:x:0:\nsandbox:x:{JAIL_USER}:\nnogroup:x:65534:\n");
    let own = [
        ("passwd", passwd.as_str()),
        ("group", group.as_str()),
        ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
        ("hostname", "sandbox\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("resolv.conf", ""),
    ];
    for dir in ["", "ssl/certs", "alternatives"] {
        make_dir(&etc.join(dir))?;
    }
    for (name, content) in own {
        put(&etc.join(name), content.as_bytes())?;
    }
    for name in ["ld.so.cache", "localtime", "ssl/openssl.cnf", "ssl/certs/ca-certificates.crt"] {
        let path = Path::new("/etc").join(name);
        match fs::read(&path) {
            // A mount point.
            Ok(_) if SHOWN.iter().any(|shown| path == Path::new(shown)) && is_shown(&path, outer) => {
                put(&etc.join(name), b"")?
            }
            Ok(content) => put(&etc.join(name), &content)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    match is_shown(Path::new(ALTERNATIVES), outer) {
        true => Ok(()),
        false => copy_links(Path::new(ALTERNATIVES), &etc.join("alternatives")),
    }
}

/// Whether the jail shows what is at a path: of the host, if everybody may read it.
fn is_shown(path: &Path, outer: Outer) -> bool {
    let is_readable = |metadata: fs::Metadata| metadata.permissions().mode() & 0o004 != 0;
    outer == Outer::Process && fs::metadata(path).is_ok_and(is_readable)
}

/// Links that lead where they lead: nothing of what is there is read.
fn copy_links(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        match std::os::unix::fs::symlink(target, to.join(entry.file_name())) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            _ => {}
        }
    }
    Ok(())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_an_image_is_shown_but_for_what_the_jail_has_itself_and_what_is_private() {
        let root = tempfile::tempdir().unwrap();
        for name in ["usr", "opt", "etc", "run", "home", "var", "workspace", ".sandmesh", "node_modules"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("usr/bin", root.path().join("bin")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let mut args = Arguments::default();
        args.image(root.path());
        let words: Vec<_> = args.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let shown: Vec<_> =
            words.chunks(3).map(|words| (words[0].as_str(), words[2].rsplit('/').next())).collect();
        let expected = [
            ("--symlink", Some("bin")),
            ("--ro-bind", Some("node_modules")),
            ("--ro-bind", Some("opt")),
            ("--ro-bind", Some("usr")),
        ];
        assert_eq!(shown, expected);
    }

    /// What an image has there may be a link to what is not for it to see.
    #[test]
    fn of_the_etc_of_an_image_nothing_is_shown_and_links_stay_links() {
        assert!(SHOWN.iter().all(|path| !is_shown(Path::new(path), Outer::Container)));
        assert!(is_shown(Path::new("/etc"), Outer::Process));
        let root = tempfile::tempdir().unwrap();
        let [secret, image, etc] = ["secret", "image", "etc"].map(|name| root.path().join(name));
        fs::create_dir(&secret).unwrap();
        fs::write(secret.join("layer"), "").unwrap();
        fs::create_dir(&etc).unwrap();
        std::os::unix::fs::symlink(&secret, &image).unwrap();
        copy_links(&image, &etc).unwrap();
        assert_eq!(fs::read_dir(&etc).unwrap().count(), 0, "what is behind a link is no link itself");
    }
}
