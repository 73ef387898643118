//! Handing out the content of a file: whole or a range, as a download and never as a page of ours.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sandmesh_proto::session::{
    DownloadArtifactRequest, DownloadFileRequest, download_artifact_response::Frame as ArtifactFrame,
    download_file_response::Frame as FileFrame,
};
use tonic::Status;

use super::{json::http_date, sent};
use crate::{app::Call, error::ApiError};

/// What is handed out.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file of a session.
    File {
        /// The session.
        session_id: String,
        /// The path below its workspace.
        path: String,
    },
    /// A file that an execution made or changed.
    Artifact {
        /// The execution.
        execution_id: String,
        /// The path below the workspace.
        path: String,
    },
}

/// What is known of it.
#[derive(Debug)]
struct About {
    size: u64,
    etag: String,
    mime_type: String,
    modified_at: Option<prost_types::Timestamp>,
}

type Pieces = BoxStream<'static, Result<Bytes, Status>>;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// From this byte up to that one, which is not in it.
    Part(u64, u64),
    /// None of it is there.
    Nothing,
}

/// Hands it out, as far as the request wants it.
pub(crate) async fn download(call: &Call, source: Source, headers: &HeaderMap) -> Result<Response, ApiError> {
    let Some(range) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else {
        let (about, pieces) = source.open(call, 0, None).await?;
        if is_known(headers, &about) {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, quoted(&about.etag))]).into_response());
        }
        return Ok(respond(&source, &about, Wanted::All, pieces));
    };
    // The size of it decides what the range is.
    let (about, _) = source.open(call, 0, Some(0)).await?;
    let is_same = headers.get(header::IF_RANGE).is_none_or(|tag| *tag == *quoted(&about.etag));
    match if is_same { wanted(range, about.size) } else { Wanted::All } {
        Wanted::Nothing => Err(ApiError::range_not_satisfiable(about.size)),
        Wanted::All => {
            let (about, pieces) = source.open(call, 0, None).await?;
            Ok(respond(&source, &about, Wanted::All, pieces))
        }
        Wanted::Part(start, end) => {
            let (about, pieces) = source.open(call, start, Some(end - start)).await?;
            Ok(respond(&source, &about, Wanted::Part(start, end.min(about.size)), pieces))
        }
    }
}

impl Source {
    async fn open(&self, call: &Call, offset: u64, length: Option<u64>) -> Result<(About, Pieces), ApiError> {
        match self.clone() {
            Self::File { session_id, path } => {
                let request = DownloadFileRequest { session_id, path, offset, length };
                let mut frames = call.files().download_file(call.stream(request)).await?.into_inner();
                let first = frames.message().await?.and_then(|response| response.frame);
                let Some(FileFrame::File(file)) = first else { return sent(None, "file") };
                let about = About {
                    size: file.size_bytes,
                    etag: file.etag,
                    mime_type: file.mime_type,
                    modified_at: file.modified_at,
                };
                let pieces = frames.map_ok(|response| match response.frame {
                    Some(FileFrame::Data(data)) => data,
                    _ => Bytes::new(),
                });
                Ok((about, pieces.boxed()))
            }
            Self::Artifact { execution_id, path } => {
                let request = DownloadArtifactRequest { execution_id, path, offset, length };
                let mut frames = call.files().download_artifact(call.stream(request)).await?.into_inner();
                let first = frames.message().await?.and_then(|response| response.frame);
                let Some(ArtifactFrame::Artifact(artifact)) = first else { return sent(None, "artifact") };
                let about = About {
                    size: artifact.size_bytes,
                    etag: artifact.checksum,
                    mime_type: artifact.mime_type,
                    modified_at: artifact.created_at,
                };
                let pieces = frames.map_ok(|response| match response.frame {
                    Some(ArtifactFrame::Data(data)) => data,
                    _ => Bytes::new(),
                });
                Ok((about, pieces.boxed()))
            }
        }
    }

    /// The last component of its path.
    fn name(&self) -> &str {
        let (Self::File { path, .. } | Self::Artifact { path, .. }) = self;
        path.rsplit('/').next().unwrap_or_default()
    }
}

fn respond(
    source: &Source,
    about: &About,
    wanted: Wanted,
    pieces: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
) -> Response {
    let mut response = Body::from_stream(pieces).into_response();
    let (status, length) = match wanted {
        Wanted::Part(start, end) => (StatusCode::PARTIAL_CONTENT, end - start),
        Wanted::All | Wanted::Nothing => (StatusCode::OK, about.size),
    };
    *response.status_mut() = status;
    let name = utf8_percent_encode(source.name(), NON_ALPHANUMERIC);
    let mut texts = vec![
        (header::CONTENT_TYPE, about.mime_type.clone()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, quoted(&about.etag)),
        // A file of a user is no page of this server, whatever is in it.
        (header::CONTENT_DISPOSITION, format!("attachment; filename*=UTF-8''{name}")),
        (header::CONTENT_SECURITY_POLICY, "sandbox".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CACHE_CONTROL, "private, no-cache".to_owned()),
    ];
    texts.extend(http_date(about.modified_at.as_ref()).map(|date| (header::LAST_MODIFIED, date)));
    if let Wanted::Part(start, end) = wanted {
        let range = format!("bytes {start}-{}/{}", end.saturating_sub(1), about.size);
        texts.push((header::CONTENT_RANGE, range));
    }
    let headers = response.headers_mut();
    let usable = |(name, text): (HeaderName, String)| Some((name, HeaderValue::from_str(&text).ok()?));
    headers.extend(texts.into_iter().filter_map(usable));
    response
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

/// The client has it already.
fn is_known(headers: &HeaderMap, about: &About) -> bool {
    let tags = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).unwrap_or_default();
    let tag = quoted(&about.etag);
    tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag)
}

/// What the header `Range` asks for. More than one range, or what is no range of bytes, is everything, as
/// RFC 9110 allows (14.2).
fn wanted(range: &str, size: u64) -> Wanted {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Wanted::All;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => Wanted::All,
        (Ok(first), _) if first >= size && (last.trim().is_empty() || last.trim().parse::<u64>().is_ok()) => {
            Wanted::Nothing
        }
        (Ok(first), Ok(last)) => Wanted::Part(first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.trim().is_empty() => Wanted::Part(first, size),
        (Err(_), Ok(0)) if first.trim().is_empty() => Wanted::Nothing,
        (Err(_), Ok(count)) if first.trim().is_empty() && size > 0 => {
            Wanted::Part(size.saturating_sub(count), size)
        }
        _ => Wanted::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_the_standard_says() {
        use Wanted::{All, Nothing, Part};
        for (range, expected) in [
            ("bytes=0-0", Part(0, 1)),
            ("bytes=0-99", Part(0, 10)),
            ("bytes=3-", Part(3, 10)),
            ("bytes=-4", Part(6, 10)),
            ("bytes=-99", Part(0, 10)),
            ("bytes=9-9", Part(9, 10)),
            ("bytes=10-", Nothing),
            ("bytes=10-11", Nothing),
            ("bytes=-0", Nothing),
            ("bytes=5-4", All),
            ("bytes=0-1,3-4", All),
            ("bytes=", All),
            ("bytes=-", All),
            ("bytes=a-b", All),
            ("lines=0-1", All),
            ("bytes=18446744073709551616-", All),
        ] {
            assert_eq!(wanted(range, 10), expected, "{range}");
        }
        assert_eq!((wanted("bytes=0-", 0), wanted("bytes=-5", 0)), (Nothing, All));
    }
}
