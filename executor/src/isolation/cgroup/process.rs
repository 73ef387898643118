//! The control groups of another process, and how a process inside a container is given some of its own.
//!
//! In a container the control groups are not to be written, but a directory that was opened outside stays
//! what it was: it is handed in as a descriptor, and a path below `/proc/self/fd` then leads to it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::unistd::Pid;

use super::{Controller, Group, Version, write};

impl Group {
    /// The groups that a process is in, in the hierarchies of this root. Each must have `name` in its path, so
    /// that nobody else's is taken for it.
    pub(crate) fn of_process(&self, pid: Pid, name: &str) -> anyhow::Result<Self> {
        let file = format!("/proc/{pid}/cgroup");
        let own = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        self.below(&own, name)
    }

    fn below(&self, own: &str, name: &str) -> anyhow::Result<Self> {
        let dirs = self.dirs.iter().map(|(controller, root)| {
            let path = path_of(own, self.version, *controller).with_context(|| {
                format!("process `{name}` is in no control group of {}", controller.name())
            })?;
            if !path.contains(name) {
                bail!("the control group {path} is not that of `{name}`");
            }
            Ok((*controller, root.join(path.trim_start_matches('/'))))
        });
        Ok(Self { version: self.version, dirs: dirs.collect::<anyhow::Result<_>>()? })
    }

    /// Moves a process of one thread here.
    pub(crate) fn take_in(&self, pid: Pid) -> io::Result<()> {
        self.doors().iter().try_for_each(|file| write(file, &pid.to_string()))
    }

    /// Opens its directories, to be handed to another process: the same group as that will name it, and what
    /// it is to be handed. The first of the descriptors will have the index `first`.
    pub(crate) fn to_hand_over(&self, first: usize) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut opened: Vec<(&Path, OwnedFd)> = Vec::new();
        let mut dirs = Vec::new();
        for (controller, dir) in &self.dirs {
            let index = match opened.iter().position(|(known, _)| known == dir) {
                Some(index) => index,
                None => {
                    opened.push((dir, open(dir)?));
                    opened.len() - 1
                }
            };
            dirs.push((*controller, PathBuf::from((first + index).to_string())));
        }
        Ok((Self { version: self.version, dirs }, opened.into_iter().map(|(_, fd)| fd).collect()))
    }

    /// The group that another process handed over, with all the descriptors that came; they must stay open.
    /// `None` if it names one that did not come.
    pub(crate) fn handed_over(&self, came: &[OwnedFd]) -> Option<Self> {
        let dirs = self.dirs.iter().map(|(controller, index)| {
            let fd = came.get(index.to_str()?.parse::<usize>().ok()?)?;
            Some((*controller, PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))))
        });
        Some(Self { version: self.version, dirs: dirs.collect::<Option<_>>()? })
    }
}

impl Controller {
    fn name(self) -> &'static str {
        super::CONTROLLERS.iter().find(|(known, _)| *known == self).map_or("", |(_, name)| name)
    }
}

/// The path of a controller's group in the words of `/proc/PID/cgroup`.
fn path_of(own: &str, version: Version, controller: Controller) -> Option<&str> {
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        let is_it = match version {
            Version::V1 => names.split(',').any(|name| name == controller.name()),
            Version::V2 => names.is_empty(),
        };
        is_it.then_some(path)
    })
}

fn open(dir: &Path) -> io::Result<OwnedFd> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    options.open(dir).map(File::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "5:pids:/sandmesh/abc\n4:memory:/sandmesh/abc\n3:cpu,cpuacct:/sandmesh/abc\n0::/other\n";

    fn root(version: Version, controllers: &[Controller]) -> Group {
        let dirs =
            controllers.iter().map(|controller| (*controller, PathBuf::from("/cg").join(controller.name())));
        Group { version, dirs: dirs.collect() }
    }

    #[test]
    fn the_group_of_a_process_is_found_by_controller() {
        let root = root(Version::V1, &[Controller::Memory, Controller::Cpuacct]);
        let group = root.below(V1, "abc").unwrap();
        let dirs: Vec<_> = group.dirs.iter().map(|(_, dir)| dir.display().to_string()).collect();
        assert_eq!(dirs, ["/cg/memory/sandmesh/abc", "/cg/cpuacct/sandmesh/abc"]);
    }

    #[test]
    fn on_v2_the_one_group_is_that_without_a_controller() {
        let root = root(Version::V2, &[Controller::Memory]);
        let group = root.below("0::/sandmesh.slice/docker-abc.scope\n", "abc").unwrap();
        assert_eq!(group.dirs[0].1, Path::new("/cg/memory/sandmesh.slice/docker-abc.scope"));
    }

    #[test]
    fn the_group_of_somebody_else_is_refused() {
        let root = root(Version::V1, &[Controller::Memory]);
        assert!(root.below(V1, "abd").unwrap_err().to_string().contains("abd"));
        assert!(root.below("0::/\n", "").is_err(), "no such controller");
    }

    #[test]
    fn a_group_is_handed_over_by_descriptors_and_shared_directories_once() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("group");
        fs::create_dir(&place).unwrap();
        let dirs = vec![(Controller::Cpu, place.clone()), (Controller::Cpuacct, place.clone())];
        let (named, fds) = Group { version: Version::V1, dirs }.to_hand_over(0).unwrap();
        assert_eq!(fds.len(), 1);
        let group = named.handed_over(&fds).unwrap().child("run");
        fs::create_dir(&group.dirs[0].1).unwrap();
        assert!(place.join("run").is_dir());
        assert!(named.handed_over(&[]).is_none());
    }
}
