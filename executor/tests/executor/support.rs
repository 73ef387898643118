//! A real executor in a temporary directory, and a client that collects what an execution says.

use std::{
    collections::{HashMap, HashSet},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use sandmesh_proto::executor::{
    self as pb, execute_request::Frame as Input, execute_response::Frame,
    executor_service_client::ExecutorServiceClient,
};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

pub(crate) type Client = ExecutorServiceClient<Channel>;

pub(crate) const EXECUTOR: &str = env!("CARGO_BIN_EXE_sandmesh-executor");

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Settings of a daemon; the rest is fixed.
pub(crate) struct Settings {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) max_processes: u32,
    pub(crate) max_executions: u32,
    pub(crate) max_queued: u32,
    pub(crate) max_output_bytes: u64,
    pub(crate) disk_bytes: u64,
    /// Who runs the executor; root if `None`.
    pub(crate) user: Option<u32>,
    /// The executor, where that user can reach it; a copy if `None`.
    pub(crate) program: Option<PathBuf>,
    /// Whether its Pythons come of the snapshot that all tests share, as they do on a node; only root's do.
    pub(crate) snapshots: bool,
    pub(crate) more: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            cpu_millis: 2000,
            max_processes: 128,
            max_executions: 4,
            max_queued: 16,
            max_output_bytes: 1 << 20,
            disk_bytes: 256 << 20,
            user: None,
            program: None,
            snapshots: true,
            more: Vec::new(),
        }
    }
}

/// A running executor; dropped, everything of it is destroyed.
pub(crate) struct Daemon {
    pub(crate) dir: PathBuf,
    pub(crate) sandbox_id: String,
    pub(crate) cgroup_parent: String,
    pub(crate) child: Child,
    temp: tempfile::TempDir,
}

impl Daemon {
    pub(crate) async fn start(settings: Settings) -> Self {
        Self::start_in(settings, None).await
    }

    /// Starts it in a directory that is there already, or in a new one.
    pub(crate) async fn start_in(mut settings: Settings, dir: Option<PathBuf>) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A name of its own even after a crash of an earlier run.
        let name = format!("sandmesh-test-{}-{number}", std::process::id());
        let dir = dir.unwrap_or_else(|| temp.path().join("box"));
        let mut command = Command::new(EXECUTOR);
        if let Some(user) = settings.user {
            // Where that user can reach it, wherever the tests are built.
            let program = settings.program.take().unwrap_or_else(|| {
                let program = temp.path().join("executor");
                std::fs::copy(EXECUTOR, &program).unwrap();
                program
            });
            std::os::unix::fs::chown(temp.path(), Some(user), Some(user)).unwrap();
            command = Command::new(program);
            command.uid(user).gid(user);
        }
        if !settings.more.iter().any(|flag| flag == "--expires-at") {
            // Whatever becomes of the test, its daemon does not stay.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            settings.more.extend(["--expires-at".to_owned(), (now + 300).to_string()]);
        }
        if settings.snapshots && settings.user.is_none() {
            let copies = shared_copies().to_str().unwrap().to_owned();
            settings.more.extend(["--copies".to_owned(), copies, "--snapshots".to_owned()]);
        }
        let child = command
            .arg("serve")
            .args(["--dir".as_ref(), dir.as_os_str()])
            .args(["--sandbox-id", &name, "--uid", &uid().to_string(), "--cgroup-parent", &name])
            .args(["--memory-bytes", &settings.memory_bytes.to_string()])
            .args(["--cpu-millis", &settings.cpu_millis.to_string()])
            .args(["--max-processes", &settings.max_processes.to_string()])
            .args(["--disk-bytes", &settings.disk_bytes.to_string()])
            .args(["--max-executions", &settings.max_executions.to_string()])
            .args(["--max-queued", &settings.max_queued.to_string()])
            .args(["--max-output-bytes", &settings.max_output_bytes.to_string()])
            .args(&settings.more)
            .env("SECRET_OF_THE_HOST", "leaked")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(temp.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let daemon = Self { dir, sandbox_id: name.clone(), cgroup_parent: name, child, temp };
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(daemon.dir.join("executor.sock")).await.is_err() {
            assert!(Instant::now() < deadline, "no executor: {}", daemon.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemon
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.temp.path().join("log")).unwrap_or_default()
    }

    pub(crate) async fn client(&self) -> Client {
        ExecutorServiceClient::new(self.channel().await)
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20)
    }

    pub(crate) async fn channel(&self) -> Channel {
        let socket = self.dir.join("executor.sock");
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://executor");
        endpoint.connect_with_connector(connect).await.unwrap()
    }

    /// The directories of the sandbox's group, one per hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        cgroups_named(&self.cgroup_parent)
    }

    /// The processes of executions.
    pub(crate) fn running(&self) -> Vec<u32> {
        let is_run = |found: &Vec<u32>| !matches!(found[..], [spare] | [spare, _] if is_spare(spare));
        let mut pids: Vec<u32> = self.runs().into_iter().filter(is_run).flatten().collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether there is a process that waits for its request.
    pub(crate) fn has_spare(&self) -> bool {
        self.runs().iter().any(|found| matches!(found[..], [spare] | [spare, _] if waits(spare)))
    }

    /// The processes of each group of an execution or a spare, in each hierarchy.
    fn runs(&self) -> Vec<Vec<u32>> {
        let groups = self.cgroups().into_iter().map(|group| group.join(&self.sandbox_id).join("runs"));
        let groups = groups.flat_map(|runs| std::fs::read_dir(runs).into_iter().flatten().flatten());
        let procs = groups.map(|group| std::fs::read_to_string(group.path().join("cgroup.procs")));
        procs
            .map(|procs| procs.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect())
            .collect()
    }

    pub(crate) fn destroy(&self) -> Output {
        Command::new(EXECUTOR)
            .arg("destroy")
            .args(["--dir".as_ref(), self.dir.as_os_str()])
            .args(["--sandbox-id", &self.sandbox_id, "--cgroup-parent", &self.cgroup_parent])
            .output()
            .unwrap()
    }
}

/// Whether a process is one that waits for its request: it still has what it will close when user code
/// starts. Right after its fork it has not yet.
fn is_spare(pid: u32) -> bool {
    waits(pid) || {
        std::thread::sleep(Duration::from_millis(20));
        waits(pid) || !Path::new(&format!("/proc/{pid}")).exists()
    }
}

fn waits(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/fd/5")).exists()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the executor:\n{}", self.log());
        }
        let output = self.destroy();
        let _ = self.child.wait();
        if !output.status.success() {
            eprintln!("destroy: {}", String::from_utf8_lossy(&output.stderr));
        }
        for group in self.cgroups() {
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// A uid that nobody has.
pub(crate) fn uid() -> u32 {
    300_000 + std::process::id() % 100_000
}

/// What an execution said, put together.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) started: Option<pb::ExecutionStarted>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exited: Option<pb::ExecutionExited>,
    pub(crate) failed: Option<pb::ExecutionFailed>,
}

impl Said {
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    #[track_caller]
    pub(crate) fn exited(&self) -> &pb::ExecutionExited {
        self.exited.as_ref().unwrap_or_else(|| panic!("did not exit: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn code(&self) -> Option<i32> {
        match self.exited().status {
            Some(pb::execution_exited::Status::ExitCode(code)) => Some(code),
            _ => None,
        }
    }

    #[track_caller]
    pub(crate) fn signal(&self) -> Option<i32> {
        match self.exited().status {
            Some(pb::execution_exited::Status::Signal(signal)) => Some(signal),
            _ => None,
        }
    }

    #[track_caller]
    pub(crate) fn cause(&self) -> pb::Cause {
        self.exited().cause()
    }

    #[track_caller]
    pub(crate) fn value(&self) -> serde_json::Value {
        let json = self.exited().return_value_json.as_ref();
        serde_json::from_slice(json.unwrap_or_else(|| panic!("no return value: {self:?}"))).unwrap()
    }

    #[track_caller]
    pub(crate) fn error(&self) -> &pb::UserError {
        self.exited().error.as_ref().unwrap_or_else(|| panic!("no error: {self:?}"))
    }

    /// Takes a frame, checking that offsets are exact; true if it is the last.
    pub(crate) fn take(&mut self, frame: Frame, base: (u64, u64)) -> bool {
        match frame {
            Frame::Started(started) => assert!(self.started.replace(started).is_none(), "started twice"),
            Frame::Stdout(chunk) => {
                assert_eq!(chunk.offset, base.0 + self.stdout.len() as u64);
                self.stdout.extend_from_slice(&chunk.data);
            }
            Frame::Stderr(chunk) => {
                assert_eq!(chunk.offset, base.1 + self.stderr.len() as u64);
                self.stderr.extend_from_slice(&chunk.data);
            }
            Frame::Exited(exited) => self.exited = Some(exited),
            Frame::Failed(failed) => self.failed = Some(failed),
            Frame::InputTaken(_) => {}
        }
        self.exited.is_some() || self.failed.is_some()
    }
}

/// A stream that is still open: frames go in and come out.
pub(crate) struct Talk {
    pub(crate) send: mpsc::Sender<pb::ExecuteRequest>,
    pub(crate) receive: Streaming<pb::ExecuteResponse>,
    /// How far the input was taken, as was told last.
    pub(crate) taken: Option<pb::InputTaken>,
}

impl Talk {
    pub(crate) async fn open(client: &mut Client, first: Input) -> Result<Self, Status> {
        let (send, frames) = mpsc::channel(16);
        send.send(pb::ExecuteRequest { frame: Some(first) }).await.unwrap();
        let receive = client.execute(ReceiverStream::new(frames)).await?.into_inner();
        Ok(Self { send, receive, taken: None })
    }

    pub(crate) async fn send(&self, frame: Input) {
        let _ = self.send.send(pb::ExecuteRequest { frame: Some(frame) }).await;
    }

    /// The next frame, but for those that tell how far the input was taken: they are noted.
    pub(crate) async fn next(&mut self) -> Option<Result<Frame, Status>> {
        loop {
            match self.any().await? {
                Ok(Frame::InputTaken(_)) => {}
                frame => return Some(frame),
            }
        }
    }

    async fn any(&mut self) -> Option<Result<Frame, Status>> {
        let frame = self.receive.next().await?.map(|response| response.frame.unwrap());
        match (&frame, &self.taken) {
            (Ok(Frame::InputTaken(taken)), told) => {
                let back = |told: &pb::InputTaken| taken.stdin_offset < told.stdin_offset;
                assert!(Some(*taken) != *told && !told.as_ref().is_some_and(back), "{told:?}, {taken:?}");
                self.taken = Some(*taken);
            }
            (Ok(frame), None) => panic!("comes before how far the input was taken: {frame:?}"),
            _ => {}
        }
        Some(frame)
    }

    /// Reads until it is told that the input was taken so far; output is dropped.
    pub(crate) async fn until_taken(&mut self, so_far: impl Fn(&pb::InputTaken) -> bool) -> pb::InputTaken {
        while !self.taken.as_ref().is_some_and(&so_far) {
            let frame = self.any().await.unwrap_or_else(|| panic!("ended after {:?}", self.taken)).unwrap();
            assert!(!matches!(frame, Frame::Exited(_) | Frame::Failed(_)), "{:?}, {frame:?}", self.taken);
        }
        self.taken.unwrap()
    }

    /// Reads until the standard output holds this.
    pub(crate) async fn until_stdout(&mut self, said: &mut Said, text: &str) {
        while !said.out().contains(text) {
            let frame = self.next().await.unwrap_or_else(|| panic!("no `{text}` in {said:?}")).unwrap();
            assert!(!said.take(frame, (0, 0)), "no `{text}` in {said:?}");
        }
    }

    pub(crate) async fn rest(mut self, mut said: Said, base: (u64, u64)) -> Result<Said, Status> {
        let mut ended = false;
        while let Some(frame) = self.next().await {
            assert!(!ended, "a frame after the last");
            ended = said.take(frame?, base);
        }
        assert!(ended, "the stream ended early: {said:?}");
        Ok(said)
    }
}

pub(crate) fn id() -> String {
    format!("exec_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn seconds(seconds: f64) -> Option<prost_types::Duration> {
    Duration::from_secs_f64(seconds).try_into().ok()
}

pub(crate) fn code(language: pb::Language, code: &str) -> pb::ExecutionStart {
    pb::ExecutionStart {
        execution_id: id(),
        session_id: "sess_1".into(),
        language: language.into(),
        code: code.to_owned().into(),
        timeout: seconds(20.0),
        ..Default::default()
    }
}

pub(crate) fn python(text: &str) -> pb::ExecutionStart {
    code(pb::Language::Python, text)
}

pub(crate) fn script(text: &str) -> pb::ExecutionStart {
    pb::ExecutionStart { mode: pb::Mode::Script.into(), ..python(text) }
}

pub(crate) fn javascript(text: &str) -> pb::ExecutionStart {
    code(pb::Language::Javascript, text)
}

pub(crate) fn shell(text: &str) -> pb::ExecutionStart {
    code(pb::Language::Shell, text)
}

pub(crate) fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn attach(id: &str, stdout: u64, stderr: u64) -> Input {
    Input::Attach(pb::ExecutionAttach {
        execution_id: id.to_owned(),
        stdout_offset: stdout,
        stderr_offset: stderr,
    })
}

/// A signal; a sequence of 0 is none.
pub(crate) fn signal(signal: i32, sequence: u64) -> Input {
    Input::Signal(pb::SignalRequest { signal, sequence })
}

/// Runs to the end.
pub(crate) async fn run(client: &mut Client, start: pb::ExecutionStart) -> Said {
    let talk = Talk::open(client, Input::Start(start)).await.unwrap();
    talk.rest(Said::default(), (0, 0)).await.unwrap()
}

/// The directories of a group, one per hierarchy that has it.
pub(crate) fn cgroups_named(name: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    points.map(|point| Path::new(point).join(name)).filter(|path| path.exists()).collect()
}

/// A directory with a copy and a snapshot of Python, as a node has one: made by the first test that needs it, of the
/// executor that was built last.
fn shared_copies() -> PathBuf {
    // A snapshot is of one start of the machine.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("interpreters-{}", boot.trim()));
    let lock = std::fs::File::create(dir.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let changed = |path: &Path| path.metadata().unwrap().modified().unwrap();
    if !snapshots(&dir).iter().any(|snapshot| changed(snapshot) > changed(EXECUTOR.as_ref())) {
        copy_to(&dir, &["--snapshots"]);
    }
    dir
}

/// Has copies of Python made.
pub(crate) fn copy_to(dir: &Path, flags: &[&str]) {
    let output = copy_command(dir, flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What makes copies of Python.
pub(crate) fn copy_command(dir: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(EXECUTOR);
    command.arg("copy").arg("--into").arg(dir).args(["--uid", &uid().to_string()]).args(flags);
    command
}

/// The snapshots of a directory.
pub(crate) fn snapshots(copies: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(copies).into_iter().flatten().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|ending| ending == "snapshot")).collect()
}

/// The processes of warm parents, by the group that they are in.
pub(crate) fn parents(daemon: &Daemon) -> Vec<u32> {
    let groups = daemon.cgroups();
    let procs = groups.iter().map(|group| group.join(&daemon.sandbox_id).join("parents/cgroup.procs"));
    let text: String = procs.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    let pids: HashSet<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    pids.into_iter().collect()
}

/// Whether this process is a Python that holds or held a rehearsal, or its jail.
pub(crate) fn is_rehearsed(pid: &u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.contains("rehearsed-parent"))
}

/// Runs so much that the Python is replaced by one that held a rehearsal. How many executions that took.
pub(crate) async fn wear_out(client: &mut Client) -> usize {
    let text = "def handler(e): return 'memfd:interpreter' in open('/proc/self/maps').read()";
    for number in 1..500 {
        if run(client, python(text)).await.value() == true {
            return number;
        }
        // Parents are looked at every few seconds.
        tokio::time::sleep(Duration::from_millis(if number > 100 { 50 } else { 0 })).await;
    }
    panic!("the parent is still the first");
}
