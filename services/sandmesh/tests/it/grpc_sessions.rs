//! The gRPC twins of behaviours 1 to 21: health, templates, sessions.

use std::collections::HashMap;

use prost_types::FieldMask;
use sandmesh_proto::{
    executor::{Language, Resources},
    health::{CheckHealthRequest, check_health_response::Status as Health},
    session::{
        CreateSessionRequest, DeleteSessionRequest, GetExecutionRequest, GetSessionRequest,
        ListSessionsRequest, TerminateSessionRequest, session::State,
    },
    template::{
        CreateTemplateRequest, DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest, PoolSettings,
        Template, UpdateTemplateRequest,
    },
};
use tonic::Code;

use crate::harness::{Grpc, Wiring, code_spec, refused, violates};

in_both_wirings!(
    health_and_basic_templates_over_grpc,
    template_is_stored_and_updated_over_grpc,
    template_is_deleted_unless_in_use_over_grpc,
    session_is_created_once_over_grpc,
    sessions_are_listed_over_grpc,
    session_ends_over_grpc,
);

fn template(id: &str) -> Template {
    Template {
        template_id: id.into(),
        name: id.into(),
        image_url: "example.org/python:3.11".into(),
        runtime_type: "python3.11".into(),
        ..Default::default()
    }
}

fn session(template_id: &str) -> CreateSessionRequest {
    CreateSessionRequest { template_id: template_id.into(), ..Default::default() }
}

// 1, 2
async fn health_and_basic_templates_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let health = grpc.health.check_health(CheckHealthRequest {}).await.unwrap().into_inner();
    assert_eq!(health.status(), Health::Healthy, "{health:?}");
    assert_eq!(health.version, env!("CARGO_PKG_VERSION"));
    assert!(health.uptime_seconds >= 0.0 && health.measured_at.is_some());
    let names: Vec<&str> = health.probes.iter().map(|probe| probe.name.as_str()).collect();
    for role in ["session", "template", "scheduler", "agent"] {
        assert!(names.contains(&format!("role/{role}").as_str()), "{names:?}");
    }
    assert!(names.is_sorted(), "{names:?}");

    let templates =
        grpc.templates.list_templates(ListTemplatesRequest::default()).await.unwrap().into_inner();
    let ids: Vec<&str> = templates.templates.iter().map(|template| template.template_id.as_str()).collect();
    assert_eq!(ids, ["nodejs-basic", "python-basic", "shell-basic"]);
    assert_eq!(templates.total, 3);
    let mut standard = tonic_health::pb::health_client::HealthClient::new(grpc.channel.clone());
    let answer = standard.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status, 1, "SERVING");
}

// 3 to 9
async fn template_is_stored_and_updated_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let whole = Template {
        description: "all of it".into(),
        default_resources: Some(Resources {
            cpu_millis: 1500,
            memory_bytes: 1 << 30,
            disk_bytes: 2 << 30,
            max_processes: 50,
        }),
        default_timeout_seconds: 90,
        default_env: HashMap::from([("A".into(), "1".into())]),
        pre_installed_packages: vec!["numpy".into()],
        pool: Some(PoolSettings { min: 0, max: 2, buffer: 1, profiles: Vec::new() }),
        ..template("whole")
    };
    let create = |template: Template| CreateTemplateRequest { template: Some(template) };
    let created =
        grpc.templates.create_template(create(whole.clone())).await.unwrap().into_inner().template.unwrap();
    let stored =
        grpc.templates.get_template(GetTemplateRequest { template_id: "whole".into() }).await.unwrap();
    assert_eq!(stored.into_inner().template.unwrap(), created);
    let asked = Template {
        is_active: true,
        created_at: created.created_at,
        updated_at: created.updated_at,
        ..whole.clone()
    };
    assert_eq!(created, asked);

    refused(
        grpc.templates.create_template(create(whole.clone())).await,
        Code::AlreadyExists,
        "TEMPLATE_EXISTS",
    );
    let same_name = Template { name: "whole".into(), ..template("other") };
    refused(
        grpc.templates.create_template(create(same_name)).await,
        Code::AlreadyExists,
        "TEMPLATE_NAME_EXISTS",
    );
    let ruby = Template { runtime_type: "ruby".into(), ..template("other") };
    violates(grpc.templates.create_template(create(ruby)).await, "template.runtime_type");

    let update = |template: Template, paths: &[&str]| UpdateTemplateRequest {
        template: Some(template),
        update_mask: Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
    };
    let renamed = Template { template_id: "whole".into(), name: "renamed".into(), ..Default::default() };
    let updated = grpc.templates.update_template(update(renamed.clone(), &["name"])).await.unwrap();
    let updated = updated.into_inner().template.unwrap();
    assert_eq!(updated, Template { name: "renamed".into(), updated_at: updated.updated_at, ..created });
    violates(grpc.templates.update_template(update(renamed, &["color"])).await, "update_mask");
    let taken = Template { template_id: "whole".into(), name: "python-basic".into(), ..Default::default() };
    refused(
        grpc.templates.update_template(update(taken, &["name"])).await,
        Code::AlreadyExists,
        "TEMPLATE_NAME_EXISTS",
    );
}

// 10
async fn template_is_deleted_unless_in_use_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let create = CreateTemplateRequest { template: Some(template("whole")) };
    grpc.templates.create_template(create).await.unwrap();
    let in_use = grpc.create(session("whole")).await;
    let delete = |id: &str| DeleteTemplateRequest { template_id: id.into() };
    refused(
        grpc.templates.delete_template(delete("whole")).await,
        Code::FailedPrecondition,
        "TEMPLATE_IN_USE",
    );
    grpc.sessions.terminate_session(TerminateSessionRequest { session_id: in_use.session_id }).await.unwrap();
    grpc.templates.delete_template(delete("whole")).await.unwrap();
    refused(grpc.templates.delete_template(delete("whole")).await, Code::NotFound, "TEMPLATE_NOT_FOUND");
    let gone = GetTemplateRequest { template_id: "whole".into() };
    refused(grpc.templates.get_template(gone).await, Code::NotFound, "TEMPLATE_NOT_FOUND");
}

// 11 to 14
async fn session_is_created_once_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let request = CreateSessionRequest {
        session_id: "mine".into(),
        timeout_seconds: Some(77),
        labels: HashMap::from([("team".into(), "a".into())]),
        ..session("python-basic")
    };
    let created = grpc.create(request.clone()).await;
    assert_eq!((created.session_id.as_str(), created.timeout_seconds), ("mine", 77));
    assert_eq!(created.labels, HashMap::from([("team".into(), "a".into())]));
    let resources = created.resources.unwrap();
    assert_eq!(
        (resources.cpu_millis, resources.memory_bytes, resources.disk_bytes),
        (500, 512 << 20, 1 << 30)
    );
    assert_eq!(created.effective_isolation.unwrap().jail, "bubblewrap");
    assert_eq!((created.runtime_type.as_str(), created.language_runtime.as_str()), ("process", "python3.11"));
    refused(grpc.sessions.create_session(request).await, Code::AlreadyExists, "SESSION_EXISTS");
    refused(
        grpc.sessions.create_session(session("none")).await,
        Code::FailedPrecondition,
        "TEMPLATE_NOT_FOUND",
    );

    let repeat = CreateSessionRequest { request_id: "once".into(), ..session("python-basic") };
    let first = grpc.create(repeat.clone()).await;
    let second = grpc.sessions.create_session(repeat).await.unwrap().into_inner().session.unwrap();
    assert_eq!(first.session_id, second.session_id);
    assert!(
        first.session_id.starts_with("sess_") && first.session_id.len() == "sess_20260101_00000000".len()
    );
}

// 16 to 18
async fn sessions_are_listed_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    for (id, template) in [("a", "python-basic"), ("b", "shell-basic"), ("c", "python-basic")] {
        grpc.create(CreateSessionRequest { session_id: id.into(), ..session(template) }).await;
    }
    async fn list(grpc: &mut Grpc, request: ListSessionsRequest) -> (String, u64, String) {
        let page = grpc.sessions.list_sessions(request).await.unwrap().into_inner();
        (
            page.sessions.iter().map(|session| session.session_id.as_str()).collect(),
            page.total,
            page.next_page_token,
        )
    }
    assert_eq!(list(&mut grpc, ListSessionsRequest::default()).await, ("cba".into(), 3, String::new()));
    let (first, total, token) =
        list(&mut grpc, ListSessionsRequest { page_size: 2, ..Default::default() }).await;
    assert_eq!((first.as_str(), total), ("cb", 3));
    let next = ListSessionsRequest { page_size: 2, page_token: token, ..Default::default() };
    assert_eq!(list(&mut grpc, next).await, ("a".into(), 3, String::new()));
    let skipped = ListSessionsRequest { page_size: 1, offset: 1, ..Default::default() };
    assert_eq!(list(&mut grpc, skipped).await.0, "b");
    let of_template =
        ListSessionsRequest { template_id: "python-basic".into(), page_size: 1000, ..Default::default() };
    assert_eq!(list(&mut grpc, of_template).await, ("ca".into(), 2, String::new()));
    let terminated = ListSessionsRequest { state: State::Terminated.into(), ..Default::default() };
    assert_eq!(list(&mut grpc, terminated).await.1, 0);
    let forged = ListSessionsRequest { page_token: "forged".into(), ..Default::default() };
    refused(grpc.sessions.list_sessions(forged).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

// 19 to 21
async fn session_ends_over_grpc(wiring: Wiring) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let id = grpc.session().await;
    let run = grpc.execute(&id, code_spec(Language::Shell, "echo hi")).await;
    let terminate = TerminateSessionRequest { session_id: id.clone() };
    for _ in 0..2 {
        let session =
            grpc.sessions.terminate_session(terminate.clone()).await.unwrap().into_inner().session.unwrap();
        assert_eq!(session.state(), State::Terminated);
        assert!(session.completed_at.is_some());
    }
    server.expect_nothing_left(std::time::Duration::from_secs(10)).await;
    grpc.sessions.delete_session(DeleteSessionRequest { session_id: id.clone() }).await.unwrap();
    let get = GetSessionRequest { session_id: id.clone() };
    refused(grpc.sessions.get_session(get).await, Code::NotFound, "SESSION_NOT_FOUND");
    let execution = GetExecutionRequest { execution_id: run.execution_id };
    refused(grpc.sessions.get_execution(execution).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    refused(grpc.sessions.terminate_session(terminate).await, Code::NotFound, "SESSION_NOT_FOUND");
    let delete = DeleteSessionRequest { session_id: id };
    refused(grpc.sessions.delete_session(delete).await, Code::NotFound, "SESSION_NOT_FOUND");
}
