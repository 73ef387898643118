//! `/executions/{id}/artifacts`: the files that an execution made or changed.

use axum::response::Response;
use http::HeaderMap;
use sandmesh_proto::session::GetExecutionRequest;

use super::{
    download::{Source, download},
    json::{execution::Artifact, file::ArtifactList},
    sent,
};
use crate::{
    app::Call,
    error::ApiError,
    extract::{ArtifactPath, Id, Json},
};

/// Lists the files that an execution made or changed.
#[utoipa::path(
    get, path = "/api/v1/executions/{id}/artifacts", tag = "files", operation_id = "list_artifacts",
    params(("id" = String, Path, description = "The id of the execution.")),
    responses((status = 200, description = "The files.", body = ArtifactList))
)]
pub(crate) async fn list(call: Call, Id(execution_id): Id) -> Result<Json<ArtifactList>, ApiError> {
    let request = call.unary(GetExecutionRequest { execution_id: execution_id.clone() });
    let reply = call.sessions().get_execution(request).await?.into_inner();
    let artifacts: Vec<_> =
        sent(reply.execution, "execution")?.artifacts.into_iter().map(Artifact::from).collect();
    Ok(Json(ArtifactList { execution_id, count: artifacts.len(), artifacts }))
}

/// Reads a file that an execution made or changed, as it was when the execution ended; a `Range` of it, too.
#[utoipa::path(
    get, path = "/api/v1/executions/{id}/artifacts/{path}", tag = "files", operation_id = "download_artifact",
    params(
        ("id" = String, Path, description = "The id of the execution."),
        ("path" = String, Path, description = "The path below the workspace; it may hold `/`."),
    ),
    responses(
        (status = 200, description = "The file.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The range of it.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 416, description = "The range begins after the end of the file."),
    )
)]
pub(crate) async fn read(
    call: Call,
    ArtifactPath(execution_id, path): ArtifactPath,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    download(&call, Source::Artifact { execution_id, path }, &headers).await
}
