//! Snapshots: that a Python which is made of one is what a started one is, and that what cannot be used is not.
//! All other tests have their Pythons of one, too.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{large_pages::NotExecutable, support::*};

/// A directory with a snapshot of its own.
fn copies() -> (tempfile::TempDir, PathBuf) {
    let copies = tempfile::tempdir().unwrap();
    copy_to(copies.path(), &["--snapshots"]);
    let snapshot = snapshots(copies.path()).pop().unwrap();
    (copies, snapshot)
}

fn with(copies: &Path) -> Settings {
    let flags = ["--copies", copies.to_str().unwrap(), "--snapshots"];
    Settings { more: flags.map(str::to_owned).into(), snapshots: false, ..Settings::default() }
}

fn without() -> Settings {
    Settings { snapshots: false, ..Settings::default() }
}

fn maps(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()
}

/// How many warm parents, and first processes of executions, are made of a snapshot.
fn restored(daemon: &Daemon) -> usize {
    parents(daemon).into_iter().filter(|pid| maps(*pid).contains(".snapshot")).count()
}

/// What an interpreter and the kernel say of each other. What differs from process to process by nature is left out.
const DESCRIBE: &str = r"
import ctypes, gc, os, re, resource, select, signal, struct, subprocess, sys, threading, time
def area(name, maps=None):
    for line in open('/proc/self/maps'):
        if line.rstrip().endswith(name): return [int(word, 16) for word in line.split()[0].split('-')]
def size(name):
    begin, end = area(name)
    return end - begin
def lines(path, names):
    return [line.split() for line in open(path) if line.split(':')[0] in names]
def nest(depth):
    nested = []
    for _ in range(depth): nested = [nested]
    return nested
def handler(event):
    sys.setrecursionlimit(60000)
    libc = ctypes.CDLL(None)
    libc.sbrk.restype, libc.getauxval.restype = ctypes.c_void_p, ctypes.c_ulong
    auxv = struct.iter_unpack('QQ', open('/proc/self/auxv', 'rb').read())
    auxv = dict(auxv)
    vdso = area('[vdso]')
    grown = [libc.sbrk(1 << 20), libc.sbrk(0)]
    thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
    pid = os.fork()
    if pid == 0: os._exit(7)
    before, deep = size('[stack]'), len(repr(nest(10000)))
    cores = ['x' * (1 << 20) for _ in range(40)]
    return {
        'executable': [sys.executable, os.readlink('/proc/self/exe'), open('/proc/self/comm').read()],
        'command': open('/proc/self/cmdline').read().split('\0')[:-2],
        'environment': [dict(os.environ), open('/proc/self/environ').read().split('\0')],
        'path': [sys.path, os.getcwd(), sys.argv], 'flags': str(sys.flags),
        'modules': sorted(sys.modules),
        'status': lines('/proc/self/status', ['SigBlk', 'SigIgn', 'SigCgt', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters', 'Threads', 'Umask', 'Uid', 'Gid', 'CoreDumping', 'NSpid']),
        'handlers': [str(signal.getsignal(number)) for number in range(1, 32) if number not in (9, 19)],
        'limits': open('/proc/self/limits').read(),
        'descriptors': sorted(os.listdir('/proc/self/fd')),
        'auxiliary': [sorted(auxv), vdso[0] == auxv[33] == libc.getauxval(33), auxv[25] == libc.getauxval(25), auxv[3]],
        'heap': [grown[0] is not None and grown[1] - grown[0] >= 1 << 20, area('[heap]') is not None],
        'time': abs(time.time() - os.stat('/proc/self').st_ctime) < 100 and time.monotonic() > 0,
        'pids': [os.getpid(), os.getppid(), threading.get_native_id() == os.getpid()],
        'stack': [before < 1 << 20, deep, size('[stack]') > 1 << 20],
        'child': os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
        'again': subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout,
        'memory': sum(map(len, cores)), 'frozen': gc.get_freeze_count() > 1000,
    }
";

async fn describe(settings: Settings) -> Value {
    let snapshots = settings.snapshots;
    let daemon = Daemon::start(settings).await;
    let mut client = daemon.client().await;
    let mut described: Vec<Value> = Vec::new();
    for _ in 0..3 {
        let said = run(&mut client, python(DESCRIBE)).await;
        assert_eq!(said.out(), "thread\n", "{}", said.err());
        described.push(said.value());
    }
    assert!(described.windows(2).all(|pair| pair[0] == pair[1]), "{described:#?}");
    assert_eq!(restored(&daemon) > 0, snapshots, "{}", daemon.log());
    described.swap_remove(0)
}

#[tokio::test]
async fn python_of_a_snapshot_is_what_a_started_one_is() {
    let started = describe(without()).await;
    let restored = describe(Settings::default()).await;
    for (name, value) in started.as_object().unwrap() {
        assert_eq!(restored[name], *value, "{name}");
    }
    assert_eq!(started["auxiliary"][1], true, "{started:#}");
    assert_eq!(started["child"], 7);
    assert_eq!(started["stack"], serde_json::json!([true, 20002, true]), "it grew");
}

#[tokio::test]
async fn python_of_a_snapshot_finds_packages_as_a_started_one_does() {
    for language in ["python", "javascript"] {
        let described = async |snapshots| {
            let key = "1".repeat(64);
            let layers = tempfile::tempdir().unwrap();
            fs::set_permissions(layers.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let files = layers.path().join(&key).join("files");
            fs::create_dir_all(files.join("node_modules")).unwrap();
            fs::write(files.join("path.pth"), "/usr/share\n").unwrap();
            let layers = layers.path().to_str().unwrap().to_owned();
            let more = vec!["--layers".to_owned(), layers, "--layer".to_owned(), format!("{language}:{key}")];
            describe(Settings { snapshots, more, ..Settings::default() }).await
        };
        let (started, restored) = (described(false).await, described(true).await);
        assert!(started["environment"][0]["PATH"].as_str().unwrap().starts_with("/packages/"), "{started:#}");
        // What the kernel says of its environment is what the template was started with.
        assert_eq!(started["environment"][0], restored["environment"][0], "{language}");
        for name in ["path", "modules", "status"] {
            assert_eq!(started[name], restored[name], "{name} of {language}");
        }
    }
}

#[tokio::test]
async fn nothing_of_the_loader_is_left() {
    let (copies, snapshot) = copies();
    let daemon = Daemon::start(with(copies.path())).await;
    run(&mut daemon.client().await, python("def handler(e): return 1")).await.value();
    let name = snapshot.file_name().unwrap().to_str().unwrap();
    // What ends meanwhile, as the first process of an execution, is not looked at.
    let all = parents(&daemon).into_iter().filter_map(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let leads: Vec<_> = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
        Some((leads, maps(pid)))
    });
    let restored: Vec<_> = all.filter(|(_, maps)| maps.contains(name)).collect();
    assert!(!restored.is_empty(), "{}", daemon.log());
    for (leads, maps) in restored {
        assert!(!maps.contains("executor"), "{maps}");
        for name in ["[stack]", "[vdso]", "[vvar]"] {
            assert_eq!(maps.matches(name).count(), 1, "{name} in {maps}");
        }
        // Its socket, its output, and what a parent keeps for the numbers of a child.
        let files: Vec<_> = leads.into_iter().filter(|path| path.is_absolute()).collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

#[tokio::test]
async fn sandboxes_of_one_snapshot_share_neither_memory_nor_random_numbers() {
    let (copies, snapshot) = copies();
    let before = fs::read(&snapshot).unwrap();
    let [one, other] = [Daemon::start(with(copies.path())).await, Daemon::start(with(copies.path())).await];
    let text = "
import ctypes, random, re, tempfile, uuid
def handler(event):
    text = re.__doc__
    place = id(text) + text.__sizeof__() - len(text) - 1
    before = text[:7]
    ctypes.memset(place, ord('X'), 7)
    return [before, text[:7], random.random(), str(uuid.uuid4()), tempfile.mktemp(), random.getrandbits(64)]
";
    let mut seen = HashSet::new();
    for _ in 0..3 {
        for daemon in [&one, &other] {
            let value = run(&mut daemon.client().await, python(text)).await.value();
            assert_eq!((&value[0], &value[1]), (&"Support".into(), &"XXXXXXX".into()));
            for random in &value.as_array().unwrap()[2..] {
                assert!(seen.insert(random.to_string()), "{random} came twice");
            }
        }
    }
    assert!(restored(&one) > 0 && restored(&other) > 0, "{}{}", one.log(), other.log());
    assert!(fs::read(&snapshot).unwrap() == before, "the snapshot has changed");
}

#[test]
fn snapshot_is_taken_at_each_start_in_the_place_of_former_ones() {
    let (copies, snapshot) = copies();
    let (first, former) = (fs::read(&snapshot).unwrap(), ["python-1.snapshot", "python-1.unfinished"]);
    for name in former {
        fs::write(copies.path().join(name), "").unwrap();
    }
    fs::create_dir(copies.path().join("template")).unwrap();
    copy_to(copies.path(), &["--snapshots"]);
    assert!(fs::read(&snapshot).unwrap() != first, "each has a hash seed of its own");
    let left = |name: &str| copies.path().join(name).exists();
    assert!(!left("template") && !former.into_iter().any(left));
    assert_eq!(snapshots(copies.path()), [snapshot]);
    copy_to(copies.path(), &[]);
    assert!(snapshots(copies.path()).is_empty(), "none is wanted any more");
}

#[test]
fn snapshots_are_taken_one_after_the_other() {
    let copies = tempfile::tempdir().unwrap();
    let begun: Vec<_> =
        (0..4).map(|_| copy_command(copies.path(), &["--snapshots"]).spawn().unwrap()).collect();
    assert!(begun.into_iter().all(|mut copy| copy.wait().unwrap().success()));
    assert_eq!(snapshots(copies.path()).len(), 1);
}

/// A Python that does this first, below `/usr`, which every jail shows; and where that is.
fn python_after(first: &str) -> (tempfile::TempDir, String) {
    let place = tempfile::Builder::new().prefix("sandmesh-test-").tempdir_in("/usr/local/lib").unwrap();
    let python3 = put(&place, "python3", &format!("#!/bin/sh\n{first}\nexec /usr/bin/python3 \"$@\"\n"));
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    (place, python3.to_str().unwrap().to_owned())
}

fn put(place: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = place.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn nothing_runs_on_when_who_takes_a_snapshot_is_killed() {
    let (_python, python3) = python_after("sleep 100");
    let copies = tempfile::tempdir().unwrap();
    let runs = |word: &str| {
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            String::from_utf8(line).ok()
        });
        all.filter(|line| line.contains(&python3) && line.contains(word)).count()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut copy = copy_command(copies.path(), &["--snapshots", "--python", &python3]).spawn().unwrap();
    // In its jail, and not on the way there.
    while runs("/bin/sh\0") == 0 {
        assert!(Instant::now() < deadline && copy.try_wait().unwrap().is_none(), "it did not begin");
    }
    copy.kill().unwrap();
    copy.wait().unwrap();
    // Half of what a template may take.
    let deadline = Instant::now() + Duration::from_secs(5);
    while runs("") > 0 {
        assert!(Instant::now() < deadline, "the template runs on");
    }
    copy_to(copies.path(), &["--snapshots"]);
    assert!(snapshots(copies.path()).len() == 1 && !copies.path().join("template").exists());
}

/// One that cannot be used here is no good to anybody.
#[test]
fn snapshot_is_tried_before_others_see_it() {
    let copies = tempfile::tempdir().unwrap();
    let place = NotExecutable::new(copies.path());
    let output = copy_command(copies.path(), &["--snapshots"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Operation not permitted"), "{said}");
    assert!(snapshots(copies.path()).is_empty() && !copies.path().join("template").exists());
    drop(place);
}

/// The C library keeps its random numbers in such memory: two processes that have the same would have the same numbers.
#[tokio::test]
async fn memory_that_each_child_has_anew_is_no_part_of_a_snapshot() {
    let (place, python3) = python_after("export PYTHONPATH=$(dirname \"$0\")");
    let customize = "import mmap, sys
sys.secret = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
sys.secret.madvise(18)
sys.secret[:6] = b'secret'
";
    put(&place, "sitecustomize.py", customize);
    let copies = tempfile::tempdir().unwrap();
    let other = ["--python", python3.as_str()];
    copy_to(copies.path(), &["--snapshots", other[0], other[1]]);
    let more = [with(copies.path()).more, other.map(str::to_owned).into()].concat();
    let daemon = Daemon::start(Settings { more, ..without() }).await;
    let text = "
import os, sys
def handler(event):
    seen = [sys.secret[:6].hex()]
    sys.secret[:6] = b'secret'
    if os.fork() == 0: os._exit(sys.secret[:6] == bytes(6))
    return seen + [os.wait()[1] >> 8, '.snapshot' in open('/proc/self/maps').read()]
";
    for _ in 0..2 {
        let said = run(&mut daemon.client().await, python(text)).await;
        assert_eq!(said.value(), serde_json::json!(["000000000000", 1, true]), "{}", daemon.log());
    }
}

fn shorten(snapshot: &Path) {
    let file = File::options().write(true).open(snapshot).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
}

/// Changes a word of the description, which begins after its length, to one that is as long.
fn change(snapshot: &Path, change: impl Fn(&str) -> String) {
    let file = File::options().read(true).write(true).open(snapshot).unwrap();
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).unwrap();
    let mut text = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
    file.read_exact_at(&mut text, 8).unwrap();
    let changed = change(std::str::from_utf8(&text).unwrap());
    assert!(changed.len() == text.len() && changed.as_bytes() != text);
    file.write_all_at(changed.as_bytes(), 8).unwrap();
}

/// With another first digit in the number that follows.
fn other_number(text: &str, before: &str) -> String {
    let at = text.find(before).unwrap() + before.len();
    let digit = if text[at..].starts_with('1') { "2" } else { "1" };
    format!("{}{digit}{}", &text[..at], &text[at + 1..])
}

async fn works_without(copies: &Path, word: &str) {
    let daemon = Daemon::start(with(copies)).await;
    let mut client = daemon.client().await;
    for number in 0..3 {
        let text = format!("def handler(e): return {number}");
        assert_eq!(run(&mut client, python(&text)).await.value(), number);
    }
    assert_eq!(restored(&daemon), 0);
    assert!(daemon.log().contains(word), "{}", daemon.log());
    assert!(!daemon.log().contains("cannot be kept warm"), "{}", daemon.log());
}

#[tokio::test]
async fn snapshot_that_does_not_fit_is_not_used() {
    let (dir, snapshot) = copies();
    shorten(&snapshot);
    works_without(dir.path(), "it is not whole").await;
    fs::write(&snapshot, [255; 4096]).unwrap();
    works_without(dir.path(), "it does not begin like one").await;
    let (dir, snapshot) = copies();
    change(&snapshot, |text| other_number(text, "\"inode\":"));
    works_without(dir.path(), "is not what it was").await;
    let (dir, snapshot) = copies();
    change(&snapshot, |text| text.replacen("[vdso]", "[vdsx]", 1));
    works_without(dir.path(), "there is no [vdsx]").await;
}

#[tokio::test]
async fn python_whose_snapshot_is_not_used_holds_a_rehearsal_when_that_pays() {
    let (dir, snapshot) = copies();
    shorten(&snapshot);
    let daemon = Daemon::start(with(dir.path())).await;
    assert!(wear_out(&mut daemon.client().await).await > 50);
    assert_eq!(daemon.log().matches("it is not whole").count(), 1, "{}", daemon.log());
}

#[tokio::test]
async fn python_that_dies_of_its_snapshot_is_started_without() {
    let (dir, snapshot) = copies();
    change(&snapshot, |text| other_number(text, "\"stack_pointer\":"));
    works_without(dir.path(), "a snapshot of python is no good").await;
}

#[tokio::test]
async fn who_is_not_root_has_snapshots_too() {
    let user = uid();
    let copies = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(copies.path(), Some(user), Some(user)).unwrap();
    let program = copies.path().join("program");
    fs::copy(EXECUTOR, &program).unwrap();
    let dir = copies.path().join("interpreters");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups"]);
    command.arg(&program).args(["copy", "--snapshots", "--into"]).arg(&dir);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let more = [with(&dir).more, ["--cgroups", "off"].map(str::to_owned).into()].concat();
    let daemon =
        Daemon::start(Settings { user: Some(user), program: Some(program), more, ..without() }).await;
    let said = run(
        &mut daemon.client().await,
        python("def handler(e): return '.snapshot' in open('/proc/self/maps').read()"),
    )
    .await;
    assert_eq!(said.value(), true, "{}", daemon.log());
}
