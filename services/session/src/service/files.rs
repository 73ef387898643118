//! The files of a session: those in its sandbox while it runs, those that are saved afterwards.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use sandmesh_mesh::{is_elsewhere, page_size, page_token};
use sandmesh_proto::executor::{self as pb, read_file_response::Frame};
use tonic::{Code, Status};

use super::{
    Service,
    workspace::{entry, observe, within},
};
use crate::{
    error::Error,
    lifecycle::SessionState,
    peers::{Files, call},
    store::session::Model,
    validate::FilePath,
    workspace::{Entry, EntryPath, Kind, Observed, Same},
};

/// How long a sandbox may take for a small thing.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// How many entries are listed of a workspace: they are sorted in memory.
const MOST_LISTED: usize = 100_000;

/// The content of a file, piece by piece.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, Error>>;

/// A file with its path.
#[derive(Debug, Clone)]
pub(crate) struct FileEntry {
    pub(crate) path: String,
    pub(crate) entry: Entry,
}

/// A page of files.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) files: Vec<FileEntry>,
    pub(crate) next_page_token: String,
    /// Something is missing.
    pub(crate) incomplete: bool,
}

/// Which files are listed.
#[derive(Debug)]
pub(crate) struct ListQuery {
    pub(crate) session_id: String,
    pub(crate) path: FilePath,
    pub(crate) page_size: u32,
    pub(crate) page_token: String,
    pub(crate) files_only: bool,
}

/// A file, and the part of its content that was asked for.
pub(crate) struct Download {
    pub(crate) file: FileEntry,
    pub(crate) pieces: Pieces,
}

impl Service {
    /// Lists files, by path.
    pub(crate) async fn list_files(&self, query: ListQuery) -> Result<Listing, Error> {
        let after = match query.page_token.as_str() {
            "" => None,
            token => match page_token::decode(token).map_err(|_| Error::PageToken)?.as_slice() {
                [path] => Some(path.clone()),
                _ => return Err(Error::PageToken),
            },
        };
        let session = self.session(&query.session_id).await?;
        let all = self.files_below(&session, &query.path).await?;
        let limit = usize::try_from(page_size(query.page_size, 1000, 10_000)).unwrap_or(usize::MAX);
        let incomplete = all.incomplete;
        let mut files: Vec<FileEntry> = all
            .entries
            .into_iter()
            .filter(|(_, entry)| entry.kind == Kind::File || !query.files_only)
            .filter_map(|(path, entry)| Some(FileEntry { path: path.text()?.to_owned(), entry }))
            .filter(|file| after.as_ref().is_none_or(|after| file.path > *after))
            .take(limit + 1)
            .collect();
        let has_more = files.len() > limit;
        files.truncate(limit);
        let last = files.last().filter(|_| has_more);
        let next_page_token = last.map(|file| page_token::encode(&[&file.path])).unwrap_or_default();
        Ok(Listing { files, next_page_token, incomplete })
    }

    async fn files_below(&self, session: &Model, top: &FilePath) -> Result<Observed, Error> {
        if let Some(sandbox) = self.live_files(session)? {
            self.store.used(&session.id, self.clock.now());
            match observe(sandbox, top.bytes(), MOST_LISTED).await {
                Ok(observed) => return Ok(observed),
                Err(status) if has_gone(session, &status) => {}
                Err(status) => return Err(refused(status)),
            }
        }
        let (_, saved) = self.saved_workspace(session).await?;
        let below = saved.entries.iter().filter(|(path, _)| path.is_below(top.as_str()));
        let entries = below.map(|(path, entry)| (path.clone(), entry.clone())).collect();
        Ok(Observed { entries, incomplete: saved.incomplete })
    }

    /// Reads a file, from `offset` on, up to `length` bytes.
    pub(crate) async fn download_file(
        &self,
        session_id: &str,
        path: &FilePath,
        range: (u64, Option<u64>),
    ) -> Result<Download, Error> {
        let session = self.session(session_id).await?;
        if let Some(sandbox) = self.live_files(&session)? {
            self.store.used(&session.id, self.clock.now());
            match from_sandbox(sandbox, path, range).await {
                Err(status) if has_gone(&session, &status) => {}
                download => return download.map_err(refused),
            }
        }
        let file = self.saved_file(&session, path).await?;
        let missing = || Error::FileNotKept(path.as_str().to_owned());
        let checksum = file.entry.checksum.clone().ok_or_else(missing)?;
        let pieces =
            self.objects.kept(&session.id, &checksum, part(path.as_str(), file.entry.size, range)?).await?;
        Ok(Download { file, pieces })
    }

    async fn saved_file(&self, session: &Model, path: &FilePath) -> Result<FileEntry, Error> {
        let (_, saved) = self.saved_workspace(session).await?;
        let entry = saved.entries.get(&EntryPath::from(path.as_str().as_bytes()));
        let entry = entry.ok_or_else(|| Error::file(path, Code::NotFound, "FILE_NOT_FOUND", "not found"))?;
        if entry.kind != Kind::File {
            return Err(Error::file(path, Code::FailedPrecondition, "NOT_A_FILE", "is not a file"));
        }
        Ok(FileEntry { path: path.as_str().to_owned(), entry: entry.clone() })
    }

    /// A URL at which the object store hands out a file as it is now, and until when.
    pub(crate) async fn presign_file(
        &self,
        session_id: &str,
        path: &FilePath,
    ) -> Result<(String, FileEntry, chrono::DateTime<chrono::Utc>), Error> {
        let session = self.session(session_id).await?;
        if self.live_files(&session)?.is_some() {
            self.saved_now(&session).await?;
        }
        let file = self.saved_file(&session, path).await?;
        let missing = || Error::FileNotKept(path.as_str().to_owned());
        let checksum = file.entry.checksum.clone().ok_or_else(missing)?;
        let (url, lasts) = self.objects.presign(&session.id, &checksum).await?;
        let until = self.clock.now() + lasts;
        Ok((url, file, until))
    }

    /// Moves a file or directory.
    pub(crate) async fn move_file(
        &self,
        session_id: &str,
        source: &FilePath,
        target: &FilePath,
        overwrite: bool,
    ) -> Result<FileEntry, Error> {
        let (session, mut sandbox) = self.files_to_change(session_id).await?;
        let request =
            pb::MoveEntryRequest { source_path: source.bytes(), target_path: target.bytes(), overwrite };
        let moved = call(LIMIT, sandbox.move_entry(request)).await.map_err(refused)?;
        self.saved_now(&session).await?;
        told(moved.entry.as_ref())
    }

    /// Makes a directory.
    pub(crate) async fn make_directory(&self, session_id: &str, path: &FilePath) -> Result<FileEntry, Error> {
        let (session, mut sandbox) = self.files_to_change(session_id).await?;
        let request = pb::MakeDirectoryRequest { path: path.bytes(), mode: None };
        let made = call(LIMIT, sandbox.make_directory(request)).await.map_err(refused)?;
        self.saved_now(&session).await?;
        told(made.entry.as_ref())
    }

    /// Deletes a file or an empty directory.
    pub(crate) async fn delete_file(&self, session_id: &str, path: &FilePath) -> Result<(), Error> {
        let (session, mut sandbox) = self.files_to_change(session_id).await?;
        call(LIMIT, sandbox.delete_entry(pb::DeleteEntryRequest { path: path.bytes() }))
            .await
            .map_err(refused)?;
        self.saved_now(&session).await
    }

    async fn saved_now(&self, session: &Model) -> Result<(), Error> {
        self.save_workspace(session, None, Same::Version).await?.map_err(refused)?;
        Ok(())
    }

    /// The files in the sandbox of a session that takes changes.
    pub(super) async fn files_to_change(&self, session_id: &str) -> Result<(Arc<Model>, Files), Error> {
        let session = self.settled(session_id).await?;
        match self.live_files(&session)? {
            Some(files) => {
                self.store.used(&session.id, self.clock.now());
                Ok((Arc::new(session), files))
            }
            None => Err(Error::SessionNotActive { id: session.id, state: session.state.as_str() }),
        }
    }

    fn live_files(&self, session: &Model) -> Result<Option<Files>, Error> {
        if session.state != SessionState::Running {
            return Ok(None);
        }
        self.peers.files(&session.endpoint).map(Some)
    }
}

/// The part of a file of this size that is wanted.
pub(super) fn part(path: &str, size: u64, (offset, length): (u64, Option<u64>)) -> Result<Range<u64>, Error> {
    if offset > size {
        return Err(Error::OutOfRange { path: path.to_owned(), size });
    }
    Ok(offset..length.map_or(size, |length| offset.saturating_add(length).min(size)))
}

async fn from_sandbox(
    mut sandbox: Files,
    path: &FilePath,
    (offset, length): (u64, Option<u64>),
) -> Result<Download, Status> {
    let request = pb::ReadFileRequest { path: path.bytes(), offset, length };
    let mut frames = call(LIMIT, sandbox.read_file(request)).await?;
    let first = within(frames.message()).await?.and_then(|frame| frame.frame);
    let Some(Frame::Entry(first)) = first else {
        return Err(Status::internal("the sandbox did not say what the file is"));
    };
    let (_, entry) =
        entry(&first).ok_or_else(|| Status::internal("the sandbox did not say what the file is"))?;
    let pieces = frames.map_err(refused).try_filter_map(async |frame| match frame.frame {
        Some(Frame::Data(data)) => Ok(Some(data)),
        _ => Ok(None),
    });
    Ok(Download { file: FileEntry { path: path.as_str().to_owned(), entry }, pieces: pieces.boxed() })
}

/// What a sandbox told of a file.
pub(super) fn told(found: Option<&pb::Entry>) -> Result<FileEntry, Error> {
    let found = found.and_then(entry);
    let (path, entry) = found.ok_or_else(|| anyhow::anyhow!("the sandbox did not say what the file is"))?;
    let path = path.text().unwrap_or_default().to_owned();
    Ok(FileEntry { path, entry })
}

/// The sandbox is not there any more, or not yet again.
fn is_gone(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// Whether what was saved is all that there is of the files of a session that runs. On another machine it is not:
/// that may be cut off, and come back with what is newer.
fn has_gone(session: &Model, status: &Status) -> bool {
    is_gone(status) && !is_elsewhere(&session.endpoint)
}

/// What a sandbox refused, as a caller is told.
pub(super) fn refused(status: Status) -> Error {
    Error::of_sandbox(status)
}
