use sandmesh_proto::{
    agent::{InstallFailure, install_packages_response::Outcome},
    session::{dependency_installation::State as Install, execution::State, session::State as SessionState},
};

use super::*;

on_every_database!(
    a_session_runs_when_its_packages_are_there_and_what_was_started_waits,
    a_sandbox_that_has_its_packages_from_the_start_needs_no_installation,
    packages_that_cannot_be_installed_end_the_session_unless_it_is_to_be_kept,
    more_packages_are_added_and_a_failure_leaves_what_was_there,
    of_two_installations_at_once_one_is_refused,
    an_installation_goes_on_after_a_restart_and_after_a_node_that_did_not_answer,
    a_session_that_ends_does_not_wait_for_its_installation,
    packages_of_a_template_come_with_its_sessions,
    a_password_of_an_index_reaches_the_node_and_nobody_else,
);

fn with(packages: &[(&str, &str)]) -> pb::CreateSessionRequest {
    pb::CreateSessionRequest { dependencies: dependencies(packages), ..new_session() }
}

fn dependencies(packages: &[(&str, &str)]) -> Vec<pb::Dependency> {
    let dependency =
        |(name, version): &(&str, &str)| pb::Dependency { name: (*name).into(), version: (*version).into() };
    packages.iter().map(dependency).collect()
}

fn failure(message: &str) -> Outcome {
    Outcome::Failure(InstallFailure { message: message.into(), timed_out: false })
}

fn installed(session: &pb::Session) -> Vec<String> {
    let installation = session.dependency_installation.clone().unwrap_or_default();
    installation.installed.into_iter().map(|one| one.name).collect()
}

fn state(session: &pb::Session) -> Install {
    session.dependency_installation.as_ref().map_or(Install::Unspecified, pb::DependencyInstallation::state)
}

impl Bench {
    async fn install(&mut self, id: &str, packages: &[(&str, &str)]) -> Result<pb::Session, Status> {
        let request = pb::InstallDependenciesRequest {
            session_id: id.to_owned(),
            dependencies: dependencies(packages),
            ..Default::default()
        };
        Ok(self.dependencies.install_dependencies(request).await?.into_inner().session.unwrap())
    }

    /// Waits until nothing is being installed.
    async fn installed(&mut self, id: &str) -> pb::Session {
        for _ in 0..2000 {
            let session = self.get(id).await.unwrap();
            if !matches!(state(&session), Install::Pending | Install::Installing) {
                return session;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it is installing for ever");
    }

    /// What the last installation was to install.
    fn last_install(&self) -> Vec<(String, String)> {
        let world = self.world.lock();
        let set = world.installs.last().unwrap().packages.clone().unwrap();
        set.packages.into_iter().map(|one| (one.name, one.version)).collect()
    }
}

fn pairs(packages: &[(&str, &str)]) -> Vec<(String, String)> {
    packages.iter().map(|(name, version)| ((*name).into(), (*version).into())).collect()
}

async fn a_session_runs_when_its_packages_are_there_and_what_was_started_waits() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().install_gate = Arc::new(tokio::sync::Semaphore::new(0));
    let session = bench.create(with(&[("click", "8.1"), ("six", "")])).await.unwrap();
    assert_eq!(session.state(), SessionState::Creating);
    assert!(matches!(state(&session), Install::Pending | Install::Installing));
    let pending = bench.start_in(&session, "out:x").await;
    eventually("it installs", || !bench.world.lock().installs.is_empty()).await;
    let session = bench.get(&session.session_id).await.unwrap();
    assert_eq!((session.state(), state(&session)), (SessionState::Creating, Install::Installing));
    assert_eq!(bench.last_install(), pairs(&[("click", "==8.1"), ("six", "")]));
    refused(
        bench.install(&session.session_id, &[("x", "")]).await,
        Code::FailedPrecondition,
        "INSTALL_RUNNING",
    );
    let gate = Arc::clone(&bench.world.lock().install_gate);
    gate.add_permits(1);
    assert_eq!(bench.ended(&pending).await.state(), State::Completed);
    let session = bench.get(&session.session_id).await.unwrap();
    assert_eq!((session.state(), state(&session)), (SessionState::Running, Install::Completed));
    assert_eq!(installed(&session), ["click", "six"]);
    assert_eq!(session.requested_dependencies, dependencies(&[("click", "==8.1"), ("six", "")]));
    let spec = bench.world.lock().last_spec.clone().unwrap();
    let index = spec.packages.unwrap().index_url;
    assert_eq!(index, "https://pypi.org/simple");
}

async fn a_sandbox_that_has_its_packages_from_the_start_needs_no_installation() {
    let mut bench = Bench::new().await;
    bench.world.lock().has_layers = true;
    let session = bench.create(with(&[("click", "")])).await.unwrap();
    assert_eq!((session.state(), state(&session)), (SessionState::Running, Install::Completed));
    assert_eq!(installed(&session), ["click"]);
    assert!(bench.world.lock().installs.is_empty());
    let bare = bench.session().await;
    assert!(bare.dependency_installation.is_none());
    assert!(bench.world.lock().last_spec.clone().unwrap().packages.is_none());
}

async fn packages_that_cannot_be_installed_end_the_session_unless_it_is_to_be_kept() {
    let mut bench = Bench::new().await;
    let answer = |bench: &Bench| bench.world.lock().install_answers.push_back(Ok(failure("no such package")));
    answer(&bench);
    let session = bench.create(with(&[("nosuch", "")])).await.unwrap();
    let session = bench.becomes(&session.session_id, SessionState::Failed).await;
    assert_eq!(state(&session), Install::Failed);
    assert!(session.status_reason.contains("no such package"), "{}", session.status_reason);
    eventually("its sandbox is removed", || bench.world.lock().sandboxes.is_empty()).await;
    answer(&bench);
    let keep = pb::CreateSessionRequest { fail_on_dependency_error: Some(false), ..with(&[("nosuch", "")]) };
    let session = bench.create(keep).await.unwrap();
    assert_eq!((session.state(), state(&session)), (SessionState::Running, Install::Failed));
    assert_eq!(session.dependency_installation.as_ref().unwrap().error, "no such package");
    assert_eq!(session.requested_dependencies, dependencies(&[("nosuch", "")]));
    // What failed is not tried again with what comes after it.
    bench.install(&session.session_id, &[("six", "")]).await.unwrap();
    assert_eq!(bench.last_install(), pairs(&[("six", "")]));
}

async fn more_packages_are_added_and_a_failure_leaves_what_was_there() {
    let mut bench = Bench::new().await;
    let session = bench.create(with(&[("click", "8.1")])).await.unwrap();
    let id = session.session_id.as_str();
    let session = bench.install(id, &[("six", ">=1"), ("CLICK", "8.2")]).await.unwrap();
    assert_eq!(state(&session), Install::Completed);
    assert_eq!(bench.last_install(), pairs(&[("CLICK", "==8.2"), ("six", ">=1")]));
    bench.world.lock().install_answers.push_back(Ok(failure("it is broken")));
    let session = bench.install(id, &[("broken", "")]).await.unwrap();
    assert_eq!((session.state(), state(&session)), (SessionState::Running, Install::Failed));
    assert_eq!(installed(&session), ["CLICK", "six"]);
    assert_eq!(session.requested_dependencies, dependencies(&[("CLICK", "==8.2"), ("six", ">=1")]));
    let session = bench.install(id, &[("attrs", "")]).await.unwrap();
    assert_eq!(state(&session), Install::Completed);
    assert_eq!(installed(&session), ["CLICK", "six", "attrs"]);
}

async fn of_two_installations_at_once_one_is_refused() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    let session = bench.session().await;
    let id = bench.becomes(&session.session_id, SessionState::Running).await.session_id;
    bench.world.lock().install_gate = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&bench.world.lock().install_gate);
    let session = bench.install(&id, &[("a", "")]).await.unwrap();
    assert_eq!(state(&session), Install::Installing);
    refused(bench.install(&id, &[("b", "")]).await, Code::FailedPrecondition, "INSTALL_RUNNING");
    gate.add_permits(1);
    assert_eq!(installed(&bench.installed(&id).await), ["a"]);
    bench.client.terminate_session(pb::TerminateSessionRequest { session_id: id.clone() }).await.unwrap();
    refused(bench.install(&id, &[("b", "")]).await, Code::FailedPrecondition, "SESSION_NOT_ACTIVE");
    refused(bench.install("nothing", &[("b", "")]).await, Code::NotFound, "SESSION_NOT_FOUND");
    refused(bench.install(&id, &[]).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

async fn an_installation_goes_on_after_a_restart_and_after_a_node_that_did_not_answer() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().install_gate = Arc::new(tokio::sync::Semaphore::new(0));
    let session = bench.create(with(&[("click", "")])).await.unwrap();
    eventually("it installs", || !bench.world.lock().installs.is_empty()).await;
    let mut bench = bench.restart().await;
    bench.world.lock().install_answers.push_back(Err(Status::unavailable("the agent starts")));
    let gate = Arc::clone(&bench.world.lock().install_gate);
    gate.add_permits(1);
    let session = bench.becomes(&session.session_id, SessionState::Running).await;
    assert_eq!(installed(&session), ["click"]);
    assert_eq!(bench.world.lock().sandboxes.len(), 1, "in the same sandbox");
    // And so does one of a session that runs.
    gate.forget_permits(1);
    bench.install(&session.session_id, &[("six", "")]).await.unwrap();
    let mut bench = bench.restart().await;
    gate.add_permits(1);
    assert_eq!(installed(&bench.installed(&session.session_id).await), ["click", "six"]);
}

async fn a_session_that_ends_does_not_wait_for_its_installation() {
    let mut bench = Bench::with(Config { create_wait: HumanDuration(Duration::ZERO), ..config() }).await;
    bench.world.lock().install_gate = Arc::new(tokio::sync::Semaphore::new(0));
    let creating = bench.create(with(&[("click", "")])).await.unwrap().session_id;
    eventually("it installs", || !bench.world.lock().installs.is_empty()).await;
    let terminate = pb::TerminateSessionRequest { session_id: creating.clone() };
    let session = bench.client.terminate_session(terminate).await.unwrap().into_inner().session.unwrap();
    assert_eq!(session.state(), SessionState::Terminated);
    assert!(bench.world.lock().sandboxes.is_empty(), "its sandbox is gone when this answers");
    let session = bench.installed(&creating).await;
    assert_eq!(state(&session), Install::Failed, "nothing is left that looks as if it went on");
}

async fn packages_of_a_template_come_with_its_sessions() {
    let mut bench = Bench::new().await;
    let packages = vec!["numpy==2.0".to_owned(), "Click".to_owned()];
    bench.world.lock().templates.get_mut("python-basic").unwrap().pre_installed_packages = packages;
    let session = bench.create(with(&[("six", "")])).await.unwrap();
    assert_eq!(bench.last_install(), pairs(&[("numpy", "==2.0"), ("Click", ""), ("six", "")]));
    let installation = session.dependency_installation.clone().unwrap();
    let of_template: Vec<bool> = installation.installed.iter().map(|one| one.is_from_template).collect();
    assert_eq!(of_template, [true, true, false]);
    assert_eq!(session.requested_dependencies, dependencies(&[("six", "")]));
    let packages = vec!["--pre".to_owned()];
    bench.world.lock().templates.get_mut("python-basic").unwrap().pre_installed_packages = packages;
    refused(bench.create(new_session()).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

async fn a_password_of_an_index_reaches_the_node_and_nobody_else() {
    let mut config = config();
    config.packages = toml_packages("https://us:hunter2@mirror.example/simple");
    let mut bench = Bench::with(config).await;
    let asked =
        |url: &str| pb::CreateSessionRequest { python_package_index_url: url.into(), ..with(&[("six", "")]) };
    let session = bench.create(asked("https://me:secret@mirror.example/simple/")).await.unwrap();
    assert_eq!(session.python_package_index_url, "https://***@mirror.example/simple/");
    let index =
        |bench: &Bench| bench.world.lock().installs.last().unwrap().packages.clone().unwrap().index_url;
    assert_eq!(index(&bench), "https://me:secret@mirror.example/simple/");
    bench.create(asked("https://mirror.example/simple")).await.unwrap();
    assert_eq!(index(&bench), "https://us:hunter2@mirror.example/simple");
    let status = bench.create(asked("https://evil.example/simple")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(!format!("{status:?}").contains("hunter2"));
}

fn toml_packages(index: &str) -> crate::config::Packages {
    serde_json::from_value(serde_json::json!({"python_indexes": [index]})).unwrap()
}
