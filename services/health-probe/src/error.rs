//! What can go wrong when health is read, and what a caller is told.

use sandmesh_mesh::{Fault, FieldViolation};
use tonic::Code;

/// An error of the health-probe role.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A page token that this service did not make.
    #[error("the page token was not made by this service")]
    PageToken,
    /// More ids than are read at once.
    #[error("at most {0} ids are read at once")]
    TooManyIds(u32),
    /// A follower was too slow and missed measurements.
    #[error("the watch fell behind by {0} measurements; follow again")]
    WatchLagged(u64),
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Self::PageToken | Self::TooManyIds(_) => Code::InvalidArgument,
            Self::WatchLagged(_) => Code::Aborted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::PageToken => "PAGE_TOKEN_INVALID",
            Self::TooManyIds(_) => "INVALID_ARGUMENT",
            Self::WatchLagged(_) => "WATCH_LAGGED",
        }
    }

    fn violations(&self) -> Vec<FieldViolation> {
        let (field, kind) = match self {
            Self::PageToken => ("page_token", "value_error"),
            Self::TooManyIds(_) => ("sandbox_ids", "too_long"),
            Self::WatchLagged(_) => return Vec::new(),
        };
        vec![FieldViolation::new(field, kind, self.to_string())]
    }
}
