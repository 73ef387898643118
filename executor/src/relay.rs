//! `sandmesh-executor relay`: runs a program of the installer's jail, and gives it a way to the proxy.
//!
//! A jail has no network but a loopback of its own. On that this listens, and hands every connection to the
//! proxy's socket, which the jail shows. Where connections may go is decided there, on the other side.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{ExitCode, ExitStatus},
};

use anyhow::Context as _;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
    process::Command,
    select,
};

use crate::{cli::RelayOptions, clock, isolation::jail::PROXY};

/// The variables that installers take a proxy from.
const VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];

/// Runs the program to its end, and ends as it does.
pub(crate) fn run(options: &RelayOptions) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(relayed(options))?;
    Ok(ExitCode::from(code(status)))
}

async fn relayed(options: &RelayOptions) -> anyhow::Result<ExitStatus> {
    for dir in &options.make {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen in the jail")?;
    let proxy = format!("http://{}", listener.local_addr()?);
    let (program, arguments) = options.command.split_first().context("a command is required")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(VARIABLES.map(|name| (name, &proxy)));
    let mut child = command.spawn().with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
    loop {
        select! {
            status = child.wait() => return Ok(status?),
            accepted = listener.accept() => if let Ok((mut stream, _)) = accepted {
                clock::spawn(async move {
                    // Either side may break it off: the installer tells of that.
                    if let Ok(mut proxy) = UnixStream::connect(PROXY).await {
                        let _ = copy_bidirectional(&mut stream, &mut proxy).await;
                    }
                });
            },
        }
    }
}

/// As a shell tells it: a signal is 128 and its number.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
