//! Where executors run: threads that they may block without holding up whoever looks after them.

use tokio::runtime::{Builder, Handle, Runtime};

/// One thread a place, so that as many as run may block, up to this. Chosen: beyond it handlers that block
/// should do so on threads of their own.
const THREADS_MAX: usize = 64;

/// A runtime for what is run, apart from the one that keeps leases and talks to others.
#[derive(Debug)]
pub struct Quarters(Option<Runtime>);

impl Quarters {
    /// For so many at once: a thread for each, at least one a core, at most 64.
    ///
    /// # Errors
    /// Where the system gives no threads.
    pub fn new(places: usize) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(places.clamp(cores.min(THREADS_MAX), THREADS_MAX))
            .thread_name("pacenote-work")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn.
    pub fn handle(&self) -> &Handle {
        let runtime = self.0.as_ref();
        runtime.expect("taken by drop alone").handle()
    }
}

impl Drop for Quarters {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Does not wait for work that was left behind.
            runtime.shutdown_background();
        }
    }
}
