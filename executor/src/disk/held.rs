//! Files that have no name any more and are still on the disk, because a process has them open or mapped.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{sys::stat::makedev, unistd::Pid};

use super::size::cost;

/// The bytes of the nameless files on a device that these processes hold, up to what is enough.
pub(super) fn size(pids: &[Pid], device: u64, enough: u64) -> u64 {
    let mut found = Found { device, files: HashMap::new(), total: 0 };
    for dir in pids.iter().flat_map(threads) {
        found.open(&dir);
        found.mapped(&dir);
        if found.total > enough {
            break;
        }
    }
    found.total
}

/// Whether they may hold more than can be seen: descriptors that are on their way through a socket.
pub(super) fn has_more(pids: &[Pid]) -> bool {
    pids.iter().flat_map(threads).any(|dir| {
        entries(&dir.join("fdinfo")).any(|info| fs::read_to_string(info).is_ok_and(|text| is_carrying(&text)))
    })
}

/// The descriptor is a socket with others in its queue; kernels tell since 5.5.
fn is_carrying(fdinfo: &str) -> bool {
    let count = fdinfo.lines().find_map(|line| line.strip_prefix("scm_fds:"));
    count.is_some_and(|count| count.trim() != "0")
}

/// The threads of a process in `/proc`: each may have descriptors of its own.
fn threads(pid: &Pid) -> impl Iterator<Item = PathBuf> + use<> {
    entries(Path::new(&format!("/proc/{pid}/task")))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

struct Found {
    device: u64,
    /// By inode, with what was counted for it.
    files: HashMap<u64, u64>,
    total: u64,
}

impl Found {
    fn open(&mut self, thread: &Path) {
        for fd in entries(&thread.join("fd")) {
            // Of the open file itself, not of what may have its name now.
            let Ok(meta) = fs::metadata(fd) else { continue };
            if meta.dev() == self.device && meta.nlink() == 0 && meta.is_file() {
                self.note(meta.ino(), cost(&meta));
            }
        }
    }

    fn mapped(&mut self, thread: &Path) {
        let Ok(maps) = File::open(thread.join("maps")) else { return };
        // Names may be any bytes.
        for line in BufReader::new(maps).split(b'\n').map_while(Result::ok) {
            if let Some((inode, bytes)) = nameless(&String::from_utf8_lossy(&line), self.device) {
                self.note(inode, bytes);
            }
        }
    }

    fn note(&mut self, inode: u64, bytes: u64) {
        let known = self.files.entry(inode).or_default();
        self.total = self.total.saturating_add(bytes.saturating_sub(*known));
        *known = bytes.max(*known);
    }
}

/// The inode of a mapped file of this device without a name, and up to where it is mapped: how large it
/// is, the line (`START-END PERMS OFFSET MAJOR:MINOR INODE PATH (deleted)`) does not tell.
fn nameless(line: &str, device: u64) -> Option<(u64, u64)> {
    let mut words = line.strip_suffix(" (deleted)")?.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let offset = hex(words.nth(1)?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let inode = words.next()?.parse().ok()?;
    let is_there = makedev(hex(major)?, hex(minor)?) == device;
    is_there.then_some((inode, offset.saturating_add(hex(end)?.saturating_sub(hex(start)?))))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Write as _},
        os::{fd::AsRawFd as _, unix::net::UnixStream},
    };

    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

    use super::*;

    #[test]
    fn open_files_without_a_name_count_once() {
        let mut file = tempfile::tempfile_in(".").unwrap();
        file.write_all(&[1; 1 << 20]).unwrap();
        let device = file.metadata().unwrap().dev();
        let one = size(&[Pid::this()], device, u64::MAX);
        assert!(one >= 1 << 20, "{one}");
        let _again = file.try_clone().unwrap();
        assert_eq!(size(&[Pid::this()], device, u64::MAX), one);
        assert_eq!(size(&[Pid::this()], device + 1, u64::MAX), 0, "elsewhere");
    }

    #[test]
    fn mapped_files_without_a_name_count_up_to_their_mapped_end() {
        let line = "7f00-9f00 rw-s 00001000 fd:01 4711                  /workspace/a b (deleted)";
        let device = makedev(0xfd, 1);
        assert_eq!(nameless(line, device), Some((4711, 0x3000)));
        assert_eq!(nameless(line, device + 1), None);
        assert_eq!(nameless(line.strip_suffix(" (deleted)").unwrap(), device), None);
        for damaged in ["", " (deleted)", "x (deleted)", "1-2 rw-s 0 zz:1 1 / (deleted)"] {
            assert_eq!(nameless(damaged, device), None, "{damaged}");
        }
    }

    #[test]
    fn descriptors_on_their_way_are_noticed() {
        let me = [Pid::this()];
        let (here, _there) = UnixStream::pair().unwrap();
        assert!(!has_more(&me));
        let file = tempfile::tempfile().unwrap();
        let carried = [file.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&carried)];
        sendmsg::<UnixAddr>(here.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None)
            .unwrap();
        assert!(has_more(&me));
    }
}
