//! The layer of packages that a jail shows: where its files are on the host and in the jail, and what of
//! the environment leads to them.
//!
//! Layers are made by the agent, and nobody writes to them any more. The executor has the directory of all
//! of them from its start, as it cannot mount anything later; a jail shows one, read-only.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::cli::Language;

/// Where a jail shows the files of its layer.
pub(crate) const PACKAGES: &str = "/packages";

/// The length of a key: a SHA-256 in hex.
const KEY_DIGITS: usize = 64;

/// A layer of packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    /// The name of its directory: hex digits only.
    key: String,
    /// The language that its packages are for.
    language: Language,
}

impl Layer {
    /// A layer of this key; an error says what is wrong with it.
    pub(crate) fn new(key: &str, language: Language) -> Result<Self, &'static str> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if key.len() != KEY_DIGITS || !key.bytes().all(is_digit) {
            return Err("the key of a layer is 64 lowercase hex digits");
        }
        if language == Language::Shell {
            return Err("there are no packages for shell");
        }
        Ok(Self { key: key.to_owned(), language })
    }

    /// Whether its packages are for this language.
    pub(crate) fn is_for(&self, language: Language) -> bool {
        self.language == language
    }

    /// Its files below the directory of all layers.
    pub(crate) fn files(&self, layers: &Path) -> PathBuf {
        layers.join(&self.key).join("files")
    }

    /// Where its programs are in the jail.
    pub(crate) fn programs(&self) -> String {
        match self.language {
            Language::Javascript => format!("{PACKAGES}/node_modules/.bin"),
            Language::Python | Language::Shell => format!("{PACKAGES}/bin"),
        }
    }
}

/// `LANGUAGE:KEY`, as on the command line.
impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (language, key) = text.split_once(':').ok_or("must be LANGUAGE:KEY")?;
        Ok(Self::new(key, clap::ValueEnum::from_str(language, false)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_named_by_nothing_but_a_hash() {
        let key = "0".repeat(64);
        assert!(format!("python:{key}").parse::<Layer>().is_ok());
        for text in
            ["", "python", &key, &format!("shell:{key}"), "python:../../etc", &format!("python:{key}0")]
        {
            assert!(text.parse::<Layer>().is_err(), "{text}");
        }
    }
}
