//! Cases 42 to 44: what goes out over the wire, into logs, and to pages of other origins.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sandmesh_proto::{
    executor::Language,
    session::{CreateSessionRequest, ExecutionSpec, GetExecutionRequest, Session, execution::State},
};

use super::{control::dumped_settings, prepare};
use crate::attack::{
    arena::{Arena, Wish, timed, with_env},
    judge::{self, contains, shortened},
    own_server::{clean, ending, random},
    verdict::Evidence,
};

pub(super) async fn bytes_intact(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    // Every byte, then what terminals, JSON and logs trip over.
    let mut expected: Vec<u8> = (0..=255).collect();
    expected.extend(b"\x1b[2J\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07\0\0\xc3\x28\xed\xa0\x80\xf8\x88\x80\x80\x80\r\n\x08\xe2\x80\xae</script>\\u0000\"'");
    let numbers: Vec<String> = expected.iter().map(u8::to_string).collect();
    let code = format!("data = bytes([{}])\nos.write(1, data)\nos.write(2, data[::-1])", numbers.join(","));
    let outcome = arena.run(&session, arena.python(&code)).await?;
    let reversed: Vec<u8> = expected.iter().rev().copied().collect();
    let told = |got: &[u8]| format!("{} bytes", got.len());
    evidence.client("streamed output", outcome.stdout == expected, told(&outcome.stdout));
    evidence.client("streamed errors", outcome.stderr == reversed, told(&outcome.stderr));
    let request = GetExecutionRequest { execution_id: outcome.result.execution_id.clone() };
    let record =
        arena.sessions()?.get_execution(timed(request)).await?.into_inner().execution.unwrap_or_default();
    evidence.client(
        "recorded output",
        record.stdout == expected && record.stderr == reversed,
        told(&record.stdout),
    );
    let path = format!("GET /api/v1/executions/{}", outcome.result.execution_id);
    for path in [path.clone(), format!("{path}/stream")] {
        let reply = arena.door()?.send(&path, &[], "").await?;
        // Whatever the bytes mean, they must not mean it to whoever prints the answer.
        let raw = reply.body().bytes().any(|byte| byte < 0x20 && !b"\r\n\t".contains(&byte));
        evidence.client(
            path,
            reply.status == 200 && !raw,
            format!("status {}, control characters {raw}", reply.status),
        );
        let typed = reply.header("content-type").is_some_and(|kind| !kind.contains("html"));
        evidence.client("its type", typed, reply.header("content-type").unwrap_or_default());
    }
    command_line(arena, &session, &mut evidence).await?;
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

/// The same as JSON of the command line, and an error message that would drive the terminal.
async fn command_line(arena: &Arena, session: &Session, evidence: &mut Evidence) -> anyhow::Result<()> {
    let Some(program) = &arena.target.program else { return Ok(()) };
    for format in ["json", "text"] {
        let mut command = clean(program);
        command.args(["--url", &arena.target.url, "-o", format, "exec", "-n", &session.session_id, "--"]);
        command.args(["\x1b[2Jno-such-program\x07"]);
        if let Some(key) = &arena.target.api_key {
            command.env("SANDMESH_API_KEY", key.expose());
        }
        let (code, printed) = ending(command, Duration::from_secs(20)).await?;
        let drives = printed.bytes().any(|byte| byte < 0x20 && !b"\n\t".contains(&byte));
        let told = format!("exit code {code:?}: {}", shortened(&printed.escape_default().to_string()));
        evidence.client(
            format!("an error of the command line, as {format}"),
            !drives && code.is_some(),
            told,
        );
    }
    Ok(())
}

pub(super) async fn other_origins(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence::default();
    let door = arena.door()?;
    let create = format!("{{\"template_id\": \"{}\"}}", arena.target.template);
    for origin in ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:1"] {
        let header = format!("Origin: {origin}");
        let ask = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"];
        let preflight = door.send("OPTIONS /api/v1/sessions", &[&header, ask[0], ask[1]], "").await?;
        let read = door.send("GET /api/v1/sessions", &[&header], "").await?;
        for (what, reply) in [("a preflight", &preflight), ("reading", &read)] {
            let allowed = reply.header("access-control-allow-origin");
            let told = format!("status {}, allowed {allowed:?}", reply.status);
            evidence.client(format!("{what} from {origin}"), allowed.is_none(), told);
        }
    }
    // A page can send this without asking first; a gateway without keys has nothing but the origin to go by.
    let keyless = door.send("GET /api/v1/sessions", &["Authorization: none"], "").await?.status == 200;
    if keyless {
        for header in ["Origin: https://evil.example", "Host: evil.example", "Host: 127.0.0.1.evil.example"] {
            let reply = door.send("POST /api/v1/sessions", &[header, "Authorization: none"], &create).await?;
            evidence.client(
                format!("a session with `{header}`"),
                reply.status == 403,
                reply.status.to_string(),
            );
        }
    }
    evidence.note(if keyless { "this gateway has no keys" } else { "this gateway has keys" });
    Ok(evidence)
}

pub(super) async fn secret_values(arena: &Arena) -> anyhow::Result<Evidence> {
    let Some(host) = &arena.host else {
        return Ok(Evidence::not_run("the logs of this deployment are not on this machine"));
    };
    let mut evidence = Evidence::default();
    let secret = |what: &str| random(what);
    let (of_session, of_run, of_output, of_event) =
        (secret("ses"), secret("run"), secret("out"), secret("evt"));
    let env = [("SESSION_SECRET".to_owned(), of_session.clone())].into();
    let session = arena.session(Wish { env, ..Wish::default() }).await?;
    let spec = ExecutionSpec {
        event_json: format!("{{\"token\": \"{of_event}\"}}"),
        ..with_env(
            arena.code(Language::Shell, &format!("echo {of_output}; echo {of_output} >&2; exit 3")),
            &[("RUN_SECRET", &of_run)],
        )
    };
    let outcome = arena.run(&session, spec).await?;
    evidence.client("the run", outcome.result.state() == State::Failed, outcome.ending());
    let shown = format!("{:?}", arena.look(&session.session_id).await?);
    judge::absent(&mut evidence, "the session's secret in its record", shown.as_bytes(), &of_session);
    let bad = CreateSessionRequest {
        template_id: arena.target.template.clone(),
        env: [("1 BAD NAME".to_owned(), of_session.clone())].into(),
        ..CreateSessionRequest::default()
    };
    if let Err(status) = arena.sessions()?.create_session(timed(bad)).await {
        let text = format!("{status:?}");
        judge::absent(&mut evidence, "the secret in an error", text.as_bytes(), &of_session);
    }
    let mut logs = host.local.logs.clone();
    logs.extend(log_files(&host.sandbox_dir(&session.sandbox_id)));
    let mut all = vec![of_session, of_run, of_output, of_event];
    all.extend(host.local.secrets.clone());
    for log in &logs {
        let text = std::fs::read(log).unwrap_or_default();
        let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let found = all.iter().filter(|secret| contains(&text, secret.as_bytes())).count();
        evidence.host(format!("secrets in {name}"), found == 0, format!("{found} in {} bytes", text.len()));
    }
    dumped_settings(arena, &mut evidence).await?;
    Ok(evidence)
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.to_string_lossy().contains("log")).collect()
}
