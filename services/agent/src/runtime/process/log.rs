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

/// A log longer than this is cut.
const LONGEST: u64 = 1 << 20;

/// How much of it is put aside then.
const KEPT: u64 = 256 << 10;

/// Where the log is.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("executor.log")
}

/// The last `most` bytes of the log.
pub(super) fn end(dir: &Path, most: u64) -> io::Result<Vec<u8>> {
    last(&mut File::open(path(dir))?, most)
}

/// Cuts the log of a sandbox when it is too long.
pub(super) fn bound(dir: &Path) -> io::Result<()> {
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
    fn a_link_in_the_place_of_a_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        File::create(&elsewhere).unwrap().set_len(LONGEST + 1).unwrap();
        std::os::unix::fs::symlink(&elsewhere, path(dir.path())).unwrap();
        bound(dir.path()).unwrap_err();
        assert_eq!(fs::metadata(elsewhere).unwrap().len(), LONGEST + 1);
    }
}
