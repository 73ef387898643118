//! What the template role does: create, read, list, change and delete templates.
//!
//! Owns the order of check and write and the errors that callers see. The rules are in
//! [`crate::validate`], the rows in [`crate::store`]; sessions belong to the session role and are only
//! asked about.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::{Clock, Fault, FieldViolation, Link, Probe, database::is_unavailable, page_token};
use sandmesh_proto::session::{
    ListSessionsRequest, session::State, session_service_client::SessionServiceClient,
};
use tokio::time::{Instant, timeout};
use tonic::{Code, Request};

use crate::{
    store::{Page, Store, StoreError, Stored},
    validate::{Fields, Mask, Spec},
};

/// How long the session role may take to tell whether a template is in use.
const SESSIONS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a probe of the database may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an update starts again because somebody else's came between.
const UPDATE_ATTEMPTS: usize = 8;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such template.
    #[error("template `{0}` not found")]
    NotFound(String),
    /// The id is taken.
    #[error("template `{0}` exists")]
    Exists(String),
    /// The name is taken.
    #[error("a template with name `{0}` exists")]
    NameExists(String),
    /// Sessions use it.
    #[error("template `{id}` is used by {sessions} sessions that have not ended")]
    InUse {
        /// The template.
        id: String,
        /// How many sessions use it.
        sessions: u64,
    },
    /// Fields break rules.
    #[error("{}", summary(.0))]
    Invalid(Vec<FieldViolation>),
    /// The page token was not made here.
    #[error("the page token was not made by this service")]
    PageToken,
    /// Other updates of the same template kept coming between.
    #[error("template `{0}` is being changed by others")]
    Contended(String),
    /// The session role did not tell who uses the template.
    #[error("cannot tell whether template `{id}` is in use: {source}")]
    UseUnknown {
        /// The template.
        id: String,
        /// What the session role said.
        source: Box<tonic::Status>,
    },
    /// The database failed.
    #[error("the database of the template role does not answer or failed")]
    Database(#[from] sea_orm::DbErr),
}

fn summary(violations: &[FieldViolation]) -> String {
    let told = violations.iter().map(|v| format!("`{}` {}", v.field, v.description));
    told.collect::<Vec<_>>().join("; ")
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) | Self::NameExists(_) => Code::AlreadyExists,
            Self::InUse { .. } => Code::FailedPrecondition,
            Self::Invalid(_) | Self::PageToken => Code::InvalidArgument,
            Self::Contended(_) | Self::UseUnknown { .. } => Code::Unavailable,
            Self::Database(error) if is_unavailable(error) => Code::Unavailable,
            Self::Database(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "TEMPLATE_NOT_FOUND",
            Self::Exists(_) => "TEMPLATE_EXISTS",
            Self::NameExists(_) => "TEMPLATE_NAME_EXISTS",
            Self::InUse { .. } => "TEMPLATE_IN_USE",
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::PageToken => "PAGE_TOKEN_INVALID",
            Self::Contended(_) | Self::UseUnknown { .. } => "UNAVAILABLE",
            Self::Database(error) if is_unavailable(error) => "UNAVAILABLE",
            Self::Database(_) => "INTERNAL",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        (self.code() == Code::Unavailable).then_some(Duration::from_secs(1))
    }

    fn violations(&self) -> Vec<FieldViolation> {
        match self {
            Self::Invalid(violations) => violations.clone(),
            Self::PageToken => vec![FieldViolation::new("page_token", "value_error", self.to_string())],
            _ => Vec::new(),
        }
    }
}

/// A page of templates.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The templates, ordered by name.
    pub(crate) templates: Vec<Stored>,
    /// Where the next page starts; empty on the last one.
    pub(crate) next_page_token: String,
    /// How many there are in all.
    pub(crate) total: u64,
}

/// The template role at work.
#[derive(Debug)]
pub(crate) struct Templates {
    store: Store,
    clock: Arc<dyn Clock>,
    sessions: Link,
}

impl Templates {
    /// Works on `store`, and asks `sessions` who uses a template.
    #[must_use]
    pub(crate) fn new(store: Store, clock: Arc<dyn Clock>, sessions: Link) -> Self {
        Self { store, clock, sessions }
    }

    /// Creates a template; what is left out gets its default, and it is active.
    ///
    /// # Errors
    /// When rules are broken, or the id or name is taken.
    pub(crate) async fn create(&self, fields: Fields) -> Result<Stored, Error> {
        let fields = Fields { is_active: true, ..fields.with_defaults() };
        let spec = Spec::check(fields).map_err(Error::Invalid)?;
        self.store.insert(&spec, self.clock.now()).await.map_err(|error| taken(error, spec.fields()))
    }

    /// Reads a template.
    ///
    /// # Errors
    /// When there is none with this id.
    pub(crate) async fn get(&self, id: &str) -> Result<Stored, Error> {
        self.store.get(id).await?.ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// Lists templates by name: `size` of them, from `token` or after `offset`.
    ///
    /// # Errors
    /// When the token was not made here, or is given together with an offset.
    pub(crate) async fn list(&self, size: u32, token: &str, offset: u32) -> Result<Listing, Error> {
        let page = Page { after_name: cursor(token, offset)?, offset: offset.into(), size: size.into() };
        let (templates, more) = self.store.list(&page).await?;
        let next_page_token = match templates.last() {
            Some(last) if more => page_token::encode(&[&last.fields.name]),
            _ => String::new(),
        };
        Ok(Listing { templates, next_page_token, total: self.store.count().await? })
    }

    /// Changes the fields of `mask` to those of `new`, whose id says which template.
    ///
    /// # Errors
    /// When there is no such template, the outcome breaks rules, or the new name is taken.
    pub(crate) async fn update(&self, new: &Fields, mask: &Mask) -> Result<Stored, Error> {
        for _ in 0..UPDATE_ATTEMPTS {
            let before = self.get(&new.template_id).await?;
            let changed = mask.apply(before.fields.clone(), new);
            let spec = Spec::check(changed).map_err(Error::Invalid)?;
            let replaced = self.store.replace(&before, &spec, self.clock.now()).await;
            if let Some(stored) = replaced.map_err(|error| taken(error, spec.fields()))? {
                return Ok(stored);
            }
        }
        Err(Error::Contended(new.template_id.clone()))
    }

    /// Deletes a template that no session uses. A session that is being created at this very moment
    /// keeps what it has read of the template and is not hurt.
    ///
    /// # Errors
    /// When there is no such template, sessions use it, or nobody can tell whether they do.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Error> {
        self.get(id).await?;
        let used = self.sessions_of(id).await;
        match used.map_err(|source| Error::UseUnknown { id: id.to_owned(), source: Box::new(source) })? {
            0 if self.store.delete(id).await? => Ok(()),
            0 => Err(Error::NotFound(id.to_owned())),
            sessions => Err(Error::InUse { id: id.to_owned(), sessions }),
        }
    }

    /// How many sessions of a template have not ended. CREATING is asked first: a session that becomes
    /// RUNNING in between is seen at least once.
    async fn sessions_of(&self, template_id: &str) -> Result<u64, tonic::Status> {
        let mut client = SessionServiceClient::new(self.sessions.clone());
        let mut sessions = 0;
        for state in [State::Creating, State::Running] {
            let mut request = Request::new(ListSessionsRequest {
                state: state.into(),
                template_id: template_id.to_owned(),
                page_size: 1,
                ..ListSessionsRequest::default()
            });
            request.set_timeout(SESSIONS_TIMEOUT);
            sessions += client.list_sessions(request).await?.into_inner().total;
        }
        Ok(sessions)
    }

    /// Reads from the database now and tells how that went.
    pub(crate) async fn probe(&self) -> Probe {
        let start = Instant::now();
        let message = match timeout(PROBE_TIMEOUT, self.store.ping()).await {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => error.to_string().to_lowercase(),
            Err(_) => format!("no answer within {PROBE_TIMEOUT:?}"),
        };
        Probe {
            name: "database/template".to_owned(),
            healthy: message.is_empty(),
            message,
            latency_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
            essential: true,
        }
    }
}

fn taken(error: StoreError, fields: &Fields) -> Error {
    match error {
        StoreError::IdTaken => Error::Exists(fields.template_id.clone()),
        StoreError::NameTaken => Error::NameExists(fields.name.clone()),
        StoreError::Database(error) => error.into(),
    }
}

/// The name after which a page starts.
fn cursor(token: &str, offset: u32) -> Result<Option<String>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    if offset > 0 {
        let rule = "cannot be given together with `page_token`";
        return Err(Error::Invalid(vec![FieldViolation::new("offset", "value_error", rule)]));
    }
    let parts = page_token::decode(token).map_err(|_| Error::PageToken)?;
    <[String; 1]>::try_from(parts).map(|[name]| Some(name)).map_err(|_| Error::PageToken)
}
