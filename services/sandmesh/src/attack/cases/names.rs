//! Cases 4 and 40: names that would be paths, commands, markup or worse.

use sandmesh_proto::{
    executor::Language,
    session::{CreateSessionRequest, GetExecutionRequest, StartExecutionRequest},
    template::{CreateTemplateRequest, DeleteTemplateRequest, Template},
};
use tonic::{Code, Status};

use super::prepare;
use crate::attack::{
    arena::{Arena, Wish, timed},
    judge::shortened,
    verdict::Evidence,
};

/// Names that would be paths, commands, markup or worse.
pub(super) const EVIL_NAMES: &[&str] = &[
    "../../../../etc/cron.d/x",
    "..",
    ".",
    "/etc/passwd",
    "a/../b",
    "a/b",
    "a\\..\\b",
    "a\0b",
    "a\nb: c",
    "%2e%2e%2fetc",
    "$(touch /tmp/pwned)",
    "`touch /tmp/pwned`",
    "; touch /tmp/pwned",
    "| touch /tmp/pwned",
    "-rf",
    "--privileged",
    "{{7*7}}",
    "&anchor *alias",
    "!!python/object/apply:os.system ['touch /tmp/pwned']",
    "a: b\n- c",
    "'; DROP TABLE sessions; --",
    "<script>alert(1)</script>",
    "\u{202e}txt",
    "ａ",
    " ",
    "\t",
];

/// A refusal that names the field, and nothing else.
pub(super) fn is_bad_request(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::OutOfRange
    )
}

/// What came of a call that must be refused.
pub(super) fn refused<T>(evidence: &mut Evidence, what: String, answer: &Result<T, Status>) {
    match answer {
        Ok(_) => evidence.client(what, false, "it was taken"),
        Err(status) => evidence.client(what, is_bad_request(status), format!("{:?}", status.code())),
    }
}

pub(super) async fn names_that_are_paths(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let before = arena.host.as_ref().map(|host| entries(&host.local.data_dir.join("sandboxes")));
    let long = "x".repeat(5000);
    let door = arena.door()?;
    for name in EVIL_NAMES.iter().chain([&long.as_str(), &"../".repeat(2000).as_str()]) {
        let shown = shortened(&name.escape_default().to_string());
        let session_id = (*name).to_owned();
        let create = CreateSessionRequest {
            session_id: session_id.clone(),
            template_id: arena.target.template.clone(),
            ..CreateSessionRequest::default()
        };
        refused(
            &mut evidence,
            format!("session `{shown}`"),
            &arena.sessions()?.create_session(timed(create)).await,
        );
        let start = StartExecutionRequest {
            session_id: session.session_id.clone(),
            spec: Some(arena.code(Language::Shell, "true")),
            execution_id: session_id.clone(),
            ..StartExecutionRequest::default()
        };
        refused(
            &mut evidence,
            format!("execution `{shown}`"),
            &arena.sessions()?.start_execution(timed(start)).await,
        );
        let get = GetExecutionRequest { execution_id: session_id };
        refused(
            &mut evidence,
            format!("reading `{shown}`"),
            &arena.sessions()?.get_execution(timed(get)).await,
        );
        for path in [percent(name), name.replace([' ', '\t', '\n', '\0'], "%00")] {
            for method in ["GET", "DELETE"] {
                let reply = door.send(&format!("{method} /api/v1/sessions/{path}"), &[], "").await?;
                let held = reply.is_refusal() || (300..400).contains(&reply.status);
                evidence.client(format!("{method} of `{shown}`"), held, reply.status.to_string());
            }
        }
    }
    if let (Some(before), Some(host)) = (before, &arena.host) {
        let after = entries(&host.local.data_dir.join("sandboxes"));
        evidence.host("sandboxes on the host", after == before, format!("{after:?}"));
        let pwned = std::path::Path::new("/tmp/pwned").exists();
        evidence.host("files that names could have made", !pwned, if pwned { "/tmp/pwned" } else { "none" });
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

fn entries(dir: &std::path::Path) -> Vec<String> {
    let Ok(found) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every byte in its escaped form.
fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

pub(super) async fn templates(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence::default();
    let mut client = arena.templates()?;
    for (n, name) in EVIL_NAMES.iter().enumerate() {
        let shown = shortened(&name.escape_default().to_string());
        let template = |id: &str| Template {
            template_id: id.to_owned(),
            name: "attack".to_owned(),
            image_url: "python:3.11".to_owned(),
            runtime_type: "python3.11".to_owned(),
            default_timeout_seconds: 60,
            ..Template::default()
        };
        let create = |template| CreateTemplateRequest { template: Some(template) };
        refused(
            &mut evidence,
            format!("template `{shown}`"),
            &client.create_template(timed(create(template(name)))).await,
        );
        // An image or a package of that name is refused, or is nothing but text.
        let id = format!("{}-{n}", arena.mark);
        let odd = Template {
            image_url: (*name).to_owned(),
            pre_installed_packages: vec![(*name).to_owned()],
            ..template(&id)
        };
        match client.create_template(timed(create(odd))).await {
            Err(status) => evidence.client(
                format!("image `{shown}`"),
                is_bad_request(&status),
                format!("{:?}", status.code()),
            ),
            Ok(answer) => {
                let kept = answer.into_inner().template.unwrap_or_default();
                evidence.client(format!("image `{shown}`"), kept.image_url == *name, "kept as text");
                let request = DeleteTemplateRequest { template_id: id };
                client.delete_template(timed(request)).await?;
            }
        }
    }
    if arena.host.is_some() {
        let pwned = std::path::Path::new("/tmp/pwned").exists();
        evidence.host("files that names could have made", !pwned, if pwned { "/tmp/pwned" } else { "none" });
    }
    let session = arena.session(Wish::default()).await?;
    arena.still_well(&mut evidence, &session, None).await?;
    Ok(evidence)
}
