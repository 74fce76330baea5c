//! Requests that are no messages at all: cut off, larger than the codec takes, or not protobuf.
//!
//! tonic refuses them before our own code is called, without details and, although the fault is the
//! caller's, as INTERNAL, OUT_OF_RANGE or, where they unpack to more than the codec takes,
//! RESOURCE_EXHAUSTED. Here they become INVALID_ARGUMENT with a reason, so that nobody repeats them. Every
//! status of our own carries details, and is passed on as it is.

use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::error::Error;
use crate::grpc::status::status;

/// A service whose requests are refused as what they are.
#[derive(Clone, Debug)]
pub(super) struct Refusing<S>(pub(super) S);

impl<S: NamedService> NamedService for Refusing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Refusing<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // tonic leaves the status of an answer that has nothing else in its extensions.
            Ok(match answer.extensions().get::<Status>() {
                Some(refused) if is_of_the_codec(refused) => {
                    status(Error::malformed(refused.message())).into_http()
                }
                _ => answer,
            })
        })
    }
}

/// Whether a refusal comes from tonic's decoder: none of ours goes without details.
fn is_of_the_codec(refused: &Status) -> bool {
    refused.details().is_empty()
        && matches!(
            refused.code(),
            Code::Internal | Code::OutOfRange | Code::ResourceExhausted
        )
}
