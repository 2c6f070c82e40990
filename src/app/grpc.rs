//! What the ext_proc port answers: ext_proc and, with the real readiness, gRPC health.

use std::future::Future;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tower_service::Service;

use crate::admin::health::HealthService;
use crate::director::Directed;
use crate::extproc::listener::Serve;
use crate::extproc::{ExtProcServer, SERVICE_NAME};

/// The services of the port, by path.
#[derive(Clone)]
pub struct Services {
    /// ext_proc.
    pub ext_proc: ExtProcServer<Directed>,
    /// grpc.health.v1.
    pub health: HealthService,
}

impl Serve for Services {
    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send {
        let mut this = self.clone();
        async move {
            let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or("");
            // tonic's generated services are always ready and answer every error with a status.
            let answered = match service {
                SERVICE_NAME => this.ext_proc.call(request).await,
                "grpc.health.v1.Health" => this.health.call(request).await,
                _ => Ok(tonic::Status::unimplemented(
                    "this port serves envoy.service.ext_proc.v3.ExternalProcessor and grpc.health.v1.Health",
                )
                .into_http()),
            };
            match answered {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    }
}
