//! The object store: what is too large for a column.
//!
//! Everything of a session is below `sessions/<session>/`: everything of one execution below the prefix in
//! its row, which holds a nonce so that two attempts at the same id never share an object, and the content of
//! its files below `files/`, each by its checksum.

mod s3;

use std::{
    fs::{self, DirBuilder},
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::DirBuilderExt},
    path::Path as FsPath,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream, FuturesUnordered},
};
use object_store::{
    GetOptions, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, UploadPart, local::LocalFileSystem,
    path::Path,
};
use rustix::fs::{AtFlags, CWD, linkat};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncSeekExt},
};

use crate::{config::Config, content::Whole, error::Error, id, store::close_to_others};

/// Objects larger than this wait for each other, so that memory is bounded.
const LARGE: usize = 1 << 20;

/// How many large objects are in memory at once.
const LARGE_AT_ONCE: usize = 4;

/// The pieces that a long object is written in, and how many of them are on their way at once.
const PIECE: usize = 1 << 20;
const PIECES_AT_ONCE: usize = 2;

/// How many objects are listed before they are deleted: a page of S3.
const DELETED_AT_ONCE: usize = 1000;

/// How long a look at the store may take: less than who asks for the health of this role waits for it.
const PING_LIMIT: Duration = Duration::from_millis(800);

/// In a bucket none but the last piece may be smaller, and there may be 10,000 of them.
const LEAST_IN_BUCKET: u64 = 5 << 20;
const MOST_IN_BUCKET: u64 = 10_000;

/// The object store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The same, without a second attempt at anything.
    impatient: Arc<dyn ObjectStore>,
    kind: Kind,
    large: Arc<tokio::sync::Semaphore>,
    /// What is written to see whether that works.
    probe: Arc<tokio::sync::Mutex<Path>>,
}

/// What the store is, for what only one kind can.
#[derive(Debug, Clone)]
enum Kind {
    Directory(Arc<LocalFileSystem>),
    Bucket(Arc<s3::Signer>),
}

impl Objects {
    /// Opens the object store of the configuration.
    pub(crate) fn open(config: &Config, data_dir: &FsPath) -> anyhow::Result<Self> {
        match config.object_store.bucket() {
            Some((bucket, prefix)) => {
                let bucket = s3::open(&config.object_store, bucket, prefix)?;
                Ok(Self::new(bucket.store, bucket.impatient, Kind::Bucket(Arc::new(bucket.signer))))
            }
            None => Self::directory(&config.objects(data_dir)),
        }
    }

    fn new(store: Arc<dyn ObjectStore>, impatient: Arc<dyn ObjectStore>, kind: Kind) -> Self {
        let large = Arc::new(tokio::sync::Semaphore::new(LARGE_AT_ONCE));
        let probe = Path::from(format!("probes/{}", id::nonce()));
        Self { store, impatient, kind, large, probe: Arc::new(tokio::sync::Mutex::new(probe)) }
    }

    /// Has the object by which it is probed named after this process, so that what a start that was killed left
    /// is used, and gone with that, by the next.
    pub(crate) fn probed_by(mut self, process: &str) -> Self {
        self.probe = Arc::new(tokio::sync::Mutex::new(Path::from(format!("probes/{process}"))));
        self
    }

    /// Opens a directory as an object store, and makes it if it is not there. Nobody but us may enter it.
    fn directory(directory: &FsPath) -> anyhow::Result<Self> {
        let problem = || format!("setting `session.object_dir`: cannot use `{}`", directory.display());
        DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(problem)?;
        close_to_others(directory, 0o700).with_context(problem)?;
        let store =
            LocalFileSystem::new_with_prefix(directory).with_context(problem)?.with_automatic_cleanup(true);
        let files = Arc::new(store);
        Ok(Self::new(Arc::clone(&files) as _, Arc::clone(&files) as _, Kind::Directory(files)))
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
        let Kind::Directory(files) = &self.kind else { return self.copy(path, file).await };
        let (named, target) = (Arc::clone(file), files.path_to_filesystem(&path)?);
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
        let size = file.metadata().await?.len();
        self.write(path, size, file).await
    }

    /// Writes an object of about `size` bytes, of what is read. One that breaks off leaves nothing.
    async fn write(&self, path: Path, size: u64, mut content: impl AsyncRead + Unpin) -> Result<(), Error> {
        let length = self.piece(size);
        let first = next_piece(&mut content, length).await?;
        if first.len() < length {
            self.store.put(&path, first.into()).await?;
            return Ok(());
        }
        let mut upload = self.store.put_multipart(&path).await?;
        let written = write_pieces(upload.as_mut(), first, content, length).await;
        if written.is_err() {
            // What was written of it is not an object yet, and must not stay.
            let _ = upload.abort().await;
        }
        written
    }

    /// In which pieces an object of this size is written.
    fn piece(&self, size: u64) -> usize {
        match self.kind {
            Kind::Directory(_) => PIECE,
            Kind::Bucket(_) => {
                let least = size.div_ceil(MOST_IN_BUCKET).max(LEAST_IN_BUCKET);
                usize::try_from(least).unwrap_or(usize::MAX)
            }
        }
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
        let pieces = self.store.get_opts(&path, options).await.map_err(of_reading)?.into_stream();
        Ok(pieces.map_err(Error::from).boxed())
    }

    /// A URL at which anybody can read the content of a file, and how long.
    pub(crate) async fn presign(
        &self,
        session_id: &str,
        checksum: &str,
    ) -> Result<(String, Duration), Error> {
        let Kind::Bucket(signer) = &self.kind else { return Err(Error::PresigningNotSupported) };
        signer.sign(&Path::from(format!("{}/{checksum}", files_of(session_id)))).await
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
        let object = self.store.get(&Path::from(format!("{prefix}/{name}"))).await;
        Ok(object.map_err(of_reading)?.bytes().await?)
    }

    /// Reads the bytes of an object from `start` up to `end`.
    pub(crate) async fn range(&self, prefix: &str, name: &str, start: u64, end: u64) -> Result<Bytes, Error> {
        let path = Path::from(format!("{prefix}/{name}"));
        self.store.get_range(&path, start..end).await.map_err(of_reading)
    }

    /// Deletes every object below the prefix of an execution. One that somebody else deletes meanwhile is
    /// deleted too.
    pub(crate) async fn delete_below(&self, prefix: &str) -> Result<(), Error> {
        let prefix = Path::from(prefix);
        loop {
            // First listed and then deleted: not every store can list what goes meanwhile.
            let found = self.store.list(Some(&prefix)).map_ok(|object| object.location).take(DELETED_AT_ONCE);
            let found: Vec<Path> = found.try_collect().await?;
            let is_last = found.len() < DELETED_AT_ONCE;
            let mut deleted = self.store.delete_stream(stream::iter(found.into_iter().map(Ok)).boxed());
            while let Some(result) = deleted.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Deletes every object of a session, and what a process that was killed left of one that it wrote.
    pub(crate) async fn delete_session(&self, session_id: &str) -> Result<(), Error> {
        let prefix = format!("sessions/{session_id}");
        self.delete_below(&prefix).await?;
        let Kind::Directory(files) = &self.kind else { return Ok(()) };
        let directory = files.path_to_filesystem(&Path::from(prefix))?;
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(directory)).await;
        match removed.map_err(io::Error::other)? {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes, reads and deletes a small object, soon or not at all: nobody waits for this who could work
    /// without it.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        let late = || Err(Error::ObjectStore(anyhow::anyhow!("no answer within {PING_LIMIT:?}")));
        tokio::time::timeout(PING_LIMIT, self.ping_now()).await.unwrap_or_else(|_| late())
    }

    async fn ping_now(&self) -> Result<(), Error> {
        // One at a time, and always the same object: what one that came too late left is gone with the next.
        let path = self.probe.lock().await;
        self.impatient.put(&path, "sandmesh".into()).await?;
        let read = self.impatient.get(&path).await?.bytes().await;
        self.impatient.delete(&path).await?;
        read?;
        Ok(())
    }
}

/// Where the content of the files of a session is. No execution has an id without its nonce after it.
fn files_of(session_id: &str) -> String {
    format!("sessions/{session_id}/files")
}

/// Nobody asks for an object that was not written before: where it is missing, waiting does not help.
fn of_reading(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => {
            Error::Internal(anyhow::Error::new(error).context("object store"))
        }
        error => error.into(),
    }
}

/// Writes an object piece by piece, some of them at a time; the first has been read.
async fn write_pieces(
    upload: &mut dyn MultipartUpload,
    first: Bytes,
    content: impl AsyncRead + Unpin,
    length: usize,
) -> Result<(), Error> {
    let mut on_their_way = FuturesUnordered::new();
    let sent = send_pieces(upload, &mut on_their_way, first, content, length).await;
    // One that is still on its way would come after what was written is given up, and stay.
    while sent.is_err() && on_their_way.next().await.is_some() {}
    sent?;
    upload.complete().await?;
    Ok(())
}

async fn send_pieces(
    upload: &mut dyn MultipartUpload,
    on_their_way: &mut FuturesUnordered<UploadPart>,
    mut piece: Bytes,
    mut content: impl AsyncRead + Unpin,
    length: usize,
) -> Result<(), Error> {
    while !piece.is_empty() {
        if on_their_way.len() >= PIECES_AT_ONCE {
            on_their_way.next().await.transpose()?;
        }
        on_their_way.push(upload.put_part(piece.into()));
        piece = next_piece(&mut content, length).await?;
    }
    while on_their_way.next().await.transpose()?.is_some() {}
    Ok(())
}

/// Reads so many bytes; fewer only at the end.
async fn next_piece(content: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Bytes> {
    let mut piece = BytesMut::with_capacity(length);
    while piece.len() < length {
        let missing = length - piece.len();
        let mut rest = (&mut piece).limit(missing);
        if content.read_buf(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(piece.freeze())
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
mod tests;
