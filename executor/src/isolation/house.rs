//! The house around a sandbox: what is built once, as root where there is root, before the first
//! thread and the first request.
//!
//! Started as root, the executor makes its control groups, takes a mount namespace of its own with a
//! small tmpfs in it, through which it reaches its workspace and itself even if the way there is
//! closed to others (a data directory below a 0700 home), binds its socket, and then gives its
//! privileges up for good. Started as a user, it uses the paths as they are.

use std::{
    fs,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid},
};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    IsolationOptions, Need, Outer, Sandbox,
    bubblewrap::Bubblewrap,
    cgroup::{Group, Limits},
    interpreters::Interpreters,
    jail,
    layer::Layer,
    run_group::RunGroups,
    seccomp,
};
use crate::{
    admission::{Admission, Groups},
    process_id::ProcessId,
};

/// Where the house's tmpfs is mounted: in a namespace of our own, so every sandbox has its own here.
const HOUSE: &str = "/run/sandmesh";

/// The longest path of a unix socket on Linux, without the final NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// What a warm Python and a warm Node.js load; see `native/lib.rs` and `native/node.rs`.
const NATIVE: [(&str, &[u8]); 2] = [
    ("libsandmesh.so", include_bytes!(concat!(env!("OUT_DIR"), "/libsandmesh.so"))),
    ("sandmesh.node", include_bytes!(concat!(env!("OUT_DIR"), "/sandmesh.node"))),
];

/// How long a former sandbox of the same name may take to die.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a sandbox is to be.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) sandbox_id: &'a str,
    pub(crate) limits: Limits,
    pub(crate) disk_bytes: u64,
    pub(crate) disk_reserve_bytes: u64,
    pub(crate) isolation: &'a IsolationOptions,
    /// The directory of all layers of packages, and the one that is shown at first.
    pub(crate) layers: Option<&'a Path>,
    pub(crate) layer: Option<&'a Layer>,
    /// The directory of the copy of Python in large pages.
    pub(crate) copies: Option<&'a Path>,
    /// Whether a Python is warm by way of a snapshot in that directory.
    pub(crate) shares_snapshots: bool,
    /// The socket that leads an installer out.
    pub(crate) proxy: Option<&'a Path>,
    /// The workspace, where it is not in the directory.
    pub(crate) workspace: Option<&'a Path>,
    /// What was given from outside the container.
    pub(crate) admission: Option<Admission>,
}

/// Builds the house, binds the socket and drops every privilege. Must be called before any thread
/// is started. Errors say what is missing.
pub(crate) fn build(mut plan: Plan<'_>) -> anyhow::Result<(Sandbox, UnixListener)> {
    // A session of our own, so that we survive whoever started us. It fails only if we lead one.
    let _ = setsid();
    let owner = owner(plan.isolation);
    let outer = Outer::of(plan.isolation);
    let interpreters = Interpreters::find(plan.isolation)?;
    let seccomp = plan.isolation.seccomp.is_on().then(seccomp::compile);
    let admission = plan.admission.take();
    let plan = &plan;
    if admission.is_none() {
        refuse_second(plan.dir)?;
    }
    make_directories(plan, owner)?;
    // After what may be refused, and before the mounts, which may cover the way there.
    let Admission { listener, groups, doors } = match admission {
        Some(given) => given,
        None => own_admission(plan, owner)?,
    };
    let (parents, runs) = groups.map(|groups| (groups.parents, groups.runs)).unzip();
    let rooms =
        if Uid::effective().is_root() { own_mounts(plan, &interpreters)? } else { Rooms::in_place(plan)? };
    furnish(&rooms, outer)?;
    if let Some((uid, gid)) = owner {
        drop_privileges(uid, gid)?;
    }
    allow_many_files();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")?;
    let jail = plan.isolation.jail.is_on().then(|| {
        jail::Arguments::new(&rooms, &interpreters, outer, (plan.limits.memory_bytes, plan.disk_bytes))
    });
    let groups = runs.map(|runs| RunGroups::new(runs, plan.limits));
    let groups = groups.transpose().context("cannot open the control group of executions")?;
    let sandbox = Sandbox {
        rooms,
        parents,
        groups: groups.map(Arc::new),
        numbers: AtomicU64::new(0),
        startup: plan.isolation.interpreters,
        _doors: doors,
        outer,
        bubblewrap: bubblewrap(plan.isolation)?,
        limits: plan.limits,
        disk_bytes: plan.disk_bytes,
        disk_reserve_bytes: plan.disk_reserve_bytes,
        jail,
        seccomp,
        dedicated_user: owner.is_some() || outer == Outer::Container,
        interpreters,
        layer: Mutex::new(plan.layer.cloned()),
        shares_snapshots: AtomicBool::new(plan.shares_snapshots),
    };
    if let Some(layer) = plan.layer.filter(|layer| !sandbox.has_jail() || !sandbox.has_layer(layer)) {
        bail!("the layer of packages {layer:?} is not there, or there is no jail to show it in");
    }
    Ok((sandbox, listener))
}

/// What an executor that is not in a container makes itself: its control groups and its socket.
fn own_admission(plan: &Plan<'_>, owner: Option<(Uid, Gid)>) -> anyhow::Result<Admission> {
    let groups = control_group(plan, owner)?;
    let socket = plan.dir.join("executor.sock");
    let listener = bind(&socket)?;
    ProcessId::own()?.store(&socket.with_file_name("executor.pid"))?;
    Ok(Admission { listener, groups, doors: Vec::new() })
}

/// Where there is none, the first jail says so.
fn bubblewrap(options: &IsolationOptions) -> anyhow::Result<Bubblewrap> {
    match (Bubblewrap::find(options.bubblewrap.as_deref()), &options.bubblewrap) {
        (Some(found), _) => Ok(found),
        (None, None) => Ok(Bubblewrap::of_system()),
        (None, Some(dir)) => bail!("there is no bubblewrap with its loader in {}", dir.display()),
    }
}

/// Raises the limit of open files as far as that goes: every kept execution may hold two.
fn allow_many_files() {
    const ENOUGH: u64 = 65_536;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer the executor works, and says so when they do not suffice.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(ENOUGH)), hard);
    }
}

/// The identity to take: as asked, and only root can take one.
fn owner(options: &IsolationOptions) -> Option<(Uid, Gid)> {
    let uid = options.uid?;
    Uid::effective().is_root().then(|| (Uid::from_raw(uid), Gid::from_raw(options.gid.unwrap_or(uid))))
}

/// The places of the sandbox outside the jail.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    /// The workspace.
    pub(crate) workspace: PathBuf,
    /// Where output that is not kept in memory goes.
    pub(crate) spool: PathBuf,
    /// The runners' sources.
    pub(crate) tools: PathBuf,
    /// The jail's `/etc`.
    pub(crate) etc: PathBuf,
    /// This program.
    pub(crate) executor: PathBuf,
    /// Prefixes of configured interpreters: where they are, and where they must appear.
    pub(crate) prefixes: Vec<(PathBuf, PathBuf)>,
    /// The layers of packages of this node.
    pub(crate) layers: Option<PathBuf>,
    /// The directory of the copy of Python in large pages.
    pub(crate) copies: Option<PathBuf>,
    /// The socket of a proxy.
    pub(crate) proxy: Option<PathBuf>,
}

impl Rooms {
    fn at(base: &Path) -> Self {
        Self {
            workspace: base.join("workspace"),
            spool: base.join("spool"),
            tools: base.join("tools"),
            etc: base.join("etc"),
            executor: base.join("executor"),
            prefixes: Vec::new(),
            layers: None,
            copies: None,
            proxy: None,
        }
    }

    fn in_place(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let resolve =
            |path: &Path| path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()));
        let dir = resolve(plan.dir)?;
        Ok(Self {
            workspace: resolve(&workspace(plan))?,
            spool: dir.join("spool"),
            executor: own_program()?,
            layers: plan.layers.map(resolve).transpose()?,
            copies: plan.copies.and_then(|copies| copies.canonicalize().ok()),
            proxy: plan.proxy.map(resolve).transpose()?,
            ..Self::at(&dir.join("house"))
        })
    }
}

/// Refuses to serve a sandbox that another executor serves: what it runs would be killed.
fn refuse_second(dir: &Path) -> anyhow::Result<()> {
    let recorded = ProcessId::load(&dir.join("executor.pid")).context("cannot read executor.pid")?;
    if recorded.is_some_and(ProcessId::is_alive) {
        bail!("an executor serves {} already", dir.display());
    }
    Ok(())
}

fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find the executor's own program")
}

/// Where the workspace is outside the jail.
fn workspace(plan: &Plan<'_>) -> PathBuf {
    plan.workspace.map_or_else(|| plan.dir.join("workspace"), Path::to_owned)
}

fn make_directories(plan: &Plan<'_>, owner: Option<(Uid, Gid)>) -> anyhow::Result<()> {
    let dir = plan.dir;
    for (path, theirs) in [(dir.to_owned(), false), (workspace(plan), true), (dir.join("spool"), true)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        if let (true, Some((uid, gid))) = (theirs, owner) {
            chown(&path, Some(uid.as_raw()), Some(gid.as_raw()))
                .with_context(|| format!("cannot give {} to uid {uid}", path.display()))?;
        }
    }
    Ok(())
}

/// Binds the socket that an executor is dialled on.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let length = path.as_os_str().len();
    if length > LONGEST_SOCKET_PATH {
        bail!(
            "the socket path {} has {length} bytes and a unix socket's may have {LONGEST_SOCKET_PATH}: use a shorter data directory",
            path.display()
        );
    }
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("cannot remove the stale socket {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Makes `<parent>/<sandbox>` with the groups in it, see [`groups_below`].
fn control_group(plan: &Plan<'_>, owner: Option<(Uid, Gid)>) -> anyhow::Result<Option<Groups>> {
    let options = plan.isolation;
    if options.cgroups == Need::Off {
        return Ok(None);
    }
    let made = Group::root().and_then(|root| {
        let parent = root.child(&options.cgroup_parent);
        let sandbox = parent.child(plan.sandbox_id);
        let [parents, runs] = ["parents", "runs"].map(|name| sandbox.child(name));
        // Left by a former executor of this sandbox that was killed.
        if !parents.destroy(PATIENCE) || !runs.destroy(PATIENCE) {
            bail!("processes of a former executor of sandbox {} do not die", plan.sandbox_id);
        }
        parent.create()?;
        sandbox.create()?;
        for group in [&root, &parent] {
            group.hand_down()?;
        }
        groups_below(&sandbox, plan.limits, owner.map(|(uid, gid)| (uid.as_raw(), gid.as_raw())), None)
    });
    match made {
        Ok(groups) => Ok(Some(groups)),
        Err(err) if options.cgroups == Need::Optional => {
            tracing::warn!(error = format!("{err:#}"), "no control groups: limits hold per process only");
            Ok(None)
        }
        Err(err) => Err(err.context(
            "control groups are required and cannot be used; run as root or in a delegated v2 subtree, or allow weaker limits with --cgroups optional",
        )),
    }
}

/// Makes the groups `executor`, `parents` and `runs` below that of a sandbox, with the limits on `runs`, moves
/// the executor into its own (this process, or another of one thread), and gives the others to `owner`, a uid
/// and a gid.
pub(crate) fn groups_below(
    sandbox: &Group,
    limits: Limits,
    owner: Option<(u32, u32)>,
    executor: Option<Pid>,
) -> anyhow::Result<Groups> {
    let [own, parents, runs] = ["executor", "parents", "runs"].map(|name| sandbox.child(name));
    for group in [&own, &parents, &runs] {
        group.create()?;
    }
    match executor {
        Some(pid) => own.take_in(pid)?,
        None => own.enter()?,
    }
    sandbox.hand_down()?;
    runs.limit(limits)?;
    // Forking is work for the user too. A core at least, so that they are warm soon.
    let cpu_millis = if limits.cpu_millis == 0 { 0 } else { limits.cpu_millis.max(1000) };
    parents.limit(Limits { cpu_millis, ..Limits::default() })?;
    runs.hand_down()?;
    if let Some((uid, gid)) = owner {
        sandbox.allow_moves(uid, gid)?;
        parents.delegate(uid, gid)?;
        runs.delegate(uid, gid)?;
    }
    Ok(Groups { parents, runs })
}

/// A mount namespace of our own with everything the sandbox needs at fixed places.
fn own_mounts(plan: &Plan<'_>, interpreters: &Interpreters) -> anyhow::Result<Rooms> {
    let dir = plan.dir;
    let context = "cannot make the sandbox's own mounts";
    unshare(CloneFlags::CLONE_NEWNS).context(context)?;
    // Slave, not private: what the host unmounts is not kept busy by us.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context(context)?;
    let house = Path::new(HOUSE);
    let mut rooms = Rooms::at(house);
    // By its path: the link itself still leads into the mount namespace that was left.
    let program = own_program()?;
    let mut trees = vec![
        (clone_mount(&dir.join("workspace"))?, rooms.workspace.clone(), true),
        (clone_mount(&dir.join("spool"))?, rooms.spool.clone(), true),
        (clone_mount(&program)?, rooms.executor.clone(), false),
    ];
    for (index, prefix) in interpreters.prefixes.iter().enumerate() {
        let here = house.join(format!("prefix{index}"));
        trees.push((clone_mount(prefix)?, here.clone(), prefix.is_dir()));
        rooms.prefixes.push((here, prefix.clone()));
    }
    if let Some(layers) = plan.layers {
        let here = house.join("layers");
        trees.push((clone_mount(layers)?, here.clone(), true));
        rooms.layers = Some(here);
    }
    if let Some(copies) = plan.copies.filter(|copies| copies.is_dir()) {
        let here = house.join("copies");
        trees.push((clone_mount(copies)?, here.clone(), true));
        rooms.copies = Some(here);
    }
    if let Some(proxy) = plan.proxy {
        let here = house.join("proxy");
        trees.push((clone_mount(proxy)?, here.clone(), false));
        rooms.proxy = Some(here);
    }
    fs::create_dir_all(house).with_context(|| format!("cannot create {HOUSE}"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), house, Some("tmpfs"), flags, Some("mode=755,size=4m")).context(context)?;
    for (tree, place, is_dir) in trees {
        let made = if is_dir { fs::create_dir(&place) } else { fs::write(&place, "") };
        made.with_context(|| format!("cannot create {}", place.display()))?;
        move_mount(&tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("cannot mount {}", place.display()))?;
    }
    Ok(rooms)
}

/// A detached copy of the mount at `path`, which stays valid when the path is covered.
fn clone_mount(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).with_context(|| format!("cannot open {} for the sandbox", path.display()))
}

/// Writes the runners' sources and the jail's `/etc`. Nothing in them is secret or writable to users.
fn furnish(rooms: &Rooms, outer: Outer) -> anyhow::Result<()> {
    let context = || format!("cannot furnish {}", rooms.tools.display());
    let make = |dir: &Path| fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    make(&rooms.tools).with_context(context)?;
    let sources = crate::runner::SOURCES.into_iter().map(|(name, source)| (name, source.as_bytes()));
    for (name, content) in sources.chain(NATIVE) {
        put(&rooms.tools.join(name), content).with_context(context)?;
    }
    // The mount point of this program.
    put(&rooms.tools.join(jail::EXECUTOR), b"").with_context(context)?;
    jail::write_etc(&rooms.etc, outer).context("cannot write the jail's /etc")
}

/// Makes a directory that everybody may look into, whatever the umask is.
pub(crate) fn make_public_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot open {} to all", dir.display()))
}

/// Writes a world-readable file whatever the umask is.
pub(crate) fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(content)
}

/// Becomes another user for good: no groups, no way back, and with the uid go all capabilities.
fn drop_privileges(uid: Uid, gid: Gid) -> anyhow::Result<()> {
    setgroups(&[]).context("cannot drop the supplementary groups")?;
    setresgid(gid, gid, gid).with_context(|| format!("cannot become gid {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("cannot become uid {uid}"))?;
    if Uid::current().is_root() {
        bail!("--uid must not be 0: leave it out to stay root knowingly");
    }
    Ok(())
}
