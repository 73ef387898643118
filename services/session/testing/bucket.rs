//! A real server of S3 in the process of a test, which checks signatures, with a directory behind it. It can
//! go away and come back, as another machine does. The tests of the whole program have it, too.

use std::{
    fs,
    net::TcpListener as StdListener,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3Service, service::S3ServiceBuilder};
use sandmesh_mesh::testing::free_port;
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime};

/// The key that the server takes.
pub(crate) const KEY: &str = "AKIAOFTHISTESTONLY";

/// The secret that belongs to it.
pub(crate) const SECRET: &str = "a-secret-of-the-bucket-of-this-test";

/// The bucket that it has.
const BUCKET: &str = "objects";

/// A server of one bucket. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Bucket {
    dir: TempDir,
    port: u16,
    running: Option<Runtime>,
}

impl Bucket {
    /// Starts it.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut bucket = Self { dir, port: free_port(), running: None };
        bucket.start_again();
        bucket
    }

    /// Starts it with what it had, at the address that it had.
    pub(crate) fn start_again(&mut self) {
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(self.dir.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let listener = StdListener::bind(("127.0.0.1", self.port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(serve(listener, builder.build()));
        self.running = Some(runtime);
    }

    /// Ends it, with all connections to it. What it has stays.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.running.take() {
            // Waiting is not for tasks: the caller may be one.
            std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
        }
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its bucket, as in the configuration.
    pub(crate) fn url(&self) -> String {
        format!("s3://{BUCKET}")
    }

    /// The names of all objects.
    pub(crate) fn keys(&self) -> Vec<String> {
        let top = self.dir.path().join(BUCKET);
        let name = |path: PathBuf| path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned();
        files_below(&top).into_iter().map(name).collect()
    }

    /// What it keeps of objects that were not written to their end.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        // Not its `.tmp` files: when a caller goes away just then, the server leaves one of these itself.
        names.filter(|name| name.starts_with(".upload")).collect()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(listener: StdListener, service: S3Service) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let service = service.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with its runtime")]
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            // Its client may go away at any time.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// All files below a directory, in order.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}
