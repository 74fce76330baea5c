//! A gRPC job service with streaming progress.
pub mod cli;
pub mod client;
pub mod config;
pub mod executor;
pub mod job;
pub mod pb;
pub mod server;
