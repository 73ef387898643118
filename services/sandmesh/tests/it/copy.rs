//! `sandmesh cp`, run as people run it, against a real server.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    cli::{run, sandmesh},
    harness::{Server, Wiring, eventually, process::signal},
};

in_both_wirings!(
    a_file_is_copied_in_and_out_byte_for_byte,
    a_directory_is_copied_with_all_that_is_in_it,
    a_pipe_is_a_file_like_others,
    what_cannot_be_copied_is_told_and_leaves_nothing,
    files_come_out_of_a_session_that_ended,
);

/// Runs `sandmesh cp`, which has to succeed; gives what it told.
#[track_caller]
fn cp(server: &Server, args: &[&str]) -> String {
    let (code, stdout, stderr) = run(server, &[&["cp"], args].concat());
    assert_eq!((code, stdout.as_str()), (0, ""), "{args:?}: {stderr}");
    stderr
}

/// Runs `sandmesh cp`, which has to fail in this way.
#[track_caller]
fn refused(server: &Server, args: &[&str], code: i32, text: &str) {
    let (found, stdout, stderr) = run(server, &[&["cp"], args].concat());
    assert_eq!((found, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
    assert!(stderr.contains(text), "{args:?}: {stderr}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An empty directory of the test.
fn directory(server: &Server, name: &str) -> PathBuf {
    let path = server.scratch().join(name);
    fs::create_dir(&path).unwrap();
    path
}

/// The names in a directory, also hidden ones.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn a_file_is_copied_in_and_out_byte_for_byte(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let at = |path: &str| format!("{id}:{path}");
    let here = directory(&server, "here");
    let content: Vec<u8> = (0..3_000_001_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let tool = here.join("größe 1.bin");
    fs::write(&tool, &content).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(here.join("empty"), "").unwrap();

    cp(&server, &[text(&tool), &at("new/tool")]);
    cp(&server, &[text(&tool), &at("/workspace/new/")]);
    cp(&server, &[text(&tool), &at("new")]);
    cp(&server, &[text(&tool), &at("")]);
    cp(&server, &[text(&here.join("empty")), &at("/")]);
    assert_eq!(server.api.files(&id, "").await, ["empty", "größe 1.bin", "new/größe 1.bin", "new/tool"]);
    let mode = server.api.run(&id, "shell", "stat -c %a new/tool; cmp new/tool 'größe 1.bin'").await;
    assert_eq!(mode["stdout"], "750\n", "{mode}");

    let back = directory(&server, "back");
    cp(&server, &[&at("new/tool"), text(&back.join("copy"))]);
    cp(&server, &[&at("/workspace/new/größe 1.bin"), text(&back)]);
    cp(&server, &[&at("empty"), text(&back)]);
    assert_eq!(names(&back), ["copy", "empty", "größe 1.bin"]);
    assert!(fs::read(back.join("copy")).unwrap() == content);
    assert!(fs::read(back.join("größe 1.bin")).unwrap() == content);
    assert_eq!(fs::read(back.join("empty")).unwrap(), b"");

    // What is there is replaced, and a link to it is not.
    fs::write(here.join("empty"), "second").unwrap();
    cp(&server, &[text(&here.join("empty")), &at("empty")]);
    fs::set_permissions(back.join("empty"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(back.join("empty"), back.join("link")).unwrap();
    cp(&server, &[&at("empty"), text(&back.join("link"))]);
    assert!(back.join("link").is_symlink());
    assert_eq!(fs::read(back.join("empty")).unwrap(), b"second");
    assert_eq!(fs::metadata(back.join("empty")).unwrap().permissions().mode() & 0o777, 0o600);
    cp(&server, &[&at("empty"), "/dev/null"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file(), "a device is written to");

    let (code, told, stderr) = run(&server, &["cp", &at("new/tool"), text(&back.join("copy")), "-o", "json"]);
    let told: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!((code, told), (0, json!({"files": 1, "bytes": 3_000_001})));
}

async fn a_directory_is_copied_with_all_that_is_in_it(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let at = |path: &str| format!("{id}:{path}");
    let project = directory(&server, "project");
    fs::create_dir_all(project.join("src/deep")).unwrap();
    fs::create_dir(project.join("nothing")).unwrap();
    fs::write(project.join("main.py"), "print(1)\n").unwrap();
    fs::write(project.join("src/deep/x.py"), "x = 1\n").unwrap();
    symlink("/etc/passwd", project.join("link")).unwrap();

    refused(&server, &[text(&project), &at("p")], 2, "give -r");
    let told = cp(&server, &["-r", text(&project), &at("p")]);
    assert!(told.contains("left out") && told.contains("link"), "{told}");
    let files = ["p/main.py", "p/src/deep/x.py"];
    assert_eq!(server.api.files(&id, "").await, files);
    // It is there now: the next goes into it.
    cp(&server, &["-r", text(&project), &at("p")]);
    cp(&server, &["-r", &format!("{}/.", text(&project)), &at("content/")]);
    assert_eq!(server.api.files(&id, "p/project").await, ["p/project/main.py", "p/project/src/deep/x.py"]);
    assert_eq!(server.api.files(&id, "content").await, ["content/main.py", "content/src/deep/x.py"]);
    let code = "rm -r p/project content; ln -s /etc/passwd p/inside; test -d p/nothing && mkdir p-neighbour && \
                echo no > p-neighbour/file";
    assert_eq!(server.api.run(&id, "shell", code).await["exit_code"], 0);

    let back = directory(&server, "back");
    refused(&server, &[&at("p"), text(&back)], 2, "give -r");
    let told = cp(&server, &["-r", &at("p"), text(&back)]);
    assert!(told.contains("left out") && told.contains("p/inside"), "{told}");
    assert_eq!(names(&back), ["p"]);
    assert_eq!(names(&back.join("p")), ["main.py", "nothing", "src"]);
    assert_eq!(fs::read_to_string(back.join("p/src/deep/x.py")).unwrap(), "x = 1\n");
    assert_eq!(names(&back.join("p/nothing")), Vec::<String>::new());
    let whole = back.join("whole");
    cp(&server, &["-r", &at(""), text(&whole)]);
    assert_eq!(names(&whole), ["p", "p-neighbour"]);
    refused(&server, &["-r", &at("none/"), text(&back)], 125, "not found");
    refused(&server, &["-r", &at("p"), "-"], 2, "standard output");
}

async fn a_pipe_is_a_file_like_others(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let at = |path: &str| format!("{id}:{path}");
    let mut sending = sandmesh(&server, &["cp", "-", &at("data/piped")]);
    let mut child = sending.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let content: Vec<u8> = b"\0\xff line\n".repeat(300_000);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&content).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = sandmesh(&server, &["cp", &at("data/piped"), "-"]).output().unwrap();
    assert!(output.status.success() && output.stdout == content);
    refused(&server, &["-", &at("data")], 2, "is a directory");

    // Interrupted, nothing of it is there.
    let mut endless = sandmesh(&server, &["cp", "-", &at("half")]);
    let mut child = endless.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&content).unwrap();
    signal(i32::try_from(child.id()).unwrap(), Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
    eventually("its session is well", Duration::from_secs(10), async || {
        server.api.run(&id, "shell", "ls -A").await["stdout"] == "data\n"
    })
    .await;
    assert_eq!(server.api.files(&id, "").await, ["data/piped"]);
}

async fn what_cannot_be_copied_is_told_and_leaves_nothing(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.create(json!({"template_id": "python-basic", "disk": "1Mi"})).await;
    let id = id["id"].as_str().unwrap();
    let at = |path: &str| format!("{id}:{path}");
    let here = directory(&server, "here");
    let file = here.join("file");
    fs::write(&file, "kept").unwrap();
    refused(&server, &[text(&file), text(&here.join("copy"))], 2, "SESSION:PATH");
    refused(&server, &[&at("a"), &at("b")], 2, "on this machine");
    refused(&server, &[text(&file), &at("../out")], 2, "`..`");
    refused(&server, &[text(&here.join("none")), &at("x")], 2, "none");
    refused(&server, &[text(&file), "none:x"], 125, "session `none` not found");
    refused(&server, &[&at("none"), text(&file)], 125, "not found");
    assert_eq!(fs::read(&file).unwrap(), b"kept", "what was there is there");
    let elsewhere = here.join("no/such/directory/file");
    cp(&server, &[text(&file), &at("x")]);
    refused(&server, &[&at("x"), text(&elsewhere)], 125, "cannot write");
    refused(&server, &[text(&file), &at("x/below")], 125, "x");
    let large = here.join("large");
    fs::write(&large, vec![7; 3 << 20]).unwrap();
    refused(&server, &[text(&large), &at("large")], 125, "DISK_LIMIT");
    assert_eq!(server.api.files(id, "").await, ["x"]);
    assert_eq!(names(&here), ["file", "large"]);
}

async fn files_come_out_of_a_session_that_ended(wiring: Wiring) {
    let server = wiring.start().await;
    let id = server.api.session().await;
    let code = "mkdir -p out/empty; echo made > out/made; ln -s made out/link";
    assert_eq!(server.api.run(&id, "shell", code).await["status"], "completed");
    server.api.post(&format!("/sessions/{id}/terminate"), json!({})).await.is(200);
    let back = directory(&server, "back");
    cp(&server, &["-r", &format!("{id}:out"), text(&back)]);
    assert_eq!(names(&back.join("out")), ["empty", "made"]);
    assert_eq!(fs::read_to_string(back.join("out/made")).unwrap(), "made\n");
    refused(&server, &[text(&back.join("out/made")), &format!("{id}:new")], 125, "SESSION_NOT_ACTIVE");
}
