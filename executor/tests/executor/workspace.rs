//! The files of a sandbox, served to those who trust nothing in it.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use sandmesh_proto::executor::{
    self as pb, entry::Kind, read_file_response::Frame as ReadFrame,
    workspace_service_client::WorkspaceServiceClient, write_file_request::Frame as WriteFrame,
};
use tonic::{Code, Status, transport::Channel};

use crate::support::*;

/// Asks for files.
struct Files(WorkspaceServiceClient<Channel>);

impl Files {
    async fn of(daemon: &Daemon) -> Self {
        Self(WorkspaceServiceClient::new(daemon.channel().await))
    }

    async fn write_frames(&mut self, frames: Vec<WriteFrame>) -> Result<pb::Entry, Status> {
        let frames = frames.into_iter().map(|frame| pb::WriteFileRequest { frame: Some(frame) });
        let frames: Vec<_> = frames.collect();
        let response = self.0.write_file(tokio_stream::iter(frames)).await?;
        Ok(response.into_inner().entry.unwrap())
    }

    async fn write(&mut self, path: impl Into<Bytes>, data: impl Into<Bytes>) -> Result<pb::Entry, Status> {
        let start = pb::WriteStart { path: path.into(), ..Default::default() };
        let mut frames = vec![WriteFrame::Start(start)];
        let mut data = data.into();
        while !data.is_empty() {
            frames.push(WriteFrame::Data(data.split_to(data.len().min(1 << 20))));
        }
        frames.push(WriteFrame::End(pb::WriteEnd {}));
        self.write_frames(frames).await
    }

    async fn read_range(
        &mut self,
        path: impl Into<Bytes>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Vec<u8>, Status> {
        let request = pb::ReadFileRequest { path: path.into(), offset, length };
        let mut frames = self.0.read_file(request).await?.into_inner();
        let mut data = Vec::new();
        while let Some(frame) = frames.message().await? {
            match frame.frame.unwrap() {
                ReadFrame::Entry(_) => assert!(data.is_empty()),
                ReadFrame::Data(piece) => data.extend_from_slice(&piece),
            }
        }
        Ok(data)
    }

    async fn read(&mut self, path: impl Into<Bytes>) -> Result<Vec<u8>, Status> {
        self.read_range(path, 0, None).await
    }

    async fn list(&mut self, path: impl Into<Bytes>) -> Result<BTreeMap<Vec<u8>, pb::Entry>, Status> {
        let request = pb::ListEntriesRequest { path: path.into() };
        let mut answers = self.0.list_entries(request).await?.into_inner();
        let mut entries = BTreeMap::new();
        while let Some(answer) = answers.message().await? {
            assert!(!answer.incomplete);
            entries.extend(answer.entries.into_iter().map(|entry| (entry.path.to_vec(), entry)));
        }
        Ok(entries)
    }

    async fn names(&mut self, path: impl Into<Bytes>) -> Vec<String> {
        let entries = self.list(path).await.unwrap();
        entries.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    async fn rename(&mut self, from: &str, to: &str, overwrite: bool) -> Result<(), Status> {
        let (source_path, target_path) = (from.to_owned().into(), to.to_owned().into());
        let request = pb::MoveEntryRequest { source_path, target_path, overwrite };
        self.0.move_entry(request).await.map(drop)
    }

    async fn make_directory(&mut self, path: &str) -> Result<(), Status> {
        let request = pb::MakeDirectoryRequest { path: path.to_owned().into(), mode: None };
        self.0.make_directory(request).await.map(drop)
    }

    async fn delete(&mut self, path: &str) -> Result<(), Status> {
        self.0.delete_entry(pb::DeleteEntryRequest { path: path.to_owned().into() }).await.map(drop)
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

async fn sandbox() -> (Daemon, Client, Files) {
    let daemon = Daemon::start(Settings::default()).await;
    let (client, files) = (daemon.client().await, Files::of(&daemon).await);
    (daemon, client, files)
}

#[tokio::test]
async fn what_is_written_is_what_code_reads_and_the_other_way_round() {
    let (_daemon, mut client, mut files) = sandbox().await;
    let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let written = files.write("data/nested/тест.bin", data.clone()).await.unwrap();
    assert_eq!((written.size_bytes, written.mode, written.kind()), (12_000_000, 0o644, Kind::File));
    let said =
        run(&mut client, shell("sha256sum < data/nested/тест.bin; echo out > data/made; id -u > owner"))
            .await;
    let sum = said.out();
    let said = run(&mut client, shell("cp data/nested/тест.bin copy; sha256sum < copy; rm owner")).await;
    assert_eq!(said.out(), sum);
    assert_eq!(files.read("copy").await.unwrap(), data);
    assert_eq!(files.read("data/made").await.unwrap(), b"out\n");
    assert_eq!(files.read_range("copy", 4, Some(8)).await.unwrap(), data[4..12]);
    assert_eq!(files.read_range("copy", 12_000_000, None).await.unwrap(), b"");
    assert_eq!(files.read_range("copy", 11_999_999, Some(100)).await.unwrap(), data[11_999_999..]);
    assert_eq!(refused(files.read_range("copy", 12_000_001, None).await), Code::OutOfRange);
    // The code may change what was written for it.
    let said = run(&mut client, shell("echo more >> data/nested/тест.bin && rm -r data && ls")).await;
    assert_eq!((said.code(), said.out().as_str()), (Some(0), "copy\n"), "{said:?}");
}

#[tokio::test]
async fn a_prefix_ends_where_a_component_does() {
    let (_daemon, _, mut files) = sandbox().await;
    for path in ["a/one", "a/b/two", "ab/three", "a.txt"] {
        files.write(path, "x").await.unwrap();
    }
    assert_eq!(files.names("a").await, ["a", "a/b", "a/b/two", "a/one"]);
    assert_eq!(files.names("a/b").await, ["a/b", "a/b/two"]);
    assert_eq!(files.names("a.txt").await, ["a.txt"]);
    assert_eq!(files.names("").await.len(), 7);
    assert_eq!(refused(files.list("a/o").await), Code::NotFound);
}

#[tokio::test]
async fn entries_are_moved_made_and_deleted() {
    let (_daemon, mut client, mut files) = sandbox().await;
    files.write("a", "1").await.unwrap();
    files.write("b", "2").await.unwrap();
    assert_eq!(refused(files.rename("a", "b", false).await), Code::AlreadyExists);
    files.rename("a", "b", true).await.unwrap();
    assert_eq!(files.read("b").await.unwrap(), b"1");
    files.rename("b", "new/deep/c", false).await.unwrap();
    assert_eq!(files.names("").await, ["new", "new/deep", "new/deep/c"]);
    files.rename("new", "old", false).await.unwrap();
    assert_eq!(refused(files.rename("old", "old/deep/x", false).await), Code::FailedPrecondition);
    assert_eq!(refused(files.rename("none", "x", false).await), Code::NotFound);
    files.make_directory("empty/one").await.unwrap();
    files.make_directory("empty/one").await.unwrap();
    assert_eq!(refused(files.rename("old", "empty/one", true).await), Code::AlreadyExists);
    assert_eq!(refused(files.make_directory("old/deep/c").await), Code::FailedPrecondition);
    assert_eq!(refused(files.make_directory("old/deep/c/d").await), Code::FailedPrecondition);
    assert_eq!(refused(files.write("old/deep", "x").await), Code::FailedPrecondition);
    assert_eq!(refused(files.delete("old").await), Code::FailedPrecondition);
    assert_eq!(refused(files.delete("none").await), Code::NotFound);
    for path in ["old/deep/c", "old/deep", "empty/one"] {
        files.delete(path).await.unwrap();
    }
    let said = run(&mut client, shell("find . | sort")).await;
    assert_eq!(said.out(), ".\n./empty\n./old\n");
}

#[tokio::test]
async fn no_path_leaves_the_workspace() {
    let (daemon, _, mut files) = sandbox().await;
    let long = "x/".repeat(2100) + "x";
    let component = "y".repeat(256);
    for path in ["../spool/x", "/etc/passwd", "a/../../x", "./a", "a//b", "a/", "nul\0", &long, &component] {
        assert_eq!(refused(files.read(path.to_owned()).await), Code::InvalidArgument, "{path}");
        assert_eq!(refused(files.write(path.to_owned(), "x").await), Code::InvalidArgument, "{path}");
        assert_eq!(refused(files.rename(path, "x", true).await), Code::InvalidArgument, "{path}");
        assert_eq!(refused(files.delete(path).await), Code::InvalidArgument, "{path}");
    }
    for result in
        [files.write("", "x").await.map(drop), files.delete("").await, files.read("").await.map(drop)]
    {
        assert_eq!(refused(result), Code::InvalidArgument);
    }
    assert_eq!(std::fs::read_dir(daemon.dir.join("workspace")).unwrap().count(), 0);
}

#[tokio::test]
async fn no_link_is_followed() {
    let (daemon, mut client, mut files) = sandbox().await;
    let outside = daemon.dir.parent().unwrap().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "host").unwrap();
    let (there, file) = (outside.display(), outside.join("file"));
    let plant = format!(
        "ln -s {there} dir; ln -s {} file; ln -s ../spool up; ln -s /proc/self/fd fds",
        file.display()
    );
    assert_eq!(run(&mut client, shell(&plant)).await.code(), Some(0));
    for path in ["dir/file", "file", "up/x", "fds/0"] {
        assert_eq!(refused(files.read(path).await), Code::FailedPrecondition, "{path}");
    }
    for path in ["dir/file", "up/x", "fds/0"] {
        assert_eq!(refused(files.write(path, "owned").await), Code::FailedPrecondition, "{path}");
        assert_eq!(refused(files.delete(path).await), Code::FailedPrecondition, "{path}");
        assert_eq!(refused(files.make_directory(path).await), Code::FailedPrecondition, "{path}");
    }
    // The link itself is what is replaced, moved and deleted.
    files.write("file", "mine").await.unwrap();
    files.rename("dir", "elsewhere", false).await.unwrap();
    assert_eq!(files.list("elsewhere").await.unwrap()[&b"elsewhere"[..]].kind(), Kind::Link);
    files.delete("elsewhere").await.unwrap();
    assert_eq!(files.read("file").await.unwrap(), b"mine");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "host");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[tokio::test]
async fn swapping_a_directory_for_a_link_reaches_nothing_outside() {
    let (daemon, mut client, mut files) = sandbox().await;
    let outside = daemon.dir.parent().unwrap().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "host").unwrap();
    let there = outside.display();
    // What is made in its place meanwhile is taken away.
    let swap = format!(
        r#"
import os, shutil
os.mkdir('real')
os.symlink('{there}', 'link')
while True:
    for name in 'real', 'link':
        try:
            os.rename(name, 'd')
            os.rename('d', name)
        except OSError:
            shutil.rmtree('d', ignore_errors=True)
"#
    );
    let start = pb::ExecutionStart { timeout: seconds(4.0), ..script(&swap) };
    let swapping = tokio::spawn(async move { run(&mut client, start).await });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
    let mut written = 0;
    while tokio::time::Instant::now() < deadline {
        assert!(files.read("d/secret").await.is_err());
        written += u32::from(files.write("d/file", "mine").await.is_ok());
        let _ = files.make_directory("d/made").await;
        let _ = files.delete("d/secret").await;
    }
    assert_eq!(swapping.await.unwrap().cause(), pb::Cause::Timeout);
    let left: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["secret"]);
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "host");
    assert!(written > 0, "it was never there to be written");
}

#[tokio::test]
async fn what_is_no_file_is_not_opened() {
    let (_daemon, mut client, mut files) = sandbox().await;
    let make = "import os, socket\nos.mkfifo('fifo')\ns = socket.socket(socket.AF_UNIX)\ns.bind('socket')\nos.mkdir('d')";
    assert_eq!(run(&mut client, script(make)).await.code(), Some(0));
    for path in ["fifo", "socket", "d"] {
        let read = tokio::time::timeout(Duration::from_secs(5), files.read(path)).await.unwrap();
        assert_eq!(refused(read), Code::FailedPrecondition, "{path}");
    }
    assert_eq!(files.names("").await, ["d"]);
    files.write("fifo", "a file now").await.unwrap();
    assert_eq!(files.read("fifo").await.unwrap(), b"a file now");
}

#[tokio::test]
async fn nothing_is_seen_of_a_file_before_its_end() {
    let (daemon, mut client, mut files) = sandbox().await;
    files.write("file", "before").await.unwrap();
    let start = || WriteFrame::Start(pb::WriteStart { path: "file".into(), ..Default::default() });
    let half = vec![start(), WriteFrame::Data("half".into())];
    assert_eq!(refused(files.write_frames(half).await), Code::InvalidArgument);
    assert_eq!(refused(files.write_frames(vec![]).await), Code::InvalidArgument);
    assert_eq!(refused(files.write_frames(vec![start(), start()]).await), Code::InvalidArgument);
    assert_eq!(files.read("file").await.unwrap(), b"before");
    let said = run(&mut client, shell("ls -A")).await;
    assert_eq!(said.out(), "file\n");
    assert_eq!(std::fs::read_dir(daemon.dir.join("workspace")).unwrap().count(), 1);
}

#[tokio::test]
async fn files_from_outside_keep_the_disk_limit() {
    let daemon = Daemon::start(Settings { disk_bytes: 16 << 20, ..Settings::default() }).await;
    let mut files = Files::of(&daemon).await;
    files.write("ten", vec![1; 10 << 20]).await.unwrap();
    let error = files.write("more", vec![1; 10 << 20]).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert_eq!(files.names("").await, ["ten"]);
    files.delete("ten").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    files.write("more", vec![1; 10 << 20]).await.unwrap();
}

#[tokio::test]
async fn names_are_bytes_and_modes_and_times_are_kept() {
    let (_daemon, mut client, mut files) = sandbox().await;
    let start = pb::WriteStart {
        path: Bytes::from_static(b"\xff\xfe name\n"),
        mode: Some(0o4755),
        modified_at: Some(prost_types::Timestamp { seconds: 1_000_000_000, nanos: 5 }),
    };
    let frames = vec![WriteFrame::Start(start), WriteFrame::End(pb::WriteEnd {})];
    let entry = files.write_frames(frames).await.unwrap();
    assert_eq!((entry.mode, entry.modified_at.unwrap().seconds), (0o755, 1_000_000_000));
    let said = run(
        &mut client,
        script("import os\nprint(os.listdir(b'.'), oct(os.stat(os.listdir(b'.')[0]).st_mode))"),
    )
    .await;
    assert_eq!(said.out(), "[b'\\xff\\xfe name\\n'] 0o100755\n");
    let request = pb::MakeLinkRequest { path: "link".into(), target: "nowhere/at all".into() };
    files.0.make_link(request).await.unwrap();
    assert_eq!(files.list("").await.unwrap()[&b"link"[..]].target, "nowhere/at all");
}

/// The names of what changed.
fn changed(said: &Said) -> (Vec<String>, bool) {
    let exited = said.exited();
    let names = exited.changed_files.iter().map(|file| String::from_utf8_lossy(&file.path).into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    (names, exited.workspace_changed)
}

#[tokio::test]
async fn an_execution_tells_which_files_it_made_or_changed() {
    let (_daemon, mut client, mut files) = sandbox().await;
    files.write("given", "x").await.unwrap();
    let mut tell = async |text: &str| {
        // The clock of files has a granularity.
        tokio::time::sleep(Duration::from_millis(20)).await;
        changed(&run(&mut client, shell(text)).await)
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(tell("cat given").await, (names(&[]), false));
    assert_eq!(
        tell("mkdir -p a/b; echo 1 > a/b/new; echo 2 >> given").await,
        (names(&["a/b/new", "given"]), true)
    );
    assert_eq!(tell("echo 3 > a/b/new; touch -d 2001-01-01 a/b/new").await, (names(&["a/b/new"]), true));
    assert_eq!(tell("mv a/b/new moved").await, (names(&["moved"]), true));
    assert_eq!(tell("rm moved").await, (names(&[]), true));
    assert_eq!(tell("ln -s given link; mkfifo fifo").await, (names(&[]), true));
    assert_eq!(tell("mkdir __pycache__; echo > __pycache__/x.pyc").await, (names(&[]), true));
    assert_eq!(tell("for i in $(seq 600); do echo > f$i; done").await.0.len(), 600);
    assert_eq!(tell("sleep 0.1; ls").await, (names(&[]), false));
    assert_eq!(tell("sleep 0.1; exec kill -9 $$").await, (names(&[]), false));
}
