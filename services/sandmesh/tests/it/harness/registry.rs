//! A registry in the process of the test, with one image that no engine has, whose layer comes half and then when the
//! test says so.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::engine::{BUSYBOX, images};

/// How much there is in the layer besides the commands of busybox, so that there is progress to be told of.
const MORE: &str = "8M";

/// How much of a layer comes at a time.
const PART: usize = 512 << 10;

/// What a connection with TLS begins with.
const TLS: u8 = 0x16;

/// A registry. It is gone with this value.
#[derive(Debug)]
pub(crate) struct Registry {
    port: u16,
    released: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let files = Files::make();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (released, release) = watch::channel(false);
        let files = std::sync::Arc::new(files);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (files, release) = (std::sync::Arc::clone(&files), release.clone());
                // An engine that hangs up is no matter.
                tokio::spawn(async move { drop(answer(stream, &files, release).await) });
            }
        });
        Self { port, released, serving }
    }

    /// The name of its image. To engines it needs no TLS, as it is on this machine.
    pub(crate) fn image(&self) -> String {
        format!("127.0.0.1:{}/slow/shell:1", self.port)
    }

    /// Lets the second half of the layer go.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What it serves: the blobs of an image, of which one is the layer.
struct Files {
    dir: TempDir,
    manifest: String,
    layer: String,
}

impl Files {
    /// A shell, and something that no other image has.
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (files, packed) = (dir.path().join("files.tar"), dir.path().join("image.tar"));
        std::fs::copy(images::archive(BUSYBOX), &files).unwrap();
        let more = format!("head -c {MORE} /dev/urandom > more");
        run(Command::new("sh").args(["-c", &more]).current_dir(&dir));
        run(Command::new("tar").arg("-rf").arg(&files).arg("more").current_dir(&dir));
        images::make_layout("slow/shell:1", &files, &packed);
        run(Command::new("tar").arg("-xf").arg(&packed).current_dir(&dir));
        let index = json(&dir.path().join("index.json"));
        let manifest = hex(&index["manifests"][0]);
        let layer = hex(&json(&blob(dir.path(), &manifest))["layers"][0]);
        Self { dir, manifest, layer }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
}

fn blob(dir: &Path, hex: &str) -> PathBuf {
    dir.join("blobs/sha256").join(hex)
}

async fn answer(
    mut stream: TcpStream,
    files: &Files,
    mut release: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut head = vec![stream.read_u8().await?];
    // An engine tries TLS first, and waits long for an answer.
    if head[0] == TLS {
        return Ok(());
    }
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (kind, hex) = match path.rsplit(['/', ':']).next().unwrap_or_default() {
        "" => return say(&mut stream, "200 OK", "application/json", b"{}").await,
        "1" => ("application/vnd.oci.image.manifest.v1+json", files.manifest.clone()),
        hex if *hex == files.manifest => ("application/vnd.oci.image.manifest.v1+json", hex.to_owned()),
        hex => ("application/octet-stream", hex.to_owned()),
    };
    let Ok(body) = std::fs::read(blob(files.dir.path(), &hex)) else {
        return say(&mut stream, "404 Not Found", "application/json", b"{}").await;
    };
    let digest = format!("{kind}\r\nDocker-Content-Digest: sha256:{hex}");
    begin(&mut stream, "200 OK", &digest, body.len()).await?;
    if method == "HEAD" {
        return Ok(());
    }
    let (first, second) = body.split_at(if hex == files.layer { body.len() / 2 } else { body.len() });
    for part in first.chunks(PART) {
        stream.write_all(part).await?;
        // An engine tells of progress now and then, and not of what comes all at once.
        tokio::time::sleep(std::time::Duration::from_millis(if second.is_empty() { 0 } else { 150 })).await;
    }
    if !second.is_empty() {
        let _ = release.wait_for(|released| *released).await;
        stream.write_all(second).await?;
    }
    stream.shutdown().await
}

async fn begin(stream: &mut TcpStream, status: &str, kind: &str, length: usize) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await
}

async fn say(stream: &mut TcpStream, status: &str, kind: &str, body: &[u8]) -> std::io::Result<()> {
    begin(stream, status, kind, body.len()).await?;
    stream.write_all(body).await
}
