//! `TemplateService` on the wire: reads requests, calls [`Templates`], writes answers. Decides nothing.

use std::sync::Arc;

use sandmesh_mesh::{FieldViolation, page_size, status, timestamp};
use sandmesh_proto::{
    executor,
    template::{
        CreateTemplateRequest, CreateTemplateResponse, DeleteTemplateRequest, DeleteTemplateResponse,
        GetTemplateRequest, GetTemplateResponse, ListTemplatesRequest, ListTemplatesResponse, PoolProfile,
        PoolSettings, Template, UpdateTemplateRequest, UpdateTemplateResponse,
        template_service_server::TemplateService,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    service::{Error, Templates},
    store::Stored,
    validate::{Fields, Kept, Mask, Pool, Profile, Resources},
};

/// The gRPC side of the template role.
#[derive(Debug)]
pub(crate) struct Grpc(pub(crate) Arc<Templates>);

#[tonic::async_trait]
impl TemplateService for Grpc {
    async fn create_template(
        &self,
        request: Request<CreateTemplateRequest>,
    ) -> Result<Response<CreateTemplateResponse>, Status> {
        let fields = required(request.into_inner().template)?;
        let stored = self.0.create(fields).await.map_err(status)?;
        Ok(Response::new(CreateTemplateResponse { template: Some(stored.into()) }))
    }

    async fn get_template(
        &self,
        request: Request<GetTemplateRequest>,
    ) -> Result<Response<GetTemplateResponse>, Status> {
        let stored = self.0.get(&request.into_inner().template_id).await.map_err(status)?;
        Ok(Response::new(GetTemplateResponse { template: Some(stored.into()) }))
    }

    async fn list_templates(
        &self,
        request: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size, 50, 200);
        let listing = self.0.list(size, &request.page_token, request.offset).await.map_err(status)?;
        Ok(Response::new(ListTemplatesResponse {
            templates: listing.templates.into_iter().map(Template::from).collect(),
            next_page_token: listing.next_page_token,
            total: listing.total,
        }))
    }

    async fn update_template(
        &self,
        request: Request<UpdateTemplateRequest>,
    ) -> Result<Response<UpdateTemplateResponse>, Status> {
        let request = request.into_inner();
        let fields = required(request.template)?;
        let paths = request.update_mask.unwrap_or_default().paths;
        let mask = Mask::parse(&paths).map_err(|violations| status(Error::Invalid(violations)))?;
        let stored = self.0.update(&fields, &mask).await.map_err(status)?;
        Ok(Response::new(UpdateTemplateResponse { template: Some(stored.into()) }))
    }

    async fn delete_template(
        &self,
        request: Request<DeleteTemplateRequest>,
    ) -> Result<Response<DeleteTemplateResponse>, Status> {
        self.0.delete(&request.into_inner().template_id).await.map_err(status)?;
        Ok(Response::new(DeleteTemplateResponse {}))
    }
}

fn required(template: Option<Template>) -> Result<Fields, Status> {
    let missing = || Error::Invalid(vec![FieldViolation::new("template", "missing", "is required")]);
    template.map(Fields::from).ok_or_else(|| status(missing()))
}

impl From<Template> for Fields {
    fn from(template: Template) -> Self {
        Self {
            template_id: template.template_id,
            name: template.name,
            description: template.description,
            image_url: template.image_url,
            runtime_type: template.runtime_type,
            resources: template.default_resources.unwrap_or_default().into(),
            timeout_seconds: template.default_timeout_seconds,
            env: template.default_env.into_iter().collect(),
            packages: template.pre_installed_packages,
            pool: template.pool.unwrap_or_default().into(),
            is_active: template.is_active,
        }
    }
}

impl From<Stored> for Template {
    fn from(stored: Stored) -> Self {
        let fields = stored.fields;
        Self {
            template_id: fields.template_id,
            name: fields.name,
            description: fields.description,
            image_url: fields.image_url,
            runtime_type: fields.runtime_type,
            default_resources: Some(fields.resources.into()),
            default_timeout_seconds: fields.timeout_seconds,
            default_env: fields.env.into_iter().collect(),
            pre_installed_packages: fields.packages,
            pool: Some(fields.pool.into()),
            is_active: fields.is_active,
            created_at: Some(timestamp(stored.created_at)),
            updated_at: Some(timestamp(stored.updated_at)),
        }
    }
}

impl From<executor::Resources> for Resources {
    fn from(resources: executor::Resources) -> Self {
        let executor::Resources { cpu_millis, memory_bytes, disk_bytes, max_processes } = resources;
        Self { cpu_millis, memory_bytes, disk_bytes, max_processes }
    }
}

impl From<Resources> for executor::Resources {
    fn from(resources: Resources) -> Self {
        let Resources { cpu_millis, memory_bytes, disk_bytes, max_processes } = resources;
        Self { cpu_millis, memory_bytes, disk_bytes, max_processes }
    }
}

impl From<PoolSettings> for Pool {
    fn from(PoolSettings { min, max, buffer, profiles }: PoolSettings) -> Self {
        let profile = |PoolProfile { resources, min, max, buffer }| Profile {
            resources: resources.unwrap_or_default().into(),
            kept: Kept { min, max, buffer },
        };
        Self { kept: Kept { min, max, buffer }, profiles: profiles.into_iter().map(profile).collect() }
    }
}

impl From<Pool> for PoolSettings {
    fn from(Pool { kept: Kept { min, max, buffer }, profiles }: Pool) -> Self {
        let profile = |Profile { resources, kept: Kept { min, max, buffer } }| PoolProfile {
            resources: Some(resources.into()),
            min,
            max,
            buffer,
        };
        Self { min, max, buffer, profiles: profiles.into_iter().map(profile).collect() }
    }
}
