//! The shapes of files.

use sandmesh_proto::session as pb;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::time;
use crate::error::{ApiError, Violation};

/// Where the workspace is, as user code sees it.
const WORKSPACE: &str = "/workspace";

/// How many files an answer has when the client does not say, and at most.
const DEFAULT_LIMIT: u32 = 1000;
const MAX_LIMIT: u32 = 10_000;

/// Which files are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListFiles {
    /// Only what is at this path or below it; everything if left out.
    pub(crate) path: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 10_000, default = 1000)]
    limit: Option<i64>,
    /// `next_page_token` of the page before.
    pub(crate) page_token: Option<String>,
    /// True: directories and links, too.
    #[param(default = false)]
    pub(crate) directories: Option<bool>,
}

impl ListFiles {
    /// How many files are wanted.
    pub(crate) fn page_size(&self) -> Result<u32, ApiError> {
        let Some(limit) = self.limit else { return Ok(DEFAULT_LIMIT) };
        let size = u32::try_from(limit).ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        let kind = if limit < 1 { "greater_than_equal" } else { "less_than_equal" };
        size.ok_or_else(|| {
            ApiError::field(Violation::new(
                &["query", "limit"],
                kind,
                format!("must be from 1 to {MAX_LIMIT}"),
            ))
        })
    }
}

/// How a file is read.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DownloadQuery {
    /// True: answer with a URL at which the object store hands out the file.
    #[param(default = false)]
    pub(crate) presigned: Option<bool>,
}

/// How a file is written.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadQuery {
    /// The path below the workspace. Where it ends with `/`, or is left out, the name in the form is added.
    pub(crate) path: Option<String>,
    /// The checksum that the file must have, `sha256:` and hex digits.
    pub(crate) checksum: Option<String>,
}

/// A file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FileInfo {
    /// Its path below the workspace.
    #[schema(example = "data/in.csv")]
    name: String,
    /// Its path as user code sees it.
    #[schema(example = "/workspace/data/in.csv")]
    container_path: String,
    /// Its size in bytes.
    size: u64,
    /// When it was changed last.
    modified_time: String,
    /// Changes whenever its content does.
    etag: String,
    /// True for a directory.
    is_directory: bool,
    /// Where a symbolic link leads; it is never followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
}

impl From<pb::File> for FileInfo {
    fn from(file: pb::File) -> Self {
        Self {
            container_path: format!("{WORKSPACE}/{}", file.path),
            name: file.path,
            size: file.size_bytes,
            modified_time: time(file.modified_at.as_ref()).unwrap_or_default(),
            etag: file.etag,
            is_directory: file.is_directory,
            link_target: Some(file.link_target).filter(|target| !target.is_empty()),
        }
    }
}

/// Files of a session.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FileList {
    /// The session.
    session_id: String,
    /// The files, by path.
    files: Vec<FileInfo>,
    /// How many are in this answer.
    count: usize,
    /// Give this as `page_token` to read on; null on the last page.
    #[schema(required = true)]
    next_page_token: Option<String>,
    /// True when something is missing: files in a directory that is closed to its owner, files beyond what is
    /// listed of one workspace, or, once the session has ended, content beyond what is kept of it.
    incomplete: bool,
}

impl FileList {
    /// As a role tells them.
    pub(crate) fn new(session_id: String, list: pb::ListFilesResponse) -> Self {
        let files: Vec<FileInfo> = list.files.into_iter().map(FileInfo::from).collect();
        let next_page_token = Some(list.next_page_token).filter(|token| !token.is_empty());
        Self { session_id, count: files.len(), files, next_page_token, incomplete: list.incomplete }
    }
}

/// A file that was written.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Uploaded {
    /// The session.
    pub(crate) session_id: String,
    /// Its path below the workspace.
    pub(crate) file_path: String,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// `sha256:` and hex digits.
    pub(crate) checksum: String,
}

/// Where the object store hands out a file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PresignedFile {
    /// Whoever has it can read the file.
    presigned_url: String,
    /// Its size in bytes.
    size: u64,
    /// Until when.
    #[schema(required = true)]
    expires_at: Option<String>,
}

impl PresignedFile {
    /// With the time until which it works.
    pub(crate) fn new(url: String, size: u64, expires_at: Option<&prost_types::Timestamp>) -> Self {
        Self { presigned_url: url, size, expires_at: time(expires_at) }
    }
}

/// What to move where.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MoveFile {
    /// From this path.
    pub(crate) source_path: String,
    /// To this path.
    pub(crate) target_path: String,
    /// True replaces a file that is there.
    pub(crate) overwrite: Option<bool>,
}

/// Which directory to make.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MakeDirectory {
    /// Its path below the workspace.
    pub(crate) path: String,
}

/// The files that an execution made or changed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ArtifactList {
    /// The execution.
    pub(crate) execution_id: String,
    /// The files.
    pub(crate) artifacts: Vec<super::execution::Artifact>,
    /// How many there are.
    pub(crate) count: usize,
}
