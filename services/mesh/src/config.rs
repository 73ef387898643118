//! Configuration: defaults, then a file, then the environment, then flags; typed, checked, printable.

use std::{collections::BTreeMap, path::Path, path::PathBuf};

use figment::{
    Figment,
    error::{Actual, Kind},
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{HumanDuration, RoleName, Secret};

/// The prefix of environment variables; `__` separates the levels, as in `SANDMESH_MESH__DATA_DIR`.
pub const ENV_PREFIX: &str = "SANDMESH_";

/// A setting that cannot be used, with its name and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The sources could not be read or do not fit.
    #[error("configuration: {0}")]
    Unreadable(#[from] Box<figment::Error>),
    /// A value is of the right type and still cannot be used.
    #[error("setting `{setting}`: {problem}")]
    Invalid {
        /// The path of the setting, for example `agent.max_sandboxes`.
        setting: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The configuration cannot be printed.
    #[error("configuration cannot be printed: {0}")]
    Unprintable(#[from] toml::ser::Error),
}

impl ConfigError {
    /// Names a setting and what is wrong with it.
    pub fn invalid(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { setting: setting.into(), problem: problem.into() }
    }
}

/// Reads a configuration: defaults < `file` < environment < `flags`. Unknown names are errors where `T`
/// denies them.
///
/// # Errors
/// When a source cannot be read, or a value does not fit.
pub fn load<T>(file: Option<&Path>, flags: impl Serialize) -> Result<T, ConfigError>
where
    T: Default + Serialize + DeserializeOwned,
{
    let mut sources = Figment::from(Serialized::defaults(T::default()));
    if let Some(file) = file {
        sources = sources.merge(Toml::file_exact(file));
    }
    // One level is not a setting: SANDMESH_URL and the like belong to the command line.
    let nested = |key: &figment::value::UncasedStr| key.as_str().contains("__");
    let sources = sources.merge(Env::prefixed(ENV_PREFIX).filter(nested).split("__"));
    let read = sources.merge(Serialized::defaults(flags)).extract();
    read.map_err(|error: figment::Error| Box::new(without_values(error)).into())
}

/// An error that says where and what was expected, and not what was there: that may be a secret.
fn without_values(error: figment::Error) -> figment::Error {
    let hidden = error.into_iter().map(|mut error| {
        error.kind = match error.kind {
            Kind::InvalidType(found, expected) => Kind::InvalidType(type_of(&found), expected),
            Kind::InvalidValue(found, expected) => Kind::InvalidValue(type_of(&found), expected),
            Kind::Unsupported(found) => Kind::Unsupported(type_of(&found)),
            Kind::UnsupportedKey(found, expected) => Kind::UnsupportedKey(type_of(&found), expected),
            kind => kind,
        };
        error
    });
    hidden.reduce(figment::Error::chain).unwrap_or_else(|| Kind::Message(String::new()).into())
}

fn type_of(found: &Actual) -> Actual {
    let name = match found {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a float",
        Actual::Char(_) | Actual::Str(_) | Actual::Bytes(_) => "a string",
        // The others have no value with them.
        other => return other.clone(),
    };
    Actual::Other(name.to_owned())
}

/// The configuration as TOML, with secrets hidden.
///
/// # Errors
/// When a value has no form in TOML.
pub fn dump(config: &impl Serialize) -> Result<String, ConfigError> {
    Ok(toml::to_string_pretty(config)?)
}

/// Where a machine that joined listens unless told otherwise: of both versions of IP.
pub(crate) const JOINED_LISTEN: &str = "[::]:8010";

/// A credential shorter than this could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// What a node needs to know, whatever its roles.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Where databases, objects and sandboxes are kept.
    pub data_dir: PathBuf,
    /// The roles that run in this process.
    pub roles: Vec<RoleName>,
    /// Where this process serves its roles to other processes of the mesh: `HOST:PORT` or `unix:PATH`.
    /// Empty: nowhere, which is right when every role runs here.
    pub listen: String,
    /// Where roles run that do not run here, as `http://HOST:PORT` or `unix:PATH`; of a role that several
    /// processes run, the addresses with commas between them.
    pub links: BTreeMap<RoleName, String>,
    /// The credential that processes of the mesh show each other, at least 16 characters. Required to
    /// listen on TCP.
    pub token: Option<Secret>,
    /// Where this machine joins the mesh as a node, `HOST:PORT` as in `scheduler.join.listen` there; of several
    /// schedulers, with commas between them. Empty: it does not, and the roles it runs are linked as above.
    pub join: String,
    /// What `sandmesh nodes token` printed there. It is needed once: the certificate that it gives is kept.
    pub join_token: Option<Secret>,
    /// How long a shutdown may take before it is cut short.
    pub shutdown_grace: HumanDuration,
    /// How logs look.
    pub log_format: LogFormat,
    /// What is logged, as `tracing` directives, for example `info,sandmesh_session=debug`.
    pub log_filter: String,
    /// Where traces are sent by OTLP over gRPC; empty: nowhere.
    pub otlp_endpoint: String,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            roles: RoleName::ALL.to_vec(),
            listen: String::new(),
            links: BTreeMap::new(),
            token: None,
            join: String::new(),
            join_token: None,
            shutdown_grace: HumanDuration(std::time::Duration::from_secs(10)),
            log_format: LogFormat::Text,
            log_filter: "info,object_store=warn,sea_orm_migration=warn".into(),
            otlp_endpoint: String::new(),
        }
    }
}

impl MeshConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.roles.is_empty() {
            return Err(ConfigError::invalid("mesh.roles", "name at least one role"));
        }
        if self.data_dir.as_os_str().is_empty() || !self.data_dir.is_absolute() {
            return Err(ConfigError::invalid("mesh.data_dir", "give an absolute path"));
        }
        if !self.join.is_empty() {
            return self.validate_join();
        }
        if !self.listen.is_empty() && !self.listen.starts_with("unix:") && self.token.is_none() {
            let problem = "is required to serve roles over TCP: whoever can connect could run code";
            return Err(ConfigError::invalid("mesh.token", problem));
        }
        if self.token.as_ref().is_some_and(|token| !usable_token(token.expose())) {
            let problem = format!("needs at least {SHORTEST_TOKEN} visible ASCII characters");
            return Err(ConfigError::invalid("mesh.token", problem));
        }
        Ok(())
    }
}

impl MeshConfig {
    /// A machine that joins runs the agent, and nothing that would have to be reached by others than the mesh.
    fn validate_join(&self) -> Result<(), ConfigError> {
        let invalid = |setting: &str, problem: &str| ConfigError::invalid(format!("mesh.{setting}"), problem);
        if self.roles != [RoleName::Agent] {
            return Err(invalid(
                "roles",
                "must be `agent` alone on a machine that joins: write `--roles agent`",
            ));
        }
        if !self.links.is_empty() {
            return Err(invalid(
                "links",
                "must be empty on a machine that joins: it is linked by `mesh.join`",
            ));
        }
        if self.listen.starts_with("unix:") {
            return Err(invalid("listen", "must be `HOST:PORT` on a machine that joins: others dial it"));
        }
        let port = |address: &str| address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if self.join.split(',').any(|address| port(address.trim()).is_none()) {
            return Err(invalid("join", "must be `HOST:PORT`, such as `10.0.0.1:8443`"));
        }
        Ok(())
    }

    /// Where this process listens for others of the mesh.
    pub(crate) fn address(&self) -> &str {
        match self.listen.as_str() {
            "" if !self.join.is_empty() => JOINED_LISTEN,
            listen => listen,
        }
    }
}

fn usable_token(token: &str) -> bool {
    token.len() >= SHORTEST_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_setting_is_refused() {
        let error = load::<MeshConfig>(None, BTreeMap::from([("data_dri", "/x")])).unwrap_err();
        assert!(error.to_string().contains("data_dri"), "{error}");
    }

    #[test]
    fn tcp_without_a_credential_is_refused() {
        let config =
            MeshConfig { data_dir: "/x".into(), listen: "127.0.0.1:1".into(), ..MeshConfig::default() };
        assert!(config.validate().unwrap_err().to_string().contains("mesh.token"));
    }

    #[test]
    fn a_credential_that_could_be_guessed_is_refused_and_not_shown() {
        for token in ["", "hunter2", "with a space in it"] {
            let config = MeshConfig {
                data_dir: "/x".into(),
                token: Some(Secret::new(token)),
                ..MeshConfig::default()
            };
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains("mesh.token"), "{text}");
            assert!(token.is_empty() || !text.contains(token), "{text}");
        }
        let token = Some(Secret::new("0123456789abcdef"));
        assert!(MeshConfig { data_dir: "/x".into(), token, ..MeshConfig::default() }.validate().is_ok());
    }

    #[test]
    fn an_error_names_the_setting_and_not_its_value() {
        for setting in ["roles", "links", "shutdown_grace"] {
            let error = load::<MeshConfig>(None, BTreeMap::from([(setting, -4711)])).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(setting) && !text.contains("4711"), "{text}");
        }
    }

    #[test]
    fn a_dump_hides_secrets() {
        let config = MeshConfig { token: Some(Secret::new("hunter2")), ..MeshConfig::default() };
        assert!(!dump(&config).unwrap().contains("hunter2"));
    }
}
