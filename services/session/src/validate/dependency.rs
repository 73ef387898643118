//! The form of a dependency: a name and a version specifier, never a URL, a path or an option.

use sandmesh_proto::session as pb;

use super::check::{Check, shown};
use crate::{dependencies::Dependency, error::Error, values::Language};

const OPERATORS: [&str; 8] = ["===", "~=", "==", "!=", "<=", ">=", "<", ">"];
const NPM_OPERATORS: [&str; 7] = [">=", "<=", ">", "<", "=", "^", "~"];

/// What is wrong with a name or a specifier; it completes the sentence "`field` ...".
type Problem = String;

/// Checks the dependency at `index` of a request of which the language is not known yet: it must be one of
/// some language.
pub(super) fn check(check: &mut Check, index: usize, dependency: &pb::Dependency) {
    let name = &dependency.name;
    let of =
        |language: Language| (name_problem(name, language), version_problem(&dependency.version, language));
    if of(Language::JavaScript) == (None, None) && glued_version(name).is_none() {
        return;
    }
    let (name, version) = of(Language::Python);
    report(check, index, name, version);
}

/// The dependencies of a session of this language, in the form that its installer takes.
///
/// # Errors
/// Names every field that is wrong.
pub(crate) fn dependencies(
    given: &[pb::Dependency],
    language: Option<Language>,
) -> Result<Vec<Dependency>, Error> {
    let language = language.filter(|language| *language != Language::Shell);
    let mut check = Check::default();
    let Some(language) = language else {
        if !given.is_empty() {
            check.fail("dependencies", "value_error", "are for templates of Python and Node.js only");
        }
        return check.done().map(|()| Vec::new());
    };
    for (index, dependency) in given.iter().enumerate() {
        let name = name_problem(&dependency.name, language);
        report(&mut check, index, name, version_problem(&dependency.version, language));
    }
    check.done()?;
    let read = |given: &pb::Dependency| Dependency {
        name: given.name.clone(),
        version: specifier(&given.version, language),
    };
    Ok(given.iter().map(read).collect())
}

/// A package of a template, such as `numpy==2.0` or `left-pad@^1.3`; `None` when it is not written so.
pub(crate) fn template_package(text: &str, language: Language) -> Option<Dependency> {
    let text = text.trim();
    let split = match language {
        Language::JavaScript => text.get(1..).and_then(|rest| rest.rfind('@')).map(|at| at + 1),
        Language::Python | Language::Shell => text.find(|c: char| "=<>!~ ".contains(c)),
    };
    let (name, version) = text.split_at(split.unwrap_or(text.len()));
    let version = if language == Language::JavaScript { version.trim_start_matches('@') } else { version };
    let fits = name_problem(name, language).is_none() && version_problem(version, language).is_none();
    fits.then(|| Dependency { name: name.to_owned(), version: specifier(version, language) })
}

fn report(check: &mut Check, index: usize, name: Option<Problem>, version: Option<Problem>) {
    for (what, problem) in [("name", name), ("version", version)] {
        if let Some(problem) = problem {
            let field = format!("dependencies[{index}].{what}");
            let kind = match problem.as_str() {
                "is required" => "missing",
                long if long.starts_with("must be at most") => "string_too_long",
                _ => "string_pattern_mismatch",
            };
            check.fail(&field, kind, &problem);
        }
    }
}

fn name_problem(name: &str, language: Language) -> Option<Problem> {
    const LONGEST: usize = 128;
    if name.is_empty() {
        return Some("is required".to_owned());
    }
    if name.len() > LONGEST {
        return Some(format!("must be at most {LONGEST} bytes long"));
    }
    let fits = match language {
        Language::JavaScript => is_npm_name(name),
        Language::Python | Language::Shell => is_python_name(name),
    };
    if !fits {
        return Some("must be the name of a package".to_owned());
    }
    let (name, version) = glued_version(name).filter(|_| language != Language::JavaScript)?;
    Some(format!("has a version in it: write name {} and version {}", shown(name), shown(version)))
}

fn version_problem(version: &str, language: Language) -> Option<Problem> {
    const LONGEST: usize = 128;
    if version.len() > LONGEST {
        return Some(format!("must be at most {LONGEST} bytes long"));
    }
    let (fits, example) = match language {
        Language::JavaScript => {
            (is_range(version), "must be a range of versions such as `^1.2.0` or `>=1.2 <2`")
        }
        Language::Python | Language::Shell => {
            (is_specifier(version), "must be a version specifier such as `==2.0` or `>=1.2,<2`")
        }
    };
    (!fits).then(|| example.to_owned())
}

/// A specifier as the installer takes it: a plain version is exactly that one.
fn specifier(version: &str, language: Language) -> String {
    let version = version.trim();
    if language == Language::JavaScript || version.is_empty() {
        return version.to_owned();
    }
    let exact = |clause: &str| match clause.trim() {
        plain if plain.starts_with(|c: char| c.is_ascii_digit() || c == 'v') => format!("=={plain}"),
        clause => clause.split_whitespace().collect(),
    };
    version.split(',').map(exact).collect::<Vec<_>>().join(",")
}

fn is_python_name(name: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let ends = |c: char| c.is_ascii_alphanumeric();
    name.chars().all(inside) && name.starts_with(ends) && name.ends_with(ends)
}

/// `name` or `@scope/name`.
fn is_npm_name(name: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '~');
    let fits = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(inside);
    match name.strip_prefix('@').map(|rest| rest.split_once('/')) {
        Some(Some((scope, name))) => fits(scope) && fits(name),
        Some(None) => false,
        None => fits(name),
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

/// True for a range of npm, or nothing.
fn is_range(text: &str) -> bool {
    text.trim().is_empty() || text.split("||").all(|part| is_comparators(part.trim()))
}

fn is_comparators(text: &str) -> bool {
    if let Some((from, to)) = text.split_once(" - ") {
        return is_partial(from.trim()) && is_partial(to.trim());
    }
    !text.is_empty()
        && text.split_whitespace().all(|word| {
            is_partial(NPM_OPERATORS.iter().find_map(|operator| word.strip_prefix(operator)).unwrap_or(word))
        })
}

/// `1`, `1.2`, `1.x`, `1.2.3-beta.1+build`, `*`.
fn is_partial(text: &str) -> bool {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let is_number = |part: &str| {
        matches!(part, "x" | "X" | "*") || (!part.is_empty() && part.chars().all(|c| c.is_ascii_digit()))
    };
    let parts: Vec<&str> = numbers.split('.').collect();
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
    parts.len() <= 3
        && parts.into_iter().all(is_number)
        && rest.chars().all(inside)
        && rest != "-"
        && rest != "+"
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
    fn ranges_are_told_from_tags_urls_and_paths() {
        let good = [
            "",
            "^1.2.0",
            "~1",
            ">=1.2 <2",
            "1.x || >=2.5.0 || 5.0.0 - 7.2.3",
            "*",
            "1.2.3-beta.1+b",
            "v1.0.0",
        ];
        for good in good {
            assert!(is_range(good), "{good}");
        }
        for bad in [
            "latest",
            "file:../x",
            "git+https://x/y",
            "npm:other@1",
            "--global",
            "1.2.3.4",
            "../x",
            "||",
            "user/repo",
            "1.0.0-",
        ] {
            assert!(!is_range(bad), "{bad}");
        }
    }

    #[test]
    fn names_of_npm_are_told_from_addresses() {
        for good in ["left-pad", "@scope/name", "lodash.merge", "JSONStream"] {
            assert!(is_npm_name(good), "{good}");
        }
        for bad in [
            "",
            "user/repo",
            "@scope",
            "@scope/",
            "@/x",
            "../x",
            "-g",
            "@a/b/c",
            "a b",
            "http://x",
            ".hidden",
        ] {
            assert!(!is_npm_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_version_glued_to_a_name_is_found() {
        assert_eq!(glued_version("pandas2.3.3"), Some(("pandas", "2.3.3")));
        for name in ["click", "ruamel.yaml", "psycopg2", "backports.zoneinfo", "pywin32", "a-1.0"] {
            assert_eq!(glued_version(name), None, "{name}");
        }
    }

    #[test]
    fn a_plain_version_is_exactly_that_one() {
        assert_eq!(specifier(" 1.5 ", Language::Python), "==1.5");
        assert_eq!(specifier(">= 1.2 , <2", Language::Python), ">=1.2,<2");
        assert_eq!(specifier("1.5", Language::JavaScript), "1.5");
    }

    #[test]
    fn packages_of_templates_are_read_as_people_write_them() {
        let read = |text, language| template_package(text, language).map(|one| (one.name, one.version));
        let pair = |name: &str, version: &str| Some((name.to_owned(), version.to_owned()));
        assert_eq!(read("numpy==2.0", Language::Python), pair("numpy", "==2.0"));
        assert_eq!(read("click", Language::Python), pair("click", ""));
        assert_eq!(read("six >= 1.0", Language::Python), pair("six", ">=1.0"));
        assert_eq!(read("@scope/x@^1.3", Language::JavaScript), pair("@scope/x", "^1.3"));
        assert_eq!(read("left-pad", Language::JavaScript), pair("left-pad", ""));
        for bad in ["--pre", "x @ https://evil", "numpy==2.0; x", ""] {
            assert_eq!(read(bad, Language::Python), None, "{bad}");
        }
    }

    #[test]
    fn what_belongs_to_another_language_is_refused() {
        let given =
            |name: &str, version: &str| [pb::Dependency { name: name.into(), version: version.into() }];
        assert!(dependencies(&given("left-pad", "^1.3"), Some(Language::JavaScript)).is_ok());
        assert!(dependencies(&given("left-pad", "^1.3"), Some(Language::Python)).is_err());
        assert!(dependencies(&given("@scope/x", ""), Some(Language::Python)).is_err());
        assert!(dependencies(&given("x", ""), Some(Language::Shell)).is_err());
        assert!(dependencies(&[], None).is_ok());
    }
}
