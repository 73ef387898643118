//! Much output: it arrives whole, whoever reads it and however slowly, and nobody's memory grows with it.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::{
    harness::{Server, Wiring},
    streams_watch::{End, Front, Out, Watcher},
};

in_both_wirings!(readers_that_stall_cost_no_memory_and_miss_nothing);

/// The output comes in blocks: a number, and then the same text in each.
const BLOCK: usize = 1_000_000;

/// How long the number of a block is.
const NUMBER: usize = 10;

/// How much more memory a process may take than before.
const GROWTH_KIB: u64 = 64 << 10;

const ROOM: [(&str, &str); 2] =
    [("SANDMESH_AGENT__MAX_OUTPUT", "2GiB"), ("SANDMESH_SESSION__MAX_OUTPUT", "2GiB")];

/// Writes so many blocks to the standard output.
fn writing(blocks: usize) -> Value {
    let code = format!(
        "import sys\n\
         text = b''.join(b'%07d ' % n for n in range({BLOCK} // 8))[:{BLOCK} - {NUMBER}]\n\
         for n in range({blocks}):\n    sys.stdout.buffer.write(b'%09d:' % n + text)\n"
    );
    json!({"language": "python", "mode": "script", "code": code, "timeout": 600})
}

/// Checks that it is given, byte for byte, what [`writing`] writes.
struct Blocks {
    text: Vec<u8>,
    at: usize,
}

impl Blocks {
    fn from(at: usize) -> Self {
        let text: Vec<u8> = (0..BLOCK / 8).flat_map(|n| format!("{n:07} ").into_bytes()).collect();
        Self { text: text[..BLOCK - NUMBER].to_vec(), at }
    }

    fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (block, within) = (self.at / BLOCK, self.at % BLOCK);
            let number = format!("{block:09}:").into_bytes();
            let expected = number.get(within..).filter(|rest| !rest.is_empty());
            let expected = expected.unwrap_or_else(|| &self.text[within.saturating_sub(NUMBER)..]);
            let length = expected.len().min(bytes.len());
            assert!(bytes[..length] == expected[..length], "another byte within {length} after {}", self.at);
            self.at += length;
            bytes = &bytes[length..];
        }
    }
}

/// Follows to the end and checks every byte; gives how many there were.
async fn checked(mut watcher: Watcher) -> usize {
    let mut blocks = Blocks::from(usize::try_from(watcher.at.stdout).unwrap());
    let end = watcher
        .until_end(|out, bytes| {
            assert_eq!(out, Out::Stdout);
            blocks.check(bytes);
            true
        })
        .await;
    assert_eq!(end, End::Ended { state: "completed".into(), cause: String::new() }, "{watcher:?}");
    blocks.at
}

fn fronts(server: &Server) -> [Front; 2] {
    [Front::Grpc(format!("http://127.0.0.1:{}", server.port)), Front::Sse(server.api.clone())]
}

/// The memory of the processes that output passes through.
struct Memory(Vec<(String, i32, u64)>);

impl Memory {
    /// Notes what each takes now, and has the system forget what each took at most.
    fn of(server: &Server) -> Self {
        let mut all: Vec<(String, i32)> =
            server.processes.iter().map(|process| (process.launch.name.clone(), process.pid())).collect();
        all.extend(server.executors().into_iter().map(|pid| ("executor".to_owned(), pid)));
        let noted = all.into_iter().map(|(name, pid)| {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
            let now = kibibytes(pid, "VmRSS");
            (name, pid, now)
        });
        Self(noted.collect())
    }

    /// None took much more since.
    #[track_caller]
    fn stayed_flat(&self, what: &str) {
        for (name, pid, before) in &self.0 {
            let most = kibibytes(*pid, "VmHWM");
            println!("{what}: {name}: {before} KiB before, {most} KiB at most");
            assert!(most < before + GROWTH_KIB, "{what}: {name} grew from {before} KiB to {most} KiB");
        }
    }
}

fn kibibytes(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Where roles are processes of their own, so that each one's memory shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_gigabyte_arrives_whole_by_every_way_and_memory_stays_flat() {
    const BLOCKS: usize = 1000;
    let server = Wiring::Split.start_with(&ROOM).await;
    let id = server.api.session().await;
    // What everything takes once it has done it all.
    let warm = server.api.start(&id, writing(20)).await;
    for front in fronts(&server) {
        assert_eq!(checked(Watcher::new(front, &warm)).await, 20 * BLOCK);
    }
    let memory = Memory::of(&server);
    let execution = server.api.start(&id, writing(BLOCKS)).await;
    let live = fronts(&server).map(|front| checked(Watcher::new(front, &execution)));
    let began = std::time::Instant::now();
    for bytes in futures::future::join_all(live).await {
        assert_eq!(bytes, BLOCKS * BLOCK);
    }
    println!("a gigabyte, twice at once: {:?}", began.elapsed());
    memory.stayed_flat("live");
    let run = server.api.get(&format!("/executions/{execution}")).await.is(200);
    assert_eq!((&run["status"], &run["exit_code"]), (&json!("completed"), &json!(0)));
    // All of it is recorded, up to the last byte.
    let mut late = Watcher::new(fronts(&server)[0].clone(), &execution);
    late.at.stdout = u64::try_from((BLOCKS - 100) * BLOCK + 7).unwrap();
    assert_eq!(checked(late).await, BLOCKS * BLOCK);
    memory.stayed_flat("replayed");
    server.api.delete(&format!("/sessions/{id}")).await;
    server.expect_nothing_left(Duration::from_secs(10)).await;
}

async fn readers_that_stall_cost_no_memory_and_miss_nothing(wiring: Wiring) {
    const BLOCKS: usize = 48;
    let server = wiring.start_with(&ROOM).await;
    let api = &server.api;
    let id = api.session().await;
    api.execute(&id, writing(8)).await;
    let memory = Memory::of(&server);
    let execution = api.start(&id, writing(BLOCKS)).await;
    let mut stalled = Vec::new();
    for front in fronts(&server).into_iter().cycle().take(6) {
        let watcher = Watcher::new(front, &execution);
        let open = watcher.open().await.unwrap();
        stalled.push((watcher, open));
    }
    // The run goes on to its end, and so does who reads.
    assert_eq!(checked(Watcher::new(fronts(&server)[0].clone(), &execution)).await, BLOCKS * BLOCK);
    assert_eq!(api.run(&id, "shell", "echo on").await["stdout"], "on\n");
    memory.stayed_flat("stalled");
    for (mut watcher, open) in stalled {
        let mut blocks = Blocks::from(0);
        let end = watcher
            .read(open, &mut |_, bytes: &[u8]| {
                blocks.check(bytes);
                true
            })
            .await;
        assert_eq!(end, End::Ended { state: "completed".into(), cause: String::new() }, "{watcher:?}");
        assert_eq!(blocks.at, BLOCKS * BLOCK);
    }
    memory.stayed_flat("read at last");
}
