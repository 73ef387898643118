//! Lists of sessions and executions, page by page, newest first.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt, stream};
use sandmesh_mesh::{page_size, page_token};
use sandmesh_proto::session as pb;

use super::{Service, execute::SHOWN};
use crate::{
    encode,
    error::Error,
    store::{Instant, Page, Position, execution, session},
};

/// How many labels sessions may be filtered by at once.
const MAX_LABELS: usize = 8;

/// The most bytes of code, output and return values on one page, unless its first item alone has more.
const PAGE_BYTES: u64 = 32 << 20;

/// How many executions of a page are read from the object store at once.
const READS_AT_ONCE: usize = 8;

/// The longest code, which is what code in the object store counts as.
const MAX_CODE: u64 = 1 << 20;

/// How a caller asks for a page.
#[derive(Debug)]
pub(crate) struct Paging {
    pub(crate) size: u32,
    pub(crate) token: String,
    pub(crate) offset: u32,
}

impl Paging {
    /// The page, with one row more than is wanted, to know whether there is another page.
    fn page(&self) -> Result<Page, Error> {
        if !self.token.is_empty() && self.offset > 0 {
            return Err(Error::field("offset", "value_error", "`offset` cannot be given with `page_token`"));
        }
        let after = if self.token.is_empty() { None } else { Some(position(&self.token)?) };
        Ok(Page { after, offset: self.offset.into(), limit: u64::from(self.limit()) + 1 })
    }

    fn limit(&self) -> u32 {
        page_size(self.size, 50, 200)
    }

    /// Cuts a page to what was asked for and to `fitting` rows, and makes the token of the next.
    fn cut<T>(&self, rows: &mut Vec<T>, fitting: usize, position: impl Fn(&T) -> (Instant, &str)) -> String {
        let limit = usize::try_from(self.limit()).unwrap_or(usize::MAX).min(fitting);
        if rows.len() <= limit {
            return String::new();
        }
        rows.truncate(limit);
        let Some((created_at, id)) = rows.last().map(position) else { return String::new() };
        page_token::encode(&[&created_at.micros().to_string(), id])
    }
}

fn position(token: &str) -> Result<Position, Error> {
    let parts = page_token::decode(token).map_err(|_| Error::PageToken)?;
    let [created_at, id] = <[String; 2]>::try_from(parts).map_err(|_| Error::PageToken)?;
    let created_at = Instant::from_micros(created_at.parse().map_err(|_| Error::PageToken)?);
    Ok(Position { created_at, id })
}

impl Service {
    /// A page of sessions.
    pub(crate) async fn list_sessions(
        &self,
        filter: session::Filter,
        paging: Paging,
    ) -> Result<pb::ListSessionsResponse, Error> {
        let (mut rows, total) = self.store.sessions(&filter, &paging.page()?).await?;
        let next_page_token = paging.cut(&mut rows, usize::MAX, |row| (row.created_at, &row.id));
        Ok(pb::ListSessionsResponse {
            sessions: rows.into_iter().map(|row| encode::session(row, self.config.max_recoveries)).collect(),
            next_page_token,
            total,
        })
    }

    /// A page of the executions of a session, each as a caller reads it alone. A page that would be larger
    /// than [`PAGE_BYTES`] ends earlier, and the next goes on there.
    pub(crate) async fn list_executions(
        &self,
        request: pb::ListExecutionsRequest,
    ) -> Result<pb::ListExecutionsResponse, Error> {
        let state = execution_state(request.state)?;
        let paging = Paging { size: request.page_size, token: request.page_token, offset: request.offset };
        let page = paging.page()?;
        self.session(&request.session_id).await?;
        let (mut rows, total) = self.store.executions(&request.session_id, state, &page).await?;
        let fitting = fitting(&rows);
        let next_page_token = paging.cut(&mut rows, fitting, |row| (row.created_at, &row.id));
        let view = async |row| self.shown(self.as_driven(row).await?).await;
        let views = stream::iter(rows).map(view).buffered(READS_AT_ONCE);
        match views.map_ok(encode::execution).try_collect().await {
            Ok(executions) => Ok(pb::ListExecutionsResponse { executions, next_page_token, total }),
            Err(error) => {
                // Deleted meanwhile, with what was to be read.
                self.session(&request.session_id).await?;
                Err(error)
            }
        }
    }
}

/// How many of the first rows fit on a page, at least one.
fn fitting(rows: &[execution::Model]) -> usize {
    let mut bytes = 0;
    let fit = rows.iter().take_while(|row| {
        bytes += size(row);
        bytes <= PAGE_BYTES
    });
    fit.count().max(1)
}

fn size(row: &execution::Model) -> u64 {
    let unsigned = |size: i64| u64::try_from(size).unwrap_or(0);
    row.code.as_ref().map_or(MAX_CODE, |code| code.len() as u64)
        + unsigned(row.stdout_kept).min(SHOWN)
        + unsigned(row.stderr_kept).min(SHOWN)
        + row.return_value_bytes.map_or(0, unsigned)
}

/// The state to filter sessions by; unspecified is all.
pub(crate) fn session_state(state: i32) -> Result<Option<crate::lifecycle::SessionState>, Error> {
    let problem = || Error::field("state", "enum", "`state` must be a state of a session");
    pb::session::State::try_from(state).map(encode::session_state_from).map_err(|_| problem())
}

/// The labels to filter sessions by, in a fixed order.
pub(crate) fn label_filter(labels: HashMap<String, String>) -> Result<Vec<(String, String)>, Error> {
    if labels.len() > MAX_LABELS {
        let problem = format!("at most {MAX_LABELS} labels can be asked for at once");
        return Err(Error::field("labels", "too_long", problem));
    }
    let mut labels: Vec<_> = labels.into_iter().collect();
    labels.sort_unstable();
    Ok(labels)
}

fn execution_state(state: i32) -> Result<Option<crate::lifecycle::ExecutionState>, Error> {
    let problem = || Error::field("state", "enum", "`state` must be a state of an execution");
    pb::execution::State::try_from(state).map(encode::execution_state_from).map_err(|_| problem())
}
