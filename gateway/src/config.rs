//! The settings of the gateway, and the rule that it is never open to a network without keys.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use http::Uri;
use sandmesh_mesh::{ByteSize, ConfigError, HumanDuration, MAX_MESSAGE_BYTES, Secret};
use serde::{Deserialize, Serialize};

/// The largest `body_memory`: what can be counted in KiB by 32 bits and a semaphore.
const MOST_BODY_MEMORY: u64 = 1 << 40;

/// A key shorter than this could be guessed.
const SHORTEST_KEY: usize = 16;

/// The settings of the gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients are served. Beyond loopback only with `api_keys`.
    pub listen: SocketAddr,
    /// The keys that clients may show as `Authorization: Bearer KEY`; at least 16 characters each. Empty:
    /// no key is asked for, which is possible on loopback only.
    pub api_keys: Vec<Secret>,
    /// Serves beyond loopback although the gateway itself speaks no TLS: right where something in front
    /// of it does, or where the network is trusted.
    pub allow_plaintext: bool,
    /// Web pages of these origins, such as `https://app.example.com`, may call the API from a browser, or
    /// `*` for every origin (with keys only). Empty: only pages that the gateway itself serves.
    pub cors_origins: Vec<String>,
    /// The largest REST request body.
    pub max_body: ByteSize,
    /// The largest file that can be uploaded by REST. It is not held in memory.
    pub max_upload: ByteSize,
    /// The memory that the REST request bodies in work may take together; more wait for their turn.
    pub body_memory: ByteSize,
    /// How long a client may take to send a REST request body, or to send more of a file.
    pub body_timeout: HumanDuration,
    /// The deadline of a call to another role that neither waits nor streams.
    pub rpc_timeout: HumanDuration,
    /// Serves `/metrics` to who shows no key, too.
    pub open_metrics: bool,
    /// How often a silent event stream sends a comment, so that proxies do not close it.
    pub keep_alive: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            api_keys: Vec::new(),
            allow_plaintext: false,
            cors_origins: Vec::new(),
            max_body: ByteSize(16 * 1024 * 1024),
            max_upload: ByteSize(5 * 1024 * 1024 * 1024),
            body_memory: ByteSize(256 * 1024 * 1024),
            body_timeout: HumanDuration(Duration::from_secs(60)),
            rpc_timeout: HumanDuration(Duration::from_secs(30)),
            open_metrics: false,
            keep_alive: HumanDuration(Duration::from_secs(15)),
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_exposure()?;
        if self.api_keys.iter().any(|key| !usable_key(key.expose())) {
            let problem = format!("each key needs at least {SHORTEST_KEY} visible ASCII characters");
            return Err(ConfigError::invalid("gateway.api_keys", problem));
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| !self.usable_origin(origin)) {
            let problem = format!("`{origin}` is not an origin such as `https://app.example.com`");
            return Err(ConfigError::invalid("gateway.cors_origins", problem));
        }
        if self.max_body.0 < 1024 || usize::try_from(self.max_body.0).map_or(true, |n| n > MAX_MESSAGE_BYTES)
        {
            return Err(ConfigError::invalid("gateway.max_body", "give a size from 1KiB to 64MiB"));
        }
        if self.max_upload.0 < 1024 {
            return Err(ConfigError::invalid("gateway.max_upload", "give a size of 1KiB or more"));
        }
        if self.body_memory < self.max_body || self.body_memory.0 > MOST_BODY_MEMORY {
            let problem = "give a size from `gateway.max_body` to 1024GiB";
            return Err(ConfigError::invalid("gateway.body_memory", problem));
        }
        let durations = [
            ("gateway.body_timeout", self.body_timeout),
            ("gateway.rpc_timeout", self.rpc_timeout),
            ("gateway.keep_alive", self.keep_alive),
        ];
        match durations.into_iter().find(|(_, duration)| duration.0 < Duration::from_millis(100)) {
            Some((setting, _)) => Err(ConfigError::invalid(setting, "give a duration of 100ms or more")),
            None => Ok(()),
        }
    }

    /// Whoever reaches the gateway can run code: beyond loopback that needs a key, and the key must not
    /// travel in the clear unless the operator says so.
    fn check_exposure(&self) -> Result<(), ConfigError> {
        if self.listen.ip().is_loopback() {
            return Ok(());
        }
        if self.api_keys.is_empty() {
            let problem = format!(
                "is required to listen on `{}`: whoever can connect could run code; set a key, or listen on 127.0.0.1",
                self.listen
            );
            return Err(ConfigError::invalid("gateway.api_keys", problem));
        }
        if !self.allow_plaintext {
            let problem = format!(
                "must be true to listen on `{}`: keys would travel unencrypted; put TLS in front, or listen on 127.0.0.1",
                self.listen
            );
            return Err(ConfigError::invalid("gateway.allow_plaintext", problem));
        }
        Ok(())
    }

    fn usable_origin(&self, origin: &str) -> bool {
        if origin == "*" {
            return !self.api_keys.is_empty();
        }
        origin.parse::<Uri>().is_ok_and(|uri| {
            let web = matches!(uri.scheme_str(), Some("http" | "https"));
            web && uri.authority().is_some()
                && !origin.ends_with('/')
                && uri.path() == "/"
                && uri.query().is_none()
        })
    }
}

fn usable_key(key: &str) -> bool {
    key.len() >= SHORTEST_KEY && key.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn open(keys: &[&str], allow_plaintext: bool) -> Config {
        Config {
            listen: ([0, 0, 0, 0], 8000).into(),
            api_keys: keys.iter().map(|key| Secret::new(*key)).collect(),
            allow_plaintext,
            ..Config::default()
        }
    }

    fn problem(config: &Config) -> String {
        config.validate().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn the_defaults_can_be_used() {
        assert_eq!(problem(&Config::default()), "");
    }

    #[test]
    fn beyond_loopback_a_key_is_required() {
        assert!(problem(&open(&[], true)).contains("gateway.api_keys"));
    }

    #[test]
    fn beyond_loopback_plaintext_must_be_allowed() {
        assert!(problem(&open(&[KEY], false)).contains("gateway.allow_plaintext"));
        assert_eq!(problem(&open(&[KEY], true)), "");
    }

    #[test]
    fn a_short_key_is_refused_and_not_shown() {
        let text = problem(&open(&["hunter2"], true));
        assert!(text.contains("gateway.api_keys") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn keys_are_hidden_in_debug_and_dump() {
        let config = open(&[KEY], true);
        assert!(!format!("{config:?}").contains(KEY));
        assert!(!sandmesh_mesh::config::dump(&config).unwrap().contains(KEY));
    }

    #[test]
    fn only_origins_are_taken_as_origins() {
        for (origin, fine) in [
            ("https://app.example.com", true),
            ("http://localhost:3000", true),
            ("https://app.example.com/", false),
            ("https://app.example.com/path", false),
            ("app.example.com", false),
            ("*", false),
        ] {
            let config = Config { cors_origins: vec![origin.into()], ..Config::default() };
            assert_eq!(config.validate().is_ok(), fine, "{origin}");
        }
    }

    #[test]
    fn every_origin_is_possible_with_keys() {
        let config = Config { cors_origins: vec!["*".into()], ..open(&[KEY], true) };
        assert_eq!(problem(&config), "");
    }
}
