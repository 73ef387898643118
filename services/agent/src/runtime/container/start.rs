//! Everything from an order to an executor that answers.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::Path,
    sync::Arc,
    time::Duration,
};

use sandmesh_proto::executor::GetExecutorResponse;
use tokio::time::sleep;

use super::{
    ContainerRuntime, MOST_IMAGES, REMOVAL, Ready,
    engine::State,
    lock,
    plan::{ENTRY, LAYERS, Places, Plan, name, place_args},
    watch::Note,
};
use crate::{
    convert::language_from_pb,
    layers,
    runtime::{
        Found, Order,
        executor::{answered, facts, log_tail, open_to},
        life::{self, Mark, Process},
        program::{Admit, tail},
        record::{Container, Record},
    },
    sandbox::{Facts, Resources, SandboxId},
};

/// How soon it is looked whether a container that is being admitted has ended.
const LOOK: Duration = Duration::from_millis(500);

impl ContainerRuntime {
    /// Makes the container of a sandbox. What it made when it fails is for `delete` to clear.
    pub(super) async fn start_sandbox(&self, order: &Order, uid: u32, image: &str) -> Result<Facts, String> {
        let ready = self.ready().await.map_err(|problems| problems.to_string())?;
        let dir = self.dir(&order.id);
        let not_recorded = |error: io::Error| format!("cannot record it: {error}");
        let cannot_make = |error: io::Error| format!("cannot make its directory: {error}");
        layers::make_root(&self.layers).map_err(cannot_make)?;
        let mut places = self.make_places(&dir, uid, ready).map_err(cannot_make)?;
        places.layers = Some(self.layers.clone());
        let mut record = Record {
            spec: order.spec.clone(),
            uid: Some(uid),
            created_at: order.created_at,
            process: None,
            container: None,
            claimed_as: None,
            facts: None,
        };
        record.save(&dir).map_err(not_recorded)?;
        let plan = Plan {
            id: &order.id,
            image,
            uid,
            resources: &order.spec.resources,
            at_once: self.program.at_once(order),
            places: &places,
            command: self.command(order, image),
            spec: Some(&order.spec),
        };
        let container = self.make(&plan, ready).await?;
        record.container = Some(Container { id: container.clone(), tools: ready.tools.clone() });
        record.save(&dir).map_err(not_recorded)?;
        let (process, mark) = self.run(&dir, &container, uid, &order.spec.resources).await?;
        record.process = Some(mark);
        let process = Arc::new(process);
        if let Some(held) = lock(&self.held).get_mut(&order.id) {
            (held.process, held.container) = (Some(Arc::clone(&process)), Some(container.clone()));
        }
        record.save(&dir).map_err(not_recorded)?;
        let answer = tokio::select! {
            answer = answered(&dir, &order.id, self.config.start_timeout.0, None) => answer,
            _ = process.ended() => Err(self.watch.cause(&name(&self.owner(), &order.id), &container).await),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return Err(self.with_all_logs(&why, &dir, &container).await),
        };
        open_to(&dir, self.config.socket_group)?;
        let facts = self.facts(order, image, &dir, answer)?;
        record.facts = Some(facts.clone());
        record.save(&dir).map_err(not_recorded)?;
        Ok(facts)
    }

    /// What the executor is told.
    fn command(&self, order: &Order, image: &str) -> Vec<String> {
        let mut command = vec!["serve".to_owned()];
        command.extend(place_args(&order.id));
        let args = self.program.container_args(order, Path::new(LAYERS));
        command.extend(args.into_iter().map(|word| word.to_string_lossy().into_owned()));
        if let Some(versions) = lock(&self.versions).get(image).filter(|versions| !versions.is_empty()) {
            command.extend(["--known-versions".to_owned(), versions.clone()]);
        }
        command
    }

    /// What a sandbox got; an error if its image cannot run what it is for.
    fn facts(
        &self,
        order: &Order,
        image: &str,
        dir: &Path,
        answer: GetExecutorResponse,
    ) -> Result<Facts, String> {
        let language = order.spec.language;
        if !answer.languages.iter().any(|found| language_from_pb(found.language()) == Some(language)) {
            return Err(format!(
                "it has no interpreter for {language} in its PATH, in /usr/bin or in /usr/local/bin"
            ));
        }
        let mut versions = lock(&self.versions);
        if versions.len() >= MOST_IMAGES {
            versions.clear();
        }
        versions.insert(image.to_owned(), known_versions(&answer));
        let mut facts = facts(dir, language, answer);
        if let Some(layer) = &order.layer {
            facts.show_layer(&layer.key);
        }
        Ok(facts)
    }

    /// Makes the directories of a container: what is its own belongs to its uid.
    pub(super) fn make_places(&self, dir: &Path, uid: u32, ready: &Ready) -> io::Result<Places> {
        let make = |dir: &Path, recursive| DirBuilder::new().recursive(recursive).mode(0o700).create(dir);
        if let Some(root) = dir.parent() {
            make(root, true)?;
        }
        make(dir, false)?;
        let (own, workspace) = (dir.join("own"), dir.join("workspace"));
        for theirs in [&own, &workspace] {
            make(theirs, false)?;
            chown(theirs, Some(uid), Some(uid))?;
        }
        Ok(Places { tools: self.tools.dir(&ready.tools), own, workspace, layers: None, authorities: None })
    }

    /// Has the engine make a container; one of ours that has the name already is left over, and goes first.
    pub(super) async fn make(&self, plan: &Plan<'_>, ready: &Ready) -> Result<String, String> {
        let name = name(&self.owner(), plan.id);
        match self.engine.create(&name, plan, &ready.walls).await {
            Err(trouble) if trouble.is_conflict() => {
                self.remove_left_over(&name).await?;
                self.engine.create(&name, plan, &ready.walls).await.map_err(|trouble| trouble.to_string())
            }
            made => made.map_err(|trouble| trouble.to_string()),
        }
    }

    async fn remove_left_over(&self, name: &str) -> Result<(), String> {
        if self.is_ours(name).await.map_err(|trouble| trouble.to_string())? == Some(false) {
            return Err(format!("a container `{name}` is there that is not of this agent"));
        }
        tracing::warn!(container = name, "removing a container that was left over");
        self.engine.remove(name, REMOVAL).await.map_err(|trouble| trouble.to_string())
    }

    /// Starts a container and has its executor admitted.
    pub(super) async fn run(
        &self,
        dir: &Path,
        container: &str,
        uid: u32,
        resources: &Resources,
    ) -> Result<(Process, Mark), String> {
        self.engine.start(container, dir).await.map_err(|trouble| trouble.to_string())?;
        let admitted = tokio::select! {
            admitted = self.admit(dir, container, uid, resources) => admitted,
            why = self.ended(container) => Err(why),
        };
        let pid = match admitted {
            Ok(pid) => pid,
            Err(why) => return Err(self.with_all_logs(&why, dir, container).await),
        };
        let mark = life::start_time(pid).map(|start_time| Mark { pid, start_time });
        let process = mark.map(Process::adopt).transpose();
        let process = process.map_err(|error| format!("its executor cannot be watched: {error}"))?;
        match process.flatten().zip(mark) {
            Some(running) => Ok(running),
            None => {
                let how = self.ended_already(container).await;
                let why = how.unwrap_or_else(|| "its executor ended at once".to_owned());
                Err(self.with_all_logs(&why, dir, container).await)
            }
        }
    }

    /// Gives the executor of a container what it waits for; answers with its process.
    pub(super) async fn admit(
        &self,
        dir: &Path,
        container: &str,
        uid: u32,
        resources: &Resources,
    ) -> Result<i32, String> {
        let entry = dir.join("own").join(ENTRY);
        self.program.admit(&Admit { dir, entry: &entry, container, uid, resources }).await
    }

    /// Waits until a container has ended that nobody watches yet, and says how.
    async fn ended(&self, container: &str) -> String {
        loop {
            sleep(LOOK).await;
            if let Some(how) = self.ended_already(container).await {
                return how;
            }
        }
    }

    /// How a container ended, if it has.
    async fn ended_already(&self, container: &str) -> Option<String> {
        match self.engine.state(container).await {
            Ok(Some(State::Ended(ended))) => Some(ended.told(&Note::default())),
            _ => None,
        }
    }

    /// `why`, with what the executor said: in its log, or before it had one.
    pub(super) async fn with_all_logs(&self, why: &str, dir: &Path, container: &str) -> String {
        let logged = log_tail(dir).unwrap_or_default();
        let said = match logged.is_empty() {
            true => tail(&self.engine.said(container, dir).await.unwrap_or_default()),
            false => logged,
        };
        if said.is_empty() { why.to_owned() } else { format!("{why}; it said: {said}") }
    }

    /// Removes tools of agents before this one that no container uses.
    pub(super) async fn keep_tools(&self, found: &[Found]) {
        let Ok(ready) = self.ready().await else { return };
        let id = |found: &Found| match found {
            Found::Whole(sandbox) => sandbox.id.clone(),
            Found::HalfMade(id) => id.clone(),
        };
        let tools =
            |id: SandboxId| Record::load(&self.dir(&id)).ok()?.container.map(|container| container.tools);
        let used = found.iter().map(id).filter_map(tools).chain([ready.tools.clone()]);
        self.tools.keep(&used.collect());
    }
}

/// The versions of the interpreters, in the words of `serve`.
fn known_versions(answer: &GetExecutorResponse) -> String {
    let word = |found: &sandmesh_proto::executor::LanguageRuntime| {
        let language = language_from_pb(found.language())?;
        (!found.version.is_empty()).then(|| format!("{}={}", language.as_str(), found.version))
    };
    answer.languages.iter().filter_map(word).collect::<Vec<_>>().join(",")
}
