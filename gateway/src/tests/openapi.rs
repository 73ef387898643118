//! The document and what is routed are the same.

use std::collections::BTreeSet;

use http::Method;
use serde_json::Value;

use super::Door;
use crate::rest::{ALIASES, FILE_ACTIONS, routes};

fn document() -> Value {
    serde_json::to_value(crate::openapi::document()).unwrap()
}

#[test]
fn every_routed_path_is_in_the_document_and_nothing_else() {
    let document = document();
    let documented: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let aliases = ALIASES.iter().map(|(alias, _)| *alias);
    // The document has no word for a parameter that may hold `/`.
    let routed: BTreeSet<String> = routes()
        .iter()
        .map(|(path, _)| *path)
        .chain(aliases)
        .map(|path| path.replace("{*path}", "{path}"))
        .collect();
    assert_eq!(documented, routed);
}

#[tokio::test]
async fn a_method_is_routed_exactly_when_it_is_documented() {
    let (door, document) = (Door::new(), document());
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let of_file =
                FILE_ACTIONS.contains(&path.as_str()) && matches!(method, Method::GET | Method::DELETE);
            let documented = item.get(method.as_str().to_lowercase()).is_some() || of_file;
            let answer = door.send(method.as_str(), &path.replace("{id}", "x"), "{}").await;
            assert_eq!(answer.status != 405, documented, "{method} {path}");
        }
    }
}

#[test]
fn operations_have_ids_of_their_own_and_every_parameter_once() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path}");
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let names: BTreeSet<String> =
                parameters.iter().map(|p| format!("{}{}", p["in"], p["name"])).collect();
            assert_eq!(names.len(), parameters.len(), "{path}: {parameters:?}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let schema = &response["content"]["application/json"]["schema"]["$ref"];
                assert!(
                    !status.starts_with(['4', '5']) || schema == "#/components/schemas/ErrorBody",
                    "{path} {status}"
                );
            }
        }
    }
}

#[test]
fn every_reference_of_the_document_is_there() {
    let document = document();
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let found = document.pointer(reference.trim_start_matches('#'));
        assert!(found.is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_documentation_is_in_the_binary() {
    let door = Door::new();
    assert_eq!(door.get("/openapi.json").await.json()["info"]["title"], "Sandmesh");
    let page = door.get("/docs/").await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("swagger-ui"));
    assert!(!page.text.contains("https://"), "nothing is loaded from elsewhere");
    assert_eq!(door.get("/docs/swagger-ui-bundle.js").await.status, 200);
}
