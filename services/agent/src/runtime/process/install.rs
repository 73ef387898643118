//! Runs an installer in a sandbox of its own: an executor like that of any other, in whose jail there is a
//! socket that leads to the hosts of packages. What it makes is taken out only when all of it is dead.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{net::UnixListener, sync::watch, time::Instant};

use super::ProcessRuntime;
use crate::{
    Error,
    packages::PackageSet,
    proxy,
    runtime::{
        Contents,
        executor::{answered, ids_in, with_log},
        install::{LONGEST, internal, limits, listen, run},
        installer::{TARGET, installer},
        life::{self, Process},
        log,
    },
    sandbox::SandboxId,
};

/// The sandbox of an installer.
struct Place {
    id: SandboxId,
    dir: PathBuf,
    uid: Option<u32>,
}

/// Where the sandboxes of installers are; shorter than that of others, whose sockets must fit.
pub(super) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("installs")
}

impl ProcessRuntime {
    /// Installs into `files`. However it ends, nothing is left of the sandbox.
    pub(super) async fn run_installer(
        &self,
        set: &PackageSet,
        files: &Path,
        deadline: watch::Receiver<Instant>,
    ) -> Result<Contents, Error> {
        let id = SandboxId::random();
        let uid = self.take_uid(&id)?;
        let place = Place { dir: self.installs.join(id.as_str()), id, uid };
        let outcome = self.install_in(&place, set, files, deadline).await;
        match self.program.destroy(&place.dir, place.id.as_str()).await {
            Ok(()) => self.free_uid(uid),
            Err(why) => tracing::error!(sandbox.id = %place.id, why, "left over from an installation"),
        }
        outcome
    }

    /// Destroys what is left of the installers of an agent before this one.
    pub(super) async fn clear_installers(&self) {
        for id in ids_in(&self.installs).unwrap_or_default() {
            if let Err(why) = self.program.destroy(&self.installs.join(id.as_str()), id.as_str()).await {
                tracing::error!(sandbox.id = %id, why, "left over from an installation");
            }
        }
    }

    async fn install_in(
        &self,
        place: &Place,
        set: &PackageSet,
        files: &Path,
        mut deadline: watch::Receiver<Instant>,
    ) -> Result<Contents, Error> {
        let Place { id, dir, uid } = place;
        let command = installer(set, self.program.config(), &self.program.python())
            .ok_or_else(|| Error::install_failed(format!("there are no packages for {}", set.language)))?;
        let (log, listener) =
            prepare(&self.installs, dir, *uid).map_err(internal("cannot make its directory"))?;
        let serving = proxy::serve(listener, Arc::clone(&self.hosts));
        let installing = async {
            let expires_at = self.clock.now() + LONGEST;
            let limits = limits(&self.program.config().packages);
            let child = self.program.serve_installer((id, dir, *uid), &limits, expires_at, log);
            let process = child.and_then(Process::of_child).map_err(internal("cannot run its executor"))?;
            let answer = tokio::select! {
                answer = answered(dir, id, self.start_timeout, None) => answer.map(drop),
                status = process.ended() => Err(life::describe(status)),
            };
            answer.map_err(|why| {
                Error::install_failed(with_log(&format!("its sandbox did not start: {why}"), dir))
            })?;
            run(dir, command, set, &mut deadline).await
        };
        tokio::select! {
            installed = installing => installed?,
            () = serving => {}
        }
        let sealed = self.program.seal((id, dir), TARGET, files, set.language).await;
        sealed.map_err(|why| Error::install_failed(format!("what was installed is not taken: {why}")))
    }
}

/// Makes the directory of an installer with its log and the socket of its proxy.
fn prepare(root: &Path, dir: &Path, uid: Option<u32>) -> io::Result<(fs::File, UnixListener)> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    DirBuilder::new().mode(0o700).create(dir)?;
    let listener = listen(&proxy_socket(dir), uid)?;
    let log = OpenOptions::new().append(true).create_new(true).mode(0o600).open(log::path(dir))?;
    Ok((log, listener))
}

/// Where the proxy of an installer listens.
pub(in crate::runtime) fn proxy_socket(dir: &Path) -> PathBuf {
    dir.join("proxy.sock")
}
