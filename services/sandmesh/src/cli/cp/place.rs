//! Where a file to be copied is: on this machine, in a session, or in a pipe.

use std::path::{Path, PathBuf};

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `-`: the standard input or output.
    Pipe,
    /// A path of this machine.
    Local(PathBuf),
    /// `SESSION:PATH`.
    Remote {
        /// The session.
        session: String,
        /// The path below its workspace, without a `/` at either end; empty: the workspace itself.
        path: String,
        /// It was written as that of a directory.
        is_directory: bool,
    },
}

/// The workspace of a session, as code in it sees it.
const WORKSPACE: &str = "/workspace";

/// Parses one end of a copy. What has a `/` before its first `:` is a path of this machine.
pub(in crate::cli) fn place(text: &str) -> Result<Place, String> {
    match text {
        "" => return Err("is empty".to_owned()),
        "-" => return Ok(Place::Pipe),
        _ => {}
    }
    let Some((session, path)) = text.split_once(':').filter(|(session, _)| !session.contains('/')) else {
        return Ok(Place::Local(PathBuf::from(text)));
    };
    if session.is_empty() {
        return Err(format!(
            "`{text}` names no session before the `:`; write `./{text}` for a file of that name"
        ));
    }
    let below = path.strip_prefix(WORKSPACE).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let below = below.unwrap_or(path);
    let is_directory = below.is_empty() || below.ends_with('/') || below == "." || below.ends_with("/.");
    let steps: Vec<&str> = below.split('/').filter(|step| !matches!(*step, "" | ".")).collect();
    if steps.contains(&"..") {
        return Err(format!("`{text}`: a path in a session has no `..`"));
    }
    Ok(Place::Remote { session: session.to_owned(), path: steps.join("/"), is_directory })
}

/// A path below a workspace as one below a directory of this machine; `None` for one that would lead out
/// of it, whoever sent it.
pub(super) fn below(directory: &Path, path: &str) -> Option<PathBuf> {
    let is_plain = |step: &str| !matches!(step, "" | "." | "..") && !step.contains('\0');
    path.split('/').all(is_plain).then(|| directory.join(path))
}

/// The last step of a path below a workspace.
pub(super) fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// A name below a path, which may be empty.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_session_with_a_path_or_a_file_of_this_machine() {
        for (text, expected, directory) in [
            ("s:a.txt", "a.txt", false),
            ("s:/a/b.txt", "a/b.txt", false),
            ("s:/workspace/a", "a", false),
            ("s:/workspaces/a", "workspaces/a", false),
            ("s:a//./b", "a/b", false),
            ("s:a/", "a", true),
            ("s:a/.", "a", true),
            ("s:", "", true),
            ("s:/", "", true),
            ("s:.", "", true),
            ("s:/workspace", "", true),
            ("s:a:b", "a:b", false),
        ] {
            let (session, path) = ("s".to_owned(), expected.to_owned());
            assert_eq!(place(text), Ok(Place::Remote { session, path, is_directory: directory }), "{text}");
        }
        for text in ["a.txt", "./s:a", "/tmp/s:a", "../x", "dir/"] {
            assert_eq!(place(text), Ok(Place::Local(PathBuf::from(text))), "{text}");
        }
        assert_eq!(place("-"), Ok(Place::Pipe));
        for text in ["", ":a", "s:../a", "s:a/../../b"] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_that_is_copied_leads_out_of_its_directory() {
        let top = Path::new("/top");
        assert_eq!(below(top, "a/b c"), Some(PathBuf::from("/top/a/b c")));
        for path in ["", "..", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\0b"] {
            assert_eq!(below(top, path), None, "{path:?}");
        }
    }
}
