//! Layers of packages: what executions find, and that nobody changes what others find.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use sandmesh_proto::executor::{self as pb, execute_request::Frame as Input};
use tonic::Code;

use crate::support::*;

const FIRST: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// A directory of layers, as an agent makes it.
struct Layers(tempfile::TempDir);

impl Layers {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn write(&self, key: &str, path: &str, text: &str) {
        let path = self.0.path().join(key).join("files").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A Python package of a version, with a program.
    fn python(&self, key: &str, version: &str) {
        self.write(key, "pkg/__init__.py", &format!("version = '{version}'\n"));
        let about = format!("Name: pkg\nVersion: {version}\n");
        self.write(key, &format!("pkg-{version}.dist-info/METADATA"), &about);
        self.write(key, "bin/pkg", "#!/usr/bin/python3\nimport pkg\nprint('program', pkg.version)\n");
    }

    fn settings(&self, more: &[&str]) -> Settings {
        let mut flags = vec!["--layers".to_owned(), self.0.path().display().to_string()];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        Settings { more: flags, ..Settings::default() }
    }
}

fn mount(key: &str, language: pb::Language) -> pb::MountLayerRequest {
    pb::MountLayerRequest { key: key.to_owned(), language: language.into() }
}

const VERSIONS: &str = "
import importlib.metadata, pkg, subprocess, sys
def handler(event):
    child = subprocess.run([sys.executable, '-c', 'import pkg; print(pkg.version)'], capture_output=True, text=True)
    program = subprocess.run(['pkg'], capture_output=True, text=True)
    return [pkg.version, importlib.metadata.version('pkg'), child.stdout, program.stdout, pkg.__file__]
";

fn versions(version: &str) -> serde_json::Value {
    let (child, program) = (format!("{version}\n"), format!("program {version}\n"));
    serde_json::json!([version, version, child, program, "/packages/pkg/__init__.py"])
}

#[tokio::test]
async fn packages_are_found_by_code_interpreters_and_as_programs() {
    let layers = Layers::new();
    layers.python(FIRST, "1.0");
    for interpreters in ["warm", "fresh"] {
        let layer = format!("python:{FIRST}");
        let daemon =
            Daemon::start(layers.settings(&["--layer", &layer, "--interpreters", interpreters])).await;
        let mut client = daemon.client().await;
        for _ in 0..3 {
            assert_eq!(run(&mut client, python(VERSIONS)).await.value(), versions("1.0"), "{interpreters}");
        }
        let said = run(&mut client, shell("pkg; python3 -c 'import pkg; print(pkg.version)'")).await;
        assert_eq!(said.out(), "program 1.0\n1.0\n", "{interpreters}: {said:?}");
        // One that gets an interpreter of its own, whatever else there is.
        let own = pb::ExecutionStart { env: env(&[("PYTHONHASHSEED", "1")]), ..python(VERSIONS) };
        assert_eq!(run(&mut client, own).await.value(), versions("1.0"), "{interpreters}");
    }
}

#[tokio::test]
async fn another_layer_is_there_for_the_next_execution_and_what_runs_keeps_its_own() {
    let layers = Layers::new();
    layers.python(FIRST, "1.0");
    let daemon = Daemon::start(layers.settings(&["--warm", "python"])).await;
    let mut client = daemon.client().await;
    let none = run(&mut client, python("import pkg\ndef handler(e): return 1")).await;
    assert_eq!(none.error().r#type, "ModuleNotFoundError");
    client.mount_layer(mount(FIRST, pb::Language::Python)).await.unwrap();
    assert_eq!(run(&mut client, python(VERSIONS)).await.value(), versions("1.0"));
    let waits = "import sys\ndef handler(e):\n    print('up', flush=True)\n    sys.stdin.readline()\n    import pkg\n    return pkg.version";
    let start = pb::ExecutionStart { keep_stdin_open: true, ..python(waits) };
    let (mut talk, mut said) = (Talk::open(&mut client, Input::Start(start)).await.unwrap(), Said::default());
    talk.until_stdout(&mut said, "up").await;
    // Made after the executor started.
    layers.python(SECOND, "2.0");
    client.mount_layer(mount(SECOND, pb::Language::Python)).await.unwrap();
    assert_eq!(run(&mut client, python(VERSIONS)).await.value(), versions("2.0"));
    talk.send(Input::Stdin(pb::StdinChunk { data: "go\n".into(), offset: 0 })).await;
    assert_eq!(talk.rest(said, (0, 0)).await.unwrap().value(), "1.0");
}

#[tokio::test]
async fn packages_of_node_are_found_by_require_and_by_import() {
    let layers = Layers::new();
    let package = r#"{"name": "pkg", "version": "1.0.0", "main": "index.js"}"#;
    layers.write(FIRST, "node_modules/pkg/package.json", package);
    layers.write(FIRST, "node_modules/pkg/index.js", "module.exports = { version: '1.0.0' };");
    layers.write(FIRST, "node_modules/.bin/pkg", "#!/bin/sh\necho program\n");
    let daemon = Daemon::start(layers.settings(&["--layer", &format!("javascript:{FIRST}")])).await;
    let mut client = daemon.client().await;
    let required = "const pkg = require('pkg'); const { execSync } = require('child_process');
        function handler() { return [pkg.version, execSync('pkg').toString()]; }";
    let value = run(&mut client, javascript(required)).await.value();
    assert_eq!(value, serde_json::json!(["1.0.0", "program\n"]));
    let imported = "import pkg from 'pkg'; export function handler() { return pkg.version; }";
    assert_eq!(run(&mut client, javascript(imported)).await.value(), "1.0.0");
}

#[tokio::test]
async fn programs_of_packages_are_in_the_path_of_every_language() {
    let layers = Layers::new();
    layers.write(FIRST, "node_modules/.bin/pkg", "#!/bin/sh\necho program\n");
    let daemon = Daemon::start(layers.settings(&["--layer", &format!("javascript:{FIRST}")])).await;
    let text = "import subprocess\ndef handler(e): return subprocess.run(['pkg'], capture_output=True, text=True).stdout";
    assert_eq!(run(&mut daemon.client().await, python(text)).await.value(), "program\n");
}

#[tokio::test]
async fn nobody_changes_a_layer() {
    let layers = Layers::new();
    layers.python(FIRST, "1.0");
    layers.python(SECOND, "2.0");
    let daemon = Daemon::start(layers.settings(&["--layer", &format!("python:{FIRST}")])).await;
    let mut client = daemon.client().await;
    let attack = "
import ctypes, os
def attempt(act):
    try: act(); return 'done'
    except OSError as error: return type(error).__name__
def handler(event):
    libc = ctypes.CDLL(None, use_errno=True)
    def remount():
        if libc.mount(b'none', b'/packages', None, 32 | 4096, None): raise OSError(ctypes.get_errno(), 'mount')
    acts = [lambda: open('/packages/pkg/__init__.py', 'a'), lambda: open('/packages/new', 'w'),
            lambda: os.unlink('/packages/pkg/__init__.py'), lambda: os.rename('/packages/pkg', '/packages/x'),
            lambda: os.chmod('/packages/pkg', 0o777), lambda: os.utime('/packages/pkg'), remount,
            lambda: os.rename('/packages', '/gone'), lambda: os.symlink('/workspace', '/packages/link')]
    return [attempt(act) for act in acts] + [os.path.exists('/run/sandmesh')]
";
    let outcome = run(&mut client, python(attack)).await.value();
    let outcome = outcome.as_array().unwrap();
    assert!(outcome.iter().all(|told| told != "done" && *told != true), "{outcome:?}");
    let kept = fs::read_to_string(layers.0.path().join(FIRST).join("files/pkg/__init__.py")).unwrap();
    assert_eq!(kept, "version = '1.0'\n");
}

#[tokio::test]
async fn code_of_packages_does_not_run_in_the_parent() {
    let layers = Layers::new();
    layers.python(FIRST, "1.0");
    let note = "import os; open('/workspace/started', 'a').write(f'{os.getpid()} {os.getppid()}\\n')\n";
    layers.write(FIRST, "hook.pth", note);
    layers.write(FIRST, "sitecustomize.py", "open('/workspace/customized', 'w')\n");
    // What the runner imports itself is never theirs.
    layers.write(FIRST, "json.py", "raise SystemExit('shadowed')\n");
    layers.write(FIRST, "traceback.py", "raise SystemExit('shadowed')\n");
    layers.python(SECOND, "2.0");
    let look = "import json, os\ndef handler(e): return [json.__file__.startswith('/usr'), os.path.exists('/workspace/started'), os.path.exists('/workspace/customized')]";
    for snapshots in [true, false] {
        let settings = layers.settings(&["--layer", &format!("python:{FIRST}")]);
        let daemon = Daemon::start(Settings { snapshots, ..settings }).await;
        let mut client = daemon.client().await;
        for _ in 0..2 {
            let said = run(&mut client, python(look)).await;
            assert_eq!(said.value(), serde_json::json!([true, true, false]), "{said:?}");
        }
        // Nor does code of the workspace, that has the names of what a runner may import late.
        for name in ["asyncio", "inspect", "threading", "sitecustomize", "json", "ctypes"] {
            let code = "open('/workspace/shadowed', 'w')";
            fs::write(daemon.dir.join("workspace").join(name).with_extension("py"), code).unwrap();
        }
        // And not in a rehearsal, which nothing restrains.
        let executions = 2 + if snapshots { 0 } else { wear_out(&mut client).await };
        let started = fs::read_to_string(daemon.dir.join("workspace/started")).unwrap();
        assert_eq!(started.lines().count(), executions, "once in each execution and nowhere else");
        client.mount_layer(mount(SECOND, pb::Language::Python)).await.unwrap();
        let text = "import pkg\ndef handler(e): return pkg.version";
        assert_eq!(run(&mut client, python(text)).await.value(), "2.0");
        assert!(!daemon.dir.join("workspace/shadowed").exists());
    }
}

#[tokio::test]
async fn a_layer_that_is_mounted_while_a_parent_is_replaced_stays() {
    let layers = Layers::new();
    layers.python(FIRST, "1.0");
    layers.python(SECOND, "2.0");
    let settings = layers.settings(&["--layer", &format!("python:{FIRST}")]);
    let daemon = Daemon::start(Settings { snapshots: false, ..settings }).await;
    let mut client = daemon.client().await;
    for number in 0..100 {
        assert_eq!(
            run(&mut client, python(&format!("def handler(e): return {number}"))).await.value(),
            number
        );
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while !parents(&daemon).iter().any(is_rehearsed) {
        assert!(Instant::now() < deadline, "it is not replaced");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.mount_layer(mount(SECOND, pb::Language::Python)).await.unwrap();
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(run(&mut client, python(VERSIONS)).await.value(), versions("2.0"));
    }
}

#[tokio::test]
async fn a_layer_that_is_not_there_is_refused_and_changes_nothing() {
    let layers = Layers::new();
    layers.python(FIRST, "1.0");
    let daemon = Daemon::start(layers.settings(&["--layer", &format!("python:{FIRST}")])).await;
    let mut client = daemon.client().await;
    let refused = async |client: &mut Client, key: &str, language| {
        client.mount_layer(mount(key, language)).await.unwrap_err().code()
    };
    assert_eq!(refused(&mut client, SECOND, pb::Language::Python).await, Code::NotFound);
    assert_eq!(refused(&mut client, "../../etc", pb::Language::Python).await, Code::InvalidArgument);
    assert_eq!(refused(&mut client, FIRST, pb::Language::Shell).await, Code::InvalidArgument);
    assert_eq!(run(&mut client, python(VERSIONS)).await.value(), versions("1.0"));
    let bare = Daemon::start(layers.settings(&["--jail", "off"])).await;
    let code = refused(&mut bare.client().await, FIRST, pb::Language::Python).await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(Path::new(&layers.0.path().join(FIRST)).exists());
}
