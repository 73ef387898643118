//! Where bubblewrap is: a program of the system, or one that was brought along with all that it needs.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// Where distributions put it.
const PLACES: [&str; 3] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];

/// How bubblewrap is run.
#[derive(Debug, Clone)]
pub(crate) struct Bubblewrap {
    program: PathBuf,
    /// What comes before the arguments.
    first: Vec<OsString>,
}

impl Bubblewrap {
    /// The one in this directory, or else that of the system; `None` where there is none.
    pub(crate) fn find(brought: Option<&Path>) -> Option<Self> {
        match brought {
            Some(dir) => Self::brought_in(dir),
            None => PLACES.iter().find(|path| Path::new(path).exists()).map(Self::at),
        }
    }

    /// The one of the system, wherever that would be.
    pub(crate) fn of_system() -> Self {
        Self::at(&PLACES[0])
    }

    fn at(path: &&str) -> Self {
        Self { program: path.into(), first: Vec::new() }
    }

    /// It runs by way of its own loader, if it has one: that of an image may not be there, or not fit.
    fn brought_in(dir: &Path) -> Option<Self> {
        let (loader, program) = (dir.join("ld.so"), dir.join("bwrap"));
        if !loader.exists() {
            return program.exists().then_some(Self { program, first: Vec::new() });
        }
        let first = vec!["--library-path".into(), dir.join("lib").into(), program.clone().into()];
        program.exists().then_some(Self { program: loader, first })
    }

    /// A command that runs it, without arguments yet.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first);
        command
    }

    /// Where it is, for a person.
    pub(crate) fn name(&self) -> String {
        self.first
            .last()
            .map_or_else(|| self.program.display().to_string(), |path| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_brought_along_runs_by_its_own_loader() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Bubblewrap::find(Some(dir.path())).is_none());
        for name in ["ld.so", "bwrap"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let command = Bubblewrap::find(Some(dir.path())).unwrap().command();
        assert_eq!(command.get_program(), dir.path().join("ld.so"));
        assert_eq!(command.get_args().last(), Some(dir.path().join("bwrap").as_os_str()));
    }
}
