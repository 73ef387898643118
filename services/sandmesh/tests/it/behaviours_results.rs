//! Behaviours 22 to 29, 31: what code returns, prints and raises, in every language.

use serde_json::{Value, json};

use crate::harness::Wiring;

in_both_wirings!(
    handler_gets_the_event_and_returns_a_value,
    return_value_keeps_its_type_and_its_falsy_values,
    error_of_user_code_is_a_failed_execution,
    code_without_a_handler_fails_unless_it_is_a_script,
    javascript_handler_is_found_however_it_is_defined,
    shell_returns_json_through_its_own_descriptor,
    unicode_passes_unchanged,
);

#[track_caller]
fn completed(execution: &Value) {
    assert_eq!(
        (&execution["status"], &execution["exit_code"]),
        (&json!("completed"), &json!(0)),
        "{execution}"
    );
}

#[track_caller]
fn failed(execution: &Value, stderr: &str) {
    assert_eq!(execution["status"], "failed", "{execution}");
    assert_ne!(execution["exit_code"], json!(0), "{execution}");
    assert!(execution["stderr"].as_str().unwrap().contains(stderr), "no {stderr:?} on stderr of {execution}");
}

// 22, 24
async fn handler_gets_the_event_and_returns_a_value(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let code = "def handler(event):\n    print('working')\n    return {'text': f\"{event['name']} is {event['age'] + 1}\", 'adult': event['age'] >= 18}";
    let run = api
        .execute(&id, json!({"language": "python", "code": code, "event": {"name": "Alice", "age": 25}}))
        .await;
    completed(&run);
    assert_eq!(run["return_value"], json!({"text": "Alice is 26", "adult": true}));
    assert_eq!(
        (&run["stdout"], &run["stderr"]),
        (&json!("working\n"), &json!("")),
        "stdout has the print only"
    );
    assert_eq!(run["session_id"], id.as_str());
    assert!(
        run["metrics"]["duration_ms"].as_f64().unwrap() > 0.0
            && run["metrics"]["peak_memory_mb"].as_f64().unwrap() > 0.0,
        "{run}"
    );
    assert!(run["metrics"]["cpu_time_ms"].as_f64().unwrap() > 0.0, "{run}");
    for time in ["created_at", "started_at", "completed_at"] {
        assert!(run[time].is_string(), "{run}");
    }

    let code = "async def main(event, context):\n    return [event, context.execution_id, context.session_id, context.get_remaining_time_in_millis() > 1000, int(context.memory_limit_in_mb)]";
    let body = json!({"language": "python", "code": code, "entrypoint": "main", "execution_id": "mine_1", "timeout": 20});
    let run = api.execute(&id, body).await;
    completed(&run);
    assert_eq!(run["return_value"], json!([{}, "mine_1", id, true, 512]));

    let event = json!({"a": [1, 2.5, null, true, "x"], "deep": {"er": [{}]}, "big": "y".repeat(200_000)});
    let run = api
        .execute(
            &id,
            json!({"language": "python", "code": "def handler(event): return event", "event": event}),
        )
        .await;
    completed(&run);
    assert_eq!(run["return_value"], event);
}

// 25
pub(crate) async fn return_value_keeps_its_type_and_its_falsy_values(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let values = "[{'a': 1}, [1, 2], 'text', 3.5, 1.0, {'n': [{'m': [None]}]}, 0, '', [], {}, False, True, -0.0, 9007199254740993, (1, 2)]";
    let run = api.python(&id, &format!("def handler(event): return {values}")).await;
    completed(&run);
    let expected = r#"[{"a":1},[1,2],"text",3.5,1.0,{"n":[{"m":[null]}]},0,"",[],{},false,true,-0.0,9007199254740993,[1,2]]"#;
    assert_eq!(run["return_value"].to_string(), expected);
    for (python, expected) in [
        ("0", json!(0)),
        ("''", json!("")),
        ("[]", json!([])),
        ("{}", json!({})),
        ("False", json!(false)),
        ("None", json!(null)),
        ("2.0", json!(2.0)),
    ] {
        let run = api.python(&id, &format!("def handler(event): return {python}")).await;
        completed(&run);
        assert_eq!(run["return_value"].to_string(), expected.to_string(), "{python}");
    }
    let run = api.python(&id, "def handler(event): return [float('nan'), float('inf'), -float('inf')]").await;
    completed(&run);
    assert_eq!(run["return_value"], json!([null, null, null]));
    let run = api.python(&id, "def handler(event): return {'fine': 1, 'bad': {1, 2}}").await;
    failed(&run, "");
    assert!(run["error"]["message"].as_str().unwrap().contains("set"), "says which value: {run}");
    let run = api
        .run(&id, "javascript", "exports.handler = async (event) => [0, '', [], {}, false, null, 1.5, event]")
        .await;
    completed(&run);
    assert_eq!(run["return_value"], json!([0, "", [], {}, false, null, 1.5, {}]));
}

// 26, 27, 29
async fn error_of_user_code_is_a_failed_execution(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let run = api.python(&id, "def inner():\n    raise ValueError('no luck')\ndef handler(event):\n    print('so far')\n    inner()").await;
    failed(&run, "Traceback (most recent call last)");
    assert_eq!((&run["exit_code"], &run["stdout"]), (&json!(1), &json!("so far\n")));
    assert_eq!((&run["error"]["type"], &run["error"]["message"]), (&json!("ValueError"), &json!("no luck")));
    let traceback = run["error"]["traceback"].as_str().unwrap();
    assert!(traceback.contains("inner") && traceback.contains("line 2"), "{traceback}");
    assert!(run["return_value"].is_null());

    failed(&api.python(&id, "def handler(event)\n    return 1").await, "SyntaxError");
    failed(
        &api.python(&id, "import nonexistent_module\ndef handler(event): return 1").await,
        "ModuleNotFoundError",
    );
    let run = api.python(&id, "import sys\ndef handler(event):\n    sys.exit(7)").await;
    assert_eq!((&run["status"], &run["exit_code"]), (&json!("failed"), &json!(7)), "{run}");
    let run = api
        .python(&id, "import os, signal\ndef handler(event):\n    os.kill(os.getpid(), signal.SIGKILL)")
        .await;
    assert_eq!(
        (&run["status"], &run["exit_code"], &run["signal"]),
        (&json!("failed"), &json!(null), &json!(9)),
        "{run}"
    );

    let code = "import sys, warnings\ndef handler(event):\n    print('oops', file=sys.stderr)\n    warnings.warn('old way')\n    return 'fine'";
    let run = api.python(&id, code).await;
    completed(&run);
    let stderr = run["stderr"].as_str().unwrap();
    assert!(stderr.contains("oops\n") && stderr.contains("UserWarning: old way"), "{stderr}");
    assert_eq!((&run["stdout"], &run["return_value"]), (&json!(""), &json!("fine")));

    let run = api.run(&id, "javascript", "exports.handler = () => { throw new TypeError('not so') }").await;
    failed(&run, "not so");
    assert_eq!((&run["exit_code"], &run["error"]["type"]), (&json!(1), &json!("TypeError")));
    failed(&api.run(&id, "javascript", "function handler( { return 1 }").await, "SyntaxError");
    let run = api.run(&id, "shell", "echo to-stderr >&2; exit 3").await;
    failed(&run, "to-stderr");
    assert_eq!(run["exit_code"], 3);
}

// 28
async fn code_without_a_handler_fails_unless_it_is_a_script(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    for (language, code) in [("python", "x = 1"), ("javascript", "const x = 1")] {
        let run = api.run(&id, language, code).await;
        failed(&run, "handler");
        assert_eq!(
            (&run["exit_code"], &run["error"]["type"]),
            (&json!(1), &json!("HandlerNotFound")),
            "{run}"
        );
    }
    let script = |language: &str, code: &str| json!({"language": language, "code": code, "mode": "script"});
    let run = api.execute(&id, script("python", "print(2 + 3)\nprint(__name__)")).await;
    completed(&run);
    assert_eq!((&run["stdout"], &run["return_value"]), (&json!("5\n__main__\n"), &json!(null)));
    let run = api.execute(&id, script("javascript", "console.log([1, 2].map(x => x * 2).join())")).await;
    completed(&run);
    assert_eq!(run["stdout"], "2,4\n");
    let run = api.execute(&id, script("python", "raise SystemExit(4)")).await;
    assert_eq!((&run["status"], &run["exit_code"]), (&json!("failed"), &json!(4)));
}

async fn javascript_handler_is_found_however_it_is_defined(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "nodejs-basic"})).await;
    let id = session["id"].as_str().unwrap();
    for code in [
        "function handler(event) { return event.n + 1 }",
        "async function handler(event) { return event.n + 1 }",
        "const handler = (event) => event.n + 1",
        "exports.handler = (event) => event.n + 1",
        "module.exports = { handler: async (event) => event.n + 1 }",
        "export function handler(event) { return event.n + 1 }",
        "export const handler = async (event) => { await new Promise(r => setTimeout(r, 5)); return event.n + 1 }",
    ] {
        let run = api.execute(id, json!({"language": "javascript", "code": code, "event": {"n": 41}})).await;
        completed(&run);
        assert_eq!(run["return_value"], 42, "{code}");
    }
    let code = "exports.handler = (event, context) => { console.log('out'); console.error('err'); return typeof context.getRemainingTimeInMillis() }";
    let run = api.run(id, "javascript", code).await;
    completed(&run);
    assert_eq!(
        (&run["stdout"], &run["stderr"], &run["return_value"]),
        (&json!("out\n"), &json!("err\n"), &json!("number"))
    );
}

async fn shell_returns_json_through_its_own_descriptor(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "shell-basic"})).await;
    let id = session["id"].as_str().unwrap();
    let run = api
        .execute(id, json!({"language": "shell", "code": "echo \"$EVENT_JSON\"; pwd", "event": {"x": [1]}}))
        .await;
    completed(&run);
    assert_eq!((&run["stdout"], &run["return_value"]), (&json!("{\"x\":[1]}\n/workspace\n"), &json!(null)));
    for code in
        ["echo '{\"sum\": 3}' >&3; echo printed", "echo '{\"sum\": 3}' > \"$RESULT_FILE\"; echo printed"]
    {
        let run = api.run(id, "shell", code).await;
        completed(&run);
        assert_eq!(
            (&run["return_value"], &run["stdout"]),
            (&json!({"sum": 3}), &json!("printed\n")),
            "{code}"
        );
    }
    let run = api
        .execute(id, json!({"language": "shell", "code": "read a; cat; echo $a", "stdin": "first\nsecond\n"}))
        .await;
    assert_eq!(run["stdout"], "second\nfirst\n", "{run}");
}

// 31
pub(crate) async fn unicode_passes_unchanged(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let id = api.session().await;
    let text = "h\u{e9}llo \u{4e16}\u{754c} \u{1f389} \u{5d0}";
    let code = format!(
        "def handler(event):\n    gr\u{f6}\u{df}e = '{text}'\n    print(gr\u{f6}\u{df}e)\n    open('/workspace/\u{1f4c1} \u{6587}.txt', 'w').write(gr\u{f6}\u{df}e)\n    import os\n    return {{gr\u{f6}\u{df}e: event, 'files': os.listdir('.')}}"
    );
    let run = api.execute(&id, json!({"language": "python", "code": code, "event": {"\u{3b1}": text}})).await;
    completed(&run);
    assert_eq!(run["stdout"], format!("{text}\n"));
    assert_eq!(run["return_value"], json!({text: {"\u{3b1}": text}, "files": ["\u{1f4c1} \u{6587}.txt"]}));
    assert_eq!(run["code"], code.as_str());
    let run = api.execute(&id, json!({"language": "javascript", "code": format!("exports.handler = e => {{ console.log('{text}'); return e }}"), "event": {"t": text}})).await;
    assert_eq!((&run["stdout"], &run["return_value"]["t"]), (&json!(format!("{text}\n")), &json!(text)));
    let run = api.run(&id, "shell", &format!("echo '{text}'")).await;
    assert_eq!(run["stdout"], format!("{text}\n"));
    // Bytes that are no UTF-8 are shown as such here; gRPC gives them exactly.
    let run = api.run(&id, "shell", "printf 'a\\377b\\000c'").await;
    assert_eq!(run["stdout"], "a\u{fffd}b\0c");
}
