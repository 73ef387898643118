//! The object store: what is too large for a column.
//!
//! Everything of a session is below `sessions/<session>/`: everything of one execution below the prefix in
//! its row, which holds a nonce so that two attempts at the same id never share an object, and the content of
//! its files below `files/`, each by its checksum.

use std::{
    fs::{self, DirBuilder},
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::DirBuilderExt},
    path::Path as FsPath,
    sync::Arc,
};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use object_store::{
    GetOptions, ObjectStore, ObjectStoreExt, PutPayload, buffered::BufWriter, local::LocalFileSystem,
    path::Path,
};
use rustix::fs::{AtFlags, CWD, linkat};
use tokio::{
    fs::File,
    io::{AsyncSeekExt, AsyncWriteExt, BufReader},
};

use crate::{content::Whole, error::Error, id, store::close_to_others};

/// Objects larger than this wait for each other, so that memory is bounded.
const LARGE: usize = 1 << 20;

/// How many large objects are in memory at once.
const LARGE_AT_ONCE: usize = 4;

/// The pieces that a long object is written in, and how many of them are on their way at once.
const PIECE: usize = 1 << 20;
const PIECES_AT_ONCE: usize = 2;

/// The object store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The same.
    files: Arc<LocalFileSystem>,
    large: Arc<tokio::sync::Semaphore>,
}

impl Objects {
    /// Opens a directory as an object store, and makes it if it is not there. Nobody but us may enter it.
    pub(crate) fn open(directory: &FsPath) -> anyhow::Result<Self> {
        let problem = || format!("setting `session.object_dir`: cannot use `{}`", directory.display());
        DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(problem)?;
        close_to_others(directory, 0o700).with_context(problem)?;
        let store =
            LocalFileSystem::new_with_prefix(directory).with_context(problem)?.with_automatic_cleanup(true);
        let files = Arc::new(store);
        Ok(Self {
            store: Arc::clone(&files) as _,
            files,
            large: Arc::new(tokio::sync::Semaphore::new(LARGE_AT_ONCE)),
        })
    }

    /// A prefix for the objects of a new execution.
    pub(crate) fn prefix(session_id: &str, execution_id: &str) -> String {
        format!("sessions/{session_id}/{execution_id}-{}", id::nonce())
    }

    /// Waits until an object of `size` bytes may be held in memory, for as long as the answer is held.
    pub(crate) async fn room(&self, size: usize) -> Option<tokio::sync::OwnedSemaphorePermit> {
        if size <= LARGE {
            return None;
        }
        Arc::clone(&self.large).acquire_owned().await.ok()
    }

    /// Writes an object.
    pub(crate) async fn put(
        &self,
        prefix: &str,
        name: &str,
        data: impl Into<PutPayload>,
    ) -> Result<(), Error> {
        self.store.put(&Path::from(format!("{prefix}/{name}")), data.into()).await?;
        Ok(())
    }

    /// Makes an object of a file of any length that has no name: gives it one, where it is on the same file
    /// system, so that nothing is written twice; copies it otherwise.
    pub(crate) async fn put_file(&self, prefix: &str, name: &str, file: &Arc<fs::File>) -> Result<(), Error> {
        let path = Path::from(format!("{prefix}/{name}"));
        let (named, target) = (Arc::clone(file), self.files.path_to_filesystem(&path)?);
        match tokio::task::spawn_blocking(move || link(&named, &target)).await {
            Ok(Ok(())) => Ok(()),
            // There is one already, as when its end could not be written, or this cannot be linked.
            _ => self.copy(path, file).await,
        }
    }

    async fn copy(&self, path: Path, file: &fs::File) -> Result<(), Error> {
        let _room = self.room(LARGE + 1).await;
        // Readers say where they read; nobody else uses the position in the file.
        let mut file = File::from_std(file.try_clone()?);
        file.rewind().await?;
        let mut file = BufReader::with_capacity(LARGE, file);
        let mut writer = BufWriter::with_capacity(Arc::clone(&self.store), path, PIECE)
            .with_max_concurrency(PIECES_AT_ONCE);
        if let Err(error) = tokio::io::copy_buf(&mut file, &mut writer).await {
            // What was written of it is not an object yet, and must not stay.
            let _ = writer.abort().await;
            return Err(error.into());
        }
        Ok(writer.shutdown().await?)
    }

    /// Keeps the content of a file of a session under its checksum. What is there already is the same.
    pub(crate) async fn keep(&self, session_id: &str, checksum: &str, content: &Whole) -> Result<(), Error> {
        let prefix = files_of(session_id);
        match content {
            Whole::Short(data) => self.put(&prefix, checksum, data.clone()).await,
            Whole::Long(file) => self.put_file(&prefix, checksum, file).await,
        }
    }

    /// Reads the content of a file of a session, from `start` up to `end`, in the pieces in which it comes.
    pub(crate) async fn kept(
        &self,
        session_id: &str,
        checksum: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let path = Path::from(format!("{}/{checksum}", files_of(session_id)));
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let pieces = self.store.get_opts(&path, options).await?.into_stream();
        Ok(pieces.map_err(Error::from).boxed())
    }

    /// A URL at which anybody can read the content of a file, and how long.
    pub(crate) async fn presign(
        &self,
        _session_id: &str,
        _checksum: &str,
    ) -> Result<(String, chrono::TimeDelta), Error> {
        Err(Error::PresigningNotSupported)
    }

    /// Deletes an object. One that is not there is deleted already.
    pub(crate) async fn delete(&self, prefix: &str, name: &str) -> Result<(), Error> {
        match self.store.delete(&Path::from(format!("{prefix}/{name}"))).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads an object.
    pub(crate) async fn get(&self, prefix: &str, name: &str) -> Result<Bytes, Error> {
        Ok(self.store.get(&Path::from(format!("{prefix}/{name}"))).await?.bytes().await?)
    }

    /// Reads the bytes of an object from `start` up to `end`.
    pub(crate) async fn range(&self, prefix: &str, name: &str, start: u64, end: u64) -> Result<Bytes, Error> {
        Ok(self.store.get_range(&Path::from(format!("{prefix}/{name}")), start..end).await?)
    }

    /// Deletes every object below the prefix of an execution. One that somebody else deletes meanwhile is
    /// deleted too.
    pub(crate) async fn delete_below(&self, prefix: &str) -> Result<(), Error> {
        let found = self.store.list(Some(&Path::from(prefix))).map_ok(|object| object.location).boxed();
        let mut deleted = self.store.delete_stream(found);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Deletes every object of a session, and what a process that was killed left of one that it wrote.
    pub(crate) async fn delete_session(&self, session_id: &str) -> Result<(), Error> {
        let prefix = format!("sessions/{session_id}");
        self.delete_below(&prefix).await?;
        let directory = self.files.path_to_filesystem(&Path::from(prefix))?;
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(directory)).await;
        match removed.map_err(io::Error::other)? {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes, reads and deletes a small object.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        let prefix = format!("probes/{}", id::nonce());
        self.put(&prefix, "probe", "sandmesh").await?;
        let read = self.get(&prefix, "probe").await;
        self.delete_below(&prefix).await?;
        read.map(|_| ())
    }
}

/// Where the content of the files of a session is. No execution has an id without its nonce after it.
fn files_of(session_id: &str) -> String {
    format!("sessions/{session_id}/files")
}

/// Gives a file a name. It fails where there is one of that name, and where the file had one before.
fn link(file: &fs::File, path: &FsPath) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Without privileges, a descriptor can be linked only by this name of it.
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn deleting_a_session_leaves_one_with_a_longer_name() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(directory.path()).unwrap();
        let (short, long) = (Objects::prefix("a", "e"), Objects::prefix("ab", "e"));
        objects.put(&short, "stdout", "x").await.unwrap();
        objects.put(&long, "stdout", "y").await.unwrap();
        objects.delete_session("a").await.unwrap();
        assert!(objects.get(&short, "stdout").await.is_err());
        assert_eq!(objects.get(&long, "stdout").await.unwrap(), "y");
    }

    #[tokio::test]
    async fn of_two_who_delete_the_same_none_fails() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(directory.path()).unwrap();
        for number in 0..200 {
            objects.put("sessions/a/e", &number.to_string(), "x").await.unwrap();
        }
        let delete = || objects.delete_session("a");
        let (one, two, three) = tokio::join!(delete(), delete(), delete());
        for result in [one, two, three] {
            result.unwrap();
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_a_killed_process_left_of_an_object_goes_with_its_session() {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(directory.path()).unwrap();
        objects.put("sessions/a/files", "whole", "x").await.unwrap();
        // As the store names what is not whole yet; it lists none of these.
        std::fs::write(directory.path().join("sessions/a/files/half#1"), "y").unwrap();
        objects.delete_session("a").await.unwrap();
        assert!(!directory.path().join("sessions/a").exists());
        objects.delete_session("a").await.unwrap();
    }

    #[tokio::test]
    async fn a_file_becomes_an_object_also_where_there_is_one_already() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::open(directory.path()).unwrap();
        for text in ["first", "second"] {
            let file = Arc::new(tempfile::tempfile_in(directory.path()).unwrap());
            (&*file).write_all(text.as_bytes()).unwrap();
            objects.put_file("sessions/s/e", "stdout", &file).await.unwrap();
            assert_eq!(objects.get("sessions/s/e", "stdout").await.unwrap(), text);
        }
        objects.delete_session("s").await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn nobody_else_enters_the_directory() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (new, old) = (directory.path().join("new"), directory.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
        for path in [new, old] {
            Objects::open(&path).unwrap();
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[tokio::test]
    async fn a_probe_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        Objects::open(directory.path()).unwrap().ping().await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
