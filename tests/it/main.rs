//! Through the public door: a real server on a free port, a real store, real gRPC.

mod bounds;
mod bounds_whole;
mod drain;
mod errors;
mod errors_malformed;
mod errors_store;
mod harness;
mod jobs;
mod life;
mod life_cancel;
mod life_pool;
mod life_read;
mod life_retry;
mod life_submit;
mod service;
