//! What the ext_proc port answers: ext_proc and, with the real readiness, gRPC health.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tonic::Status;
use tower_service::Service;

use crate::admin::health::HealthService;
use crate::director::Directed;
use crate::extproc::listener::Serve;
use crate::extproc::{Answers, ExtProcServer, SERVICE_NAME};

/// The services of the port, by path.
#[derive(Clone)]
pub struct Services {
    /// ext_proc.
    pub ext_proc: ExtProcServer<Directed>,
    /// grpc.health.v1.
    pub health: HealthService,
}

/// The answers of both services.
pub enum Answer {
    /// ext_proc.
    ExtProc(Answers<Directed, Incoming>),
    /// Health, and refusals.
    Other(tonic::body::Body),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::ExtProc(answers) => Pin::new(answers).poll_frame(cx),
            Self::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::ExtProc(answers) => answers.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }
}

impl Serve for Services {
    type Body = Answer;

    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Answer>> + Send {
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or("");
        let answered = match service {
            SERVICE_NAME => Ok(self.ext_proc.answer(request).map(Answer::ExtProc)),
            "grpc.health.v1.Health" => Err(self.health.clone().call(request)),
            _ => {
                let known = "this port serves envoy.service.ext_proc.v3.ExternalProcessor and grpc.health.v1.Health";
                Ok(Status::unimplemented(known).into_http().map(Answer::Other))
            }
        };
        async move {
            match answered {
                Ok(response) => response,
                // tonic's generated services answer every error with a status.
                Err(health) => match health.await {
                    Ok(response) => response.map(Answer::Other),
                    Err(never) => match never {},
                },
            }
        }
    }
}
