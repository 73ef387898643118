//! `/templates`: create, list, get, change, delete.

use sandmesh_proto::template::{
    CreateTemplateRequest, DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest,
};

use super::{
    Created,
    json::{
        ListTemplates, Message,
        template::{CreateTemplate, Template, UpdateTemplate},
    },
    sent,
};
use crate::{
    app::Call,
    error::ApiError,
    extract::{Id, Json, Query},
};

/// Creates a template: a named environment that sessions are created from.
#[utoipa::path(
    post, path = "/api/v1/templates", tag = "templates", operation_id = "create_template",
    request_body = CreateTemplate,
    responses(
        (status = 201, description = "The template.", body = Template),
        (status = 409, description = "The id or the name exists."),
    )
)]
pub(crate) async fn create(
    call: Call,
    Json(body): Json<CreateTemplate>,
) -> Result<Created<Template>, ApiError> {
    let request = CreateTemplateRequest { template: Some(body.into_template()?) };
    let reply = call.templates().create_template(call.unary(request)).await?.into_inner();
    let template = Template::from(sent(reply.template, "template")?);
    let location = format!("/api/v1/templates/{}", template.id);
    Ok(Created(template, location))
}

/// Lists templates, ordered by name.
#[utoipa::path(
    get, path = "/api/v1/templates", tag = "templates", operation_id = "list_templates",
    params(ListTemplates),
    responses((status = 200, description = "The templates.", body = Vec<Template>))
)]
pub(crate) async fn list(
    call: Call,
    Query(query): Query<ListTemplates>,
) -> Result<Json<Vec<Template>>, ApiError> {
    let paging = query.paging();
    let request =
        ListTemplatesRequest { page_size: paging.limit, page_token: paging.token, offset: paging.offset };
    let reply = call.templates().list_templates(call.unary(request)).await?.into_inner();
    Ok(Json(reply.templates.into_iter().map(Template::from).collect()))
}

/// Reads a template.
#[utoipa::path(
    get, path = "/api/v1/templates/{id}", tag = "templates", operation_id = "get_template",
    params(("id" = String, Path, description = "The id of the template.")),
    responses((status = 200, description = "The template.", body = Template))
)]
pub(crate) async fn get(call: Call, Id(template_id): Id) -> Result<Json<Template>, ApiError> {
    read(&call, template_id).await
}

/// Changes the fields that are given, and no others.
#[utoipa::path(
    put, path = "/api/v1/templates/{id}", tag = "templates", operation_id = "update_template",
    params(("id" = String, Path, description = "The id of the template.")),
    request_body = UpdateTemplate,
    responses(
        (status = 200, description = "The template, changed.", body = Template),
        (status = 409, description = "Another template has the name."),
    )
)]
pub(crate) async fn update(
    call: Call,
    Id(template_id): Id,
    Json(body): Json<UpdateTemplate>,
) -> Result<Json<Template>, ApiError> {
    let Some(request) = body.into_request(template_id.clone())? else {
        return read(&call, template_id).await;
    };
    let reply = call.templates().update_template(call.unary(request)).await?.into_inner();
    Ok(Json(sent(reply.template, "template")?.into()))
}

/// Deletes a template that no session uses.
#[utoipa::path(
    delete, path = "/api/v1/templates/{id}", tag = "templates", operation_id = "delete_template",
    params(("id" = String, Path, description = "The id of the template.")),
    responses(
        (status = 200, description = "It is gone.", body = Message),
        (status = 409, description = "A session uses it."),
    )
)]
pub(crate) async fn delete(call: Call, Id(template_id): Id) -> Result<Json<Message>, ApiError> {
    let message = format!("template `{template_id}` deleted");
    call.templates().delete_template(call.unary(DeleteTemplateRequest { template_id })).await?;
    Ok(Json(Message { message }))
}

async fn read(call: &Call, template_id: String) -> Result<Json<Template>, ApiError> {
    let request = call.unary(GetTemplateRequest { template_id });
    let reply = call.templates().get_template(request).await?.into_inner();
    Ok(Json(sent(reply.template, "template")?.into()))
}
