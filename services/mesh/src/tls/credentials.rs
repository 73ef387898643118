//! The certificate that this process shows on other machines, for as long as it runs.
//!
//! A process of the control plane asks the scheduler for one when it first needs it, and for the next when half
//! of its time is over. A node has one from when it joined, and is given the next ones.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use rustls::{ClientConfig, ServerConfig};
use sandmesh_proto::scheduler::{
    IssueCertificateRequest, certificate_service_client::CertificateServiceClient,
};
use tonic::Request;

use super::{Identity, TlsError, signing_request};
use crate::{Clock, Link};

/// How long the scheduler may take to answer.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(2);

/// How soon it is asked again that gave none, while there is one that is good.
const RETRY: TimeDelta = TimeDelta::seconds(60);

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Credentials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    /// Who is asked for the next one; `None` for a node.
    scheduler: Option<Link>,
    held: Mutex<Option<Held>>,
    /// Held by who asks for one, with when that is to be tried again. The others wait only where there is none.
    asking: tokio::sync::Mutex<Option<DateTime<Utc>>>,
}

/// What follows from a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// How to meet others.
    pub(crate) client: Arc<ClientConfig>,
    /// How to be met by those that the authority knows.
    pub(crate) server: Arc<ServerConfig>,
    /// How to be met by strangers, too.
    pub(crate) open_server: Arc<ServerConfig>,
    renew_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl Held {
    fn new(identity: &Identity) -> Result<Self, TlsError> {
        let expires_at = identity.expires_at;
        Ok(Self {
            client: Arc::new(identity.client()?),
            server: Arc::new(identity.server(false)?),
            open_server: Arc::new(identity.server(true)?),
            renew_at: identity.issued_at + (expires_at - identity.issued_at) / 2,
            expires_at,
        })
    }
}

impl Credentials {
    /// Those of the control plane, from the scheduler behind a link; without one there are none.
    pub(crate) fn of_control(scheduler: Option<Link>, clock: Arc<dyn Clock>) -> Self {
        let (held, asking) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { clock, scheduler, held, asking }))
    }

    /// Those of a node.
    pub(crate) fn of_node(identity: &Identity, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let credentials = Self::of_control(None, clock);
        credentials.replace(identity)?;
        Ok(credentials)
    }

    /// Shows another certificate from now on.
    pub(crate) fn replace(&self, identity: &Identity) -> Result<Held, TlsError> {
        let held = Held::new(identity)?;
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held.clone());
        Ok(held)
    }

    /// When it is time for the next certificate.
    pub(crate) fn renew_at(&self) -> Option<DateTime<Utc>> {
        self.held().map(|held| held.renew_at)
    }

    /// Whether the time of the one that is held is over.
    pub(crate) fn is_over(&self) -> bool {
        self.held().is_some_and(|held| held.expires_at <= self.0.clock.now())
    }

    fn held(&self) -> Option<Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What to show now.
    ///
    /// # Errors
    /// `NoCertificate` when there is none, and none can be had.
    pub(crate) async fn current(&self) -> Result<Held, TlsError> {
        let Some(held) = self.valid() else {
            let _asking = self.0.asking.lock().await;
            return match self.valid() {
                Some(held) => Ok(held),
                None => self.ask().await,
            };
        };
        if self.0.scheduler.is_some()
            && held.renew_at <= self.0.clock.now()
            && let Ok(mut again) = self.0.asking.try_lock()
            && again.is_none_or(|again| again <= self.0.clock.now())
        {
            // The one that there is does for now.
            match self.ask().await {
                Ok(next) => return Ok(next),
                Err(error) => tracing::warn!(%error, "no new certificate; the one there is goes on"),
            }
            *again = Some(self.0.clock.now() + RETRY);
        }
        Ok(held)
    }

    fn valid(&self) -> Option<Held> {
        // A node's is shown to its end and beyond: that it is over is told by who is shown it.
        self.held().filter(|held| self.0.scheduler.is_none() || self.0.clock.now() < held.expires_at)
    }

    async fn ask(&self) -> Result<Held, TlsError> {
        let nobody = || TlsError::NoCertificate("it has no scheduler to ask".to_owned());
        let scheduler = self.0.scheduler.clone().ok_or_else(nobody)?;
        let (key, signing_request) = signing_request()?;
        let mut request = Request::new(IssueCertificateRequest { signing_request: signing_request.into() });
        request.set_timeout(ISSUE_TIMEOUT);
        // Boxed: the link to the scheduler is a link, which may itself ask for a certificate.
        let mut client = CertificateServiceClient::new(scheduler);
        let answer = Box::pin(client.issue_certificate(request)).await.map_err(|status| {
            TlsError::NoCertificate(format!("the scheduler gave none: {}", status.message()))
        })?;
        self.replace(&Identity::new(key, answer.into_inner().certificate)?)
    }
}
