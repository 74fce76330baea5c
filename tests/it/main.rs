//! Through the public door: a real server on a free port, a real store, real gRPC.

mod crash;
mod harness;
mod jobs;
mod store;
