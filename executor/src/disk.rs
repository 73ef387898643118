//! Watching the size of the workspace while executions run.
//!
//! This is a watch, not a quota: it notices within about a second that the limit was passed and ends
//! the executions with a typed cause. What hides from it (deleted files that are open, directories
//! without the right to read) is bounded by the size limit of each single file.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{execution::Stop, service::Service};

/// The shortest time between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looking takes at most one part in so many of the time.
const SHARE: u32 = 10;

/// What a file costs besides its blocks, so that empty files fill up too.
const FILE_BYTES: u64 = 1 << 10;

/// Ends all executions whenever the workspace is larger than its limit and has grown. One that is
/// too large already can be cleaned up. Never returns.
pub(crate) async fn watch(service: Arc<Service>) {
    let (workspace, limit) = (service.sandbox().workspace().to_owned(), service.sandbox().disk_bytes());
    let (mut pause, mut before) = (INTERVAL, 0);
    loop {
        sleep(pause).await;
        if limit == 0 || service.running() == 0 {
            continue;
        }
        let began = Instant::now();
        let dir = workspace.clone();
        let Ok(size) = tokio::task::spawn_blocking(move || size(dir)).await else { continue };
        pause = INTERVAL.max(began.elapsed() * SHARE);
        if size > limit && size > before {
            tracing::warn!(size, limit, "the workspace is larger than its limit");
            service.stop_all(Stop::DiskLimit);
        }
        before = size;
    }
}

/// The bytes that the files below `top` take.
fn size(top: PathBuf) -> u64 {
    let mut total = 0_u64;
    let mut waiting = vec![top];
    while let Some(dir) = waiting.pop() {
        match add(&dir, &mut waiting) {
            Ok(bytes) => total = total.saturating_add(bytes),
            // Deeper than any path: nobody needs that but to hide.
            Err(err) if err.raw_os_error() == Some(libc::ENAMETOOLONG) => return u64::MAX,
            // It changes while we look.
            Err(_) => {}
        }
    }
    total
}

/// The bytes of the files in one directory; its subdirectories are put on the list.
fn add(dir: &Path, waiting: &mut Vec<PathBuf>) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            waiting.push(entry.path());
        }
        total += (meta.blocks() * 512 + FILE_BYTES) / meta.nlink().max(1);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_files_and_many_empty_ones_count() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), vec![1; 100 << 10]).unwrap();
        let one = size(top.path().into());
        assert!((100 << 10..200 << 10).contains(&one), "{one}");
        for number in 0..300 {
            fs::write(top.path().join(number.to_string()), "").unwrap();
        }
        assert!(size(top.path().into()) >= one + 300 * FILE_BYTES);
    }
}
