//! The command lines of pip and npm, as they run in the jail of an installer. Pure.
//!
//! What was asked for comes after `--`, so that nothing of it can be an option. What may be a secret is in
//! the environment, which other users of the machine cannot see.

use std::{collections::HashMap, path::Path};

use crate::{Config, packages::PackageSet, sandbox::Language};

/// Where packages are put, below the workspace.
pub(in crate::runtime) const TARGET: &str = "packages";

/// The executor and its helper, as the jail shows them.
const RELAY: [&str; 5] = ["/.sandmesh/executor", "relay", "--make", TEMPORARY, "--"];
/// In the workspace, which is on the disk: what is unpacked may be larger than the memory.
const TEMPORARY: &str = "/workspace/tmp";
/// Who is trusted to sign for an index; the jail shows the host's.
pub(in crate::runtime) const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What runs the installer of a language.
#[derive(Debug)]
pub(in crate::runtime) struct Installer {
    pub(in crate::runtime) command: Vec<String>,
    pub(in crate::runtime) env: HashMap<String, String>,
}

/// The installer for a set of packages; `None` where there is none for its language.
pub(in crate::runtime) fn installer(set: &PackageSet, config: &Config, python: &Path) -> Option<Installer> {
    let (command, mut env) = match set.language {
        Language::Python => (pip(set, python), pip_env(set)),
        Language::Javascript => (npm(set), npm_env(set, config.node.as_deref())),
        Language::Shell => return None,
    };
    env.insert("TMPDIR".to_owned(), TEMPORARY.to_owned());
    let relay = RELAY.iter().map(|word| (*word).to_owned());
    Some(Installer { command: relay.chain(command).collect(), env })
}

fn pip(set: &PackageSet, python: &Path) -> Vec<String> {
    let target = format!("/workspace/{TARGET}");
    let python = python.display().to_string();
    let mut words: Vec<String> =
        [&python, "-I", "-m", "pip", "install", "--target", &target].map(str::to_owned).into();
    let options = [
        "--prefer-binary",
        "--no-cache-dir",
        "--no-input",
        "--no-color",
        "--progress-bar=off",
        "--no-warn-script-location",
        "--disable-pip-version-check",
        "--",
    ];
    words.extend(options.map(str::to_owned));
    words.extend(set.packages.iter().map(|package| format!("{}{}", package.name, package.version)));
    words
}

fn pip_env(set: &PackageSet) -> HashMap<String, String> {
    let url = set.index_url.expose();
    let mut env = HashMap::from([
        // No file of the host's has a say.
        ("PIP_CONFIG_FILE".to_owned(), "/dev/null".to_owned()),
        ("PIP_INDEX_URL".to_owned(), url.to_owned()),
        ("PIP_ROOT_USER_ACTION".to_owned(), "ignore".to_owned()),
        ("PIP_RETRIES".to_owned(), "2".to_owned()),
        ("PIP_DEFAULT_TIMEOUT".to_owned(), "20".to_owned()),
    ]);
    if let Some(rest) = url.strip_prefix("http://") {
        // That it is not signed for is what the operator says.
        let host = rest.split('/').next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        env.insert("PIP_TRUSTED_HOST".to_owned(), host.to_owned());
    }
    if Path::new(AUTHORITIES).exists() {
        env.insert("PIP_CERT".to_owned(), AUTHORITIES.to_owned());
    }
    env
}

fn npm(set: &PackageSet) -> Vec<String> {
    let target = format!("/workspace/{TARGET}");
    let mut words: Vec<String> = ["npm", "install", "--prefix", &target].map(str::to_owned).into();
    let options = [
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--no-color",
        "--no-progress",
        "--loglevel=error",
        // No file of the host's has a say; neither of these exists, and npm wants them to be two.
        "--userconfig=/workspace/tmp/user.npmrc",
        "--globalconfig=/workspace/tmp/global.npmrc",
        "--",
    ];
    words.extend(options.map(str::to_owned));
    words.extend(set.packages.iter().map(|package| match package.version.as_str() {
        "" => package.name.clone(),
        range => format!("{}@{range}", package.name),
    }));
    words
}

fn npm_env(set: &PackageSet, node: Option<&Path>) -> HashMap<String, String> {
    let mut env = HashMap::from([
        ("npm_config_registry".to_owned(), set.index_url.expose().to_owned()),
        ("npm_config_cache".to_owned(), format!("{TEMPORARY}/npm")),
        ("npm_config_fetch_retries".to_owned(), "1".to_owned()),
        ("npm_config_fetch_timeout".to_owned(), "20000".to_owned()),
    ]);
    if let Some(programs) = node.and_then(Path::parent) {
        // The npm beside the node that is configured.
        env.insert("PATH".to_owned(), format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display()));
    }
    if Path::new(AUTHORITIES).exists() {
        env.insert("NODE_EXTRA_CA_CERTS".to_owned(), AUTHORITIES.to_owned());
    }
    env
}

/// What an installer said, for a person: the end of it, without control characters and without what leads to
/// the index.
pub(in crate::runtime) fn told(said: &[u8], set: &PackageSet) -> String {
    const MOST: usize = 8 << 10;
    let text = String::from_utf8_lossy(said);
    let readable = |c: char| matches!(c, '\n' | '\t') || !c.is_control();
    let mut text: String = text.chars().filter(|c| readable(*c)).collect();
    for secret in secrets(set.index_url.expose()) {
        text = text.replace(secret, "***");
    }
    let cut = text.len().saturating_sub(MOST);
    let start = (cut..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[start..].trim().to_owned()
}

/// What of a URL is a secret: the name and the password before its host.
fn secrets(url: &str) -> Vec<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let before = rest.split('/').next().and_then(|at| at.rsplit_once('@')).map(|(before, _)| before);
    let words = before.into_iter().flat_map(|before| {
        std::iter::once(before).chain(before.split_once(':').map(|(_, password)| password))
    });
    words.filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use sandmesh_mesh::Secret;

    use super::*;
    use crate::packages::tests::set;

    #[test]
    fn what_was_asked_for_comes_after_the_last_option() {
        for language in [Language::Python, Language::Javascript] {
            let set = PackageSet { language, ..set(&[("click", "==8.1"), ("-r", "/etc/passwd")]) };
            let command = installer(&set, &Config::default(), Path::new("/usr/bin/python3")).unwrap().command;
            let end = command.iter().rposition(|word| word == "--").unwrap();
            assert_eq!(command.len() - end - 1, 2);
            assert!(command[..end].iter().all(|word| !word.contains("click") && word != "-r/etc/passwd"));
        }
        assert!(
            installer(
                &PackageSet { language: Language::Shell, ..set(&[]) },
                &Config::default(),
                Path::new("")
            )
            .is_none()
        );
    }

    #[test]
    fn a_secret_of_the_index_is_not_on_the_command_line_and_not_told() {
        let index_url = Secret::new("http://me:hunter2@index.example:81/simple");
        let set = PackageSet { index_url, ..set(&[("click", "")]) };
        let Installer { command, env } =
            installer(&set, &Config::default(), Path::new("/usr/bin/python3")).unwrap();
        assert!(!command.join(" ").contains("hunter2"));
        assert_eq!(env["PIP_TRUSTED_HOST"], "index.example:81");
        let said =
            b"Looking in indexes: http://me:hunter2@index.example:81/simple\x1b[31m\nhunter2 is wrong\n";
        assert_eq!(
            told(said, &set),
            "Looking in indexes: http://***@index.example:81/simple[31m\n*** is wrong"
        );
    }

    #[test]
    fn only_the_end_of_much_is_told() {
        let said = "é".repeat(20_000);
        let told = told(said.as_bytes(), &set(&[]));
        assert!(told.len() <= 8 << 10 && told.len() > 8000);
    }
}
