//! Numbers about sessions and executions, for metrics.

use sandmesh_proto::session as pb;

use super::Service;
use crate::{encode, error::Error, lifecycle::ExecutionState};

impl Service {
    /// Counts: what there is by the database, what ended by this process.
    pub(crate) async fn statistics(&self) -> Result<pb::GetStatisticsResponse, Error> {
        let counted = futures::try_join!(self.store.count_by_state(), self.store.count_active_by_state())?;
        let unsigned = |count: i64| u64::try_from(count).unwrap_or(0);
        let session = |(state, count)| pb::SessionCount {
            state: encode::session_state(state).into(),
            count: unsigned(count),
        };
        let active = |(state, count): (ExecutionState, i64)| pb::ExecutionCount {
            state: state.as_str().to_owned(),
            count: unsigned(count),
            ..pb::ExecutionCount::default()
        };
        let tally = self.store.tally();
        let ended = tally.endings().into_iter().map(|((state, language, cause), count)| pb::ExecutionCount {
            state: state.to_owned(),
            language: language.to_owned(),
            cause: cause.to_owned(),
            count,
        });
        let (retries, recoveries) = tally.retries_and_recoveries();
        let (warm_starts, cold_starts) = tally.warm_and_cold_starts();
        Ok(pb::GetStatisticsResponse {
            sessions: counted.0.into_iter().map(session).collect(),
            active_executions: counted.1.into_iter().map(active).collect(),
            ended_executions: ended.collect(),
            recoveries,
            retries,
            warm_starts,
            cold_starts,
        })
    }
}
