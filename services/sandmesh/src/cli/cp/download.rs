//! Out of a session.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sandmesh_proto::session::{
    self as pb, DownloadFileRequest, DownloadFileResponse, ListFilesRequest, download_file_response::Frame,
};
use tempfile::NamedTempFile;
use tonic::Streaming;

use super::{
    Copied, Remote, not_recursive,
    place::{Place, below, name},
};
use crate::cli::{
    client::timed,
    console::{Console, Stream},
    failure::Failure,
    output,
};

/// How many files are on a page of a list.
const PAGE: u32 = 1000;

/// Copies a file or a directory.
pub(super) async fn copy(source: Remote<'_>, target: Place, recursive: bool) -> Result<Copied, Failure> {
    let is_directory = source.is_directory().await?;
    if is_directory && !recursive {
        return Err(not_recursive(&source.told()));
    }
    let Place::Local(target) = target else {
        if is_directory {
            return Err(Failure::usage("a directory cannot be copied to the standard output"));
        }
        return to_pipe(&source).await;
    };
    let into = target.is_dir() || target.as_os_str().as_encoded_bytes().ends_with(b"/");
    let target = if into { target.join(name(&source.path)) } else { target };
    match is_directory {
        true => directory(&source, &target).await,
        false => Ok(Copied::file(file(&source, &source.path, &target).await?)),
    }
}

async fn to_pipe(source: &Remote<'_>) -> Result<Copied, Failure> {
    let mut download = Download::open(source, &source.path).await?;
    let mut console = Console::open()?;
    while let Some(data) = download.next().await? {
        console.write(Stream::Stdout, data).await?;
    }
    console.finish().await?;
    Ok(Copied::file(download.size))
}

/// Copies a directory to `top`: into it where it is there.
async fn directory(source: &Remote<'_>, top: &Path) -> Result<Copied, Failure> {
    let mut copied = Copied::default();
    let mut request = ListFilesRequest {
        session_id: source.session.clone(),
        path: source.path.clone(),
        page_size: PAGE,
        ..ListFilesRequest::default()
    };
    let (mut found, mut incomplete) = (source.path.is_empty(), false);
    loop {
        let page = source.client.files().list_files(timed(request.clone())).await?.into_inner();
        incomplete |= page.incomplete;
        for entry in page.files {
            found = true;
            if let Some(bytes) = one(source, &entry, top).await? {
                copied.add(bytes);
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if !found {
        return Err(Failure::broken(format!("`{}` not found", source.told())));
    }
    make(top)?;
    if incomplete {
        return Err(Failure::broken("not everything could be listed, and what was not is not copied"));
    }
    Ok(copied)
}

/// Copies one entry of a directory; gives the size of a file.
async fn one(source: &Remote<'_>, entry: &pb::File, top: &Path) -> Result<Option<u64>, Failure> {
    let rest = entry.path.strip_prefix(&source.path).unwrap_or(&entry.path).trim_start_matches('/');
    let local = if rest.is_empty() { Some(top.to_owned()) } else { below(top, rest) };
    let local =
        local.ok_or_else(|| Failure::broken(format!("the server told of a file `{}`", entry.path)))?;
    if entry.is_directory {
        return make(&local).map(|()| None);
    }
    if !entry.link_target.is_empty() {
        output::note(&format!("left out: `{}` is a link", entry.path));
        return Ok(None);
    }
    if let Some(parent) = local.parent() {
        make(parent)?;
    }
    file(source, &entry.path, &local).await.map(Some)
}

fn make(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory).map_err(|error| unwritable(directory, &error))
}

async fn file(source: &Remote<'_>, path: &str, target: &Path) -> Result<u64, Failure> {
    let mut download = Download::open(source, path).await?;
    let mut sink = Sink::open(target).map_err(|error| unwritable(target, &error))?;
    while let Some(data) = download.next().await? {
        sink.write(&data).map_err(|error| unwritable(target, &error))?;
    }
    sink.finish().map_err(|error| unwritable(target, &error))?;
    Ok(download.size)
}

/// A file that comes.
struct Download {
    frames: Streaming<DownloadFileResponse>,
    path: String,
    size: u64,
    received: u64,
}

impl Download {
    async fn open(source: &Remote<'_>, path: &str) -> Result<Self, Failure> {
        let request = DownloadFileRequest {
            session_id: source.session.clone(),
            path: path.to_owned(),
            ..DownloadFileRequest::default()
        };
        let mut frames = source.client.files().download_file(request).await?.into_inner();
        match frames.message().await?.and_then(|first| first.frame) {
            Some(Frame::File(file)) => {
                Ok(Self { frames, path: path.to_owned(), size: file.size_bytes, received: 0 })
            }
            _ => Err(Failure::broken(format!("the server did not tell what `{path}` is"))),
        }
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(frame) = self.frames.message().await? {
            if let Some(Frame::Data(data)) = frame.frame {
                self.received += data.len() as u64;
                return Ok(Some(data));
            }
        }
        if self.received == self.size {
            return Ok(None);
        }
        let (path, received, size) = (&self.path, self.received, self.size);
        Err(Failure::broken(format!("`{path}` changed while it was copied: {received} of {size} bytes came")))
    }
}

/// Where a file is written to.
enum Sink {
    /// Beside its place, until it is whole.
    Whole(NamedTempFile, PathBuf),
    /// A pipe or a device, which is not replaced.
    Direct(File),
}

impl Sink {
    fn open(target: &Path) -> io::Result<Self> {
        // A link is kept, and what it leads to is replaced.
        let place = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let permissions = match fs::metadata(&place) {
            Ok(there) if there.is_file() => there.permissions(),
            Ok(_) => return OpenOptions::new().write(true).open(&place).map(Self::Direct),
            Err(_) => Permissions::from_mode(0o666),
        };
        let directory = place.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        builder.prefix(".sandmesh-").permissions(permissions);
        let file = builder.tempfile_in(directory.unwrap_or_else(|| Path::new(".")))?;
        Ok(Self::Whole(file, place))
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Whole(file, _) => file.write_all(data),
            Self::Direct(file) => file.write_all(data),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Whole(file, place) => file.persist(place).map(drop).map_err(|error| error.error),
            Self::Direct(_) => Ok(()),
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::broken(format!("cannot write `{}`: {error}", path.display()))
}
