//! `sandmesh-executor destroy`: nothing of a sandbox is left. Can be repeated.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::{cli::DestroyOptions, isolation::cgroup::Group, process_id::ProcessId, request::check_id};

/// How long killed processes may take to die.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills and removes.
pub(crate) fn run(options: &DestroyOptions) -> anyhow::Result<()> {
    kill(options)?;
    remove_dir(&options.dir).with_context(|| format!("cannot remove {}", options.dir.display()))
}

/// Kills every process of a sandbox, and removes its control groups.
pub(crate) fn kill(options: &DestroyOptions) -> anyhow::Result<()> {
    check_id("--sandbox-id", &options.sandbox_id)
        .map_err(|_| anyhow::anyhow!("--sandbox-id is not an id"))?;
    kill_executor(&options.dir.join("executor.pid"))?;
    // Without control groups there is nothing to remove there, and the executor's death ended its jails.
    if let Ok(root) = Group::everywhere()
        && !root.child(&options.cgroup_parent).child(&options.sandbox_id).destroy(PATIENCE)
    {
        bail!("processes of sandbox {} do not die", options.sandbox_id);
    }
    Ok(())
}

fn kill_executor(pid_file: &Path) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(2);
    let executor =
        ProcessId::load(pid_file).with_context(|| format!("cannot read {}", pid_file.display()))?;
    let Some(executor) = executor else { return Ok(()) };
    executor.signal(Signal::SIGKILL);
    let mut waited = Duration::ZERO;
    while executor.is_alive() {
        if waited >= PATIENCE {
            bail!("the executor does not die");
        }
        sleep(PAUSE);
        waited += PAUSE;
    }
    Ok(())
}

/// Removes a directory with everything in it, however deep, without following links.
///
/// A tenant may have nested directories deeper than a path or a stack can reach, so none is descended
/// into by path: each subdirectory is moved up beside the others and emptied there.
fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::symlink_metadata(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
        Ok(meta) if !meta.is_dir() => return Err(io::Error::other("it is not a directory")),
        Ok(_) => {}
    }
    let mut number = 0_u64;
    let mut waiting = VecDeque::from([dir.to_owned()]);
    while let Some(next) = waiting.pop_front() {
        // Root does not mind; another user may have taken the right from itself.
        let _ = fs::set_permissions(&next, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            let aside = move_aside(dir, &entry.path(), &mut number)?;
            waiting.push_back(aside);
        }
        // The top goes last; what moves up goes through it.
        if next != dir {
            fs::remove_dir(next)?;
        }
    }
    fs::remove_dir(dir)
}

/// Moves a directory to a free name directly below `top`, unless it is there already.
fn move_aside(top: &Path, path: &Path, number: &mut u64) -> io::Result<PathBuf> {
    if path.parent() == Some(top) {
        return Ok(path.to_owned());
    }
    // To move a directory is to write in it: its entry for the parent changes.
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    loop {
        let aside = top.join(format!(".removed-{number}"));
        *number += 1;
        if fs::symlink_metadata(&aside).is_err_and(|err| err.kind() == io::ErrorKind::NotFound) {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn removal_does_not_follow_links() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("keep"), "x").unwrap();
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("sandbox");
        fs::create_dir_all(dir.join("workspace/a/b")).unwrap();
        symlink(outside.path(), dir.join("workspace/link")).unwrap();
        symlink(outside.path(), dir.join("workspace/a/b/link")).unwrap();
        fs::write(dir.join("workspace/a/.removed-0"), "x").unwrap();
        fs::write(dir.join(".removed-0"), "x").unwrap();
        remove_dir(&dir).unwrap();
        assert!(!dir.exists());
        assert!(outside.path().join("keep").exists());
        remove_dir(&dir).expect("removing nothing is fine");
    }

    #[test]
    fn removal_reaches_deeper_than_a_path() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("sandbox");
        fs::create_dir(&dir).unwrap();
        // Nest from the inside out: each round puts what is there into a new directory.
        for _ in 0..3000 {
            let (old, new) = (dir.join("nest"), dir.join("outer"));
            fs::create_dir(&new).unwrap();
            if old.exists() {
                fs::rename(&old, new.join("nest")).unwrap();
            }
            fs::rename(&new, &old).unwrap();
        }
        remove_dir(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn link_in_place_of_the_directory_is_refused() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("real")).unwrap();
        symlink(top.path().join("real"), top.path().join("link")).unwrap();
        assert!(remove_dir(&top.path().join("link")).is_err());
        assert!(top.path().join("real").exists());
    }
}
