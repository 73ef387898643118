//! The values of packages: a set that is asked for, and the layer that it becomes.
//!
//! A layer is known by what it was made of, so that everybody who asks for the same shares it, and nobody
//! who does not. Pure.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use sandmesh_mesh::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::sandbox::Language;

/// Where user code finds the packages.
pub(crate) const LOCATION: &str = "/packages";

/// Changes when layers are made in another way: those of before are not found any more.
const FORM: u32 = 1;

/// A package: to install, with a specifier that may be empty, or installed, with its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// The specifier or the version.
    pub(crate) version: String,
}

/// Packages that are resolved and installed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackageSet {
    /// What they are for.
    pub(crate) language: Language,
    /// The packages.
    pub(crate) packages: Vec<Package>,
    /// Where they come from.
    pub(crate) index_url: Secret,
    /// What the scheduler knows them by; may be empty.
    pub(crate) fingerprint: String,
}

/// What a layer is known by: a SHA-256 in hex, safe as a name of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct LayerKey(String);

/// Packages that are installed on this node; it is written beside their files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// What it is known by.
    pub(crate) key: LayerKey,
    /// What the scheduler knows the packages by that were asked for; may be empty.
    #[serde(default)]
    pub(crate) fingerprint: String,
    /// What its packages are for.
    pub(crate) language: Language,
    /// Everything that is in it, ordered by name.
    pub(crate) installed: Vec<Package>,
    /// What it takes of the disk.
    pub(crate) bytes: u64,
    /// When it was installed.
    pub(crate) installed_at: DateTime<Utc>,
}

impl PackageSet {
    /// The key of the layer that this becomes with an interpreter: `runtime` tells its version and path.
    pub(crate) fn key(&self, runtime: &str) -> LayerKey {
        let mut packages: Vec<_> = self.packages.iter().map(|package| self.normal(package)).collect();
        packages.sort();
        packages.dedup();
        let made_of = serde_json::json!({
            "form": FORM,
            "runtime": runtime,
            "architecture": std::env::consts::ARCH,
            "index": self.index_url.expose(),
            "packages": packages,
        });
        let hash = Sha256::digest(made_of.to_string());
        LayerKey(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What is the same for the installer is written the same.
    fn normal(&self, package: &Package) -> (String, String) {
        match self.language {
            Language::Python => {
                let separator = |c: char| matches!(c, '-' | '_' | '.');
                let words = package.name.split(separator).filter(|word| !word.is_empty());
                let name = words.collect::<Vec<_>>().join("-").to_lowercase();
                let version = package.version.split_whitespace().collect::<String>();
                let mut clauses: Vec<&str> = version.split(',').collect();
                clauses.sort_unstable();
                (name, clauses.join(","))
            }
            Language::Javascript | Language::Shell => {
                (package.name.clone(), package.version.split_whitespace().collect::<Vec<_>>().join(" "))
            }
        }
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not the key of a layer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not the key of a layer, which is 64 lowercase hex digits")]
pub(crate) struct InvalidLayerKey;

impl FromStr for LayerKey {
    type Err = InvalidLayerKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidLayerKey)
        }
    }
}

impl TryFrom<String> for LayerKey {
    type Error = InvalidLayerKey;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> Self {
        key.0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A set of Python packages, as (name, specifier).
    pub(crate) fn set(packages: &[(&str, &str)]) -> PackageSet {
        let package =
            |(name, version): &(&str, &str)| Package { name: (*name).into(), version: (*version).into() };
        PackageSet {
            language: Language::Python,
            packages: packages.iter().map(package).collect(),
            index_url: Secret::new("https://pypi.org/simple"),
            fingerprint: String::new(),
        }
    }

    #[test]
    fn the_same_packages_are_the_same_layer_however_they_are_written() {
        let key = |packages: &[(&str, &str)]| set(packages).key("python3.11");
        let first = key(&[("Ruamel.YAML", ">=0.17, <1"), ("click", "==8.1")]);
        assert_eq!(first, key(&[("click", "== 8.1"), ("ruamel-yaml", "<1,>=0.17")]));
        assert_eq!(first, key(&[("click", "==8.1"), ("ruamel__yaml", "<1,>=0.17"), ("click", "==8.1")]));
        assert_eq!(first.to_string().parse::<LayerKey>().unwrap(), first);
    }

    #[test]
    fn whatever_makes_a_difference_makes_another_layer() {
        let key = |set: &PackageSet| set.key("python3.11");
        let first = set(&[("click", "==8.1")]);
        let other_index =
            PackageSet { index_url: Secret::new("https://me:secret@pypi.org/simple"), ..first.clone() };
        let others = [
            set(&[("click", "==8.2")]),
            set(&[("click", "")]),
            set(&[("click", "==8.1"), ("x", "")]),
            other_index,
        ];
        for other in others {
            assert_ne!(key(&other), key(&first), "{other:?}");
        }
        assert_ne!(first.key("python3.12"), key(&first));
    }

    #[test]
    fn a_key_is_nothing_but_a_hash() {
        for text in ["", "../../etc", &"g".repeat(64), &"A".repeat(64), &"0".repeat(63)] {
            assert!(text.parse::<LayerKey>().is_err(), "{text}");
        }
    }
}
