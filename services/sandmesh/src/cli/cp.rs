//! `sandmesh cp`: files and directories into a session, and out of one.

mod download;
mod place;
mod upload;

use clap::Args;
use sandmesh_proto::session::{File, ListFilesRequest};
use serde::Serialize;

use super::{
    Context, Format,
    client::{Client, timed},
    failure::Failure,
    interrupts::Interrupts,
    output,
};

pub use self::place::Place;

/// What to copy, and where to.
#[derive(Debug, Args)]
#[command(after_help = "SESSION:PATH is a path below /workspace of a session; write ./a:b for a file of \
    that name.\nInto a directory, a file is copied under its own name. A file is there whole or not at all.\n\
    Files can be copied out of a session that has ended, too.")]
pub struct CpArgs {
    /// What to copy: SESSION:PATH, a path of this machine, or - for the standard input
    #[arg(value_name = "SOURCE", value_parser = place::place)]
    pub source: Place,
    /// Where to: SESSION:PATH, a path of this machine, or - for the standard output
    #[arg(value_name = "TARGET", value_parser = place::place)]
    pub target: Place,
    /// Copy a directory with all that is in it; links are left out
    #[arg(short, long)]
    pub recursive: bool,
}

/// A path below the workspace of a session.
#[derive(Debug)]
struct Remote<'a> {
    client: &'a Client,
    session: String,
    path: String,
    /// It was written as that of a directory.
    is_directory: bool,
}

/// What was copied.
#[derive(Debug, Default, Serialize)]
struct Copied {
    files: u64,
    bytes: u64,
}

impl Copied {
    fn file(bytes: u64) -> Self {
        Self { files: 1, bytes }
    }

    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

pub(super) async fn run(args: CpArgs, context: &Context) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen()?;
    let into_pipe = args.target == Place::Pipe;
    let copied = tokio::select! {
        copied = copy(args, context) => copied?,
        // What was half written is removed on the way out.
        () = interrupts.recv() => return Err(Failure::Interrupted),
    };
    match context.format {
        Format::Json if !into_pipe => output::json(&copied),
        _ => Ok(()),
    }
}

async fn copy(args: CpArgs, context: &Context) -> Result<Copied, Failure> {
    let client = &context.client;
    match (args.source, args.target) {
        (Place::Remote { .. }, Place::Remote { .. }) => {
            Err(Failure::usage("one end of the copy must be on this machine"))
        }
        (Place::Remote { session, path, is_directory }, target) => {
            let source = Remote { client, session, path, is_directory };
            download::copy(source, target, args.recursive).await
        }
        (source, Place::Remote { session, path, is_directory }) => {
            let target = Remote { client, session, path, is_directory };
            upload::copy(source, target, args.recursive).await
        }
        _ => Err(Failure::usage("one end of the copy must be in a session: SESSION:PATH")),
    }
}

impl Remote<'_> {
    /// What is at the path; `None` where nothing is, and for the workspace itself.
    async fn found(&self) -> Result<Option<File>, Failure> {
        let request = ListFilesRequest {
            session_id: self.session.clone(),
            path: self.path.clone(),
            page_size: 1,
            ..ListFilesRequest::default()
        };
        let page = self.client.files().list_files(timed(request)).await?.into_inner();
        Ok(page.files.into_iter().find(|file| file.path == self.path))
    }

    /// Whether it is, or is to be, a directory.
    async fn is_directory(&self) -> Result<bool, Failure> {
        Ok(self.is_directory || self.found().await?.is_some_and(|file| file.is_directory))
    }

    /// The path as it is told.
    fn told(&self) -> String {
        format!("{}:{}", self.session, self.path)
    }
}

/// Says what is to be done about a directory that was not meant to be copied whole.
fn not_recursive(path: &str) -> Failure {
    Failure::usage(format!("`{path}` is a directory: give -r to copy it with all that is in it"))
}
