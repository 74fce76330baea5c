//! Stands in for the server until it exists: the surface that the demo calls.

use tokio::net::TcpListener;

use crate::config::Config;

/// A server that serves nothing.
pub struct Server;

/// Why a server could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

impl Server {
    /// A server for a checked configuration.
    pub fn new(_config: Config) -> Self {
        Self
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// Always, for now.
    pub async fn serve(
        self,
        listener: TcpListener,
        _shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        drop(listener);
        Err(ServeError("there is no server yet".to_owned()))
    }
}
