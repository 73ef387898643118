//! The file to run: its text, and the language it is in.

use std::path::Path;

use sandmesh_proto::executor::Language;

use super::LanguageArg;
use crate::cli::{
    args::{MAX_CODE_BYTES, read_text},
    failure::Failure,
};

/// A file to run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) code: String,
    language: LanguageArg,
}

impl Program {
    /// Reads the file; `language` wins over what its name and first line say.
    pub(super) fn read(file: &str, language: Option<LanguageArg>) -> Result<Self, Failure> {
        let code = read_text(file, MAX_CODE_BYTES)?;
        match language.or_else(|| by_extension(file)).or_else(|| by_first_line(&code)) {
            Some(language) => Ok(Self { code, language }),
            None => Err(Failure::usage(format!("cannot tell the language of `{file}`; use --language"))),
        }
    }

    /// The language, as it travels.
    pub(super) fn language(&self) -> Language {
        match self.language {
            LanguageArg::Python => Language::Python,
            LanguageArg::JavaScript => Language::Javascript,
            LanguageArg::Shell => Language::Shell,
        }
    }

    /// The template for the language, which every server has.
    pub(super) fn template(&self) -> &'static str {
        match self.language {
            LanguageArg::Python => "python-basic",
            LanguageArg::JavaScript => "nodejs-basic",
            LanguageArg::Shell => "shell-basic",
        }
    }
}

fn by_extension(file: &str) -> Option<LanguageArg> {
    match Path::new(file).extension()?.to_str()? {
        "py" => Some(LanguageArg::Python),
        "js" | "mjs" | "cjs" => Some(LanguageArg::JavaScript),
        "sh" | "bash" => Some(LanguageArg::Shell),
        _ => None,
    }
}

/// The interpreter of a `#!` line, also behind `env`.
fn by_first_line(code: &str) -> Option<LanguageArg> {
    let line = code.lines().next()?.strip_prefix("#!")?;
    let names = line.split_whitespace().filter_map(|word| word.rsplit('/').next());
    let interpreter = names.into_iter().find(|name| *name != "env" && !name.starts_with('-'))?;
    match interpreter.trim_end_matches(|char: char| char.is_ascii_digit() || char == '.') {
        "python" => Some(LanguageArg::Python),
        "node" | "nodejs" => Some(LanguageArg::JavaScript),
        "sh" | "bash" | "dash" => Some(LanguageArg::Shell),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_tells_the_language() {
        for (file, language) in [
            ("a.py", Some(LanguageArg::Python)),
            ("dir.py/a.mjs", Some(LanguageArg::JavaScript)),
            ("a.test.cjs", Some(LanguageArg::JavaScript)),
            ("a.sh", Some(LanguageArg::Shell)),
            ("a.rb", None),
            ("py", None),
            ("-", None),
        ] {
            assert_eq!(by_extension(file), language, "{file}");
        }
    }

    #[test]
    fn the_first_line_tells_the_language_of_a_file_without_extension() {
        for (code, language) in [
            ("#!/usr/bin/env python3\nx", Some(LanguageArg::Python)),
            ("#!/usr/bin/python3.11 -u", Some(LanguageArg::Python)),
            ("#!/usr/bin/env -S node --no-warnings", Some(LanguageArg::JavaScript)),
            ("#! /bin/sh -e", Some(LanguageArg::Shell)),
            ("#!/usr/bin/perl", None),
            ("print()\n#!/bin/sh", None),
            ("", None),
        ] {
            assert_eq!(by_first_line(code), language, "{code}");
        }
    }

    #[test]
    fn a_file_of_no_known_language_is_a_usage_error() {
        let file = tempfile::Builder::new().suffix(".rb").tempfile().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(Program::read(path, None).unwrap_err().exit_code(), 2);
        assert_eq!(Program::read(path, Some(LanguageArg::Shell)).unwrap().template(), "shell-basic");
    }
}
