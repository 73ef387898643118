//! A bucket that speaks S3: Amazon's, MinIO, SeaweedFS and others.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
    prefix::PrefixStore,
    signer::Signer as _,
};

use crate::{config::ObjectStoreConfig, error::Error};

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How often a request is made again that failed on the way, and for how long: callers have their own
/// patience.
const RETRIES: usize = 3;
const RETRY_LIMIT: Duration = Duration::from_secs(10);

/// The first and the longest pause before that.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Makes URLs of objects.
#[derive(Debug)]
pub(super) struct Signer {
    bucket: AmazonS3,
    prefix: String,
    lasts: Duration,
}

/// A bucket, or what is below a prefix in it.
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same, without a second attempt at anything.
    pub(super) impatient: Arc<dyn ObjectStore>,
    pub(super) signer: Signer,
}

/// Opens a bucket. Whether it is there shows when it is used.
pub(super) fn open(config: &ObjectStoreConfig, bucket: &str, prefix: &str) -> anyhow::Result<Bucket> {
    // Where somebody chose one already, that will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let build = |retries| {
        let bucket = builder(config, bucket).with_retry(retry(retries)).build();
        bucket.context("setting `session.object_store`: cannot use the bucket")
    };
    let bucket = build(RETRIES)?;
    Ok(Bucket {
        store: Arc::new(PrefixStore::new(bucket.clone(), prefix)),
        impatient: Arc::new(PrefixStore::new(build(0)?, prefix)),
        signer: Signer { bucket, prefix: prefix.to_owned(), lasts: config.presign_for.0 },
    })
}

fn builder(config: &ObjectStoreConfig, bucket: &str) -> AmazonS3Builder {
    let mut builder = match (&config.access_key_id, &config.secret_access_key) {
        // Nothing of the environment, as a token there belongs to another key.
        (Some(id), Some(secret)) => {
            AmazonS3Builder::new().with_access_key_id(id.expose()).with_secret_access_key(secret.expose())
        }
        _ => AmazonS3Builder::from_env(),
    };
    if !config.region.is_empty() {
        builder = builder.with_region(&config.region);
    }
    if !config.endpoint.is_empty() {
        builder = builder.with_endpoint(endpoint(config, bucket));
    }
    builder
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(config.virtual_hosted)
        .with_client_options(client(config))
}

fn retry(max_retries: usize) -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: RETRY_PAUSES.0, max_backoff: RETRY_PAUSES.1, base: 2.0 };
    RetryConfig { backoff, max_retries, retry_timeout: RETRY_LIMIT }
}

/// The address that requests go to: with the bucket before the host, where that is asked for.
fn endpoint(config: &ObjectStoreConfig, bucket: &str) -> String {
    let endpoint = config.endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if config.virtual_hosted => format!("{scheme}://{bucket}.{host}"),
        _ => endpoint.to_owned(),
    }
}

fn client(config: &ObjectStoreConfig) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_LIMIT)
        // No limit for the whole: a large object takes as long as it takes.
        .with_timeout_disabled()
        .with_read_timeout(config.timeout.0)
        .with_allow_http(config.allow_http)
}

impl Signer {
    /// A URL at which anybody can read an object, and how long.
    pub(super) async fn sign(&self, path: &Path) -> Result<(String, Duration), Error> {
        let path = match self.prefix.as_str() {
            "" => path.clone(),
            prefix => Path::from(format!("{prefix}/{path}")),
        };
        let url = self.bucket.signed_url(http::Method::GET, &path, self.lasts).await?;
        Ok((url.to_string(), self.lasts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn signed(config: &ObjectStoreConfig) -> String {
        let (bucket, prefix) = config.bucket().unwrap();
        open(config, bucket, prefix).unwrap().signer.sign(&Path::from("sessions/s/files/x")).await.unwrap().0
    }

    #[tokio::test]
    async fn the_bucket_is_in_the_path_of_a_url_or_in_its_host() {
        let key = || Some(sandmesh_mesh::Secret::new("k"));
        let config = ObjectStoreConfig {
            url: "s3://b/p".into(),
            endpoint: "https://h:9000/".into(),
            access_key_id: key(),
            secret_access_key: key(),
            ..ObjectStoreConfig::default()
        };
        let path = signed(&config).await;
        assert!(path.starts_with("https://h:9000/b/p/sessions/s/files/x?X-Amz-"), "{path}");
        let host = signed(&ObjectStoreConfig { virtual_hosted: true, ..config.clone() }).await;
        assert!(host.starts_with("https://b.h:9000/p/sessions/s/files/x?X-Amz-"), "{host}");
        let amazon = ObjectStoreConfig { endpoint: String::new(), region: "eu-west-1".into(), ..config };
        let amazon = signed(&amazon).await;
        assert!(amazon.starts_with("https://s3.eu-west-1.amazonaws.com/b/p/sessions/"), "{amazon}");
    }
}
