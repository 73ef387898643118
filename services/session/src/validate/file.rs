//! Paths of files, and what is uploaded.

use bytes::Bytes;
use sandmesh_proto::session as pb;

use crate::error::Error;

/// A path below a workspace, as callers write it: text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePath(String);

impl FilePath {
    /// Parses the path of a file or directory.
    pub(crate) fn parse(field: &'static str, text: String) -> Result<Self, Error> {
        let problem = if text.is_empty() {
            "is required"
        } else if text.len() > 4095 || text.split('/').any(|part| part.len() > 255) {
            "must have at most 4095 bytes, and each component at most 255"
        } else if text.contains('\0') {
            "must not contain NUL"
        } else if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            "must be relative to the workspace, without `.`, `..` and empty components"
        } else {
            return Ok(Self(text));
        };
        Err(Error::InvalidPath { field, problem })
    }

    /// Parses what to list: a path, also with a `/` after it, or nothing for all.
    pub(crate) fn parse_prefix(field: &'static str, text: &str) -> Result<Self, Error> {
        match text.strip_suffix('/').unwrap_or(text) {
            "" if text.is_empty() => Ok(Self(String::new())),
            path => Self::parse(field, path.to_owned()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_bytes())
    }
}

/// A file to be written.
#[derive(Debug)]
pub(crate) struct NewFile {
    pub(crate) session_id: String,
    pub(crate) path: FilePath,
    /// The checksum it must have, as hex digits.
    pub(crate) checksum: Option<String>,
    pub(crate) mode: Option<u32>,
}

/// Parses the beginning of an upload.
pub(crate) fn new_file(start: pb::UploadStart) -> Result<NewFile, Error> {
    let path = FilePath::parse("path", start.path)?;
    if start.mode.is_some_and(|mode| mode > 0o777) {
        return Err(Error::field("mode", "less_than_equal", "`mode` must be permission bits, up to 0o777"));
    }
    Ok(NewFile { session_id: start.session_id, path, checksum: checksum(&start.checksum)?, mode: start.mode })
}

fn checksum(text: &str) -> Result<Option<String>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.strip_prefix("sha256:").map(str::to_ascii_lowercase);
    let is_digits =
        |digits: &String| digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let wrong = || {
        let problem = "`checksum` must be `sha256:` and 64 hex digits";
        Error::field("checksum", "string_pattern_mismatch", problem)
    };
    digits.filter(is_digits).map(Some).ok_or_else(wrong)
}
