//! Cases 1 to 8: files that tenants make and others handle outside the jail.

use sandmesh_proto::{
    executor::Language,
    session::{DeleteSessionRequest, execution::State},
};

use super::{interactive, prepare};
use crate::attack::{
    arena::{Arena, Wish, timed, with_env},
    host::Canary,
    judge,
    own_server::random,
    verdict::Evidence,
};

pub(super) const LINKS: &str = include_str!("../programs/links.sh");
const SWAP: &str = include_str!("../programs/swap.py");
const RESULT_FILE: &str = include_str!("../programs/result_file.sh");
const MOUNTS: &str = include_str!("../programs/mounts.py");

/// Where links point when the host cannot be seen.
const NOWHERE: &str = "/tmp";

/// Where links point.
pub(super) fn place(canary: Option<&Canary>) -> String {
    canary.map_or_else(|| NOWHERE.to_owned(), |canary| canary.path().display().to_string())
}

pub(super) async fn links_at_the_end(arena: &Arena) -> anyhow::Result<Evidence> {
    let canary = arena.canary()?;
    let mut evidence = Evidence::default();
    for delete in [false, true] {
        let (session, sandbox) = prepare(arena, Wish { disk_mib: 64, ..Wish::default() }).await?;
        let spec = with_env(arena.code(Language::Shell, LINKS), &[("CANARY", &place(canary.as_ref()))]);
        let outcome = arena.run(&session, spec).await?;
        let planted = judge::contains(&outcome.stdout, b"planted");
        evidence.client(
            "the traps are planted",
            planted,
            format!("{} {}", outcome.ending(), outcome.complaint()),
        );
        // Whoever watches the size of the workspace has walked through it by then.
        arena.run(&session, arena.code(Language::Shell, "sleep 1.2")).await?;
        arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
        let how = if delete { "deleting" } else { "ending" };
        if delete {
            let request = DeleteSessionRequest { session_id: session.session_id.clone() };
            arena.sessions()?.delete_session(timed(request)).await?;
        } else {
            arena.terminate(&session.session_id).await?;
        }
        if let Some(sandbox) = &sandbox {
            let gone = !sandbox.dir.exists();
            let told = if gone { "gone" } else { "still there" };
            evidence.host(format!("the directory after {how} the session"), gone, told);
        }
        if let Some(canary) = &canary {
            canary.check(&mut evidence);
        }
    }
    Ok(evidence)
}

pub(super) async fn result_files(arena: &Arena) -> anyhow::Result<Evidence> {
    let canary = arena.canary()?;
    let (session, sandbox) = prepare(arena, Wish { disk_mib: 64, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    for way in [
        "link",
        "link to environ",
        "link to zeros",
        "link to passwd",
        "fifo",
        "socket",
        "directory",
        "parent is a link",
        "huge",
        "sparse",
        "swapped",
    ] {
        let variables = [("ATTACK_WAY", way), ("CANARY", &place(canary.as_ref()))];
        let outcome =
            arena.run(&session, with_env(arena.code(Language::Shell, RESULT_FILE), &variables)).await?;
        let value = outcome.result.return_value_json.clone().unwrap_or_default();
        let harmless = ["", "1"].contains(&value.as_str()) && outcome.result.state() != State::Timeout;
        let told = format!("{}, value `{}`", outcome.ending(), judge::shortened(&value));
        evidence.client(way, harmless && outcome.stdout == b"done\n", told);
        if let Some(canary) = &canary {
            let text = format!("{:?}", outcome.result);
            judge::absent(&mut evidence, "the host's file in the record", text.as_bytes(), &canary.secret);
        }
    }
    if let Some(canary) = &canary {
        canary.check(&mut evidence);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn mount_points(arena: &Arena) -> anyhow::Result<Evidence> {
    let canary = arena.canary()?;
    let (session, sandbox) = prepare(arena, Wish { disk_mib: 64, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    for round in ["before", "after"] {
        let outcome = arena.run(&session, arena.python(MOUNTS)).await?;
        judge::attempts(&mut evidence, &outcome.stdout, 6, &["fixed"]);
        evidence.client(
            format!("a start {round} links were planted"),
            outcome.result.state() == State::Completed,
            outcome.ending(),
        );
        let spec = with_env(arena.code(Language::Shell, LINKS), &[("CANARY", &place(canary.as_ref()))]);
        arena.run(&session, spec).await?;
    }
    if let Some(canary) = &canary {
        canary.check(&mut evidence);
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn swapped_while_handled(arena: &Arena) -> anyhow::Result<Evidence> {
    let canary = arena.canary()?;
    let mut evidence = Evidence::default();
    for round in 1..=4 {
        let (session, sandbox) = prepare(arena, Wish { disk_mib: 64, ..Wish::default() }).await?;
        let spec = with_env(interactive(arena.python(SWAP)), &[("CANARY", &place(canary.as_ref()))]);
        let mut live = arena.open(&session, spec).await?;
        live.stage("swapping").await?;
        live.go_on().await?;
        // The size of the workspace is being looked at; then all of it is removed under the swapping.
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        arena.terminate(&session.session_id).await?;
        let outcome = live.end().await?;
        let ended = outcome.result.state() == State::Cancelled;
        evidence.client(format!("the end of round {round}"), ended, outcome.ending());
        if let Some(sandbox) = &sandbox {
            let gone = !sandbox.dir.exists();
            evidence.host(
                format!("the directory after round {round}"),
                gone,
                if gone { "gone" } else { "there" },
            );
        }
    }
    if let Some(canary) = &canary {
        canary.check(&mut evidence);
    }
    Ok(evidence)
}

pub(super) async fn other_sessions(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence::default();
    let name = format!("p{}", arena.mark);
    let session = |id: String| arena.session(Wish { id, disk_mib: 64, ..Wish::default() });
    let (short, long) = (session(name.clone()).await?, session(format!("{name}b")).await?);
    let secret = random("neighbour");
    let write = format!("echo {secret} > /workspace/own; chmod 777 /workspace /workspace/own; echo written");
    arena.run(&long, arena.code(Language::Shell, &write)).await?;
    let mut guesses = vec![
        format!("/workspace/../{name}b/own"),
        format!("/workspace/../../{}/workspace/own", long.sandbox_id),
        format!("/workspaces/{name}b/own"),
        "/proc/1/cwd/own".to_owned(),
        "/proc/1/root/workspace/../own".to_owned(),
        "/run/sandmesh/workspace/own".to_owned(),
    ];
    if let Some(host) = &arena.host {
        let own = host.sandbox_dir(&long.sandbox_id).join("workspace/own").display().to_string();
        guesses.push(own.clone());
        guesses.push(format!("/proc/1/root{own}"));
    }
    let tries: Vec<String> = guesses.iter().map(|path| format!("cat {path}")).collect();
    let code = format!(
        "{{ {}; find / -name own -not -path '/proc/*' -exec cat {{}} +; }} 2>/dev/null; echo tried",
        tries.join("; ")
    );
    let outcome = arena.run(&short, arena.code(Language::Shell, &code)).await?;
    evidence.client("the search", judge::contains(&outcome.stdout, b"tried"), outcome.ending());
    judge::absent(&mut evidence, "the neighbour's file", &outcome.stdout, &secret);
    arena.terminate(&short.session_id).await?;
    // Only the session itself goes, and not what begins like it.
    let outcome = arena.run(&long, arena.code(Language::Shell, "cat /workspace/own")).await?;
    let kept = judge::contains(&outcome.stdout, secret.as_bytes());
    evidence.client("the session whose name begins alike", kept, outcome.ending());
    Ok(evidence)
}
