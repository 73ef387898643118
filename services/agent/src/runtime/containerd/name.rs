//! The names of images as containerd has them, which are whole, and as people write them. Pure.

use crate::runtime::container::reference::with_tag;

/// The registry of names that have none, and where it has what is nobody's.
const DOMAIN: &str = "docker.io";
const LIBRARY: &str = "library/";

/// The whole name of an image: `python` is `docker.io/library/python:latest`.
pub(super) fn whole(image: &str) -> String {
    let image = with_tag(image);
    match image.split_once('/') {
        Some((DOMAIN, rest)) if !rest.contains('/') => format!("{DOMAIN}/{LIBRARY}{rest}"),
        Some((domain, _)) if domain.contains(['.', ':']) || domain == "localhost" => image,
        Some(_) => format!("{DOMAIN}/{image}"),
        None => format!("{DOMAIN}/{LIBRARY}{image}"),
    }
}

/// The name as it is written in a template.
pub(super) fn familiar(name: &str) -> &str {
    let rest = name.strip_prefix(DOMAIN).and_then(|rest| rest.strip_prefix('/'));
    rest.map_or(name, |rest| rest.strip_prefix(LIBRARY).unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_whole_and_familiar_again() {
        for (written, name) in [
            ("python:3.11-slim", "docker.io/library/python:3.11-slim"),
            ("me/tool:1", "docker.io/me/tool:1"),
            ("ghcr.io/x/y:2", "ghcr.io/x/y:2"),
            ("localhost/a:1", "localhost/a:1"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
            ("python@sha256:00", "docker.io/library/python@sha256:00"),
        ] {
            assert_eq!(whole(written), name);
            assert_eq!(familiar(name), written);
        }
        assert_eq!(whole("python"), "docker.io/library/python:latest");
        assert_eq!(whole("docker.io/me/tool"), "docker.io/me/tool:latest");
        assert_eq!(whole("docker.io/python:3"), whole("python:3"));
    }
}
