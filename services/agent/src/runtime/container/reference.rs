//! The names of images.

/// Whether a text can be the name of an image: of nothing else may a question to an engine be made.
pub(in crate::runtime) fn is_reference(image: &str) -> bool {
    const LONGEST: usize = 512;
    let inside = |c: char| c.is_ascii_alphanumeric() || "._-:@/".contains(c);
    let is_part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric());
    (1..=LONGEST).contains(&image.len()) && image.chars().all(inside) && image.split('/').all(is_part)
}

/// An image with neither tag nor digest is the latest.
pub(in crate::runtime) fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_none_never_reaches_the_engine() {
        for image in ["python", "python:3.11-slim", "localhost:5000/a/b_c@sha256:0123", "ghcr.io/x/y:latest"]
        {
            assert!(is_reference(image), "{image}");
        }
        for image in
            ["", "../../containers/json", "a/../b", "a?force=1", "a b", "a;b", "-a", "$(id)", "a//b", "a\n"]
        {
            assert!(!is_reference(image), "{image:?}");
        }
    }

    #[test]
    fn an_image_without_a_tag_is_the_latest_and_not_all_of_them() {
        assert_eq!(with_tag("python"), "python:latest");
        assert_eq!(with_tag("localhost:5000/python"), "localhost:5000/python:latest");
        assert_eq!(with_tag("a/b:1"), "a/b:1");
        assert_eq!(with_tag("a@sha256:00"), "a@sha256:00");
    }
}
