//! The interpreters of the host: where they are, what they report, what the jail needs for them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use sandmesh_proto::executor as pb;

use super::{IsolationOptions, Outer};
use crate::cli::Language;

/// How long an interpreter may take to tell its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// The interpreters found, and the directories outside the system's own that they need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interpreters {
    pub(crate) python: Option<PathBuf>,
    pub(crate) node: Option<PathBuf>,
    pub(crate) shell: Option<PathBuf>,
    /// Mounted read-only into the jail at the same path. Only for interpreters that the operator
    /// named: a search never widens what user code can see.
    pub(crate) prefixes: Vec<PathBuf>,
}

impl Interpreters {
    /// Takes the configured ones, which must exist, and looks for the others where distributions
    /// put them, or in the `PATH` of an image.
    pub(crate) fn find(options: &IsolationOptions) -> anyhow::Result<Self> {
        let outer = Outer::of(options);
        let places = places(outer);
        let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
        let choose =
            |configured: &Option<PathBuf>, names: &[&str]| choose(configured.as_deref(), &places, names);
        let mut found = Self {
            python: choose(&options.python, &["python3"])?,
            node: choose(&options.node, &["node", "nodejs"])?,
            shell: choose(&options.shell, &["bash", "sh"])?,
            prefixes: Vec::new(),
        };
        if outer == Outer::Container {
            // The jail shows all of the image.
            return Ok(found);
        }
        if let Some(path) = foreign(found.python.as_deref()) {
            found.prefixes.extend(python_prefixes(path)?);
        }
        if let Some(path) = foreign(found.node.as_deref()) {
            let program = path.canonicalize()?;
            // <prefix>/bin/node
            found.prefixes.push(program.ancestors().nth(2).unwrap_or(&program).to_owned());
            found.node = Some(program);
        }
        if let Some(path) = foreign(found.shell.as_deref()) {
            found.prefixes.push(path.to_owned());
        }
        if let Some(root) = found.prefixes.iter().find(|prefix| prefix.parent().is_none()) {
            bail!("an interpreter's prefix must not be {}", root.display());
        }
        // Every execution has its own there, which would hide it.
        let hidden = |prefix: &&PathBuf| ["/tmp", "/dev", "/proc"].iter().any(|dir| prefix.starts_with(dir));
        if let Some(prefix) = found.prefixes.iter().find(hidden) {
            bail!(
                "an interpreter's prefix must not lie below /tmp, /dev or /proc as {} does",
                prefix.display()
            );
        }
        found.prefixes.dedup();
        Ok(found)
    }

    /// The interpreter of a language, if there is one.
    pub(crate) fn of(&self, language: pb::Language) -> Option<&Path> {
        match language {
            pb::Language::Unspecified => None,
            pb::Language::Python => self.python.as_deref(),
            pb::Language::Javascript => self.node.as_deref(),
            pb::Language::Shell => self.shell.as_deref(),
        }
    }

    /// Asks every interpreter for its version, which takes tens of milliseconds, unless it is known.
    pub(crate) async fn describe(&self, known: &[(Language, String)]) -> Vec<pb::LanguageRuntime> {
        let languages = [
            (pb::Language::Python, Language::Python),
            (pb::Language::Javascript, Language::Javascript),
            (pb::Language::Shell, Language::Shell),
        ];
        let found = languages.iter().filter_map(|(language, word)| {
            let path = self.of(*language)?;
            let known = known.iter().find(|(known, _)| known == word).map(|(_, version)| version.clone());
            Some(async move {
                let version = match known {
                    Some(version) => version,
                    None => version(path, *language).await.unwrap_or_default(),
                };
                pb::LanguageRuntime {
                    language: (*language).into(),
                    path: path.display().to_string(),
                    version,
                }
            })
        });
        futures::future::join_all(found).await
    }
}

/// Where interpreters are looked for: where distributions put them, or where an image says. On a host `PATH` may
/// lead to wrappers that do not work in the jail; an image has it for just this, and is shown as a whole.
fn places(outer: Outer) -> Vec<PathBuf> {
    const SYSTEM: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];
    let path = (outer == Outer::Container).then(|| std::env::var_os("PATH")).flatten().unwrap_or_default();
    let said = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    said.chain(SYSTEM.map(PathBuf::from)).collect()
}

fn choose(configured: Option<&Path>, places: &[&Path], names: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = configured {
        if !path.is_file() {
            bail!("the configured interpreter {} does not exist", path.display());
        }
        return std::path::absolute(path).map(Some).context("cannot resolve the interpreter's path");
    }
    let mut paths = names.iter().flat_map(|name| places.iter().map(move |dir| dir.join(name)));
    Ok(paths.find(|path| path.is_file()))
}

/// The path, if it is not below a directory that the jail shows anyway.
fn foreign(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !["/usr", "/bin", "/sbin", "/lib"].iter().any(|system| path.starts_with(system)))
}

/// The prefix of the interpreter and, in a virtual environment, that of the one it is based on.
fn python_prefixes(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = std::process::Command::new(path)
        .args(["-I", "-c", "import sys; print(sys.prefix); print(sys.base_prefix)"])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run the configured interpreter {}", path.display()))?;
    let text = String::from_utf8(output.stdout).context("an interpreter's prefix is not UTF-8")?;
    let mut prefixes: Vec<PathBuf> =
        text.lines().map(PathBuf::from).filter(|p| foreign(Some(p)).is_some()).collect();
    if prefixes.is_empty() {
        bail!("the configured interpreter {} does not tell its prefix", path.display());
    }
    prefixes.dedup();
    Ok(prefixes)
}

async fn version(path: &Path, language: pb::Language) -> Option<String> {
    let mut command = tokio::process::Command::new(path);
    match language {
        // The one shell that says so; a plain sh has no version to report.
        pb::Language::Shell => command.args(["-c", "echo \"${BASH_VERSION%%(*}\""]),
        _ => command.arg("--version"),
    };
    let run = command.env_clear().stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, run).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().trim_start_matches("Python ").trim_start_matches('v');
    Some(version.to_owned())
}
