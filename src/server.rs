//! Stands in for the server until it exists: the surface that the command line calls.

use std::future::Future;

use tokio::net::TcpListener;

use crate::config::Config;

/// A server that is about to serve.
pub struct Server {
    on_ready: Option<Box<dyn FnOnce() + Send>>,
}

/// Why a server could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration cannot be served, such as a store path that cannot be written.
    #[error("{0}")]
    Config(String),
    /// Another server holds the store.
    #[error("the store is locked by another server{}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    StoreLocked {
        /// Which one, where it can be told.
        pid: Option<u32>,
    },
    /// The store failed at run time, or is corrupt, foreign or newer than this server.
    #[error("{0}")]
    Storage(String),
}

impl Server {
    /// A server for a checked configuration.
    pub fn new(config: Config) -> Self {
        drop(config);
        Self { on_ready: None }
    }

    /// Called once, when it serves.
    #[must_use]
    pub fn on_ready(mut self, f: impl FnOnce() + Send + 'static) -> Self {
        self.on_ready = Some(Box::new(f));
        self
    }

    /// Serves until `shutdown`, then drains.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        if let Some(on_ready) = self.on_ready {
            on_ready();
        }
        shutdown.await;
        drop(listener);
        Ok(())
    }
}
