//! The multipart form of an upload, on its way to the session role.

use std::time::Duration;

use axum::extract::multipart::Field;
use bytes::Bytes;
use sandmesh_proto::session::{UploadEnd, UploadFileRequest, UploadStart, upload_file_request::Frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

use crate::{config::Config, error::Edge};

/// The largest piece that a frame carries.
const PIECE: usize = 256 << 10;

/// How many parts of a form may come before the file, and how long each may be.
pub(crate) const PARTS_BEFORE_FILE: usize = 16;
const BEFORE_FILE: usize = 8 << 10;

/// How many frames may be on their way.
const FRAMES: usize = 4;

/// How much of a form that nobody wants is taken, so that the client gets to read the answer, and for how
/// long.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// The form.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it is only described")]
pub(crate) struct Form {
    /// As the query parameter, where that is not given; before `file`.
    path: Option<String>,
    /// The content of the file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// How the sending of a file went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// All of it was taken.
    All,
    /// The role took no more.
    Refused,
}

/// Whether a part of the form is the file.
pub(crate) fn is_file(field: &Field<'_>) -> bool {
    field.name() == Some("file")
}

/// Takes a part that comes before the file, as many clients send them. A `path` counts where there is none
/// yet; what others say is nothing to this call.
pub(crate) async fn take_before(mut field: Field<'_>, path: &mut Option<String>) -> Result<(), Edge> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut text = Vec::new();
    while let Some(chunk) = field.chunk().await? {
        if text.len() + chunk.len() > BEFORE_FILE {
            let problem = format!("part `{name}` before `file` is longer than {BEFORE_FILE} bytes");
            return Err(Edge::InvalidForm(problem));
        }
        text.extend_from_slice(&chunk);
    }
    if name == "path" && path.is_none() {
        let text = String::from_utf8(text);
        *path = Some(text.map_err(|_| Edge::InvalidForm("part `path` is not UTF-8".to_owned()))?);
    }
    Ok(())
}

/// Where the file goes: `path`, or below it with the name in the form.
pub(crate) fn path(path: Option<&str>, name: Option<&str>) -> String {
    // Some browsers send the path that the file has on their machine.
    let name = name.unwrap_or_default().rsplit(['/', '\\']).next().unwrap_or_default();
    match path.unwrap_or_default() {
        "" => name.to_owned(),
        directory if directory.ends_with('/') => format!("{directory}{name}"),
        path => path.to_owned(),
    }
}

/// A stream of frames that begins with this one, and where to put the others.
pub(crate) fn channel(
    start: UploadStart,
) -> (mpsc::Sender<UploadFileRequest>, ReceiverStream<UploadFileRequest>) {
    let (frames, receiver) = mpsc::channel(FRAMES);
    // There is room for it.
    let _ = frames.try_send(UploadFileRequest { frame: Some(Frame::Start(start)) });
    (frames, ReceiverStream::new(receiver))
}

/// Sends the content of a file. When it fails, the stream has no end frame, and nothing of it is kept.
pub(crate) async fn send(
    field: &mut Field<'_>,
    frames: mpsc::Sender<UploadFileRequest>,
    config: &Config,
) -> Result<Sent, Edge> {
    let (mut left, patience) = (config.max_upload.0, config.body_timeout.0);
    loop {
        let chunk = tokio::time::timeout(patience, field.chunk()).await.map_err(|_| Edge::BodyTimeout)??;
        let Some(chunk) = chunk else { break };
        left = left.checked_sub(chunk.len() as u64).ok_or(Edge::PayloadTooLarge(config.max_upload.0))?;
        if !send_pieces(&frames, chunk).await {
            return Ok(Sent::Refused);
        }
    }
    let end = frames.send(UploadFileRequest { frame: Some(Frame::End(UploadEnd {})) }).await;
    Ok(if end.is_ok() { Sent::All } else { Sent::Refused })
}

async fn send_pieces(frames: &mpsc::Sender<UploadFileRequest>, mut chunk: Bytes) -> bool {
    while !chunk.is_empty() {
        let piece = chunk.split_to(chunk.len().min(PIECE));
        if frames.send(UploadFileRequest { frame: Some(Frame::Data(piece)) }).await.is_err() {
            return false;
        }
    }
    true
}

/// Reads what is left of a file that nobody wants.
pub(crate) async fn discard(mut field: Field<'_>) {
    let mut left = DISCARD_BYTES;
    let rest = async {
        while left > 0
            && let Ok(Some(chunk)) = field.chunk().await
        {
            left = left.saturating_sub(chunk.len());
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_path_gets_its_own_name() {
        for (given, name, expected) in [
            (None, Some("a.csv"), "a.csv"),
            (Some("data/"), Some("a.csv"), "data/a.csv"),
            (Some("data/b"), Some("a.csv"), "data/b"),
            (Some("data/b"), None, "data/b"),
            (None, Some("C:\\me\\a.csv"), "a.csv"),
            (None, Some("../../etc/passwd"), "passwd"),
            (None, None, ""),
        ] {
            assert_eq!(path(given, name), expected);
        }
    }
}
