//! What every container is given besides its image: the static executor, and a bubblewrap with its own loader
//! and libraries, so that both run whatever the image has or has not.
//!
//! They are put together once, in a directory that is named after what it was made of. One that a container uses
//! stays as it is, also when this agent brings newer ones.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sha2::{Digest, Sha256};

use super::plan::EXECUTOR;

/// Where distributions put bubblewrap.
const BUBBLEWRAP: [&str; 3] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];
/// Of what is being put together.
const UNFINISHED: &str = "new-";

/// The tools of this node.
#[derive(Debug)]
pub(super) struct Tools {
    root: PathBuf,
}

/// A file to be put among the tools: its name there, and where it is.
pub(in crate::runtime) type Part = (PathBuf, PathBuf);

impl Tools {
    /// Those below `data_dir`. Reads and changes nothing yet.
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("tools") }
    }

    /// The directory of tools of this name.
    pub(super) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Puts them together, if they are not yet, and answers with their name; or says what is missing and how
    /// to get it.
    pub(super) fn assemble(&self, executor: &Path) -> Result<String, String> {
        let parts = collect(executor)?;
        let name = name_of(&parts)?;
        let cannot = |error: io::Error| format!("`{}` cannot be written: {error}", self.root.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(cannot)?;
        if !self.dir(&name).exists() {
            self.write(&name, &parts).map_err(cannot)?;
        }
        Ok(name)
    }

    fn write(&self, name: &str, parts: &[Part]) -> io::Result<()> {
        let new = self.root.join(format!("{UNFINISHED}{name}"));
        let _ = fs::remove_dir_all(&new);
        for (place, source) in parts {
            let path = new.join(place);
            if let Some(dir) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
            }
            fs::copy(source, &path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        fs::rename(new, self.dir(name))
    }

    /// Removes those that no container uses.
    pub(super) fn keep(&self, used: &BTreeSet<String>) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if !used.contains(&*entry.file_name().to_string_lossy())
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "tools that nobody uses cannot be removed");
            }
        }
    }
}

/// What they are made of, or what is missing and how to get it.
pub(in crate::runtime) fn collect(executor: &Path) -> Result<Vec<Part>, String> {
    if let Some(loader) = interpreter(&read(executor)?) {
        return Err(format!(
            "a static `{}` is missing: this one needs {loader}, which an image may not have; build it with \
             RUSTFLAGS=\"-C target-feature=+crt-static\" and --target, as deploy/build does",
            executor.display()
        ));
    }
    let found = BUBBLEWRAP.iter().map(Path::new).find(|path| path.is_file());
    let bubblewrap = found.ok_or(
        "the program bwrap is missing; apt-get install bubblewrap (dnf, apk, pacman: package bubblewrap)",
    )?;
    let mut parts = match interpreter(&read(bubblewrap)?) {
        Some(loader) => brought_along(&loader, bubblewrap)?,
        None => Vec::new(),
    };
    parts.extend([(EXECUTOR.into(), executor.into()), ("bwrap".into(), bubblewrap.into())]);
    Ok(parts)
}

/// The loader of a program and the libraries that it finds for it.
fn brought_along(loader: &str, program: &Path) -> Result<Vec<Part>, String> {
    let listing = Command::new(loader).arg("--list").arg(program).env_clear().stdin(Stdio::null()).output();
    let listing = listing.map_err(|error| format!("`{loader}` cannot be run: {error}"))?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let libraries = libraries(&listing).map(|(name, path)| (Path::new("lib").join(name), path.into()));
    Ok([("ld.so".into(), loader.into())].into_iter().chain(libraries).collect())
}

/// The names and the paths of libraries, as a loader lists them: `name => path (address)`.
fn libraries(listing: &str) -> impl Iterator<Item = (&str, &str)> {
    listing.lines().filter_map(|line| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let path = rest.split_whitespace().next().filter(|path| path.starts_with('/'))?;
        Some((name.rsplit('/').next()?, path))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("`{}` cannot be read: {error}", path.display()))
}

/// A name that is another when any of the files is.
fn name_of(parts: &[Part]) -> Result<String, String> {
    const DIGITS: usize = 16;
    let mut hash = Sha256::new();
    for (name, source) in parts {
        let found = fs::metadata(source)
            .map_err(|error| format!("`{}` cannot be read: {error}", source.display()))?;
        for word in [name.as_os_str().as_encoded_bytes(), source.as_os_str().as_encoded_bytes()] {
            hash.update(word.len().to_le_bytes());
            hash.update(word);
        }
        hash.update(format!("{} {} {}", found.len(), found.mtime(), found.mtime_nsec()));
    }
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(digits.chars().take(DIGITS).collect())
}

/// The loader that a program asks for; `None` for one that is static. (ELF of 64 bits, little-endian.)
fn interpreter(program: &[u8]) -> Option<String> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| {
        let word = program.get(at..at.checked_add(bytes)?)?;
        Some(word.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let place = |at: usize, bytes: usize| number(at, bytes).and_then(|number| usize::try_from(number).ok());
    let (table, size, count) = (place(32, 8)?, place(54, 2)?, place(56, 2)?);
    let headers = (0..count).map(|index| table.saturating_add(index * size));
    let header = headers.into_iter().find(|at| number(*at, 4) == Some(PT_INTERP))?;
    let (start, length) = (place(header + 8, 8)?, place(header + 32, 8)?);
    let path = program.get(start..start.checked_add(length)?)?;
    Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_of_a_program_is_read_from_it() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(interpreter(&own).unwrap().contains("ld"), "a test is not static");
        assert_eq!(interpreter(b"#!/bin/sh"), None);
        assert_eq!(interpreter(&[0xff; 64]), None);
    }

    #[test]
    fn a_program_that_is_not_static_is_refused_with_how_to_build_it() {
        let problem = collect(&std::env::current_exe().unwrap()).unwrap_err();
        assert!(problem.contains("crt-static"), "{problem}");
    }

    #[test]
    fn the_listing_of_a_loader_is_read() {
        let listing = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibcap.so.2 => /lib/x/libcap.so.2 (0x7f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tlibgone.so => not found\n";
        assert_eq!(libraries(listing).collect::<Vec<_>>(), [("libcap.so.2", "/lib/x/libcap.so.2")]);
    }

    #[test]
    fn tools_that_nobody_uses_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::new(dir.path());
        let names = ["a", "b"].map(|content| {
            let source = dir.path().join(content);
            fs::write(&source, content).unwrap();
            let parts = [(PathBuf::from("lib/part"), source)];
            let name = name_of(&parts).unwrap();
            fs::create_dir_all(&tools.root).unwrap();
            tools.write(&name, &parts).unwrap();
            name
        });
        assert_ne!(names[0], names[1]);
        tools.keep(&[names[0].clone()].into());
        assert!(tools.dir(&names[0]).join("lib/part").is_file() && !tools.dir(&names[1]).exists());
    }
}
