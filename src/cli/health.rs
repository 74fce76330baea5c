//! `pacenote health`: asks a server over `grpc.health.v1` whether it serves, for container health
//! checks, probes and scripts.

use std::time::Duration;

use clap::Args;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::exit::{Exit, Failure};
use crate::cli::jobs::escape;
use crate::cli::{server_default, to_stdout};
use crate::config::value;

/// Whom to ask.
#[derive(Args, Debug)]
pub struct HealthArgs {
    /// The server: HOST:PORT or http://HOST:PORT [env: PACENOTE_SERVER]
    #[arg(long, value_name = "ADDR", default_value_t = server_default())]
    pub server: String,
    /// One service of it; all of it where none is named
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub service: String,
    /// How long to wait for the connection, and for the answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = value::duration)]
    pub timeout: Duration,
}

/// Asks once.
///
/// # Errors
/// Not serving, or not reached.
pub fn run(args: HealthArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let status = runtime.block_on(check(&args))?;
    to_stdout(&format!("{}\n", status.as_str_name()))?;
    match status {
        ServingStatus::Serving => Ok(()),
        ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown => Err(
            Failure::new(Exit::Failed, format!("{} does not serve", args.server)),
        ),
    }
}

async fn check(args: &HealthArgs) -> Result<ServingStatus, Failure> {
    let channel = connect(args).await?;
    let mut request = Request::new(HealthCheckRequest {
        service: args.service.clone(),
    });
    request.set_timeout(args.timeout);
    match HealthClient::new(channel).check(request).await {
        Ok(response) => Ok(response.into_inner().status()),
        // What the protocol answers for a service that the server does not know.
        Err(status) if status.code() == Code::NotFound => Ok(ServingStatus::ServiceUnknown),
        Err(status) => {
            let exit = if status.code() == Code::Unavailable {
                Exit::NotConnected
            } else {
                Exit::Failed
            };
            let message = format!(
                "{}: {}: {}",
                args.server,
                status.code(),
                escape(status.message())
            );
            Err(Failure::new(exit, message))
        }
    }
}

async fn connect(args: &HealthArgs) -> Result<Channel, Failure> {
    let uri = if args.server.contains("://") {
        args.server.clone()
    } else {
        format!("http://{}", args.server)
    };
    let wrong = |why: &str| {
        Failure::new(
            Exit::Usage,
            format!(
                "--server {}: {why}; expected HOST:PORT",
                escape(&args.server)
            ),
        )
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| wrong(&error.to_string()))?;
    if endpoint.uri().port().is_none() {
        return Err(wrong("it has no port"));
    }
    // The limit holds for the whole connection: one that is taken and never answered counts too.
    let endpoint = endpoint.connect_timeout(args.timeout);
    let connecting = endpoint.connect();
    let refused = |why: String| {
        Failure::new(
            Exit::NotConnected,
            format!("cannot connect to {}: {why}", args.server),
        )
    };
    match tokio::time::timeout(args.timeout, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(refused(source_of_all(&error))),
        Err(_) => Err(refused(format!(
            "no answer within {}",
            value::duration_text(args.timeout)
        ))),
    }
}

/// The deepest cause: the layers above it only say "transport error".
fn source_of_all(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
