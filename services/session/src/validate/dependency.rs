//! The form of a dependency: a name and a version specifier, never a URL, a path or an option.

use sandmesh_proto::session::Dependency;

use super::check::{Check, shown};

const OPERATORS: [&str; 8] = ["===", "~=", "==", "!=", "<=", ">=", "<", ">"];

/// Checks the dependency at `index` of a request.
pub(super) fn check(check: &mut Check, index: usize, dependency: &Dependency) {
    let field = format!("dependencies[{index}].name");
    let name = &dependency.name;
    check.length(&field, name, 1..=128);
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let ends = |c: char| c.is_ascii_alphanumeric();
    let fits = name.chars().all(inside) && name.starts_with(ends) && name.ends_with(ends);
    if !name.is_empty() && !fits {
        check.fail(&field, "string_pattern_mismatch", "must be the name of a package");
    } else if let Some((name, version)) = glued_version(name) {
        let problem =
            format!("has a version in it: write name {} and version {}", shown(name), shown(version));
        check.fail(&field, "string_pattern_mismatch", &problem);
    }
    let field = format!("dependencies[{index}].version");
    check.length(&field, &dependency.version, 0..=128);
    if !is_specifier(&dependency.version) {
        check.fail(
            &field,
            "string_pattern_mismatch",
            "must be a version specifier such as `==2.0` or `>=1.2,<2`",
        );
    }
}

/// Splits a name such as `pandas2.3.3`, where the operator was forgotten.
fn glued_version(name: &str) -> Option<(&str, &str)> {
    let version = name.rfind(|c: char| !c.is_ascii_digit() && c != '.').map_or(0, |last| last + 1);
    let (name, version) = name.split_at(version);
    let glued = name.ends_with(|c: char| c.is_ascii_alphabetic())
        && !version.starts_with('.')
        && version.contains('.');
    glued.then_some((name, version))
}

/// True for a PEP 440 specifier, a plain version, or nothing.
fn is_specifier(text: &str) -> bool {
    text.trim().is_empty() || text.split(',').all(|clause| is_clause(clause.trim()))
}

fn is_clause(clause: &str) -> bool {
    let version =
        OPERATORS.iter().find_map(|operator| clause.strip_prefix(operator)).unwrap_or(clause).trim();
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '!' | '*');
    version.starts_with(|c: char| c.is_ascii_digit() || c == 'v') && version.chars().all(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifiers_are_told_from_options_urls_and_paths() {
        for good in ["", "==1.0", ">=1.2, <2", "~=2.2", "===1.0", "1.5.3", "!=1!2.0.post1+local", "==1.*"] {
            assert!(is_specifier(good), "{good}");
        }
        for bad in ["--pre", "@ https://x/y.whl", "==", "latest", "==1.0; os_name", "../x", ",", "= 1.0"] {
            assert!(!is_specifier(bad), "{bad}");
        }
    }

    #[test]
    fn a_version_glued_to_a_name_is_found() {
        assert_eq!(glued_version("pandas2.3.3"), Some(("pandas", "2.3.3")));
        for name in ["click", "ruamel.yaml", "psycopg2", "backports.zoneinfo", "pywin32", "a-1.0"] {
            assert_eq!(glued_version(name), None, "{name}");
        }
    }
}
