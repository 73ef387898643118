//! `/sessions/{id}/files`: list, upload, download, move, make, delete. The bytes of a file pass through,
//! piece by piece: none is ever whole in memory.

use axum::{
    extract::multipart::Field,
    response::{IntoResponse, Response},
};
use http::HeaderMap;
use sandmesh_proto::session::{
    DeleteFileRequest, ListFilesRequest, MakeDirectoryRequest, MoveFileRequest, PresignFileRequest,
    UploadStart,
};

use super::{
    NoContent,
    download::{Source, download},
    json::file::{
        DownloadQuery, FileInfo, FileList, ListFiles, MakeDirectory, MoveFile, PresignedFile, UploadQuery,
        Uploaded,
    },
    sent,
    upload::{self, Sent},
};
use crate::{
    app::Call,
    error::{ApiError, Edge},
    extract::{FilePath, Form, Id, Json, Query},
};

/// Lists the files of a session, by path. A `path` is a file, or a directory with all that is below it: `a`
/// never lists `ab`.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}/files", tag = "files", operation_id = "list_files",
    params(("id" = String, Path, description = "The id of the session."), ListFiles),
    responses((status = 200, description = "The files.", body = FileList))
)]
pub(crate) async fn list(
    call: Call,
    Id(session_id): Id,
    Query(query): Query<ListFiles>,
) -> Result<Json<FileList>, ApiError> {
    let request = ListFilesRequest {
        session_id: session_id.clone(),
        page_size: query.page_size()?,
        files_only: !query.directories.unwrap_or(false),
        path: query.path.unwrap_or_default(),
        page_token: query.page_token.unwrap_or_default(),
    };
    let reply = call.files().list_files(call.unary(request)).await?.into_inner();
    Ok(Json(FileList::new(session_id, reply)))
}

/// Writes a file and the directories above it: the part `file` of a multipart form. Nothing of it is visible
/// before it is whole, and what was there is replaced at once. It is durable when this answers. Without a
/// `path`, or with one that ends with `/`, the file gets the name that the form gives it.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/files/upload", tag = "files", operation_id = "upload_file",
    params(("id" = String, Path, description = "The id of the session."), UploadQuery),
    request_body(content = upload::Form, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file is there.", body = Uploaded),
        (status = 400, description = "The path is not one below the workspace, or there is no part `file`."),
        (status = 409, description = "The session takes no files, or something stands in the way."),
        (status = 413, description = "The file is larger than the limit, or than what is left of the disk."),
    )
)]
pub(crate) async fn upload(
    call: Call,
    Id(session_id): Id,
    Query(mut query): Query<UploadQuery>,
    Form(mut form): Form,
) -> Result<Json<Uploaded>, ApiError> {
    for _ in 0..=upload::PARTS_BEFORE_FILE {
        let none = || Edge::InvalidForm("the form has no part named `file`".to_owned());
        let field = form.next_field().await.map_err(Edge::from)?.ok_or_else(none)?;
        if upload::is_file(&field) {
            return receive(&call, session_id, query, field).await;
        }
        upload::take_before(field, &mut query.path).await?;
    }
    let problem = format!("more than {} parts come before `file`", upload::PARTS_BEFORE_FILE);
    Err(Edge::InvalidForm(problem).into())
}

async fn receive(
    call: &Call,
    session_id: String,
    query: UploadQuery,
    mut field: Field<'_>,
) -> Result<Json<Uploaded>, ApiError> {
    let path = upload::path(query.path.as_deref(), field.file_name());
    let checksum = query.checksum.unwrap_or_default();
    let start = UploadStart { session_id: session_id.clone(), path, checksum, mode: None };
    let (sent_all, frames) = upload::channel(start);
    let send = upload::send(&mut field, sent_all, call.app().config());
    let (all, written) = tokio::join!(send, async { call.files().upload_file(call.stream(frames)).await });
    let written = match (all, written) {
        // What the edge refused is why the role got no more.
        (Err(edge), _) => {
            upload::discard(field).await;
            return Err(edge.into());
        }
        (Ok(Sent::Refused), Err(status)) => {
            upload::discard(field).await;
            return Err(status.into());
        }
        (Ok(_), written) => written?.into_inner(),
    };
    let file = sent(written.file, "file")?;
    Ok(Json(Uploaded { session_id, file_path: file.path, size: file.size_bytes, checksum: written.checksum }))
}

/// Reads a file; a `Range` of it, too. With `presigned=true` the answer is a URL at which the object store
/// hands it out, where the object store can.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}/files/{path}", tag = "files", operation_id = "download_file",
    params(
        ("id" = String, Path, description = "The id of the session."),
        ("path" = String, Path, description = "The path below the workspace; it may hold `/`."),
        DownloadQuery,
    ),
    responses(
        (status = 200, description = "The file, or with `presigned` where it is.",
         content((Vec<u8> = "application/octet-stream"), (PresignedFile = "application/json"))),
        (status = 206, description = "The range of it.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 416, description = "The range begins after the end of the file."),
    )
)]
pub(crate) async fn read(
    call: Call,
    FilePath(session_id, path): FilePath,
    Query(query): Query<DownloadQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if !query.presigned.unwrap_or(false) {
        return download(&call, Source::File { session_id, path }, &headers).await;
    }
    let request = call.unary(PresignFileRequest { session_id, path });
    let reply = call.files().presign_file(request).await?.into_inner();
    let size = sent(reply.file, "file")?.size_bytes;
    Ok(Json(PresignedFile::new(reply.url, size, reply.expires_at.as_ref())).into_response())
}

/// Deletes a file or an empty directory.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{id}/files/{path}", tag = "files", operation_id = "delete_file",
    params(
        ("id" = String, Path, description = "The id of the session."),
        ("path" = String, Path, description = "The path below the workspace; it may hold `/`."),
    ),
    responses(
        (status = 204, description = "It is gone."),
        (status = 409, description = "It is a directory with something in it."),
    )
)]
pub(crate) async fn delete(call: Call, FilePath(session_id, path): FilePath) -> Result<NoContent, ApiError> {
    call.files().delete_file(call.unary(DeleteFileRequest { session_id, path })).await?;
    Ok(NoContent)
}

/// Moves a file or directory, and makes the directories above its new path.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/files/move", tag = "files", operation_id = "move_file",
    params(("id" = String, Path, description = "The id of the session.")),
    request_body = MoveFile,
    responses(
        (status = 200, description = "The file at its new path.", body = FileInfo),
        (status = 409, description = "Something is at the new path."),
    )
)]
pub(crate) async fn rename(
    call: Call,
    Id(session_id): Id,
    Json(body): Json<MoveFile>,
) -> Result<Json<FileInfo>, ApiError> {
    let request = MoveFileRequest {
        session_id,
        source_path: body.source_path,
        target_path: body.target_path,
        overwrite: body.overwrite.unwrap_or(false),
    };
    let reply = call.files().move_file(call.unary(request)).await?.into_inner();
    Ok(Json(sent(reply.file, "file")?.into()))
}

/// Makes a directory and those above it. Idempotent.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/files/mkdir", tag = "files", operation_id = "make_directory",
    params(("id" = String, Path, description = "The id of the session.")),
    request_body = MakeDirectory,
    responses(
        (status = 200, description = "The directory.", body = FileInfo),
        (status = 409, description = "Something else is there."),
    )
)]
pub(crate) async fn mkdir(
    call: Call,
    Id(session_id): Id,
    Json(body): Json<MakeDirectory>,
) -> Result<Json<FileInfo>, ApiError> {
    let request = call.unary(MakeDirectoryRequest { session_id, path: body.path });
    let reply = call.files().make_directory(request).await?.into_inner();
    Ok(Json(sent(reply.file, "file")?.into()))
}

/// What a multipart body that cannot be read is told.
impl From<axum::extract::multipart::MultipartError> for Edge {
    fn from(error: axum::extract::multipart::MultipartError) -> Self {
        Self::InvalidForm(error.body_text())
    }
}
