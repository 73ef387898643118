//! `PoolService` on the wire, for operators: parse, call, encode.

use std::sync::Arc;

use sandmesh_proto::scheduler::{
    GetPoolRequest, GetPoolResponse, ListPoolsRequest, ListPoolsResponse, SetPoolRequest, SetPoolResponse,
    pool_service_server::{PoolService, PoolServiceServer},
};
use tonic::{Request, Response, Status};

use crate::{Error, grpc::required, pools::Pools};

/// The service on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Grpc(Arc<Pools>);

/// The service.
pub(crate) fn server(pools: Arc<Pools>) -> PoolServiceServer<Grpc> {
    PoolServiceServer::new(Grpc(pools))
}

#[tonic::async_trait]
impl PoolService for Grpc {
    async fn list_pools(&self, _: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        let pools = self.0.list().await.map_err(Error::into_status)?;
        Ok(Response::new(ListPoolsResponse { pools }))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Result<Response<GetPoolResponse>, Status> {
        let pool = self.0.get(&request.get_ref().template_id).await.map_err(Error::into_status)?;
        Ok(Response::new(GetPoolResponse { pool: Some(pool) }))
    }

    async fn set_pool(&self, request: Request<SetPoolRequest>) -> Result<Response<SetPoolResponse>, Status> {
        let SetPoolRequest { template_id, settings } = request.into_inner();
        let settings = required("settings", settings)?;
        let pool = self.0.set(&template_id, settings).await.map_err(Error::into_status)?;
        Ok(Response::new(SetPoolResponse { pool: Some(pool) }))
    }
}
