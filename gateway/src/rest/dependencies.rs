//! `/sessions/{id}/dependencies`: install.

use super::{
    json::{dependency::InstallDependencies, session::Session},
    sent,
};
use crate::{
    app::Call,
    error::ApiError,
    extract::{Id, Json},
};

/// Installs packages into a running session, besides those that are there. It is installed or installing when
/// this answers: `dependency_install_status` tells. Executions that start after its end find the packages.
/// When it fails, what was there still is, and `dependency_install_error` says why.
#[utoipa::path(
    post, path = "/api/v1/sessions/{id}/dependencies/install", tag = "sessions",
    operation_id = "install_dependencies",
    params(("id" = String, Path, description = "The id of the session.")),
    request_body = InstallDependencies,
    responses(
        (status = 200, description = "The session, with how far the installation is.", body = Session),
        (status = 409, description = "Packages are being installed already, or the session does not run."),
    )
)]
pub(crate) async fn install(
    call: Call,
    Id(session_id): Id,
    Json(body): Json<InstallDependencies>,
) -> Result<Json<Session>, ApiError> {
    let request = call.unary(body.into_request(session_id)?);
    let reply = call.dependencies().install_dependencies(request).await?.into_inner();
    Session::try_from(sent(reply.session, "session")?).map(Json)
}
