//! The role through its own gRPC, over a database in a temporary directory.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{Router, extract::Request as HttpRequest, routing::post};
use chrono::DateTime;
use prost_types::FieldMask;
use sandmesh_mesh::{
    HumanDuration, Link, ManualClock,
    database::testing::{Kind, TestDatabase},
    grpc_router, on_every_database, reason_of, timestamp,
};
use sandmesh_proto::{
    executor::Resources,
    session::{ListSessionsRequest, ListSessionsResponse, session::State},
    template::{
        CreateTemplateRequest, DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest,
        ListTemplatesResponse, PoolProfile, PoolSettings, Template, UpdateTemplateRequest,
        template_service_client::TemplateServiceClient,
    },
};
use sea_orm::ConnectionTrait;
use sea_orm_migration::MigratorTrait;
use tonic::{Code, Request, Response, Status, service::Routes};
use tonic_types::StatusExt;

use super::*;
use crate::migration::Migrator;

on_every_database!(
    a_new_database_has_the_first_templates_and_they_are_active,
    a_first_template_that_was_deleted_does_not_come_back,
    what_was_stored_is_what_comes_back_also_after_a_restart,
    what_is_left_out_of_a_new_template_gets_its_default,
    a_taken_id_and_a_taken_name_are_told_apart,
    every_bad_field_is_named_with_its_kind,
    a_request_without_a_template_is_refused,
    an_update_changes_the_fields_of_its_mask_and_no_others,
    an_update_that_would_break_a_rule_changes_nothing,
    concurrent_updates_of_different_fields_are_both_kept,
    a_deleted_template_is_gone,
    a_template_in_use_stays_until_its_sessions_have_ended,
    a_template_stays_when_nobody_can_tell_whether_it_is_in_use,
    pages_by_token_and_by_offset_show_every_template_once_in_order,
    a_foreign_page_token_is_refused,
    roles_that_start_at_once_on_an_empty_database_plant_once,
    a_template_that_is_older_than_profiles_has_none_and_takes_some,
);

const MIB: u64 = 1 << 20;

/// The sessions that run from template `used`; `u64::MAX` when the session role is down.
type Running = Arc<AtomicU64>;

/// A session role that answers `ListSessions` and nothing else.
fn sessions(running: Running) -> Link {
    let list = tower::service_fn(move |request: Request<ListSessionsRequest>| {
        let request = request.into_inner();
        let counted = request.template_id == "used" && request.state == i32::from(State::Running);
        let running = running.load(Ordering::SeqCst);
        async move {
            let total = if counted { running } else { 0 };
            match running {
                u64::MAX => Err(Status::unavailable("the session role is down")),
                _ => Ok(Response::new(ListSessionsResponse { total, ..Default::default() })),
            }
        }
    });
    let handler = move |request: HttpRequest| {
        let list = list.clone();
        async move { tonic::server::Grpc::new(tonic_prost::ProstCodec::default()).unary(list, request).await }
    };
    Link::local(Router::new().route("/sandmesh.session.v1.SessionService/ListSessions", post(handler)))
}

struct Bench {
    client: TemplateServiceClient<Link>,
    clock: ManualClock,
    running: Running,
    _database: Option<TestDatabase>,
}

async fn bench(kind: Kind) -> Bench {
    let database = TestDatabase::create(kind).await;
    let bench = bench_in(&database).await;
    Bench { _database: Some(database), ..bench }
}

async fn bench_in(database: &TestDatabase) -> Bench {
    let clock = ManualClock::new(DateTime::from_timestamp(1_800_000_000, 123_456_789).unwrap());
    let running = Running::default();
    let patience = HumanDuration(Duration::from_secs(30));
    let config = Config {
        database_url: database.url(),
        database_connect_timeout: patience,
        database_statement_timeout: patience,
        ..Config::default()
    };
    let store = Store::open(&config.target(Path::new(""))).await.unwrap();
    plant(&store, &clock).await.unwrap();
    let templates = Templates::new(store, Arc::new(clock.clone()), sessions(Arc::clone(&running)));
    let service = TemplateServiceServer::new(Grpc(Arc::new(templates)));
    let client = TemplateServiceClient::new(Link::local(grpc_router(Routes::new(service))));
    Bench { client, clock, running, _database: None }
}

impl Bench {
    async fn create(&mut self, template: Template) -> Result<Template, Status> {
        let request = CreateTemplateRequest { template: Some(template) };
        Ok(self.client.create_template(request).await?.into_inner().template.unwrap())
    }

    async fn get(&mut self, id: &str) -> Result<Template, Status> {
        let request = GetTemplateRequest { template_id: id.to_owned() };
        Ok(self.client.get_template(request).await?.into_inner().template.unwrap())
    }

    async fn update(&mut self, template: Template, paths: &[&str]) -> Result<Template, Status> {
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        let request =
            UpdateTemplateRequest { template: Some(template), update_mask: Some(FieldMask { paths }) };
        Ok(self.client.update_template(request).await?.into_inner().template.unwrap())
    }

    async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteTemplateRequest { template_id: id.to_owned() };
        self.client.delete_template(request).await.map(|_| ())
    }

    async fn list(&mut self, size: u32, token: &str, offset: u32) -> Result<ListTemplatesResponse, Status> {
        let request = ListTemplatesRequest { page_size: size, page_token: token.to_owned(), offset };
        Ok(self.client.list_templates(request).await?.into_inner())
    }
}

fn template(id: &str) -> Template {
    Template {
        template_id: id.to_owned(),
        name: format!("Name of {id}"),
        image_url: "registry.example/python:3.12".to_owned(),
        runtime_type: "python3.12".to_owned(),
        ..Template::default()
    }
}

fn names(listing: &ListTemplatesResponse) -> Vec<&str> {
    listing.templates.iter().map(|template| template.name.as_str()).collect()
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (code, Some(reason)), "{status}");
}

async fn a_new_database_has_the_first_templates_and_they_are_active(kind: Kind) {
    let mut bench = bench(kind).await;
    let listing = bench.list(0, "", 0).await.unwrap();
    assert_eq!(names(&listing), ["nodejs-basic", "python-basic", "shell-basic"]);
    assert!(listing.templates.iter().all(|template| template.is_active));
    assert_eq!((listing.total, listing.next_page_token.as_str()), (3, ""));
}

async fn a_first_template_that_was_deleted_does_not_come_back(kind: Kind) {
    let database = TestDatabase::create(kind).await;
    let mut bench = bench_in(&database).await;
    for id in ["nodejs-basic", "python-basic", "shell-basic"] {
        bench.delete(id).await.unwrap();
    }
    drop(bench);
    assert_eq!(bench_in(&database).await.list(0, "", 0).await.unwrap().total, 0);
}

/// A few warm, with so many MiB of memory.
fn profile(mebibytes: u64) -> PoolProfile {
    let resources = Resources { memory_bytes: mebibytes * MIB, ..Resources::default() };
    PoolProfile { resources: Some(resources), min: 1, max: 3, buffer: 2 }
}

async fn what_was_stored_is_what_comes_back_also_after_a_restart(kind: Kind) {
    let database = TestDatabase::create(kind).await;
    let mut bench = bench_in(&database).await;
    let written = Template {
        description: "with \"quotes\", ünïcode and\nlines".to_owned(),
        default_resources: Some(Resources {
            cpu_millis: 100,
            memory_bytes: 8192 * MIB,
            disk_bytes: 51_200 * MIB,
            max_processes: 4096,
        }),
        default_timeout_seconds: 3600,
        default_env: HashMap::from([("A".to_owned(), String::new()), ("B".to_owned(), "=\n'".to_owned())]),
        pre_installed_packages: vec!["numpy==2.0".to_owned(), "click".to_owned()],
        pool: Some(PoolSettings { min: 1, max: 5, buffer: 2, profiles: vec![profile(300), profile(400)] }),
        ..template("all-fields")
    };
    let created = bench.create(written.clone()).await.unwrap();
    let now = timestamp(DateTime::from_timestamp(1_800_000_000, 123_456_000).unwrap());
    let expected = Template { is_active: true, created_at: Some(now), updated_at: Some(now), ..written };
    assert_eq!(created, expected);
    assert_eq!(bench.get("all-fields").await.unwrap(), expected);
    drop(bench);
    assert_eq!(bench_in(&database).await.get("all-fields").await.unwrap(), expected);
}

async fn what_is_left_out_of_a_new_template_gets_its_default(kind: Kind) {
    let created = bench(kind).await.create(template("lean")).await.unwrap();
    let resources = created.default_resources.unwrap();
    assert_eq!((resources.cpu_millis, resources.max_processes), (500, 128));
    assert_eq!((resources.memory_bytes, resources.disk_bytes), (512 * MIB, 1024 * MIB));
    assert_eq!(created.default_timeout_seconds, 300);
}

async fn a_taken_id_and_a_taken_name_are_told_apart(kind: Kind) {
    let mut bench = bench(kind).await;
    bench.create(template("one")).await.unwrap();
    assert_refused(bench.create(template("one")).await, Code::AlreadyExists, "TEMPLATE_EXISTS");
    let namesake = Template { name: "Name of one".to_owned(), ..template("two") };
    assert_refused(bench.create(namesake.clone()).await, Code::AlreadyExists, "TEMPLATE_NAME_EXISTS");
    bench.create(template("two")).await.unwrap();
    let renamed = bench.update(namesake, &["name"]).await;
    assert_refused(renamed, Code::AlreadyExists, "TEMPLATE_NAME_EXISTS");
}

async fn every_bad_field_is_named_with_its_kind(kind: Kind) {
    let bad = Template {
        runtime_type: "ruby".to_owned(),
        image_url: String::new(),
        default_resources: Some(Resources {
            cpu_millis: 5000,
            memory_bytes: 64 * MIB,
            ..Resources::default()
        }),
        ..template("bad")
    };
    let status = bench(kind).await.create(bad).await.unwrap_err();
    assert_eq!(
        (status.code(), reason_of(&status).as_deref()),
        (Code::InvalidArgument, Some("INVALID_ARGUMENT"))
    );
    let fields: Vec<String> =
        status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect();
    assert_eq!(
        fields,
        [
            "template.image_url",
            "template.runtime_type",
            "template.default_resources.cpu_millis",
            "template.default_resources.memory_bytes",
        ]
    );
    let kinds = status.get_details_error_info().unwrap().metadata;
    assert_eq!(kinds["violation.template.runtime_type"], "enum");
}

async fn a_request_without_a_template_is_refused(kind: Kind) {
    let mut bench = bench(kind).await;
    let status = bench.client.create_template(CreateTemplateRequest { template: None }).await;
    assert_refused(status, Code::InvalidArgument, "INVALID_ARGUMENT");
}

async fn an_update_changes_the_fields_of_its_mask_and_no_others(kind: Kind) {
    let mut bench = bench(kind).await;
    let before = bench.create(template("t")).await.unwrap();
    bench.clock.advance(Duration::from_secs(5));
    let new = Template { name: "New".to_owned(), default_timeout_seconds: 600, ..Template::default() };
    let new = Template { template_id: "t".to_owned(), ..new };
    let after = bench.update(new, &["name", "default_timeout_seconds"]).await.unwrap();
    let expected = Template {
        name: "New".to_owned(),
        default_timeout_seconds: 600,
        updated_at: after.updated_at,
        ..before.clone()
    };
    assert_eq!(after, expected);
    assert_eq!(after.updated_at.unwrap().seconds, before.updated_at.unwrap().seconds + 5);
    assert_eq!(bench.get("t").await.unwrap(), expected);
}

async fn an_update_that_would_break_a_rule_changes_nothing(kind: Kind) {
    let mut bench = bench(kind).await;
    let before = bench.create(template("t")).await.unwrap();
    for paths in [&["default_timeout_seconds"][..], &["name", "colour"], &["template_id"], &[]] {
        let refused = bench.update(Template { name: "x".to_owned(), ..template("t") }, paths).await;
        assert_refused(refused, Code::InvalidArgument, "INVALID_ARGUMENT");
    }
    assert_eq!(bench.get("t").await.unwrap(), before);
}

async fn concurrent_updates_of_different_fields_are_both_kept(kind: Kind) {
    let mut bench = bench(kind).await;
    bench.create(template("t")).await.unwrap();
    let updates = (0..4).map(|index| {
        let mut bench = Bench {
            client: bench.client.clone(),
            clock: bench.clock.clone(),
            running: Arc::clone(&bench.running),
            _database: None,
        };
        async move {
            let (new, path) = match index {
                0 => (Template { description: "d".to_owned(), ..template("t") }, "description"),
                1 => (Template { image_url: "i".to_owned(), ..template("t") }, "image_url"),
                2 => (Template { default_timeout_seconds: 61, ..template("t") }, "default_timeout_seconds"),
                _ => (Template { name: "n".to_owned(), ..template("t") }, "name"),
            };
            bench.update(new, &[path]).await.unwrap();
        }
    });
    futures::future::join_all(updates).await;
    let after = bench.get("t").await.unwrap();
    assert_eq!((after.description.as_str(), after.image_url.as_str()), ("d", "i"));
    assert_eq!((after.default_timeout_seconds, after.name.as_str()), (61, "n"));
}

async fn a_deleted_template_is_gone(kind: Kind) {
    let mut bench = bench(kind).await;
    bench.delete("shell-basic").await.unwrap();
    assert_refused(bench.get("shell-basic").await, Code::NotFound, "TEMPLATE_NOT_FOUND");
    assert_refused(bench.delete("shell-basic").await, Code::NotFound, "TEMPLATE_NOT_FOUND");
    let update = bench.update(template("shell-basic"), &["name"]).await;
    assert_refused(update, Code::NotFound, "TEMPLATE_NOT_FOUND");
}

async fn a_template_in_use_stays_until_its_sessions_have_ended(kind: Kind) {
    let mut bench = bench(kind).await;
    bench.create(template("used")).await.unwrap();
    bench.running.store(2, Ordering::SeqCst);
    assert_refused(bench.delete("used").await, Code::FailedPrecondition, "TEMPLATE_IN_USE");
    bench.running.store(0, Ordering::SeqCst);
    bench.delete("used").await.unwrap();
}

async fn a_template_stays_when_nobody_can_tell_whether_it_is_in_use(kind: Kind) {
    let mut bench = bench(kind).await;
    bench.create(template("used")).await.unwrap();
    bench.running.store(u64::MAX, Ordering::SeqCst);
    assert_refused(bench.delete("used").await, Code::Unavailable, "UNAVAILABLE");
    bench.get("used").await.unwrap();
}

async fn pages_by_token_and_by_offset_show_every_template_once_in_order(kind: Kind) {
    let mut bench = bench(kind).await;
    for index in 0..7 {
        bench.create(template(&format!("t{index}"))).await.unwrap();
    }
    let all = bench.list(200, "", 0).await.unwrap();
    let (mut paged, mut token) = (Vec::new(), String::new());
    loop {
        let page = bench.list(3, &token, 0).await.unwrap();
        assert_eq!(page.total, 10);
        paged.extend(page.templates);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all.templates);
    assert_eq!(bench.list(3, "", 4).await.unwrap().templates, all.templates[4..7]);
    assert_eq!(bench.list(3, "", 99).await.unwrap().templates, []);
    let sorted: Vec<&str> = names(&all);
    assert!(sorted.is_sorted());
}

async fn a_foreign_page_token_is_refused(kind: Kind) {
    let mut bench = bench(kind).await;
    let foreign = sandmesh_mesh::page_token::encode(&["a", "b"]);
    for token in ["zzz", foreign.as_str()] {
        assert_refused(bench.list(0, token, 0).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    }
    let token = bench.list(1, "", 0).await.unwrap().next_page_token;
    assert_refused(bench.list(0, &token, 1).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn the_probe_tells_when_the_database_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Config::default().target(dir.path())).await.unwrap();
    let broken =
        Store::open(&Config { max_connections: 1, ..Config::default() }.target(dir.path())).await.unwrap();
    broken.drop_tables().await;
    let clock = ManualClock::new(DateTime::UNIX_EPOCH);
    let probe = Templates::new(store, Arc::new(clock), sessions(Running::default())).probe().await;
    assert_eq!((probe.name.as_str(), probe.healthy), ("database/template", false));
    assert!(probe.message.contains("no such table"), "{}", probe.message);
}

#[tokio::test]
async fn a_role_without_a_link_to_the_sessions_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let error = create(&Config::default(), &Mesh::builder(dir.path()).build()).await.unwrap_err();
    assert!(error.to_string().contains("mesh.links.session"), "{error}");
}

#[tokio::test]
async fn a_role_made_from_the_default_configuration_is_well() {
    let dir = tempfile::tempdir().unwrap();
    let link = sessions(Running::default());
    let mesh = Mesh::builder(dir.path().join("with space?#%")).link(RoleName::Session, link).build();
    std::fs::create_dir(mesh.data_dir()).unwrap();
    let role = create(&Config::default(), &mesh).await.unwrap();
    let probes = role.probe().await;
    assert_eq!((probes.len(), probes[0].healthy, probes[0].message.as_str()), (1, true, ""));
    assert!(mesh.data_dir().join("template.db").is_file());
}

async fn roles_that_start_at_once_on_an_empty_database_plant_once(kind: Kind) {
    let database = TestDatabase::create(kind).await;
    let at_once = if kind == Kind::Sqlite { 1 } else { 4 };
    let starts = (0..at_once).map(|_| bench_in(&database));
    for mut bench in futures::future::join_all(starts).await {
        assert_eq!(bench.list(0, "", 0).await.unwrap().total, 3);
    }
}

/// A template as the first migration has it.
const OLD: &str = "INSERT INTO templates
    (template_id, name, description, image_url, runtime_type, cpu_millis, memory_bytes, disk_bytes,
     max_processes, timeout_seconds, env, packages, pool_min, pool_max, pool_buffer, is_active, revision,
     created_at, updated_at)
    VALUES ('old', 'old', '', 'i', 'bash', 500, 536870912, 1073741824, 128, 300, '{}', '[]', 1, 2, 0, TRUE, 1,
     '2026-01-01 00:00:00', '2026-01-01 00:00:00')";

async fn a_template_that_is_older_than_profiles_has_none_and_takes_some(kind: Kind) {
    let database = TestDatabase::create(kind).await;
    let mode = if kind == Kind::Sqlite { "?mode=rwc" } else { "" };
    let connection = sea_orm::Database::connect(format!("{}{mode}", database.url().expose())).await.unwrap();
    Migrator::up(&connection, Some(1)).await.unwrap();
    connection.execute_unprepared(OLD).await.unwrap();
    // A migration that was made and not noted is noted by the next start.
    Migrator::up(&connection, Some(1)).await.unwrap();
    let forget = "DELETE FROM template_migrations WHERE version LIKE '%profiles'";
    assert_eq!(connection.execute_unprepared(forget).await.unwrap().rows_affected(), 1);
    connection.close().await.unwrap();
    let mut bench = bench_in(&database).await;
    let old = bench.get("old").await.unwrap();
    assert_eq!(old.pool, Some(PoolSettings { min: 1, max: 2, ..PoolSettings::default() }));
    let with = |memory| {
        let profiles = vec![profile(memory)];
        Template { pool: Some(PoolSettings { profiles, ..PoolSettings::default() }), ..old.clone() }
    };
    let updated = bench.update(with(300), &["pool.profiles"]).await.unwrap();
    assert_eq!(updated.pool.as_ref().map(|pool| (pool.max, pool.profiles.len())), Some((2, 1)));
    assert_eq!(bench.get("old").await.unwrap(), updated);
    let status = bench.update(with(512), &["pool.profiles"]).await.unwrap_err();
    let named = &status.get_details_bad_request().unwrap().field_violations[0].field;
    assert_eq!(named, "template.pool.profiles.0.resources");
    assert_eq!(bench.get("old").await.unwrap(), updated);
}
