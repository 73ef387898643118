//! The engine of Docker: containers through its API, by a unix socket.

mod body;
mod check;
mod client;
mod image;

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bollard::{
    body_full,
    models::{ContainerState, EventMessage},
    query_parameters::{CreateImageOptions, EventsOptions},
};
use futures::{StreamExt, TryStreamExt};
use sandmesh_mesh::Clock;
use tokio::{sync::watch::Sender, time::Instant};

use self::{
    client::{Client, TITLE},
    image::Images,
};
use super::{
    Problems,
    container::{
        ContainerRuntime, Settings,
        engine::{Ended, Engine, State, Survey, Trouble},
        plan::{LABEL_OWNER, Plan, Walls},
        watch::Notes,
    },
};
use crate::{Config, error::ImageProblem};

/// An image without anything in it.
const EMPTY: (&str, &str) = ("sandmesh-empty", "1");
/// The end of an archive of files, which is all of one without any.
const NO_FILES: [u8; 1024] = [0; 1024];

/// A runtime for sandboxes below `data_dir`, which are containers of the engine that is configured. Asks nobody
/// and changes nothing on the machine.
///
/// # Errors
/// When the executor program is missing, naming the setting.
pub(crate) fn runtime(
    config: &Config,
    data_dir: &Path,
    node_id: &str,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<ContainerRuntime> {
    let settings =
        Settings { image: config.docker.image.clone(), memory_overhead: config.docker.memory_overhead.0 };
    ContainerRuntime::new(config, (engine(config), settings), data_dir, node_id, clock)
}

/// The engine that is configured. Nothing is asked yet.
pub(in crate::runtime) fn engine(config: &Config) -> Arc<dyn Engine> {
    Arc::new(Docker::of(config))
}

/// The engine.
#[derive(Debug)]
struct Docker {
    client: Arc<Client>,
    images: Arc<Images>,
    /// The cgroup that containers are made in.
    cgroup_parent: String,
    apparmor: String,
}

impl Docker {
    fn of(config: &Config) -> Self {
        let client = Arc::new(Client::at(config.docker.socket.clone()));
        let (pull, timeout) = (config.docker.pull, config.docker.pull_timeout.0);
        Self {
            images: Arc::new(Images::of(Arc::clone(&client), pull, timeout)),
            client,
            cgroup_parent: config.cgroup_parent.clone(),
            apparmor: config.docker.apparmor.clone(),
        }
    }
}

#[async_trait]
impl Engine for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn title(&self) -> &'static str {
        TITLE
    }

    /// Unless it restores them, which then are not lost.
    fn takes_containers_along(&self) -> bool {
        true
    }

    async fn survey(&self) -> Result<Survey, Problems> {
        let (info, spoken) = check::survey(&self.client).await?;
        Ok(Survey {
            cgroup_parent: check::cgroup_parent(&info, &self.cgroup_parent),
            apparmor: check::has(&info, "apparmor").then(|| self.apparmor.clone()),
            warnings: check::warnings(&info),
            about: check::about(&info, spoken),
        })
    }

    async fn ping(&self) -> Result<(), Trouble> {
        self.client.ping().await
    }

    async fn listen(&self, owner: &str, notes: &Notes) -> Trouble {
        let client = match self.client.client().await {
            Ok(client) => client,
            Err(trouble) => return trouble,
        };
        let wanted = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let filters = HashMap::from([
            ("type".to_owned(), wanted(&["container"])),
            ("label".to_owned(), wanted(&[&owner_label(owner)])),
            ("event".to_owned(), wanted(&["oom", "kill"])),
        ]);
        let mut events = client.events(Some(EventsOptions { filters: Some(filters), ..Default::default() }));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => note(&event, notes),
                Err(error) => return self.client.trouble(error),
            }
        }
        self.client.away("it closed the connection".to_owned())
    }

    async fn images(&self) -> Result<Vec<String>, Trouble> {
        self.images.list().await
    }

    async fn image_id(&self, image: &str) -> Result<Option<String>, Trouble> {
        self.images.id(image).await
    }

    async fn have_image(&self, image: &str, progress: &Sender<String>) -> Result<String, ImageProblem> {
        self.images.have(image, progress).await
    }

    /// Made here, as no registry is needed for that.
    async fn empty_image(&self) -> Result<String, Trouble> {
        let (repo, tag) = EMPTY;
        let client = self.client.client().await?;
        let name = format!("{repo}:{tag}");
        if client.inspect_image(&name).await.is_ok() {
            return Ok(name);
        }
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(repo.to_owned()),
            tag: Some(tag.to_owned()),
            ..Default::default()
        };
        let made = client.create_image(Some(options), Some(body_full(NO_FILES.to_vec().into())), None);
        let made: Result<Vec<_>, _> = made.try_collect().await;
        made.map(|_| name).map_err(|error| self.client.trouble(error))
    }

    async fn create(&self, name: &str, plan: &Plan<'_>, walls: &Walls) -> Result<String, Trouble> {
        self.client.create(name, body::body(plan, walls)).await
    }

    async fn start(&self, container: &str, _: &Path) -> Result<(), Trouble> {
        self.client.start(container).await
    }

    async fn state(&self, container: &str) -> Result<Option<State>, Trouble> {
        let found = self.client.container(container).await?;
        Ok(found.map(|found| state(found.state.unwrap_or_default())))
    }

    async fn labels(&self, container: &str) -> Result<Option<HashMap<String, String>>, Trouble> {
        let found = self.client.container(container).await?;
        Ok(found.map(|found| found.config.and_then(|config| config.labels).unwrap_or_default()))
    }

    async fn containers(&self, owner: &str) -> Result<Vec<HashMap<String, String>>, Trouble> {
        let found = self.client.containers(&owner_label(owner)).await?;
        Ok(found.into_iter().filter_map(|container| container.labels).collect())
    }

    async fn remove(&self, container: &str, within: Duration) -> Result<(), Trouble> {
        self.client.remove(container, within).await
    }

    async fn said(&self, container: &str, _: &Path) -> Result<Vec<u8>, Trouble> {
        self.client.said(container).await
    }
}

/// The label by which the containers of an agent are found.
fn owner_label(owner: &str) -> String {
    format!("{LABEL_OWNER}={owner}")
}

fn note(event: &EventMessage, notes: &Notes) {
    let attributes = event.actor.as_ref().and_then(|actor| actor.attributes.as_ref());
    let attribute = |name: &str| attributes.and_then(|attributes| attributes.get(name)).cloned();
    let Some(container) = attribute("name") else { return };
    match event.action.as_deref() {
        Some("oom") => notes.note(container, |note| note.oom = Some(Instant::now())),
        Some("kill") => notes.note(container, |note| note.signal = attribute("signal")),
        _ => {}
    }
}

fn state(found: ContainerState) -> State {
    if found.running == Some(true) {
        return State::Running;
    }
    State::Ended(Ended {
        code: found.exit_code,
        oom: found.oom_killed == Some(true),
        error: found.error.unwrap_or_default(),
    })
}

#[cfg(test)]
pub(crate) mod tests;
