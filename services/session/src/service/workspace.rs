//! Saving the workspace of a session to the object store, and filling another sandbox with it.
//!
//! A save lists the sandbox, reads what changed, and replaces in the session's row what says which content
//! belongs to which path: before that nobody sees any of it, after it all of it is there. It is idempotent,
//! and one that was stopped in the middle has lost nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use sandmesh_proto::executor::{
    self as pb, entry::Kind as PbKind, read_file_response::Frame as ReadFrame,
    write_file_request::Frame as WriteFrame,
};
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Service;
use crate::{
    content::{Content, checksum},
    error::Error,
    notify::Locks,
    peers::{Files, call},
    store::session::Model,
    workspace::{Entry, EntryPath, Kind, MOST_ENTRIES, Observed, Room, Same, Saved},
};

/// How many files are read or written at once.
const FILES_AT_ONCE: usize = 4;

/// How often a save begins again because somebody else saved meanwhile.
const ATTEMPTS: usize = 8;

/// How many workspaces are remembered as they are saved; with more, all are forgotten and read again.
const MOST: usize = 1024;

/// How long a sandbox may be silent while it lists or reads.
const SILENCE: Duration = Duration::from_secs(30);

/// A path longer than the kernel takes is none.
const LONGEST_PATH: usize = 4096;

/// The pieces in which a file is written.
const PIECE: usize = 256 << 10;

/// Workspaces as they are saved.
#[derive(Debug, Default)]
pub(crate) struct Workspaces {
    /// Who saves one.
    saving: Locks,
    /// By the checksum of what says how it is saved.
    saved: Mutex<HashMap<String, Arc<Saved>>>,
}

impl Workspaces {
    fn get(&self, checksum: &str) -> Option<Arc<Saved>> {
        self.lock().get(checksum).cloned()
    }

    fn remember(&self, checksum: String, saved: Arc<Saved>) {
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(checksum, saved);
    }

    fn forget(&self, checksum: &str) {
        self.lock().remove(checksum);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Saved>>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content that is in the object store already: of which file, and which version of it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) path: EntryPath,
    pub(super) version: u64,
    pub(super) checksum: String,
    pub(super) size: u64,
}

impl Service {
    /// Saves the workspace of a session as it is now. The inner error is the sandbox's: it is not there, or
    /// does not answer. The outer one is the database's or the object store's, and worth another try.
    pub(super) async fn save_workspace(
        &self,
        session: &Model,
        kept: Option<Kept>,
        same: Same,
    ) -> Result<Result<Arc<Saved>, Status>, Error> {
        let _saving = self.workspaces.saving.lock(&session.id).await;
        for _ in 0..ATTEMPTS {
            let (old, saved) = self.saved_workspace(session).await?;
            let observed = match self.observe(session).await? {
                Ok(observed) => observed,
                Err(status) => return Ok(Err(status)),
            };
            let mut saved = Saved::clone(&saved);
            if let Some(kept) = &kept {
                saved.note(kept);
            }
            let room = Room { workspace: session.resources.disk_bytes, session: self.config.max_stored.0 };
            let (mut next, unread) = saved.next(observed, same, room);
            match self.read_all(session, &mut next, unread).await? {
                Ok(()) => {}
                Err(status) => return Ok(Err(status)),
            }
            if let Some(saved) = self.replace_saved(session, &old, next).await? {
                return Ok(Ok(saved));
            }
        }
        Err(Error::Unavailable(format!("the workspace of session `{}` is being saved by others", session.id)))
    }

    /// The workspace as it is saved, and the checksum of what says so; empty while nothing is.
    pub(super) async fn saved_workspace(&self, session: &Model) -> Result<(String, Arc<Saved>), Error> {
        let now = self.store.session_or_deleted(&session.id).await?;
        let checksum = now.map(|session| session.workspace).unwrap_or_default();
        if checksum.is_empty() {
            return Ok((checksum, Arc::default()));
        }
        if let Some(saved) = self.workspaces.get(&checksum) {
            return Ok((checksum, saved));
        }
        let bytes = self.objects.get(&prefix(&session.id), &checksum).await?;
        let saved: Saved = serde_json::from_slice(&bytes).map_err(anyhow::Error::new)?;
        let saved = Arc::new(saved);
        self.workspaces.remember(checksum.clone(), Arc::clone(&saved));
        Ok((checksum, saved))
    }

    /// `None` when somebody else was first.
    async fn replace_saved(
        &self,
        session: &Model,
        old: &str,
        next: Saved,
    ) -> Result<Option<Arc<Saved>>, Error> {
        let text = serde_json::to_vec(&next).map_err(anyhow::Error::new)?;
        let new = checksum(&text);
        let next = Arc::new(next);
        if new == old {
            return Ok(Some(next));
        }
        let prefix = prefix(&session.id);
        self.objects.put(&prefix, &new, Bytes::from(text)).await?;
        if !self.store.set_workspace(session, old, &new).await? {
            return Ok(None);
        }
        self.workspaces.forget(old);
        self.workspaces.remember(new, Arc::clone(&next));
        if !old.is_empty() {
            // What is left of it goes with the session.
            let _ = self.objects.delete(&prefix, old).await;
        }
        Ok(Some(next))
    }

    /// Lists the workspace in a sandbox.
    pub(super) async fn observe(&self, session: &Model) -> Result<Result<Observed, Status>, Error> {
        let files = self.peers.files(&session.endpoint)?;
        // One more, so that it shows that there are more.
        Ok(observe(files, Bytes::new(), MOST_ENTRIES + 1).await)
    }

    async fn read_all(
        &self,
        session: &Model,
        next: &mut Saved,
        unread: Vec<EntryPath>,
    ) -> Result<Result<(), Status>, Error> {
        let files = self.peers.files(&session.endpoint)?;
        let mut reads = stream::iter(unread)
            .map(|path| {
                let files = files.clone();
                async move { (self.read_into_store(session, files, &path).await, path) }
            })
            .buffer_unordered(FILES_AT_ONCE);
        while let Some((read, path)) = reads.next().await {
            match read? {
                Ok((checksum, size)) => next.keep(&path, checksum, size),
                // It is not there any more, or is something else now.
                Err(status) if is_of_file(&status) => drop(next.entries.remove(&path)),
                Err(status) => return Ok(Err(status)),
            }
        }
        Ok(Ok(()))
    }

    fn most_of_a_file(&self, session: &Model) -> u64 {
        match session.resources.disk_bytes {
            0 => self.config.max_stored.0,
            disk => disk.min(self.config.max_stored.0),
        }
    }

    async fn read_into_store(
        &self,
        session: &Model,
        mut files: Files,
        path: &EntryPath,
    ) -> Result<Result<(String, u64), Status>, Error> {
        let request =
            pb::ReadFileRequest { path: Bytes::copy_from_slice(path.bytes()), offset: 0, length: None };
        let mut frames = match call(SILENCE, files.read_file(request)).await {
            Ok(frames) => frames,
            Err(status) => return Ok(Err(status)),
        };
        let (mut content, mut left) = (Content::default(), self.most_of_a_file(session));
        loop {
            match within(frames.message()).await {
                Ok(Some(pb::ReadFileResponse { frame: Some(ReadFrame::Data(data)) })) => {
                    // It may have grown since it was listed, and cannot be larger than all may be.
                    let Some(less) = left.checked_sub(data.len() as u64) else {
                        return Ok(Err(Status::unavailable("a file is larger than its workspace may be")));
                    };
                    left = less;
                    content = content.push(data, &self.spool_dir).await?;
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(status) => return Ok(Err(status)),
            }
        }
        let (checksum, size, whole) = content.whole();
        self.objects.keep(&session.id, &checksum, &whole).await?;
        Ok(Ok((checksum, size)))
    }

    /// Fills the new sandbox of a session with its workspace as it is saved. What is there already and is the
    /// same stays. To be called before the session runs.
    ///
    /// # Errors
    /// When the sandbox, the database or the object store does not answer: worth another try.
    pub(crate) async fn restore_workspace(&self, session: &Model, endpoint: &str) -> Result<(), Error> {
        let (_, saved) = self.saved_workspace(session).await?;
        if saved.entries.is_empty() {
            return Ok(());
        }
        self.must_hold()?;
        let files = self.peers.files(endpoint)?;
        let failed = |status: Status| {
            Error::Unavailable(format!(
                "the workspace of session `{}` cannot be restored: {}",
                session.id,
                status.message()
            ))
        };
        // In the order of their paths: a directory comes before what is in it.
        for (path, entry) in saved.entries.iter().filter(|(_, entry)| entry.kind != Kind::File) {
            restore_other(files.clone(), path, entry).await.map_err(failed)?;
        }
        let contents = saved.entries.iter().filter(|(_, entry)| entry.checksum.is_some());
        stream::iter(contents.map(Ok))
            .try_for_each_concurrent(FILES_AT_ONCE, |(path, entry)| {
                let files = files.clone();
                async move { self.restore_file(session, files, path, entry).await?.map_err(failed) }
            })
            .await?;
        let there = Model { endpoint: endpoint.to_owned(), ..session.clone() };
        self.save_workspace(&there, None, Same::SizeAndTime).await?.map_err(failed)?;
        Ok(())
    }

    async fn restore_file(
        &self,
        session: &Model,
        mut files: Files,
        path: &EntryPath,
        entry: &Entry,
    ) -> Result<Result<(), Status>, Error> {
        let Some(checksum) = &entry.checksum else { return Ok(Ok(())) };
        let mut pieces = self.objects.kept(&session.id, checksum, 0..entry.size).await?;
        let (frames, receiver) = mpsc::channel(4);
        let (seconds, nanos) = entry.modified_at;
        let start = pb::WriteStart {
            path: Bytes::copy_from_slice(path.bytes()),
            mode: Some(entry.mode),
            modified_at: Some(prost_types::Timestamp { seconds, nanos }),
        };
        let send = async {
            let mut open = frames.send(frame(WriteFrame::Start(start))).await.is_ok();
            while open && let Some(mut piece) = pieces.try_next().await? {
                while open && !piece.is_empty() {
                    let next = piece.split_to(piece.len().min(PIECE));
                    // However large the file is: somebody must take it, or nobody waits.
                    let sent = frames.send_timeout(frame(WriteFrame::Data(next)), SILENCE).await;
                    if let Err(SendTimeoutError::Timeout(_)) = sent {
                        return Ok(false);
                    }
                    open = sent.is_ok();
                }
            }
            // Where nobody takes it any more, the answer says why.
            let _ = frames.send(frame(WriteFrame::End(pb::WriteEnd {}))).await;
            drop(frames);
            Ok::<bool, Error>(true)
        };
        let write = files.write_file(ReceiverStream::new(receiver));
        let silent = || Status::deadline_exceeded("the sandbox does not take its files");
        tokio::pin!(write);
        let sent = tokio::select! {
            biased;
            written = &mut write => return Ok(written.map(drop)),
            sent = send => sent?,
        };
        if !sent {
            return Ok(Err(silent()));
        }
        // All of it was taken; what is left on the way is little.
        let written = tokio::time::timeout(SILENCE, write).await;
        Ok(written.unwrap_or_else(|_| Err(silent())).map(drop))
    }
}

fn frame(frame: WriteFrame) -> pb::WriteFileRequest {
    pb::WriteFileRequest { frame: Some(frame) }
}

/// Where is said which content belongs to which path.
fn prefix(session_id: &str) -> String {
    format!("sessions/{session_id}/workspace")
}

/// Lists what is at or below a path in a sandbox, up to about so many. Where nothing is, nothing is found.
pub(super) async fn observe(mut files: Files, path: Bytes, most: usize) -> Result<Observed, Status> {
    let mut observed = Observed::default();
    let request = pb::ListEntriesRequest { path };
    let mut answers = match call(SILENCE, files.list_entries(request)).await {
        Err(status) if status.code() == Code::NotFound => return Ok(observed),
        answers => answers?,
    };
    // Counted as they come: who tells the same again and again must come to an end, too.
    let mut told = 0;
    while let Some(answer) = within(answers.message()).await? {
        observed.incomplete |= answer.incomplete;
        told += answer.entries.len().max(1);
        let usable = |entry: &&pb::Entry| entry.path.len() <= LONGEST_PATH;
        observed.entries.extend(answer.entries.iter().filter(usable).filter_map(entry));
        if told >= most {
            observed.incomplete = true;
            break;
        }
    }
    Ok(observed)
}

/// An entry as its sandbox tells it.
pub(super) fn entry(entry: &pb::Entry) -> Option<(EntryPath, Entry)> {
    let kind = match entry.kind() {
        PbKind::File => Kind::File,
        PbKind::Directory => Kind::Directory,
        PbKind::Link => Kind::Link,
        PbKind::Unspecified => return None,
    };
    let modified_at = entry.modified_at.as_ref().map_or((0, 0), |at| (at.seconds, at.nanos));
    let target = (kind == Kind::Link).then(|| EntryPath::from(&entry.target[..]));
    let (size, mode, version) = (entry.size_bytes, entry.mode, entry.version);
    let found = Entry { kind, size, mode, modified_at, version, checksum: None, target };
    Some((EntryPath::from(&entry.path[..]), found))
}

async fn restore_other(mut files: Files, path: &EntryPath, entry: &Entry) -> Result<(), Status> {
    let path = Bytes::copy_from_slice(path.bytes());
    let made = match &entry.target {
        Some(target) => {
            let request = pb::MakeLinkRequest { path, target: Bytes::copy_from_slice(target.bytes()) };
            call(SILENCE, files.make_link(request)).await.map(drop)
        }
        None => {
            // A directory in which nothing could be made would not take what was in it.
            let request = pb::MakeDirectoryRequest { path, mode: Some(entry.mode | 0o700) };
            call(SILENCE, files.make_directory(request)).await.map(drop)
        }
    };
    match made {
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The trouble is with this file, and not with its sandbox.
fn is_of_file(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::FailedPrecondition | Code::OutOfRange | Code::InvalidArgument
    )
}

/// Waits for a message, not for ever.
pub(super) async fn within<T>(message: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(SILENCE, message)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("the sandbox is silent")))
}

impl Saved {
    /// Notes content that is kept, as if it had been saved.
    fn note(&mut self, kept: &Kept) {
        let entry = Entry {
            kind: Kind::File,
            size: kept.size,
            mode: 0,
            modified_at: (0, 0),
            version: kept.version,
            checksum: Some(kept.checksum.clone()),
            target: None,
        };
        self.kept_bytes = self.kept_bytes.saturating_add(kept.size);
        self.entries.insert(kept.path.clone(), entry);
    }
}
