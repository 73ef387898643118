//! Leases for other roles: whoever of them does what is to be done once.

use std::time::Duration;

use sandmesh_proto::session as pb;

use super::Service;
use crate::{error::Error, store::Lease};

/// The longest name of a lease and of its holder, in bytes.
const NAME_MAX: usize = 64;

/// How long a lease may be held at once.
const TERMS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

impl Service {
    /// Gives a lease to who asks, unless another has it. Gives who has it.
    pub(crate) async fn hold_lease(&self, request: &pb::HoldLeaseRequest) -> Result<Lease, Error> {
        named(&request.name, &request.holder)?;
        let term = request.term.and_then(|term| Duration::try_from(term).ok());
        let term = term.filter(|term| TERMS.contains(term));
        let term = term.ok_or_else(|| Error::field("term", "value_error", "must be from 1s to 60s"))?;
        self.store.hold_lease(&request.name, &request.holder, term).await
    }

    /// Takes a lease back from who has it.
    pub(crate) async fn release_lease(&self, request: &pb::ReleaseLeaseRequest) -> Result<(), Error> {
        named(&request.name, &request.holder)?;
        self.store.release_lease(&request.name, &request.holder).await
    }
}

fn named(name: &str, holder: &str) -> Result<(), Error> {
    for (field, value) in [("name", name), ("holder", holder)] {
        if !(1..=NAME_MAX).contains(&value.len()) || value.contains('\0') {
            let problem = format!("must be 1 to {NAME_MAX} bytes of text");
            return Err(Error::field(field, "value_error", problem));
        }
    }
    Ok(())
}
