//! What Python code may do and what becomes of it.

mod support;

use serde_json::json;
use support::*;

#[tokio::test]
async fn hello() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let said = run(&mut client, python("def handler(event): return {'result': 'hello world'}")).await;
    println!("{said:?}");
    assert_eq!(said.value(), json!({"result": "hello world"}));
}
