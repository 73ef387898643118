//! Where objects are kept: in a directory, or in a bucket that speaks S3.

use std::time::Duration;

use sandmesh_mesh::{ConfigError, HumanDuration, Secret};
use serde::{Deserialize, Serialize};

/// The longest that a presigned URL may work, by the rules of S3.
const LONGEST_URL: Duration = Duration::from_secs(7 * 24 * 3600);

/// The object store, in section `session.object_store`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectStoreConfig {
    /// `s3://BUCKET` or `s3://BUCKET/PREFIX`; empty: the directory `session.object_dir`.
    pub url: String,
    /// Where the service is, as `https://HOST:PORT`; empty: Amazon's, in the region.
    pub endpoint: String,
    /// The region; empty: that of `AWS_REGION` where no key is given here, else `us-east-1`. Other services than
    /// Amazon's take any.
    pub region: String,
    /// The key; without one the usual variables `AWS_*` are read, then the role of the machine is asked for.
    pub access_key_id: Option<Secret>,
    /// The secret that belongs to the key.
    pub secret_access_key: Option<Secret>,
    /// Puts the bucket into the host name of a URL: `BUCKET.HOST/` rather than `HOST/BUCKET/`.
    pub virtual_hosted: bool,
    /// Lets `endpoint` be `http://`: right where the network is trusted.
    pub allow_http: bool,
    /// How long a presigned URL works.
    pub presign_for: HumanDuration,
    /// How long the service may be silent. A transfer takes as long as it takes.
    pub timeout: HumanDuration,
}

impl Default for ObjectStoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: String::new(),
            region: String::new(),
            access_key_id: None,
            secret_access_key: None,
            virtual_hosted: false,
            allow_http: false,
            presign_for: HumanDuration(Duration::from_secs(15 * 60)),
            timeout: HumanDuration(Duration::from_secs(15)),
        }
    }
}

impl ObjectStoreConfig {
    /// The bucket and the prefix in it; `None`: it is a directory.
    pub(crate) fn bucket(&self) -> Option<(&str, &str)> {
        let place = self.url.strip_prefix("s3://")?;
        Some(place.split_once('/').map_or((place, ""), |(bucket, prefix)| (bucket, prefix.trim_matches('/'))))
    }

    /// Checks what types cannot.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.validate_url()?;
        self.validate_endpoint()?;
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            let problem = "give both `access_key_id` and `secret_access_key`, or neither";
            return wrong("secret_access_key", problem);
        }
        if self.presign_for.0 < Duration::from_secs(1) || self.presign_for.0 > LONGEST_URL {
            return wrong("presign_for", "must be from 1s to 7days");
        }
        if self.timeout.0 < Duration::from_secs(1) || self.timeout.0 > Duration::from_secs(600) {
            return wrong("timeout", "must be from 1s to 10m");
        }
        Ok(())
    }

    fn validate_url(&self) -> Result<(), ConfigError> {
        let Some((bucket, prefix)) = self.bucket() else {
            let meant = !self.endpoint.is_empty() || self.access_key_id.is_some();
            return match self.url.as_str() {
                "" if meant => wrong("url", "give `s3://BUCKET`, as other settings of a bucket are given"),
                "" => Ok(()),
                _ => wrong("url", "give `s3://BUCKET` or `s3://BUCKET/PREFIX`, or nothing for a directory"),
            };
        };
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if bucket.is_empty() || !plain(bucket) {
            return wrong(
                "url",
                "the bucket after `s3://` must consist of letters, digits, `-`, `.` and `_`",
            );
        }
        let steps = prefix.split('/').filter(|_| !prefix.is_empty());
        if steps.into_iter().any(|step| matches!(step, "" | "." | "..") || !plain(step)) {
            return wrong("url", "the prefix must consist of letters, digits, `-`, `.`, `_` and single `/`");
        }
        Ok(())
    }

    fn validate_endpoint(&self) -> Result<(), ConfigError> {
        let host = ["http://", "https://"].iter().find_map(|scheme| self.endpoint.strip_prefix(scheme));
        let host = host.map(|host| host.strip_suffix('/').unwrap_or(host));
        if !self.endpoint.is_empty() && host.is_none_or(|host| host.is_empty() || host.contains(['/', '@'])) {
            return wrong("endpoint", "give `https://HOST` or `https://HOST:PORT`");
        }
        if self.endpoint.starts_with("http://") && !self.allow_http {
            let problem =
                "must be true for an `endpoint` with http://: what is kept would travel unencrypted";
            return wrong("allow_http", problem);
        }
        Ok(())
    }
}

fn wrong(name: &str, problem: &str) -> Result<(), ConfigError> {
    Err(ConfigError::invalid(format!("session.object_store.{name}"), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        let base = || ObjectStoreConfig { url: "s3://b/p/".into(), ..ObjectStoreConfig::default() };
        assert_eq!(base().bucket(), Some(("b", "p")));
        base().validate().unwrap();
        let wrong = [
            ("url", ObjectStoreConfig { url: "gs://b".into(), ..base() }),
            ("url", ObjectStoreConfig { url: "s3:///p".into(), ..base() }),
            ("url", ObjectStoreConfig { url: "s3://b/a//b".into(), ..base() }),
            ("url", ObjectStoreConfig { url: "s3://b/../x".into(), ..base() }),
            ("url", ObjectStoreConfig { url: "s3://b?region=x".into(), ..base() }),
            ("url", ObjectStoreConfig { url: String::new(), endpoint: "https://h".into(), ..base() }),
            ("endpoint", ObjectStoreConfig { endpoint: "https://me:secret@host".into(), ..base() }),
            ("endpoint", ObjectStoreConfig { endpoint: "https://host/bucket".into(), ..base() }),
            ("endpoint", ObjectStoreConfig { endpoint: "host:9000".into(), ..base() }),
            ("allow_http", ObjectStoreConfig { endpoint: "http://host:9000".into(), ..base() }),
            ("secret_access_key", ObjectStoreConfig { access_key_id: Some(Secret::new("k")), ..base() }),
            ("presign_for", ObjectStoreConfig { presign_for: HumanDuration(Duration::ZERO), ..base() }),
        ];
        for (name, config) in wrong {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("session.object_store.{name}")), "{error}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        let key = Some(Secret::new("hunter2"));
        let config =
            ObjectStoreConfig { access_key_id: key.clone(), secret_access_key: key, ..Default::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));
    }
}
