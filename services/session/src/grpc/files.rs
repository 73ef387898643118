//! `FileService` on the wire: parse, call, encode.

use async_stream::try_stream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use sandmesh_mesh::{status, timestamp};
use sandmesh_proto::session::{
    self as pb, download_artifact_response::Frame as ArtifactFrame,
    download_file_response::Frame as FileFrame, file_service_server::FileService,
    upload_file_request::Frame as UploadFrame,
};
use tonic::{Request, Response, Status, Streaming};

use super::{Events, Grpc};
use crate::{
    encode,
    error::Error,
    service::{Download, ListQuery},
    validate::{FilePath, new_file},
};

/// The largest piece of an upload.
const MAX_PIECE: usize = 1 << 20;

#[tonic::async_trait]
impl FileService for Grpc {
    type DownloadFileStream = Events<pb::DownloadFileResponse>;
    type DownloadArtifactStream = Events<pb::DownloadArtifactResponse>;

    async fn list_files(
        &self,
        request: Request<pb::ListFilesRequest>,
    ) -> Result<Response<pb::ListFilesResponse>, Status> {
        let request = request.into_inner();
        let query = ListQuery {
            path: FilePath::parse_prefix("path", &request.path).map_err(status)?,
            session_id: request.session_id,
            page_size: request.page_size,
            page_token: request.page_token,
            files_only: request.files_only,
        };
        let listing = self.0.list_files(query).await.map_err(status)?;
        Ok(Response::new(pb::ListFilesResponse {
            files: listing.files.into_iter().map(encode::file).collect(),
            next_page_token: listing.next_page_token,
            incomplete: listing.incomplete,
        }))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<pb::UploadFileRequest>>,
    ) -> Result<Response<pb::UploadFileResponse>, Status> {
        let mut frames = request.into_inner();
        let Some(UploadFrame::Start(start)) = frames.message().await?.and_then(|frame| frame.frame) else {
            return Err(status(Error::field("start", "missing", "the first frame must be `start`")));
        };
        let new = new_file(start).map_err(status)?;
        let uploaded = self.0.upload_file(new, Box::pin(pieces(frames))).await.map_err(status)?;
        Ok(Response::new(pb::UploadFileResponse {
            file: Some(encode::file(uploaded.file)),
            checksum: format!("sha256:{}", uploaded.checksum),
        }))
    }

    async fn download_file(
        &self,
        request: Request<pb::DownloadFileRequest>,
    ) -> Result<Response<Self::DownloadFileStream>, Status> {
        let request = request.into_inner();
        let path = FilePath::parse("path", request.path).map_err(status)?;
        let range = (request.offset, request.length);
        let Download { file, pieces } =
            self.0.download_file(&request.session_id, &path, range).await.map_err(status)?;
        let frame = |frame| pb::DownloadFileResponse { frame: Some(frame) };
        let first = stream::iter([Ok(frame(FileFrame::File(encode::file(file))))]);
        let rest = pieces.map_ok(move |data| frame(FileFrame::Data(data))).map_err(status);
        Ok(Response::new(first.chain(rest).boxed()))
    }

    async fn presign_file(
        &self,
        request: Request<pb::PresignFileRequest>,
    ) -> Result<Response<pb::PresignFileResponse>, Status> {
        let request = request.into_inner();
        let path = FilePath::parse("path", request.path).map_err(status)?;
        let (url, file, expires_at) =
            self.0.presign_file(&request.session_id, &path).await.map_err(status)?;
        Ok(Response::new(pb::PresignFileResponse {
            url,
            file: Some(encode::file(file)),
            expires_at: Some(timestamp(expires_at)),
        }))
    }

    async fn move_file(
        &self,
        request: Request<pb::MoveFileRequest>,
    ) -> Result<Response<pb::MoveFileResponse>, Status> {
        let request = request.into_inner();
        let source = FilePath::parse("source_path", request.source_path).map_err(status)?;
        let target = FilePath::parse("target_path", request.target_path).map_err(status)?;
        let moved = self.0.move_file(&request.session_id, &source, &target, request.overwrite).await;
        Ok(Response::new(pb::MoveFileResponse { file: Some(encode::file(moved.map_err(status)?)) }))
    }

    async fn make_directory(
        &self,
        request: Request<pb::MakeDirectoryRequest>,
    ) -> Result<Response<pb::MakeDirectoryResponse>, Status> {
        let request = request.into_inner();
        let path = FilePath::parse("path", request.path).map_err(status)?;
        let made = self.0.make_directory(&request.session_id, &path).await.map_err(status)?;
        Ok(Response::new(pb::MakeDirectoryResponse { file: Some(encode::file(made)) }))
    }

    async fn delete_file(
        &self,
        request: Request<pb::DeleteFileRequest>,
    ) -> Result<Response<pb::DeleteFileResponse>, Status> {
        let request = request.into_inner();
        let path = FilePath::parse("path", request.path).map_err(status)?;
        self.0.delete_file(&request.session_id, &path).await.map_err(status)?;
        Ok(Response::new(pb::DeleteFileResponse {}))
    }

    async fn download_artifact(
        &self,
        request: Request<pb::DownloadArtifactRequest>,
    ) -> Result<Response<Self::DownloadArtifactStream>, Status> {
        let request = request.into_inner();
        let path = FilePath::parse("path", request.path).map_err(status)?;
        let range = (request.offset, request.length);
        let (artifact, pieces) =
            self.0.download_artifact(&request.execution_id, path.as_str(), range).await.map_err(status)?;
        let frame = |frame| pb::DownloadArtifactResponse { frame: Some(frame) };
        let first = stream::iter([Ok(frame(ArtifactFrame::Artifact(encode::artifact(artifact))))]);
        let rest = pieces.map_ok(move |data| frame(ArtifactFrame::Data(data))).map_err(status);
        Ok(Response::new(first.chain(rest).boxed()))
    }
}

/// The bytes of an upload, after its first frame and up to its last. Without that it was broken off: a
/// connection that a caller gave up may look like one that it closed.
fn pieces(
    mut frames: Streaming<pb::UploadFileRequest>,
) -> impl Stream<Item = Result<bytes::Bytes, Error>> + Send {
    try_stream! {
        loop {
            match frames.message().await.map(|frame| frame.map(|frame| frame.frame)) {
                Ok(Some(Some(UploadFrame::Data(data)))) if data.len() <= MAX_PIECE => yield data,
                Ok(Some(Some(UploadFrame::End(_)))) => break,
                Ok(Some(Some(UploadFrame::Data(_)))) => {
                    Err(Error::field("data", "too_long", "`data` must be at most 1 MiB a frame"))?;
                }
                Ok(Some(_)) => {
                    Err(Error::field("data", "missing", "after the first frame comes `data`, and `end` last"))?;
                }
                Ok(None) | Err(_) => Err(Error::UploadBroken)?,
            }
        }
    }
}
