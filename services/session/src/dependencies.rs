//! What packages a session is to have, and how far that is. Pure.
//!
//! What is wanted becomes what is there only when it is installed: when that fails, what was there still is.

use serde::{Deserialize, Serialize};

use crate::values::Language;

/// The most packages of a session, with those of its template.
pub(crate) const MOST: usize = 200;

/// How far an installation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstallState {
    /// Asked for and not started.
    Pending,
    /// The installer runs.
    Installing,
    /// Everything is there.
    Completed,
    /// It failed.
    Failed,
}

impl InstallState {
    pub(crate) const ALL: [Self; 4] = [Self::Pending, Self::Installing, Self::Completed, Self::Failed];
    /// Somebody is to bring it to an end.
    pub(crate) const ACTIVE: [Self; 2] = [Self::Pending, Self::Installing];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Installing => "installing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Whether somebody is to bring it to an end.
    pub(crate) fn is_active(self) -> bool {
        Self::ACTIVE.contains(&self)
    }
}

/// A package and which versions of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dependency {
    /// Its name.
    pub(crate) name: String,
    /// A specifier; empty for the newest.
    pub(crate) version: String,
}

/// What packages a session is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Packages {
    /// Those that come with its template.
    pub(crate) template: Vec<Dependency>,
    /// Those that were asked for last and are installed, or that could not be installed at its creation.
    pub(crate) requested: Vec<Dependency>,
    /// Those that it is to have instead, until they are installed or cannot be.
    pub(crate) wanted: Option<Wanted>,
    /// How long an installation may take.
    pub(crate) timeout_seconds: u32,
    /// The session is kept when its packages cannot be installed at its creation.
    pub(crate) keep_on_error: bool,
}

/// Packages that a session is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// The packages.
    pub(crate) packages: Vec<Dependency>,
    /// The index that they come from; empty for the default.
    pub(crate) index_url: String,
}

/// What is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Installed {
    /// Every package, those that others need too, with its version.
    pub(crate) packages: Vec<Dependency>,
    /// Where they are, as user code sees it.
    pub(crate) location: String,
    /// When they were installed, in microseconds since 1970.
    pub(crate) installed_at: i64,
}

impl Packages {
    /// What a caller is shown as asked for.
    pub(crate) fn shown(&self) -> &[Dependency] {
        self.wanted.as_ref().map_or(&self.requested, |wanted| &wanted.packages)
    }

    /// What its sandbox is to have now; `None` when there is nothing. `installed` tells whether what was
    /// requested is there, or was.
    pub(crate) fn due(&self, installed: bool, language: Language) -> Option<Vec<Dependency>> {
        let own = match &self.wanted {
            Some(wanted) => &wanted.packages,
            None if installed => &self.requested,
            None => return None,
        };
        Some(union(&self.template, own, language)).filter(|all| !all.is_empty())
    }

    /// What a session is to have after more were asked for.
    pub(crate) fn with(&self, more: &[Dependency], installed: bool, language: Language) -> Vec<Dependency> {
        // What could not be installed would not be now.
        union(if installed { &self.requested } else { &[] }, more, language)
    }

    /// What was wanted is there.
    pub(crate) fn placed(mut self) -> Self {
        if let Some(wanted) = self.wanted.take() {
            self.requested = wanted.packages;
        }
        self
    }

    /// What was wanted could not be installed. At its creation there is nothing else to show.
    pub(crate) fn refused(mut self, installed: bool) -> Self {
        if let Some(wanted) = self.wanted.take().filter(|_| !installed) {
            self.requested = wanted.packages;
        }
        self
    }

    /// Whether a package that is installed came with the template.
    pub(crate) fn is_from_template(&self, name: &str, language: Language) -> bool {
        self.template.iter().any(|package| normal(&package.name, language) == normal(name, language))
    }
}

/// All of both; of a package that both have, what `more` says counts.
fn union(base: &[Dependency], more: &[Dependency], language: Language) -> Vec<Dependency> {
    let mut all: Vec<Dependency> = Vec::new();
    for package in base.iter().chain(more) {
        let name = normal(&package.name, language);
        match all.iter_mut().find(|known| normal(&known.name, language) == name) {
            Some(known) => known.clone_from(package),
            None => all.push(package.clone()),
        }
    }
    all
}

/// A name as it is compared.
fn normal(name: &str, language: Language) -> String {
    match language {
        Language::Python => {
            let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
            words.collect::<Vec<_>>().join("-").to_lowercase()
        }
        Language::JavaScript | Language::Shell => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packages(names: &[&str]) -> Vec<Dependency> {
        let package = |text: &&str| {
            let (name, version) = text.split_at(text.find('=').unwrap_or(text.len()));
            Dependency { name: name.into(), version: version.into() }
        };
        names.iter().map(package).collect()
    }

    fn wanted(names: &[&str]) -> Option<Wanted> {
        Some(Wanted { packages: packages(names), ..Wanted::default() })
    }

    #[test]
    fn more_packages_are_added_to_what_is_there_and_the_last_word_counts() {
        let session = Packages { requested: packages(&["click==8.1", "Ruamel.yaml"]), ..Packages::default() };
        let more = packages(&["ruamel-YAML==0.18", "six"]);
        let all = session.with(&more, true, Language::Python);
        assert_eq!(all, packages(&["click==8.1", "ruamel-YAML==0.18", "six"]));
        assert_eq!(session.with(&more, false, Language::Python), more, "what failed is not tried again");
    }

    #[test]
    fn what_fails_leaves_what_was_there() {
        let session = Packages {
            template: packages(&["six"]),
            requested: packages(&["click"]),
            wanted: wanted(&["click", "nosuch"]),
            ..Packages::default()
        };
        let due = |session: &Packages, installed| session.due(installed, Language::Python);
        assert_eq!(due(&session, true), Some(packages(&["six", "click", "nosuch"])));
        let after = session.clone().refused(true);
        assert_eq!(due(&after, true), Some(packages(&["six", "click"])));
        assert_eq!(due(&session.clone().placed(), true), due(&session, true));
        // At its creation nothing was there.
        let after = session.refused(false);
        assert_eq!((after.shown(), due(&after, false)), (&packages(&["click", "nosuch"])[..], None));
    }

    #[test]
    fn the_name_of_a_template_is_found_however_it_is_written() {
        let session = Packages { template: packages(&["Py_YAML"]), ..Packages::default() };
        assert!(session.is_from_template("py-yaml", Language::Python));
        assert!(!session.is_from_template("yaml", Language::Python));
    }

    proptest! {
        #[test]
        fn a_union_has_each_name_once_and_loses_none(
            base in proptest::collection::vec("[ab][.-]?[AB]", 0..6),
            more in proptest::collection::vec("[ab][.-]?[AB]", 0..6),
        ) {
            let of = |names: &[String]| packages(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let all = union(&of(&base), &of(&more), Language::Python);
            let names: Vec<String> = all.iter().map(|one| normal(&one.name, Language::Python)).collect();
            let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
            prop_assert_eq!(distinct.len(), names.len());
            prop_assert!(base.iter().chain(&more).all(|name| names.contains(&normal(name, Language::Python))));
            prop_assert_eq!(union(&all, &of(&more), Language::Python), all);
        }
    }
}
