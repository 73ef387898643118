//! Indexes that packages come from: which a session may name, and how they are shown.
//!
//! A URL of an index may hold a name and a password; these are never shown. Pure.

use std::fmt;

use sandmesh_mesh::ConfigError;
use serde::{Deserialize, Serialize, Serializer};

/// What is shown instead of what may be a secret.
const HIDDEN: &str = "***";

/// The URL of an index or a registry.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct IndexUrl(String);

impl IndexUrl {
    /// A URL as it is written.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    fn is_url(&self) -> bool {
        let rest = self.0.strip_prefix("https://").or_else(|| self.0.strip_prefix("http://"));
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['))
            && self.0.len() <= 2048
            && self.0.chars().all(|c| c.is_ascii_graphic())
    }
}

impl fmt::Debug for IndexUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl Serialize for IndexUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&masked(&self.0))
    }
}

/// Where packages come from, in section `session.packages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Packages {
    /// The index of Python packages of sessions that name none.
    pub python_index: IndexUrl,
    /// Other indexes that a session may name.
    pub python_indexes: Vec<IndexUrl>,
    /// The registry of packages of Node.js.
    pub npm_registry: IndexUrl,
}

impl Default for Packages {
    fn default() -> Self {
        Self {
            python_index: IndexUrl::new("https://pypi.org/simple"),
            python_indexes: Vec::new(),
            npm_registry: IndexUrl::new("https://registry.npmjs.org"),
        }
    }
}

impl Packages {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let named = [("python_index", &self.python_index), ("npm_registry", &self.npm_registry)];
        let others = self.python_indexes.iter().map(|index| ("python_indexes", index));
        match named.into_iter().chain(others).find(|(_, index)| !index.is_url()) {
            // Not shown: it may hold a password.
            Some((name, _)) => {
                Err(ConfigError::invalid(format!("session.packages.{name}"), "give an http or https URL"))
            }
            None => Ok(()),
        }
    }

    /// The index to install from for a session that named `asked`, which may be nothing; `None` when that is
    /// not one that it may name. Where it gives a name and a password, these count, and else ours.
    pub(crate) fn python(&self, asked: &str) -> Option<String> {
        if asked.is_empty() {
            return Some(self.python_index.0.clone());
        }
        let mut known = std::iter::once(&self.python_index).chain(&self.python_indexes);
        let known = known.find(|known| plain(&known.0) == plain(asked))?;
        Some(if credentials(asked).is_some() { asked.to_owned() } else { known.0.clone() })
    }

    /// The registry of packages of Node.js.
    pub(crate) fn npm(&self) -> String {
        self.npm_registry.0.clone()
    }
}

/// Where in a URL a name and a password are, with the `@` after them.
fn credentials(url: &str) -> Option<std::ops::Range<usize>> {
    let start = url.find("://")? + 3;
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    let at = url[start..end].rfind('@')?;
    Some(start..start + at + 1)
}

/// A URL without its name and password.
pub(crate) fn masked(url: &str) -> String {
    match credentials(url) {
        Some(range) => format!("{}{HIDDEN}@{}", &url[..range.start], &url[range.end..]),
        None => url.to_owned(),
    }
}

/// A URL as it is compared: without credentials, its scheme and host in lowercase, no slash at its end.
fn plain(url: &str) -> String {
    let mut url = url.to_owned();
    if let Some(range) = credentials(&url) {
        url.replace_range(range, "");
    }
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    url[..end].make_ascii_lowercase();
    url.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> Packages {
        let python_indexes = vec![IndexUrl::new("https://us:hunter2@mirror.example/simple/")];
        Packages { python_indexes, ..Packages::default() }
    }

    #[test]
    fn a_session_may_name_no_index_but_those_that_are_listed() {
        let packages = packages();
        assert_eq!(packages.python("").unwrap(), "https://pypi.org/simple");
        assert_eq!(packages.python("https://PyPI.org/simple/").unwrap(), "https://pypi.org/simple");
        for bad in [
            "http://pypi.org/simple",
            "https://pypi.org/simple2",
            "https://pypi.org:444/simple",
            "https://pypi.org/simple/../other",
            "https://pypi.org@evil.example/simple",
            "https://evil.example/https://pypi.org/simple",
            "http://169.254.169.254/",
        ] {
            assert_eq!(packages.python(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_password_of_an_index_is_ours_unless_the_session_has_one() {
        let packages = packages();
        let ours = packages.python("https://mirror.example/simple").unwrap();
        assert_eq!(ours, "https://us:hunter2@mirror.example/simple/");
        let theirs = "https://me:secret@mirror.example/simple";
        assert_eq!(packages.python(theirs).unwrap(), theirs);
    }

    #[test]
    fn a_password_of_an_index_is_not_shown() {
        let (printed, dumped) = (format!("{:?}", packages()), serde_json::to_string(&packages()).unwrap());
        for text in [printed, dumped] {
            assert!(
                !text.contains("hunter2") && text.contains("https://***@mirror.example/simple/"),
                "{text}"
            );
        }
        assert_eq!(masked("https://pypi.org/a@b"), "https://pypi.org/a@b");
        let wrong = Packages { npm_registry: IndexUrl::new("ftp://me:hunter2@x"), ..packages() };
        let error = wrong.validate().unwrap_err().to_string();
        assert!(error.contains("session.packages.npm_registry") && !error.contains("hunter2"), "{error}");
    }
}
