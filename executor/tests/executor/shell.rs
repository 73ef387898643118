//! What shell scripts and plain commands return.

use sandmesh_proto::executor as pb;
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn script_gets_the_event_and_returns_json() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    for text in [
        r#"echo "$EVENT_JSON" >&3"#,
        r#"echo "$EVENT_JSON" > "$RESULT_FILE""#,
        r#"cat "$EVENT_FILE" > "$RESULT_FILE"; echo visible; echo error >&2"#,
    ] {
        let start = pb::ExecutionStart { event_json: r#"{"n": [1, "ü"]}"#.into(), ..shell(text) };
        let said = run(&mut client, start).await;
        assert_eq!((said.code(), said.value()), (Some(0), json!({"n": [1, "ü"]})), "{text}");
    }
    let said = run(&mut client, shell("echo out; echo err >&2; [[ -n $BASH_VERSION ]] && exit 7")).await;
    assert_eq!((said.out().as_str(), said.err().as_str(), said.code()), ("out\n", "err\n", Some(7)));
    assert_eq!(said.exited().return_value_json, None);
    assert_eq!(said.exited().error, None);
    let said = run(&mut client, shell("echo not json >&3")).await;
    assert_eq!((said.code(), said.error().r#type.as_str()), (Some(0), "ReturnValueNotJson"));
    let said = run(&mut client, shell("if then")).await;
    assert_eq!(said.code(), Some(2));
    let said = run(&mut client, shell("ln -s /etc/passwd $RESULT_FILE; ls /nonexistent-dir")).await;
    assert_eq!((said.code(), &said.exited().error), (Some(2), &None));
    let said = run(&mut client, shell("head -c 7000000 /dev/zero | tr '\\0' 1 >&3")).await;
    assert_eq!((said.code(), said.error().r#type.as_str()), (Some(0), "ReturnValueTooLarge"));
    let said = run(&mut client, shell("head -c 5000000 /dev/zero | tr '\\0' 1 > $RESULT_FILE")).await;
    assert_eq!(said.exited().return_value_json.as_ref().map(bytes::Bytes::len), Some(5_000_000));
}

#[tokio::test]
async fn event_too_large_for_the_environment_is_in_the_file() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let event = serde_json::to_vec(&json!({"big": "y".repeat(6_000_000)})).unwrap();
    let bytes = event.len();
    let text = r#"echo "[$(wc -c < $EVENT_FILE), \"${EVENT_JSON-unset}\"]" >&3"#;
    let said = run(&mut client, pb::ExecutionStart { event_json: event.into(), ..shell(text) }).await;
    assert_eq!(said.value(), json!([bytes, "unset"]), "{said:?}");
}

#[tokio::test]
async fn command_runs_as_it_is() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let command = |words: &[&str]| pb::ExecutionStart {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        language: 0,
        ..shell("")
    };
    let said = run(&mut client, command(&["echo", "a b", "$HOME"])).await;
    assert_eq!((said.out().as_str(), said.code()), ("a b $HOME\n", Some(0)));
    let said = run(&mut client, command(&["/usr/bin/env"])).await;
    assert_eq!(said.out(), "HOME=/workspace\nLANG=C.UTF-8\nPATH=/usr/local/bin:/usr/bin:/bin\nTMPDIR=/tmp\n");
    let said = run(&mut client, command(&["sh", "-c", "ls /proc/$$/fd"])).await;
    assert_eq!(said.out(), "0\n1\n2\n");
    for (words, kind, errno) in [
        (["no-such-program"], pb::FailureKind::NotFound, "ENOENT"),
        (["/no/such/program"], pb::FailureKind::NotFound, "ENOENT"),
        (["/etc/passwd"], pb::FailureKind::PermissionDenied, "EACCES"),
        (["/workspace"], pb::FailureKind::PermissionDenied, "EACCES"),
    ] {
        let said = run(&mut client, command(&words)).await;
        let failed = said.failed.as_ref().unwrap_or_else(|| panic!("{words:?}: {said:?}"));
        assert_eq!(
            (failed.kind(), failed.errno_name.as_str(), failed.stage.as_str()),
            (kind, errno, "exec"),
            "{failed:?}"
        );
        assert!(said.started.is_none() && failed.message.contains(words[0]), "{failed:?}");
    }
}
