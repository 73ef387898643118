//! The health of the whole mesh: asks every role at once how it is, and puts the answers together.
//!
//! Nothing is remembered between two checks: what is told was measured for this call.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::join_all;
use sandmesh_mesh::{Clock, Link, LinkError, Mesh, Probe, RoleName};
use sandmesh_proto::health::{CheckRoleRequest, role_health_service_client::RoleHealthServiceClient};
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::probe::{Overall, combine};

/// How the mesh is.
#[derive(Debug)]
pub(crate) struct Report {
    /// The state of the whole.
    pub(crate) overall: Overall,
    /// What each probe found, ordered by name; every name once.
    pub(crate) probes: Vec<Probe>,
    /// When it was measured.
    pub(crate) measured_at: DateTime<Utc>,
    /// How long this process has been running.
    pub(crate) uptime: Duration,
    /// The version of the program.
    pub(crate) version: &'static str,
}

/// Checks the mesh.
#[derive(Debug)]
pub(crate) struct Health {
    /// Every process of each role.
    roles: Vec<(RoleName, Vec<Link>)>,
    probe_timeout: Duration,
    clock: Arc<dyn Clock>,
    started_at: DateTime<Utc>,
    version: &'static str,
}

impl Health {
    /// Checks every role that `mesh` links to, giving each `probe_timeout` to answer. The gateway is
    /// left out, as it depends on nothing but the others. Agents may be: where they run on other
    /// machines, the scheduler tells about their nodes.
    ///
    /// # Errors
    /// When another role has no link.
    pub(crate) fn new(mesh: &Mesh, probe_timeout: Duration) -> Result<Self, LinkError> {
        let mut roles = Vec::new();
        for role in RoleName::ALL.into_iter().filter(|role| *role != RoleName::Gateway) {
            match mesh.links(role) {
                Ok(links) => roles.push((role, links)),
                Err(_) if role == RoleName::Agent => {}
                Err(error) => return Err(error),
            }
        }
        let (clock, started_at, version) = (mesh.clock(), mesh.started_at(), mesh.version());
        Ok(Self { roles, probe_timeout, clock, started_at, version })
    }

    /// Measures now. Takes as long as the slowest role, and the timeout at most.
    pub(crate) async fn check(&self) -> Report {
        let found = join_all(self.roles.iter().map(|(role, links)| self.check_role(*role, links))).await;
        let probes = merge(found.into_iter().flatten());
        let findings: Vec<_> = probes.iter().map(|probe| (probe.name.as_str(), probe.healthy)).collect();
        let now = self.clock.now();
        Report {
            overall: combine(&findings),
            measured_at: now,
            uptime: (now - self.started_at).to_std().unwrap_or_default(),
            version: self.version,
            probes,
        }
    }

    /// Checks every process of a role. The role is well while one of them answers; which do not is told, too.
    async fn check_role(&self, role: RoleName, links: &[Link]) -> Vec<Probe> {
        let name = format!("role/{role}");
        if let [link] = links {
            return self.check_process(role, name, link.clone()).await;
        }
        let each = links.iter().map(|link| {
            let name = format!("{name} at {}", link.target());
            self.check_process(role, name, link.clone())
        });
        let each = join_all(each).await;
        let own = each.iter().filter_map(|probes| probes.last());
        let healthy = own.clone().filter(|probe| probe.healthy).count();
        let whole = Probe {
            healthy: healthy > 0,
            message: format!("{healthy} of {} processes answer", links.len()),
            latency_us: own.map(|probe| probe.latency_us).max().unwrap_or_default(),
            name,
            essential: false,
        };
        each.into_iter().flatten().chain([whole]).collect()
    }

    /// What a process of a role says of what the role depends on, and last the probe `name` of the process.
    async fn check_process(&self, role: RoleName, name: String, link: Link) -> Vec<Probe> {
        let mut client = RoleHealthServiceClient::new(link);
        let request = CheckRoleRequest { role: role.to_string() };
        let start = Instant::now();
        let answer = timeout(self.probe_timeout, client.check_role(request)).await;
        let latency_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let own = |healthy, message| Probe { name, healthy, message, latency_us, essential: false };
        match answer {
            Ok(Ok(response)) => {
                let mut probes = response.into_inner().probes;
                probes.push(own(true, String::new()));
                probes
            }
            Ok(Err(status)) => vec![own(false, in_words(&status))],
            Err(_) => vec![own(false, no_answer(self.probe_timeout))],
        }
    }
}

fn no_answer(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

/// A status for people; lowercase, as every message.
fn in_words(status: &Status) -> String {
    format!("{}: {}", status.code().description(), status.message()).to_lowercase()
}

/// One probe for each name, in order; of two that tell about the same thing, the one that is not well.
fn merge(probes: impl Iterator<Item = Probe>) -> Vec<Probe> {
    let mut by_name: BTreeMap<String, Probe> = BTreeMap::new();
    for probe in probes {
        let known = by_name.get(&probe.name);
        if known.is_none_or(|known| known.healthy) {
            by_name.insert(probe.name.clone(), probe);
        }
    }
    by_name.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(name: &str, healthy: bool) -> Probe {
        Probe { name: name.to_owned(), healthy, ..Probe::default() }
    }

    #[test]
    fn two_probes_of_one_thing_become_the_one_that_is_not_well() {
        for order in [[true, false], [false, true]] {
            let merged = merge([probe("b", true), probe("a", order[0]), probe("a", order[1])].into_iter());
            assert_eq!(merged, [probe("a", false), probe("b", true)]);
        }
    }
}
