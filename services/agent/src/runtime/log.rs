//! The log of an executor: what it wrote last, and that it does not grow for ever.
//!
//! An executor appends to a descriptor that it got at its start, so its log is cut in place: what was
//! written last is put aside, and the file begins anew.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{
    runtime::{LOG_PART, LogPart, LogStart},
    sandbox::SandboxId,
};

/// A log longer than this is cut.
const LONGEST: u64 = 1 << 20;

/// How much of it is put aside then.
const KEPT: u64 = 256 << 10;

/// Where the log is.
pub(in crate::runtime) fn path(dir: &Path) -> PathBuf {
    dir.join("executor.log")
}

/// The last `most` bytes of the log.
pub(in crate::runtime) fn end(dir: &Path, most: u64) -> io::Result<Vec<u8>> {
    last(&mut File::open(path(dir))?, most)
}

/// A part of the log. The directory may be the sandbox's own: no link in it leads us elsewhere.
pub(in crate::runtime) fn read(dir: &Path, from: LogStart) -> io::Result<LogPart> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(flags).open(path(dir))?;
    let found = log.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("the log is not a file"));
    }
    let start = match from {
        LogStart::Tail(bytes) => found.len().saturating_sub(bytes.min(LOG_PART)),
        // It was cut.
        LogStart::At(offset) if offset > found.len() => 0,
        LogStart::At(offset) => offset,
    };
    log.seek(SeekFrom::Start(start))?;
    let mut data = Vec::new();
    log.take(LOG_PART).read_to_end(&mut data)?;
    let next = start + data.len() as u64;
    if matches!(from, LogStart::Tail(_)) && start > 0 {
        drop_half_line(&mut data);
    }
    Ok(LogPart { data, next })
}

/// Drops what is before the first beginning of a line, if there is one.
fn drop_half_line(data: &mut Vec<u8>) {
    if let Some(end) = data.iter().position(|byte| *byte == b'\n').filter(|end| end + 1 < data.len()) {
        data.drain(..=end);
    }
}

/// Cuts the log of a sandbox when it is too long.
fn bound(dir: &Path) -> io::Result<()> {
    // The directory may be the sandbox's own: no link in it leads us elsewhere.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut log = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path(dir))?;
    let found = log.metadata()?;
    if !found.is_file() || found.len() <= LONGEST {
        return Ok(());
    }
    let kept = last(&mut log, KEPT)?;
    let aside = dir.join("executor.log.1");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)?.write_all(&kept)?;
    log.set_len(0)
}

/// Cuts the logs of sandboxes below `root` that are too long.
pub(in crate::runtime) fn bound_all(root: &Path, ids: &[SandboxId]) {
    for id in ids {
        match bound(&root.join(id.as_str())) {
            // It is being made, or is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(sandbox.id = %id, %error, "its log is not bounded"),
            Ok(()) => {}
        }
    }
}

fn last(log: &mut File, most: u64) -> io::Result<Vec<u8>> {
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut text = Vec::new();
    log.take(most).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_too_long_begins_anew_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = OpenOptions::new().append(true).create(true).open(path(dir.path())).unwrap();
        writer.write_all(b"short").unwrap();
        bound(dir.path()).unwrap();
        assert_eq!(end(dir.path(), 100).unwrap(), b"short");
        let length = usize::try_from(LONGEST).unwrap();
        writer.write_all(&vec![b'x'; length]).unwrap();
        writer.write_all(b"end").unwrap();
        bound(dir.path()).unwrap();
        writer.write_all(b"anew").unwrap();
        assert_eq!(fs::read(path(dir.path())).unwrap(), b"anew");
        let aside = fs::read(dir.path().join("executor.log.1")).unwrap();
        assert_eq!(aside.len() as u64, KEPT);
        assert!(aside.ends_with(b"xend"));
    }

    #[test]
    fn a_tail_begins_with_a_line_and_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = OpenOptions::new().append(true).create(true).open(path(dir.path())).unwrap();
        writer.write_all(b"first\nsecond\nthird\n").unwrap();
        let tail = read(dir.path(), LogStart::Tail(10)).unwrap();
        assert_eq!(tail, LogPart { data: b"third\n".to_vec(), next: 19 });
        assert_eq!(read(dir.path(), LogStart::Tail(u64::MAX)).unwrap().data.len(), 19);
        assert!(read(dir.path(), LogStart::At(19)).unwrap().data.is_empty());
        writer.write_all(b"more\n").unwrap();
        assert_eq!(
            read(dir.path(), LogStart::At(19)).unwrap(),
            LogPart { data: b"more\n".to_vec(), next: 24 }
        );
        writer.set_len(0).unwrap();
        writer.write_all(b"anew\n").unwrap();
        assert_eq!(read(dir.path(), LogStart::At(24)).unwrap().data, b"anew\n", "it was cut");
    }

    #[test]
    fn a_line_longer_than_the_tail_is_told_from_its_middle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path()), "x".repeat(100)).unwrap();
        assert_eq!(read(dir.path(), LogStart::Tail(10)).unwrap().data.len(), 10);
    }

    #[test]
    fn a_link_in_the_place_of_a_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        File::create(&elsewhere).unwrap().set_len(LONGEST + 1).unwrap();
        std::os::unix::fs::symlink(&elsewhere, path(dir.path())).unwrap();
        bound(dir.path()).unwrap_err();
        read(dir.path(), LogStart::Tail(10)).unwrap_err();
        assert_eq!(fs::metadata(elsewhere).unwrap().len(), LONGEST + 1);
    }
}
