//! Behaviours 1 to 10: health and templates.

use serde_json::{Value, json};

use crate::harness::{Api, Wiring};

in_both_wirings!(
    fresh_server_is_healthy_and_has_the_basic_templates,
    template_is_returned_as_it_was_stored,
    template_id_and_name_are_taken_once,
    template_out_of_its_limits_is_refused_by_field,
    template_update_changes_only_what_it_names,
    template_is_deleted_unless_it_is_in_use,
);

/// A template that is valid; `id` is also its name.
fn template(id: &str) -> Value {
    json!({"id": id, "name": id, "image_url": "example.org/python:3.11", "runtime_type": "python3.11"})
}

async fn created(api: &Api, body: Value) -> Value {
    api.post("/templates", body).await.is(201)
}

/// The members of `part` are in `whole`, with equal values.
#[track_caller]
fn has(whole: &Value, part: &Value) {
    for (key, value) in part.as_object().unwrap() {
        assert_eq!(&whole[key], value, "`{key}` of {whole}");
    }
}

// 1, 2
pub(crate) async fn fresh_server_is_healthy_and_has_the_basic_templates(wiring: Wiring) {
    let server = wiring.start().await;
    let health = server.api.get("/health").await.is(200);
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptime"].as_f64().unwrap() >= 0.0, "{health}");

    let templates = server.api.get("/templates").await.is(200);
    let templates = templates.as_array().expect("a bare array");
    let names: Vec<&str> = templates.iter().map(|template| template["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["nodejs-basic", "python-basic", "shell-basic"], "ordered by name");
    assert!(templates.iter().all(|template| template["is_active"] == true));

    let detailed = server.api.get("/health/detailed").await.is(200);
    assert_eq!(detailed["status"], "healthy");
    for part in ["database", "object_store", "nodes"] {
        assert!(!detailed["dependencies"][part].is_null(), "`{part}` of {detailed}");
    }
    let synced = server.api.send(server.api.request("POST", "/health/sync")).await.is(200);
    assert_eq!(synced["result"]["unhealthy"], 0, "{synced}");
}

// 3
async fn template_is_returned_as_it_was_stored(wiring: Wiring) {
    let server = wiring.start().await;
    let whole = json!({
        "id": "data-science", "name": "Data science \u{1f9ea}", "description": "pandas and friends",
        "image_url": "registry.example.org/ds:1", "runtime_type": "python3.12",
        "default_cpu_cores": 1.5, "default_memory_mb": 2048, "default_disk_mb": 4096, "default_timeout": 900,
        "default_env_vars": {"MODE": "fast", "EMPTY": ""}, "pre_installed_packages": ["numpy", "pandas"],
        "pool": {"min": 0, "max": 3, "buffer": 1, "profiles": [
            {"resources": {"cpu": "2", "memory": "1536Mi", "disk": null, "max_processes": 64}, "min": 0, "max": 1, "buffer": 0},
        ]},
    });
    has(&created(&server.api, whole.clone()).await, &whole);
    let stored = server.api.get("/templates/data-science").await.is(200);
    has(&stored, &whole);
    assert_eq!(stored["default_timeout_sec"], 900);
    assert_eq!(stored["is_active"], true);
    for time in ["created_at", "updated_at"] {
        assert!(stored[time].as_str().unwrap().contains('T'), "{stored}");
    }
    // What is left out has the defaults of the contract; the other name of the timeout is taken, too.
    let mut small = template("small");
    small["default_timeout_sec"] = json!(60);
    created(&server.api, small).await;
    let defaults = json!({"default_cpu_cores": 0.5, "default_memory_mb": 512, "default_disk_mb": 1024,
        "default_timeout": 60, "default_env_vars": {}, "pre_installed_packages": []});
    has(&server.api.get("/templates/small").await.is(200), &defaults);
    let listed = server.api.get("/templates").await.is(200);
    assert_eq!(listed.as_array().unwrap().len(), 5);
    let page = server.api.get("/templates?limit=2&offset=1").await.is(200);
    assert_eq!(page.as_array().unwrap().as_slice(), &listed.as_array().unwrap()[1..3]);
}

// 4, 5
async fn template_id_and_name_are_taken_once(wiring: Wiring) {
    let server = wiring.start().await;
    created(&server.api, template("one")).await;
    let mut other = template("one");
    other["name"] = json!("another name");
    server.api.post("/templates", other).await.refused(409, "Sandbox.TemplateExists");
    let mut other = template("two");
    other["name"] = json!("one");
    server.api.post("/templates", other).await.refused(409, "Sandbox.TemplateNameExists");
    server.api.get("/templates/two").await.refused(404, "Sandbox.TemplateNotFound");
}

// 6, 7
async fn template_out_of_its_limits_is_refused_by_field(wiring: Wiring) {
    let server = wiring.start().await;
    for (field, value) in [
        ("id", json!("")),
        ("id", json!("x".repeat(65))),
        ("id", json!("../up")),
        ("name", json!("")),
        ("name", json!("x".repeat(256))),
        ("image_url", json!("")),
        ("image_url", json!("x".repeat(513))),
        ("runtime_type", json!("ruby")),
        ("default_cpu_cores", json!(5)),
        ("default_cpu_cores", json!(0.05)),
        ("default_memory_mb", json!(64)),
        ("default_memory_mb", json!(8193)),
        ("default_disk_mb", json!(255)),
        ("default_disk_mb", json!(51201)),
        ("default_timeout", json!(59)),
        ("default_timeout", json!(3601)),
    ] {
        let mut body = template("bad");
        body[field] = value;
        server.api.post("/templates", body).await.names(&format!("body.{field}"));
    }
    for field in ["id", "name", "image_url", "runtime_type"] {
        let mut body = template("bad");
        body.as_object_mut().unwrap().remove(field);
        server.api.post("/templates", body).await.names(&format!("body.{field}"));
    }
    for (field, value) in
        [("default_cpu_cores", json!(4)), ("default_memory_mb", json!(128)), ("default_timeout", json!(3600))]
    {
        let id = format!("edge-{}", field.replace('_', "-"));
        let mut body = template(&id);
        body[field] = value;
        created(&server.api, body).await;
    }
    server.api.get("/templates/bad").await.refused(404, "Sandbox.TemplateNotFound");
}

// 8, 9
pub(crate) async fn template_update_changes_only_what_it_names(wiring: Wiring) {
    let server = wiring.start().await;
    let mut body = template("mine");
    body["default_env_vars"] = json!({"A": "1"});
    body["default_memory_mb"] = json!(1024);
    let before = created(&server.api, body).await;
    let renamed = server.api.put("/templates/mine", json!({"name": "renamed"})).await.is(200);
    let mut expected = before.clone();
    expected["name"] = json!("renamed");
    expected["updated_at"] = renamed["updated_at"].clone();
    assert_eq!(renamed, expected);
    let changed = server.api.put("/templates/mine", json!({"default_timeout": 600})).await.is(200);
    assert_eq!((&changed["default_timeout"], &changed["name"]), (&json!(600), &json!("renamed")));
    assert_eq!(changed["default_env_vars"], json!({"A": "1"}));
    assert_eq!(server.api.get("/templates/mine").await.is(200), changed);

    let taken = server.api.put("/templates/mine", json!({"name": "python-basic"})).await;
    taken.refused(409, "Sandbox.TemplateNameExists");
    server.api.put("/templates/mine", json!({"default_timeout": 1})).await.names("body.default_timeout");
    server.api.put("/templates/mine", json!({"runtime_type": "ruby"})).await.names("body.runtime_type");
    server.api.put("/templates/none", json!({"name": "x"})).await.refused(404, "Sandbox.TemplateNotFound");
    assert_eq!(server.api.get("/templates/mine").await.is(200), changed, "a refused update changes nothing");
}

// 10
async fn template_is_deleted_unless_it_is_in_use(wiring: Wiring) {
    let server = wiring.start().await;
    created(&server.api, template("unused")).await;
    let deleted = server.api.delete("/templates/unused").await.is(200);
    assert!(deleted["message"].as_str().is_some_and(|text| text.contains("unused")), "{deleted}");
    server.api.get("/templates/unused").await.refused(404, "Sandbox.TemplateNotFound");
    server.api.delete("/templates/unused").await.refused(404, "Sandbox.TemplateNotFound");

    created(&server.api, template("used")).await;
    let session = server.api.create(json!({"template_id": "used"})).await;
    server.api.delete("/templates/used").await.refused(409, "Sandbox.TemplateInUse");
    let id = session["id"].as_str().unwrap();
    server.api.send(server.api.request("POST", &format!("/sessions/{id}/terminate"))).await.is(200);
    server.api.delete("/templates/used").await.is(200);
}
