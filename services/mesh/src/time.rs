//! Between the times of the wire and the times of the program.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// A time as it travels.
#[must_use]
pub fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    let nanos = i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0);
    prost_types::Timestamp { seconds: time.timestamp(), nanos }
}

/// A time that travelled; `None` when it is outside of what a date can hold.
#[must_use]
pub fn datetime(time: &prost_types::Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// A duration as it travels; one too long for the wire is the longest there is.
#[must_use]
pub fn duration_pb(duration: Duration) -> prost_types::Duration {
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or(0);
    prost_types::Duration { seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), nanos }
}

/// A duration that travelled; a negative one is zero.
#[must_use]
pub fn duration_from(duration: &prost_types::Duration) -> Duration {
    let seconds = u64::try_from(duration.seconds).unwrap_or(0);
    let nanos = u32::try_from(duration.nanos).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(nanos.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_survive_the_wire(seconds in -62_135_596_800i64..253_402_300_799, nanos in 0u32..1_000_000_000) {
            let time = DateTime::from_timestamp(seconds, nanos).unwrap();
            prop_assert_eq!(datetime(&timestamp(time)), Some(time));
        }

        #[test]
        fn durations_survive_the_wire(seconds in 0u64..1 << 40, nanos in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(duration_from(&duration_pb(duration)), duration);
        }
    }
}
