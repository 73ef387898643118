//! Packages of sessions in JSON.

use sandmesh_proto::session::{self as pb, dependency_installation::State as InstallState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Mistakes, filled, time};
use crate::error::ApiError;

/// A package to install.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Dependency {
    /// Its name.
    #[schema(example = "click")]
    name: String,
    /// A version specifier; left out: the newest.
    #[schema(example = "==8.1.7")]
    version: Option<String>,
}

/// Packages to install into a session that runs.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = InstallDependencies)]
pub(crate) struct InstallDependencies {
    /// The packages.
    #[schema(required = true, nullable = false, min_items = 1, max_items = 50)]
    dependencies: Option<Vec<Dependency>>,
    /// The index to install from; left out: the session's.
    python_package_index_url: Option<String>,
}

impl InstallDependencies {
    /// The message for the session role.
    pub(crate) fn into_request(self, session_id: String) -> Result<pb::InstallDependenciesRequest, ApiError> {
        let mut mistakes = Mistakes::default();
        mistakes.required("dependencies", self.dependencies.as_ref());
        mistakes.check()?;
        Ok(pb::InstallDependenciesRequest {
            session_id,
            dependencies: self.dependencies.unwrap_or_default().into_iter().map(Into::into).collect(),
            python_package_index_url: self.python_package_index_url.unwrap_or_default(),
        })
    }
}

impl From<Dependency> for pb::Dependency {
    fn from(dependency: Dependency) -> Self {
        Self { name: dependency.name, version: dependency.version.unwrap_or_default() }
    }
}

/// How far the installation of dependencies is.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InstallStatus {
    /// Asked for and not started.
    Pending,
    /// The installer runs.
    Installing,
    /// Everything is there.
    Completed,
    /// It failed.
    Failed,
}

/// A package that is installed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InstalledDependency {
    /// Its name.
    name: String,
    /// Its version.
    version: String,
    /// Where it is, as user code sees it.
    install_location: String,
    /// When it was installed.
    #[schema(required = true, format = DateTime)]
    install_time: Option<String>,
    /// True when it came with the template.
    is_from_template: bool,
}

impl From<pb::Dependency> for Dependency {
    fn from(dependency: pb::Dependency) -> Self {
        Self { name: dependency.name, version: filled(dependency.version) }
    }
}

impl From<pb::InstalledDependency> for InstalledDependency {
    fn from(installed: pb::InstalledDependency) -> Self {
        Self {
            name: installed.name,
            version: installed.version,
            install_location: installed.install_location,
            install_time: time(installed.installed_at.as_ref()),
            is_from_template: installed.is_from_template,
        }
    }
}

/// The word for it; `None` where there is nothing to install.
pub(super) fn install_status(state: InstallState) -> Option<InstallStatus> {
    match state {
        InstallState::Unspecified => None,
        InstallState::Pending => Some(InstallStatus::Pending),
        InstallState::Installing => Some(InstallStatus::Installing),
        InstallState::Completed => Some(InstallStatus::Completed),
        InstallState::Failed => Some(InstallStatus::Failed),
    }
}
