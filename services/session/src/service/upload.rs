//! Uploads: into the sandbox and into the object store at once, piece by piece.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use sandmesh_proto::executor::{self as pb, write_file_request::Frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{
    FileEntry, Service,
    files::{refused, told},
    workspace::Kept,
};
use crate::{
    content::{Content, Whole},
    error::Error,
    validate::NewFile,
    workspace::{EntryPath, Same},
};

/// How many pieces may be on their way to the sandbox.
const PIECES: usize = 4;

/// A frame of an upload, after the first.
pub(crate) type UploadFrame = Result<Bytes, Error>;

/// A file that was written, and its checksum as hex digits.
#[derive(Debug)]
pub(crate) struct Uploaded {
    pub(crate) file: FileEntry,
    pub(crate) checksum: String,
}

impl Service {
    /// Writes a file. It is in the sandbox and durable when this returns. Whatever of it fails to come leaves
    /// nothing in the sandbox; what came whole and could not be saved is there, and saved by the next save.
    pub(crate) async fn upload_file(
        self: &Arc<Self>,
        new: NewFile,
        pieces: impl Stream<Item = UploadFrame> + Send + Unpin,
    ) -> Result<Uploaded, Error> {
        let (session, mut files) = self.files_to_change(&new.session_id).await?;
        let (frames, receiver) = mpsc::channel(PIECES);
        let start = pb::WriteStart { path: new.path.bytes(), mode: new.mode, modified_at: None };
        let send = self.send(&new, start, pieces, frames);
        let (sent, written) = tokio::join!(send, files.write_file(ReceiverStream::new(receiver)));
        // The sandbox knows better why it took no more; what ended too early here ends there, too.
        let (checksum, size, content) = sent?;
        let Some(content) = content else { return Err(refused(status_of(written))) };
        let file = told(written.map_err(refused)?.into_inner().entry.as_ref())?;
        let (service, checksum_kept) = (Arc::clone(self), checksum.clone());
        let kept = Kept {
            path: EntryPath::from(new.path.as_str().as_bytes()),
            version: file.entry.version,
            checksum: checksum.clone(),
            size,
        };
        self.finish("save upload", async move {
            service.objects.keep(&session.id, &checksum_kept, &content).await?;
            service.save_workspace(&session, Some(kept), Same::Version).await?.map_err(refused)
        })
        .await?;
        Ok(Uploaded { file, checksum })
    }

    /// Sends all pieces to the sandbox, and keeps them; without content when the sandbox takes no more.
    async fn send(
        &self,
        new: &NewFile,
        start: pb::WriteStart,
        mut pieces: impl Stream<Item = UploadFrame> + Send + Unpin,
        frames: mpsc::Sender<pb::WriteFileRequest>,
    ) -> Result<(String, u64, Option<Whole>), Error> {
        let frame = |frame| pb::WriteFileRequest { frame: Some(frame) };
        let refused = || Ok((String::new(), 0, None));
        if frames.send(frame(Frame::Start(start))).await.is_err() {
            return refused();
        }
        let mut content = Content::default();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            content = content.push(piece.clone(), &self.spool_dir).await?;
            if frames.send(frame(Frame::Data(piece))).await.is_err() {
                return refused();
            }
        }
        let (checksum, size, whole) = content.whole();
        if new.checksum.as_ref().is_some_and(|expected| *expected != checksum) {
            return Err(Error::ChecksumMismatch { path: new.path.as_str().to_owned(), found: checksum });
        }
        if frames.send(frame(Frame::End(pb::WriteEnd {}))).await.is_err() {
            return refused();
        }
        Ok((checksum, size, Some(whole)))
    }
}

fn status_of(written: Result<Response<pb::WriteFileResponse>, Status>) -> Status {
    written.err().unwrap_or_else(|| Status::unavailable("the sandbox took no more of the file"))
}
