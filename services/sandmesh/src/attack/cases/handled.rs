//! Cases 1, 4 and 5, as far as they are about the service that reads and writes a workspace for clients, and keeps what
//! executions made.

use sandmesh_proto::{executor::Language, session::Session};
use serde_json::json;

use super::{
    files::{LINKS, place},
    prepare,
};
use crate::attack::{
    arena::{Arena, Wish, with_env},
    http::{Door, Reply},
    judge::{contains, shortened},
    verdict::Evidence,
};

const ODD_FILES: &str = include_str!("../programs/odd_files.sh");

/// Ways through the links that `LINKS` plants, to files of the host and of the sandbox.
const THROUGH_LINKS: &[&str] = &[
    "secret",
    "dir/secret",
    "dir/inner/secret",
    "tmp/secret",
    "etc/secret",
    "root/etc/passwd",
    "proc-root/etc/passwd",
    "root/proc/self/environ",
    "up/passwd",
    "loop/loop/secret",
    "loop2",
    "hard-to-link",
    "fifo",
    "a/fifo",
    "socket",
    "device",
    "zero",
];

/// Paths that lead out of a workspace, as they are in a URL.
const WAYS_OUT: &[&str] = &[
    "..",
    "../",
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "a/../../x",
    "a/%2e%2e/%2e%2e/x",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "%00",
    "x%00.txt",
    ".%2fx",
    "a%2f%2fb",
];

/// The files of a session by REST.
struct Workspace {
    door: Door,
    root: String,
}

impl Workspace {
    fn of(arena: &Arena, session: &Session) -> anyhow::Result<Self> {
        Ok(Self { door: arena.door()?, root: format!("/api/v1/sessions/{}/files", session.session_id) })
    }

    async fn read(&self, path: &str) -> anyhow::Result<Reply> {
        self.door.send(&format!("GET {}/{path}", self.root), &[], "").await
    }

    async fn write(&self, path: &str) -> anyhow::Result<Reply> {
        let kind = "Content-Type: multipart/form-data; boundary=attack";
        let body = "--attack\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nplanted\r\n--attack--\r\n";
        self.door.send(&format!("POST {}/upload?path={path}", self.root), &[kind], body).await
    }

    async fn delete(&self, path: &str) -> anyhow::Result<Reply> {
        self.door.send(&format!("DELETE {}/{path}", self.root), &[], "").await
    }

    async fn rename(&self, from: &str, to: &str) -> anyhow::Result<Reply> {
        let body = json!({"source_path": from, "target_path": to, "overwrite": true}).to_string();
        self.door.send(&format!("POST {}/move", self.root), &[], &body).await
    }

    async fn list(&self, path: &str) -> anyhow::Result<Reply> {
        self.door.send(&format!("GET {}?path={path}", self.root), &[], "").await
    }
}

/// It said no, and so answered at all.
fn refused(evidence: &mut Evidence, what: String, reply: &Reply) {
    let held = (400..500).contains(&reply.status);
    evidence.client(what, held, format!("status {}", reply.status));
}

pub(super) async fn links_by_the_file_service(arena: &Arena) -> anyhow::Result<Evidence> {
    let canary = arena.canary()?;
    let (session, sandbox) = prepare(arena, Wish { disk_mib: 64, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    let spec = with_env(arena.code(Language::Shell, LINKS), &[("CANARY", &place(canary.as_ref()))]);
    let outcome = arena.run(&session, spec).await?;
    let planted = contains(&outcome.stdout, b"planted");
    evidence.client(
        "the traps are planted",
        planted,
        format!("{} {}", outcome.ending(), outcome.complaint()),
    );
    let workspace = Workspace::of(arena, &session)?;
    for path in THROUGH_LINKS {
        refused(&mut evidence, format!("reading `{path}`"), &workspace.read(path).await?);
    }
    for path in ["dir/secret", "dir/inner/new", "root/tmp/x", "up/x", "loop/x", "a/b/c/d/dir/new"] {
        refused(&mut evidence, format!("writing `{path}`"), &workspace.write(path).await?);
        refused(&mut evidence, format!("removing `{path}`"), &workspace.delete(path).await?);
        refused(&mut evidence, format!("moving `{path}`"), &workspace.rename(path, "moved").await?);
    }
    refused(&mut evidence, "moving out".to_owned(), &workspace.rename("locked", "dir/locked").await?);
    for path in ["dir", "root", "up", "proc-root/etc"] {
        let reply = workspace.list(path).await?;
        let nothing = reply.status != 200 || !reply.body().contains("\"name\"");
        evidence.client(format!("listing `{path}`"), nothing, shortened(reply.body()));
    }
    // The link itself is the tenant's, and to replace it touches nothing else.
    let replaced = workspace.write("secret").await?.status;
    evidence.client(
        "writing where a link is",
        replaced == 200 || (400..500).contains(&replaced),
        replaced.to_string(),
    );
    if let Some(canary) = &canary {
        canary.check(&mut evidence);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn paths_of_files(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish { disk_mib: 64, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    let workspace = Workspace::of(arena, &session)?;
    let long = "x".repeat(5000);
    for path in WAYS_OUT.iter().chain([&long.as_str()]) {
        let shown = shortened(path);
        refused(&mut evidence, format!("reading `{shown}`"), &workspace.read(path).await?);
        refused(&mut evidence, format!("writing `{shown}`"), &workspace.write(path).await?);
        refused(&mut evidence, format!("removing `{shown}`"), &workspace.delete(path).await?);
    }
    workspace.write("own").await?;
    for target in ["../x", "/etc/x", "a/../../x", "x\0y", "..", "", long.as_str()] {
        let shown = shortened(&target.escape_default().to_string());
        refused(&mut evidence, format!("moving to `{shown}`"), &workspace.rename("own", target).await?);
        refused(&mut evidence, format!("moving from `{shown}`"), &workspace.rename(target, "x").await?);
    }
    let left = workspace.list("").await?;
    let only = left.body().matches("\"name\"").count() == 1 && left.body().contains("\"own\"");
    evidence.client("what is in the workspace after that", only, shortened(left.body()));
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn odd_artifacts(arena: &Arena) -> anyhow::Result<Evidence> {
    let canary = arena.canary()?;
    let (session, sandbox) = prepare(arena, Wish { disk_mib: 64, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    let spec = with_env(arena.code(Language::Shell, ODD_FILES), &[("CANARY", &place(canary.as_ref()))]);
    let outcome = arena.run(&session, spec).await?;
    let made = contains(&outcome.stdout, b"made\n") && outcome.result.exit_code == Some(0);
    evidence.client("the odd files are made", made, format!("{} {}", outcome.ending(), outcome.complaint()));
    let mut names: Vec<_> = outcome.result.artifacts.iter().map(|file| file.path.as_str()).collect();
    names.sort_unstable();
    // Nothing but what is a file, and has a name that can be told.
    evidence.client("what is kept of them", names == ["plain", "second name"], names.join(", "));
    let door = arena.door()?;
    let root = format!("/api/v1/executions/{}/artifacts", outcome.result.execution_id);
    for name in ["fifo", "socket", "device", "link", "environ", "directory", "..%2f..%2fetc%2fpasswd"] {
        let reply = door.send(&format!("GET {root}/{name}"), &[], "").await?;
        refused(&mut evidence, format!("reading `{name}`"), &reply);
    }
    let plain = door.send(&format!("GET {root}/plain"), &[], "").await?;
    evidence.client("the one that is a file", plain.body() == "plain\n", shortened(plain.body()));
    if let Some(canary) = &canary {
        canary.check(&mut evidence);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}
