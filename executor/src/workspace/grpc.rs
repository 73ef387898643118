//! `WorkspaceService` on the wire.

use std::{fs::File, os::unix::fs::FileExt as _, pin::Pin, sync::Arc};

use async_stream::try_stream;
use bytes::Bytes;
use futures::Stream;
use sandmesh_proto::executor::{
    self as pb, entry::Kind, read_file_response::Frame as ReadFrame,
    workspace_service_server::WorkspaceService, write_file_request::Frame as WriteFrame,
};
use tonic::{Request, Response, Status, Streaming};

use super::{Workspace, beneath::RelPath, error::Error, incoming::Incoming, walk::Walk};

/// How many entries one message lists.
const BATCH: usize = 1000;

/// How many entries are listed in all.
const MOST_LISTED: usize = 1_000_000;

/// The pieces in which a file is read.
const READ_BYTES: u64 = 256 << 10;

/// The gRPC face of [`Workspace`].
#[derive(Debug, Clone)]
pub(crate) struct Grpc(pub(crate) Workspace);

type Answer<T> = Result<Response<T>, Status>;
type Stream1<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl WorkspaceService for Grpc {
    type ListEntriesStream = Stream1<pb::ListEntriesResponse>;
    type ReadFileStream = Stream1<pb::ReadFileResponse>;

    async fn list_entries(
        &self,
        request: Request<pb::ListEntriesRequest>,
    ) -> Answer<Self::ListEntriesStream> {
        let path = RelPath::parse("path", request.into_inner().path)?;
        let top = self.0.root.stat(&path)?;
        Ok(Response::new(Box::pin(list(self.0.clone(), path, top))))
    }

    async fn read_file(&self, request: Request<pb::ReadFileRequest>) -> Answer<Self::ReadFileStream> {
        let pb::ReadFileRequest { path, offset, length } = request.into_inner();
        let path = RelPath::parse_entry("path", path)?;
        let (file, entry) = self.0.root.open_file(&path)?;
        if offset > entry.size_bytes {
            return Err(Error::OutOfRange { path: path.shown(), size: entry.size_bytes }.into());
        }
        let end =
            length.map_or(entry.size_bytes, |length| offset.saturating_add(length).min(entry.size_bytes));
        Ok(Response::new(Box::pin(read(Arc::new(file.into()), entry, offset..end))))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Answer<pb::WriteFileResponse> {
        let mut frames = request.into_inner();
        let Some(WriteFrame::Start(start)) = frames.message().await?.and_then(|frame| frame.frame) else {
            return Err(Error::invalid("frame", "the first frame must be start").into());
        };
        let mut incoming = Incoming::begin(Arc::clone(&self.0.root), Arc::clone(&self.0.quota), start)?;
        loop {
            match frames.message().await?.and_then(|frame| frame.frame) {
                Some(WriteFrame::Data(data)) => incoming.append(data).await?,
                Some(WriteFrame::End(_)) => break,
                Some(WriteFrame::Start(_)) => {
                    return Err(Error::invalid("frame", "start was sent already").into());
                }
                None => return Err(Error::invalid("frame", "the stream ended without end").into()),
            }
        }
        Ok(Response::new(pb::WriteFileResponse { entry: Some(incoming.finish()?) }))
    }

    async fn move_entry(&self, request: Request<pb::MoveEntryRequest>) -> Answer<pb::MoveEntryResponse> {
        let request = request.into_inner();
        let source = RelPath::parse_entry("source_path", request.source_path)?;
        let target = RelPath::parse_entry("target_path", request.target_path)?;
        self.0.root.rename(&source, &target, request.overwrite)?;
        Ok(Response::new(pb::MoveEntryResponse { entry: Some(self.0.root.stat(&target)?) }))
    }

    async fn make_directory(
        &self,
        request: Request<pb::MakeDirectoryRequest>,
    ) -> Answer<pb::MakeDirectoryResponse> {
        let pb::MakeDirectoryRequest { path, mode } = request.into_inner();
        let path = RelPath::parse_entry("path", path)?;
        self.0.root.make_directory(&path, mode)?;
        Ok(Response::new(pb::MakeDirectoryResponse { entry: Some(self.0.root.stat(&path)?) }))
    }

    async fn make_link(&self, request: Request<pb::MakeLinkRequest>) -> Answer<pb::MakeLinkResponse> {
        let pb::MakeLinkRequest { path, target } = request.into_inner();
        let path = RelPath::parse_entry("path", path)?;
        if target.is_empty() || target.len() > 4095 || target.contains(&0) {
            return Err(Error::invalid("target", "must have 1 to 4095 bytes and no NUL").into());
        }
        self.0.root.link(&path, &target)?;
        Ok(Response::new(pb::MakeLinkResponse { entry: Some(self.0.root.stat(&path)?) }))
    }

    async fn delete_entry(
        &self,
        request: Request<pb::DeleteEntryRequest>,
    ) -> Answer<pb::DeleteEntryResponse> {
        let path = RelPath::parse_entry("path", request.into_inner().path)?;
        self.0.root.delete(&path)?;
        Ok(Response::new(pb::DeleteEntryResponse {}))
    }
}

fn list(
    workspace: Workspace,
    path: RelPath,
    top: pb::Entry,
) -> impl Stream<Item = Result<pb::ListEntriesResponse, Status>> + Send {
    try_stream! {
        let is_directory = top.kind() == Kind::Directory;
        let itself = if path.is_root() { Vec::new() } else { vec![top] };
        if !is_directory {
            yield pb::ListEntriesResponse { entries: itself, incomplete: false };
            return;
        }
        let mut walk = Walk::below(Arc::clone(&workspace.root), path, MOST_LISTED);
        let mut entries = itself;
        loop {
            let (walked, found) = in_background(move || {
                let found = walk.next(BATCH);
                (walk, found)
            })
            .await?;
            walk = walked;
            let is_last = found.len() < BATCH;
            entries.extend(found.into_iter().map(|(entry, _)| entry));
            let incomplete = is_last && walk.is_incomplete();
            yield pb::ListEntriesResponse { entries: std::mem::take(&mut entries), incomplete };
            if is_last {
                break;
            }
        }
    }
}

fn read(
    file: Arc<File>,
    entry: pb::Entry,
    range: std::ops::Range<u64>,
) -> impl Stream<Item = Result<pb::ReadFileResponse, Status>> + Send {
    try_stream! {
        yield pb::ReadFileResponse { frame: Some(ReadFrame::Entry(entry)) };
        let mut offset = range.start;
        while offset < range.end {
            let (file, wanted) = (Arc::clone(&file), READ_BYTES.min(range.end - offset));
            let data = in_background(move || piece(&file, offset, wanted)).await?;
            let data = data.map_err(|err| Status::internal(format!("the file cannot be read: {err}")))?;
            if data.is_empty() {
                break;
            }
            offset += data.len() as u64;
            yield pb::ReadFileResponse { frame: Some(ReadFrame::Data(data)) };
        }
    }
}

fn piece(file: &File, offset: u64, wanted: u64) -> std::io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(wanted).unwrap_or_default()];
    let count = file.read_at(&mut buffer, offset)?;
    buffer.truncate(count);
    Ok(buffer.into())
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the executor failed at it"))
}
