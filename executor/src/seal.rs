//! `sandmesh-executor seal`: takes what an installer made out of its sandbox, for good.
//!
//! First every process of the sandbox is killed, so that nobody changes what is looked at. Then the tree is
//! taken away, and made nobody's but the service's: plain files, directories and links, which nobody may
//! write to. What is installed is read from it and printed as JSON.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown},
    path::Path,
};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;
use serde::Serialize;

use crate::{
    cli::{Language, SealOptions},
    destroy,
};

/// How much a layer may hold; more is a mistake or an attack.
const MAX_ENTRIES: u64 = 500_000;
const MAX_DEPTH: usize = 100;
/// How much of what tells of a package is read.
const MAX_METADATA: u64 = 1 << 20;
/// How many packages are told of.
const MAX_PACKAGES: usize = 5_000;
/// The longest name or version that is told.
const MAX_WORD: usize = 256;

/// What is in a layer.
#[derive(Debug, Default, Serialize)]
struct Contents {
    bytes: u64,
    entries: u64,
    installed: Vec<Package>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Package {
    name: String,
    version: String,
}

/// Kills, moves, seals, prints.
pub(crate) fn run(options: &SealOptions) -> anyhow::Result<()> {
    destroy::kill(&options.place)?;
    let made = options.place.dir.join("workspace").join(&options.from);
    match fs::symlink_metadata(&made) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => bail!("what the installer made is not a directory"),
        Err(err) if err.kind() == io::ErrorKind::NotFound => bail!("the installer made nothing"),
        Err(err) => return Err(err).context("cannot look at what the installer made"),
    }
    let to = &options.to;
    fs::rename(&made, to).with_context(|| format!("cannot move what was installed to {}", to.display()))?;
    let mut contents = Contents::default();
    seal(to, 0, &mut contents)?;
    contents.installed = match options.language {
        Language::Javascript => node_packages(&to.join("node_modules")),
        Language::Python | Language::Shell => python_packages(to),
    };
    // Whole on the disk before anybody takes it for whole.
    rustix::fs::syncfs(File::open(to)?).context("cannot write what was installed to the disk")?;
    println!("{}", serde_json::to_string(&contents)?);
    Ok(())
}

fn seal(path: &Path, depth: usize, contents: &mut Contents) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    contents.entries += 1;
    contents.bytes += found.blocks() * 512;
    if contents.entries > MAX_ENTRIES || depth > MAX_DEPTH {
        bail!("packages have more than {MAX_ENTRIES} files, or directories nested deeper than {MAX_DEPTH}");
    }
    let kind = found.file_type();
    if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
        bail!("a package has {}, which is neither a file nor a directory", path.display());
    }
    own(path).with_context(|| format!("cannot take over {}", path.display()))?;
    if kind.is_symlink() {
        return Ok(());
    }
    // Of the rights there were, only whether it is a program: no set-id, nothing that somebody may write.
    let mode = if kind.is_dir() || found.mode() & 0o111 != 0 { 0o755 } else { 0o644 };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            seal(&entry?.path(), depth + 1, contents)?;
        }
    }
    Ok(())
}

fn own(path: &Path) -> io::Result<()> {
    if Uid::effective().is_root() { lchown(path, Some(0), Some(0)) } else { Ok(()) }
}

/// What the directories say that pip leaves beside the packages.
fn python_packages(dir: &Path) -> Vec<Package> {
    let is_told = |path: &Path| path.extension().is_some_and(|extension| extension == "dist-info");
    let told = entries(dir).filter(|path| is_told(path));
    sorted(told.filter_map(|path| distribution(&read_text(&path.join("METADATA"))?)))
}

/// The name and the version among the first lines, which are like those of a mail.
fn distribution(metadata: &str) -> Option<Package> {
    let head = || metadata.lines().take_while(|line| !line.is_empty());
    let value = |field: &str| head().find_map(|line| line.strip_prefix(field)).map(str::trim);
    package(value("Name:")?, value("Version:")?)
}

/// What the packages of a `node_modules` say of themselves, with those of scopes.
fn node_packages(dir: &Path) -> Vec<Package> {
    let is_scope =
        |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"@"));
    let (scopes, plain): (Vec<_>, Vec<_>) = entries(dir).partition(|path| is_scope(path));
    let all = plain.into_iter().chain(scopes.iter().flat_map(|scope| entries(scope)));
    sorted(all.filter_map(|path| {
        let told: serde_json::Value = serde_json::from_str(&read_text(&path.join("package.json"))?).ok()?;
        package(told["name"].as_str()?, told["version"].as_str()?)
    }))
}

fn package(name: &str, version: &str) -> Option<Package> {
    let fits = |word: &str| (1..=MAX_WORD).contains(&word.len()) && !word.contains(char::is_control);
    (fits(name) && fits(version)).then(|| Package { name: name.to_owned(), version: version.to_owned() })
}

fn sorted(packages: impl Iterator<Item = Package>) -> Vec<Package> {
    let mut packages: Vec<Package> = packages.take(MAX_PACKAGES).collect();
    packages.sort();
    packages
}

fn entries(dir: &Path) -> impl Iterator<Item = std::path::PathBuf> + use<> {
    let is_dir = |path: &std::path::PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_dir)
}

/// A small text file, never by way of a link.
fn read_text(path: &Path) -> Option<String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_METADATA).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sealed_files_are_nobodys_to_write_and_links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("pkg")).unwrap();
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        fs::write(tree.join("pkg/tool"), "x").unwrap();
        fs::set_permissions(tree.join("pkg/tool"), Permissions::from_mode(0o6777)).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        let mut contents = Contents::default();
        seal(&tree, 0, &mut contents).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&tree), mode(&tree.join("pkg/tool")), mode(&outside)), (0o755, 0o755, 0o600));
        assert_eq!(contents.entries, 4);
    }

    #[test]
    fn what_is_neither_file_nor_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        assert!(seal(dir.path(), 0, &mut Contents::default()).unwrap_err().to_string().contains("socket"));
    }

    #[test]
    fn packages_are_told_by_what_they_say_of_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        make(
            "PyYAML-6.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: PyYAML\nVersion: 6.0\n\nName: no\n",
        );
        make("broken-1.dist-info/METADATA", "no metadata");
        make("node_modules/left-pad/package.json", r#"{"name": "left-pad", "version": "1.3.0"}"#);
        make("node_modules/@scope/x/package.json", r#"{"name": "@scope/x", "version": "2.0.0"}"#);
        make("node_modules/odd/package.json", r#"["no object"]"#);
        let package = |name: &str, version: &str| Package { name: name.into(), version: version.into() };
        assert_eq!(python_packages(dir.path()), [package("PyYAML", "6.0")]);
        let of_node = node_packages(&dir.path().join("node_modules"));
        assert_eq!(of_node, [package("@scope/x", "2.0.0"), package("left-pad", "1.3.0")]);
    }
}
