//! `grpc.health.v1` of a process: each service says whether its role can do its work, measured when asked.
//!
//! A role can when everything that it calls essential is well. Several askers at a time share one
//! measurement. At shutdown everything says NOT_SERVING before the first connection is closed.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all, stream::BoxStream};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use crate::Role;

/// How long a role may take to measure its dependencies.
const LIMIT: Duration = Duration::from_secs(2);
/// For how long a measurement is good enough for the next asker.
const FRESH: Duration = Duration::from_millis(250);
/// How often a watched service is measured.
const INTERVAL: Duration = Duration::from_secs(1);

/// One role, and what was measured of it last.
struct Measured {
    role: Arc<dyn Role>,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Measured {
    /// Whether the role can do its work.
    async fn can_work(&self) -> bool {
        // Held while it is measured: who comes meanwhile takes the same answer.
        let mut last = self.last.lock().await;
        if let Some((at, ready)) = *last
            && at.elapsed() < FRESH
        {
            return ready;
        }
        let probes = timeout(LIMIT, self.role.probe()).await;
        let ready = probes.is_ok_and(|probes| probes.iter().all(|probe| probe.healthy || !probe.essential));
        *last = Some((Instant::now(), ready));
        ready
    }
}

/// `grpc.health.v1` of this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Readiness {
    roles: Arc<[Measured]>,
    /// The role behind each service; `None` where it is the process itself.
    services: Arc<BTreeMap<&'static str, Option<usize>>>,
    withdrawn: watch::Sender<bool>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("services", &self.services).finish_non_exhaustive()
    }
}

impl Readiness {
    /// Of these roles, each with the names of its services; `own` are the process's.
    pub(crate) fn new(roles: Vec<(Arc<dyn Role>, Vec<&'static str>)>, own: &[&'static str]) -> Self {
        let mut services: BTreeMap<_, _> = own.iter().map(|name| (*name, None)).collect();
        for (index, (_, names)) in roles.iter().enumerate() {
            services.extend(names.iter().map(|name| (*name, Some(index))));
        }
        let measured = |(role, _)| Measured { role, last: Mutex::default() };
        let roles = roles.into_iter().map(measured).collect();
        Self { roles, services: Arc::new(services), withdrawn: watch::Sender::new(false) }
    }

    /// From now on nothing is served.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.send_replace(true);
    }

    /// Whether a service is served; `None` when there is none of this name. The empty name stands for
    /// everything that this process does.
    async fn measure(&self, name: &str) -> Option<ServingStatus> {
        let ready = match self.services.get(name) {
            None if name.is_empty() => join_all(self.roles.iter().map(Measured::can_work)).await,
            None => return None,
            Some(None) => Vec::new(),
            Some(Some(index)) => vec![self.roles.get(*index)?.can_work().await],
        };
        let serving = ready.into_iter().all(|ready| ready) && !*self.withdrawn.borrow();
        Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Readiness {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let status = self.measure(&name).await;
        let status = status.ok_or_else(|| Status::not_found(format!("service `{name}` not found")))?;
        Ok(Response::new(answer(status)))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (this, name) = (self.clone(), request.into_inner().service);
        let withdrawn = this.withdrawn.subscribe();
        let first = (this, name, withdrawn, None);
        let changes = futures::stream::unfold(first, |(this, name, mut withdrawn, last)| async move {
            loop {
                let status = this.measure(&name).await.unwrap_or(ServingStatus::ServiceUnknown);
                if last != Some(status) {
                    return Some((Ok(answer(status)), (this, name, withdrawn, Some(status))));
                }
                if *withdrawn.borrow() {
                    // It holds up the end of the process no longer.
                    return None;
                }
                tokio::select! {
                    () = sleep(INTERVAL) => {}
                    _ = withdrawn.changed() => {}
                }
            }
        });
        Ok(Response::new(changes.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::{FutureExt, future::BoxFuture};

    use super::*;
    use crate::{Probe, RoleName, ServerBuilder, Tasks};

    #[derive(Debug)]
    struct Fake {
        probes: Vec<Probe>,
        hangs: bool,
        asked: AtomicU32,
    }

    impl Role for Fake {
        fn name(&self) -> RoleName {
            RoleName::Session
        }

        fn register(self: Arc<Self>, _: &mut ServerBuilder) {}

        fn start(self: Arc<Self>, _: &Tasks) {}

        fn probe(&self) -> BoxFuture<'_, Vec<Probe>> {
            async {
                self.asked.fetch_add(1, Ordering::SeqCst);
                if self.hangs {
                    std::future::pending::<()>().await;
                }
                self.probes.clone()
            }
            .boxed()
        }
    }

    fn role(healthy: bool, essential: bool) -> Arc<Fake> {
        let probe = Probe { healthy, essential, ..Probe::default() };
        Arc::new(Fake { probes: vec![probe], hangs: false, asked: AtomicU32::new(0) })
    }

    async fn status(readiness: &Readiness, name: &str) -> ServingStatus {
        let request = Request::new(HealthCheckRequest { service: name.to_owned() });
        readiness.check(request).await.unwrap().into_inner().status()
    }

    #[tokio::test]
    async fn a_service_whose_role_lacks_something_essential_does_not_serve() {
        let roles: Vec<(Arc<dyn Role>, _)> = vec![
            (role(true, true), vec!["well"]),
            (role(false, true), vec!["ill"]),
            (role(false, false), vec!["so"]),
        ];
        let readiness = Readiness::new(roles, &["own"]);
        for (name, expected) in [
            ("well", ServingStatus::Serving),
            ("ill", ServingStatus::NotServing),
            ("so", ServingStatus::Serving),
            ("own", ServingStatus::Serving),
            ("", ServingStatus::NotServing),
        ] {
            assert_eq!(status(&readiness, name).await, expected, "{name}");
        }
        let unknown = Request::new(HealthCheckRequest { service: "none".into() });
        assert_eq!(readiness.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn a_role_that_does_not_answer_does_not_serve() {
        let hangs = Fake { probes: Vec::new(), hangs: true, asked: AtomicU32::new(0) };
        let readiness = Readiness::new(vec![(Arc::new(hangs), vec!["x"])], &[]);
        assert_eq!(status(&readiness, "x").await, ServingStatus::NotServing);
    }

    #[tokio::test]
    async fn many_askers_are_one_measurement() {
        let fake = role(true, true);
        let readiness = Readiness::new(vec![(fake.clone() as Arc<dyn Role>, vec!["x"])], &[]);
        join_all((0..20).map(|_| status(&readiness, "x"))).await;
        assert_eq!(fake.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_watch_tells_that_the_process_stops_and_ends() {
        let readiness = Readiness::new(vec![(role(true, true), vec!["x"])], &[]);
        let request = Request::new(HealthCheckRequest { service: "x".into() });
        let mut watch = readiness.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        readiness.withdraw();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(watch.next().await.is_none());
    }
}
