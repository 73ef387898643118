//! Images for tests, made of Debian packages: no registry is asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{BUSYBOX, home, lock_file, program};

/// The files of an image, as an archive. They are made once, whatever engines there are.
pub(crate) fn archive(image: &str) -> PathBuf {
    made(image, "tar", |new| match image {
        BUSYBOX => make_busybox(new),
        _ => make_python(new),
    })
}

/// The same as an image that any tool imports, with its name: the layout of the image specification.
pub(crate) fn layout(image: &str) -> PathBuf {
    let files = archive(image);
    made(image, "oci.tar", |new| make_layout(image, &files, new))
}

/// What is made once, whoever needs it.
fn made(image: &str, ending: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let dir = home().join("images");
    let maker = lock_file(&home(), &format!("images.{ending}.lock"));
    maker.lock().unwrap();
    let _ = fs::create_dir(&dir);
    let name = image.rsplit('/').next().unwrap().split(':').next().unwrap();
    let path = dir.join(format!("{name}.{ending}"));
    if !path.exists() {
        let new = dir.join(format!("{name}.new.{ending}"));
        make(&new);
        fs::rename(new, &path).unwrap();
    }
    path
}

/// Packs files as an image of this name, of one layer.
pub(crate) fn make_layout(image: &str, files: &Path, to: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let keep = |path: &Path, kind: &str| {
        let sum = Command::new("sha256sum").arg(path).output().unwrap();
        let digest = String::from_utf8(sum.stdout).unwrap().split(' ').next().unwrap().to_owned();
        let size = fs::metadata(path).unwrap().len();
        fs::rename(path, blobs.join(&digest)).unwrap();
        let media = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": size})
    };
    let document = |content: &Value, kind: &str| {
        let path = dir.path().join("new");
        fs::write(&path, content.to_string()).unwrap();
        keep(&path, kind)
    };
    let layer = dir.path().join("layer");
    fs::copy(files, &layer).unwrap();
    let layer = keep(&layer, "layer.v1.tar");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = document(
        &json!({"architecture": architecture, "os": "linux", "config": {},
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}),
        "config.v1+json",
    );
    let mut manifest =
        document(&json!({"schemaVersion": 2, "config": config, "layers": [layer]}), "manifest.v1+json");
    manifest["annotations"] = json!({"io.containerd.image.name": format!("docker.io/{image}")});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let mut pack = Command::new("tar");
    run(pack.arg("-cf").arg(to).arg("-C").arg(dir.path()).args(["oci-layout", "index.json", "blobs"]));
}

/// Debian packages without their scripts: enough to run what is in them.
fn debian(packages: &str, to: &Path) {
    let mut make = Command::new(program("mmdebstrap"));
    make.args(["--quiet", "--variant=extract", "--mode=root"]);
    make.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
    make.arg(format!("--include={packages}")).arg("bookworm").arg(to);
    run(&mut make);
}

fn make_python(to: &Path) {
    debian(
        "bash,dash,coreutils,grep,sed,findutils,mawk,procps,util-linux,python3,python3-pip,nodejs,base-files,ca-certificates",
        to,
    );
}

fn make_busybox(to: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let packages = dir.path().join("packages.tar");
    debian("busybox-static", &packages);
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&packages).arg("-C").arg(&root).arg("--wildcards").args(["*/busybox"]);
    run(&mut unpack);
    let found = ["usr/bin/busybox", "bin/busybox"].map(|place| root.join(place));
    let busybox = found.into_iter().find(|path| path.is_file()).expect("busybox is in its package");
    let bin = dir.path().join("image/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(busybox, bin.join("busybox")).unwrap();
    for command in
        ["sh", "cat", "sleep", "echo", "ls", "id", "dd", "head", "true", "mkdir", "sort", "wc", "ps"]
    {
        std::os::unix::fs::symlink("busybox", bin.join(command)).unwrap();
    }
    let mut pack = Command::new("tar");
    pack.arg("-cf").arg(to).arg("-C").arg(dir.path().join("image")).args(["--owner=0", "--group=0", "."]);
    run(&mut pack);
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
