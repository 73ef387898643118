//! The copy of the interpreter: when there is one, and what executions have of it. Not each kernel and file system
//! has large pages for files; where there are none, there is no copy, and all else is as it is with one.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::*;

const FORMER: &str = "python3.1-of-long-ago";

/// Has a copy made; `None` where there are no large pages, or for another interpreter.
fn copy_in(copies: &Path) -> Option<PathBuf> {
    copy_to(copies, &[]);
    let found = fs::read_dir(copies).unwrap().map(|entry| entry.unwrap().path());
    let mut made: Vec<PathBuf> = found.filter(|path| !path.ends_with(FORMER)).collect();
    assert!(made.len() <= 1, "{made:?}");
    made.pop()
}

/// Where the interpreter is, and how much of it is mapped by large pages, in KiB, as code of a user sees it.
const LOOK: &str = "
import os, subprocess, sys
def handler(event):
    own, of_program = 0, False
    for line in open('/proc/self/smaps'):
        if '-' in line.split()[0]: of_program = line.rstrip().endswith(os.readlink('/proc/self/exe'))
        elif of_program and line.startswith('FilePmdMapped:'): own += int(line.split()[1])
    again = subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout
    return [os.stat(sys.executable).st_ino, own, again]
";

fn settings(copies: &Path, interpreters: &str) -> Settings {
    let flags = ["--copies", copies.to_str().unwrap(), "--interpreters", interpreters];
    Settings { more: flags.map(str::to_owned).into(), snapshots: false, ..Settings::default() }
}

async fn look(copies: &Path, interpreters: &str) -> (u64, u64) {
    let daemon = Daemon::start(settings(copies, interpreters)).await;
    let seen = run(&mut daemon.client().await, python(LOOK)).await.value();
    assert_eq!(seen[2], "42\n", "{seen}");
    (seen[0].as_u64().unwrap(), seen[1].as_u64().unwrap())
}

fn original() -> PathBuf {
    Path::new("/usr/bin/python3").canonicalize().unwrap()
}

/// Whether it is linked for one address, and so lies in memory as in its file.
fn has_one_address(program: &Path) -> bool {
    const ET_EXEC: u8 = 2;
    fs::read(program).unwrap()[16] == ET_EXEC
}

#[test]
fn copy_is_made_once_and_in_the_place_of_former_ones() {
    let copies = tempfile::tempdir().unwrap();
    fs::write(copies.path().join(FORMER), "").unwrap();
    let made = copy_in(copies.path());
    assert!(made.is_none() || has_one_address(&original()));
    if let Some(copy) = &made {
        assert!(!copies.path().join(FORMER).exists());
        assert_eq!(fs::read(copy).unwrap(), fs::read(original()).unwrap());
        let inode = copy.metadata().unwrap().ino();
        assert_eq!(copy_in(copies.path()).as_ref(), Some(copy));
        assert_eq!(copy.metadata().unwrap().ino(), inode, "it was made again");
    } else {
        assert_eq!(copy_in(copies.path()), None);
    }
}

#[tokio::test]
async fn executions_have_the_interpreter_from_the_copy_in_large_pages() {
    let copies = tempfile::tempdir().unwrap();
    let made = copy_in(copies.path());
    let shown = made.clone().unwrap_or_else(original).metadata().unwrap().ino();
    let (inode, large) = look(copies.path(), "warm").await;
    assert_eq!((inode, large > 0), (shown, made.is_some()));
    assert_eq!(look(copies.path(), "fresh").await.0, shown);
}

/// Python was replaced, or a node that was started again has no use for the copy: what lives goes on.
#[tokio::test]
async fn copy_may_come_and_go_while_a_sandbox_lives() {
    let copies = tempfile::tempdir().unwrap();
    // Each execution has a jail of its own.
    let daemon = Daemon::start(settings(copies.path(), "fresh")).await;
    let mut client = daemon.client().await;
    let original = original().metadata().unwrap().ino();
    assert_eq!(run(&mut client, python(LOOK)).await.value()[0], original);
    let Some(copy) = copy_in(copies.path()) else { return };
    assert_eq!(run(&mut client, python(LOOK)).await.value()[0], copy.metadata().unwrap().ino());
    let of_another_version = copy.with_extension("1");
    fs::rename(&copy, &of_another_version).unwrap();
    assert_eq!(run(&mut client, python(LOOK)).await.value()[0], original);
    fs::remove_file(of_another_version).unwrap();
    assert_eq!(run(&mut client, python(LOOK)).await.value()[0], original);
    assert_eq!(run(&mut client, shell("echo on")).await.out(), "on\n");
}

/// The data of a node may lie where no program may be executed: what a jail shows of it may not, either.
#[tokio::test]
async fn copy_that_may_not_be_executed_is_not_shown() {
    let copies = tempfile::tempdir().unwrap();
    copy_in(copies.path());
    let place = NotExecutable::new(copies.path());
    assert_eq!(look(copies.path(), "warm").await.0, original().metadata().unwrap().ino());
    fs::create_dir(place.0.join("new")).unwrap();
    assert_eq!(copy_in(&place.0.join("new")), None);
}

/// A mount over a directory that shows it, and lets nothing be executed.
pub(crate) struct NotExecutable(PathBuf);

impl NotExecutable {
    pub(crate) fn new(dir: &Path) -> Self {
        let bound = Self(dir.to_owned());
        for flags in [MsFlags::MS_BIND, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOEXEC] {
            mount(Some(dir), dir, None::<&str>, flags, None::<&str>).unwrap();
        }
        bound
    }
}

impl Drop for NotExecutable {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}
