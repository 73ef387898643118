//! Runs an installer in a container of its own: with the image of the sandbox that asks, whose interpreter it
//! is that packages are for, and with the socket of a proxy as its only way out.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use sandmesh_proto::executor::GetExecutorResponse;
use tokio::{sync::watch as channel, time::Instant};

use super::{
    ContainerRuntime,
    plan::{OWN, Plan, name, place_args},
};
use crate::{
    Error,
    convert::language_from_pb,
    packages::PackageSet,
    proxy,
    runtime::{
        Contents,
        executor::{answered, ids_in},
        install::{LONGEST, internal, limits, listen, run},
        installer::{AUTHORITIES, TARGET, installer},
    },
    sandbox::{Language, SandboxId},
};

const PROXY: &str = "proxy.sock";

/// The sandbox of an installer.
struct Place {
    id: SandboxId,
    dir: PathBuf,
    uid: u32,
}

impl ContainerRuntime {
    /// Installs into `files`. However it ends, nothing is left of the container.
    pub(super) async fn run_installer(
        &self,
        image: &str,
        set: &PackageSet,
        files: &Path,
        mut deadline: channel::Receiver<Instant>,
    ) -> Result<Contents, Error> {
        let image_id = self.have(image, &channel::Sender::default()).await?;
        let id = SandboxId::random();
        let uid = self.take_uid(&id)?;
        let place = Place { dir: self.installs.join(id.as_str()), id, uid };
        let installed = self.install_in(&place, (image, &image_id), set, &mut deadline).await;
        let outcome = match installed {
            Ok(()) => self.take_out(&place, set, files).await,
            Err(error) => Err(error),
        };
        self.put_away(&place.id, place.dir, Some(uid)).await;
        outcome
    }

    /// Removes the container, so that nothing of it lives, and takes what was installed.
    async fn take_out(&self, place: &Place, set: &PackageSet, files: &Path) -> Result<Contents, Error> {
        let not_taken =
            |why: String| Error::install_failed(format!("what was installed is not taken: {why}"));
        let removed = self.engine.remove(&name(&self.owner(), &place.id), super::REMOVAL).await;
        removed.map_err(|trouble| not_taken(trouble.to_string()))?;
        let sealed = self.program.seal((&place.id, &place.dir), TARGET, files, set.language).await;
        sealed.map_err(not_taken)
    }

    /// Destroys what is left of the installers and checks of an agent before this one.
    pub(super) async fn clear_installers(&self) {
        for id in ids_in(&self.installs).unwrap_or_default() {
            if let Err(why) = self.clear(&id, &self.installs.join(id.as_str())).await {
                tracing::error!(sandbox.id = %id, why, "left over from an installation");
            }
        }
    }

    async fn install_in(
        &self,
        place: &Place,
        (image, image_id): (&str, &str),
        set: &PackageSet,
        deadline: &mut channel::Receiver<Instant>,
    ) -> Result<(), Error> {
        let Place { id, dir, uid } = place;
        let failed = |why: String| Error::install_failed(format!("its sandbox did not start: {why}"));
        let ready = self.ready().await.map_err(|problems| failed(problems.to_string()))?;
        let resources = limits(&self.config.packages);
        let mut places = self
            .make_places(dir, *uid, ready)
            .map_err(internal("cannot make the directory of an installer"))?;
        places.authorities = authorities(dir).map_err(internal("cannot tell an installer whom to trust"))?;
        let listener = listen(&dir.join("own").join(PROXY), Some(*uid)).map_err(internal("cannot listen"))?;
        let mut command = vec!["serve".to_owned()];
        command.extend(place_args(id));
        let args = self.program.installer_args(&resources, self.clock.now() + LONGEST);
        command.extend(args.into_iter().map(|word| word.to_string_lossy().into_owned()));
        command.extend(["--proxy".to_owned(), format!("{OWN}/{PROXY}")]);
        let plan = Plan {
            id,
            image: image_id,
            uid: *uid,
            resources: &resources,
            at_once: 1,
            places: &places,
            command,
            spec: None,
        };
        let serving = proxy::serve(listener, Arc::clone(&self.hosts));
        let installing = async {
            let container = self.make(&plan, ready).await.map_err(failed)?;
            let (process, _) = self.run(dir, &container, *uid, &resources).await.map_err(failed)?;
            let answer = tokio::select! {
                answer = answered(dir, id, self.config.start_timeout.0, None) => answer,
                _ = process.ended() => Err("its executor ended".to_owned()),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(why) => return Err(failed(self.with_all_logs(&why, dir, &container).await)),
            };
            let python = interpreter(&answer, set.language, image)?;
            let command = installer(set, self.program.config(), &python).ok_or_else(|| {
                Error::install_failed(format!("there are no packages for {}", set.language))
            })?;
            run(dir, command, set, deadline)
                .await
                .map_err(|error| without_installer(error, set.language, image))
        };
        tokio::select! {
            installed = installing => installed,
            () = serving => Ok(()),
        }
    }
}

/// Who signs for an index is trusted as by the agent: a copy, as an engine looks for files on its machine, and
/// the agent may be in a container itself.
fn authorities(dir: &Path) -> io::Result<Option<PathBuf>> {
    let trusted = Path::new(AUTHORITIES);
    if !trusted.is_file() {
        return Ok(None);
    }
    let copy = dir.join("authorities.crt");
    fs::copy(trusted, &copy)?;
    // Who reads it in the container is another user.
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o644))?;
    Ok(Some(copy))
}

/// The interpreter of an image.
fn interpreter(answer: &GetExecutorResponse, language: Language, image: &str) -> Result<PathBuf, Error> {
    let mut found = answer.languages.iter();
    let found = found.find(|found| language_from_pb(found.language()) == Some(language));
    let none = || Error::install_failed(format!("image `{image}` has no interpreter for {language}"));
    found.map(|found| PathBuf::from(&found.path)).ok_or_else(none)
}

/// An image without an installer says so in its own way, which is told in ours.
fn without_installer(error: Error, language: Language, image: &str) -> Error {
    let said = error.to_string();
    let (program, is_missing) = match language {
        Language::Python => ("pip", said.contains("No module named pip")),
        Language::Javascript => ("npm", said.contains("cannot run npm")),
        Language::Shell => ("an installer", false),
    };
    if !is_missing {
        return error;
    }
    Error::install_failed(format!(
        "image `{image}` has no {program}: use one that has, or one with the packages in it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_an_installer_is_told_as_that() {
        let error = Error::install_failed("exit code 1:\n/usr/bin/python3: No module named pip");
        let told = without_installer(error, Language::Python, "python:slim").to_string();
        assert!(told.contains("`python:slim` has no pip"), "{told}");
        let other = Error::install_failed("no such package");
        assert_eq!(without_installer(other, Language::Python, "x").to_string(), "no such package");
    }
}
