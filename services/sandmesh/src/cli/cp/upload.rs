//! Into a session.

use std::{
    fs::{self, DirEntry},
    io::{self, Read},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use sandmesh_proto::session::{
    MakeDirectoryRequest, UploadEnd, UploadFileRequest, UploadStart, upload_file_request::Frame,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Copied, Remote, not_recursive,
    place::{Place, join},
};
use crate::cli::{client::timed, failure::Failure, input::pieces_of, output};

/// How many pieces are on their way.
const PIECES: usize = 4;

/// Copies a file, a directory or the standard input.
pub(super) async fn copy(source: Place, target: Remote<'_>, recursive: bool) -> Result<Copied, Failure> {
    let Place::Local(source) = source else {
        return from_pipe(&target).await;
    };
    let metadata = fs::metadata(&source).map_err(|error| unreadable(&source, &error))?;
    let name = name_of(&source)?;
    if metadata.is_dir() {
        if !recursive {
            return Err(not_recursive(&source.display().to_string()));
        }
        let into = !is_content(&source) && (target.is_directory || target.found().await?.is_some());
        let top = if into { join(&target.path, &name) } else { target.path.clone() };
        return directory(&source, &target, top).await;
    }
    let path = if target.is_directory().await? { join(&target.path, &name) } else { target.path.clone() };
    Ok(Copied::file(file(&source, &target, path).await?))
}

async fn from_pipe(target: &Remote<'_>) -> Result<Copied, Failure> {
    if target.is_directory().await? {
        let message = format!("`{}` is a directory: say what the file is to be called there", target.told());
        return Err(Failure::usage(message));
    }
    let start = start(target, target.path.clone(), None);
    Ok(Copied::file(upload(target, start, "-", || Ok(io::stdin())).await?))
}

/// Copies a directory to `top`. What it links to is not in it.
async fn directory(source: &Path, target: &Remote<'_>, top: String) -> Result<Copied, Failure> {
    let mut copied = Copied::default();
    let mut left = vec![(source.to_owned(), top)];
    while let Some((directory, path)) = left.pop() {
        if !path.is_empty() {
            let request = MakeDirectoryRequest { session_id: target.session.clone(), path: path.clone() };
            target.client.files().make_directory(timed(request)).await?;
        }
        for entry in entries(&directory).map_err(|error| unreadable(&directory, &error))? {
            let local = entry.path();
            let path = join(&path, &name_of(&local)?);
            let kind = entry.file_type().map_err(|error| unreadable(&local, &error))?;
            if kind.is_dir() {
                left.push((local, path));
            } else if kind.is_file() {
                copied.add(file(&local, target, path).await?);
            } else {
                output::note(&format!("left out: `{}` is neither file nor directory", local.display()));
            }
        }
    }
    Ok(copied)
}

fn entries(directory: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

async fn file(source: &Path, target: &Remote<'_>, path: String) -> Result<u64, Failure> {
    let metadata = fs::metadata(source).map_err(|error| unreadable(source, &error))?;
    // Those of a pipe or a device are not meant for a file.
    let mode = metadata.is_file().then(|| metadata.permissions().mode() & 0o777);
    let (start, opened) = (start(target, path, mode), source.to_owned());
    upload(target, start, &source.display().to_string(), move || fs::File::open(opened)).await
}

fn start(target: &Remote<'_>, path: String, mode: Option<u32>) -> UploadStart {
    UploadStart { session_id: target.session.clone(), path, mode, ..UploadStart::default() }
}

/// Sends what is read; gives the size of the file.
async fn upload<R: Read>(
    target: &Remote<'_>,
    start: UploadStart,
    name: &str,
    open: impl FnOnce() -> io::Result<R> + Send + 'static,
) -> Result<u64, Failure> {
    let mut pieces = pieces_of(open)?;
    let (frames, receiver) = mpsc::channel(PIECES);
    let frame = |frame| UploadFileRequest { frame: Some(frame) };
    let send = async move {
        let mut taken = frames.send(frame(Frame::Start(start))).await.is_ok();
        while taken && let Some(piece) = pieces.recv().await {
            taken = frames.send(frame(Frame::Data(piece?))).await.is_ok();
        }
        // Where nobody takes it any more, the answer says why.
        let _ = frames.send(frame(Frame::End(UploadEnd {}))).await;
        Ok::<(), io::Error>(())
    };
    let mut files = target.client.files();
    let (sent, answer) = tokio::join!(send, files.upload_file(ReceiverStream::new(receiver)));
    // What could not be read ends the upload without its last frame: then nothing of it is kept.
    sent.map_err(|error| Failure::broken(format!("cannot read `{name}`: {error}")))?;
    Ok(answer?.into_inner().file.map(|file| file.size_bytes).unwrap_or_default())
}

/// Whether what is in a directory is meant, and not the directory: `.` or `DIRECTORY/.`.
fn is_content(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    text == b"." || text.ends_with(b"/.")
}

/// The name that something has of its own, also `..`.
fn name_of(path: &Path) -> Result<String, Failure> {
    let whole = || fs::canonicalize(path).map_err(|error| unreadable(path, &error));
    let named = if path.file_name().is_some() { PathBuf::from(path) } else { whole()? };
    let name = named.file_name().unwrap_or_default().to_str();
    let name =
        name.ok_or_else(|| Failure::usage(format!("the name of `{}` is not UTF-8", path.display())))?;
    Ok(name.to_owned())
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot read `{}`: {error}", path.display()))
}
