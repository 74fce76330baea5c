//! A gRPC job service with streaming progress.
pub mod cli;
pub mod client;
pub mod config;
pub mod error;
pub mod events;
pub mod executor;
pub mod grpc;
pub mod job;
pub mod maintenance;
pub mod pb;
pub mod queue;
pub mod server;
pub mod store;
pub mod wire;
pub mod worker;
