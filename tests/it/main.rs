//! Through the public door: a real server on a free port, a real store, real gRPC.

mod bounds;
mod bounds_whole;
mod crash;
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
mod store;
mod watch;
mod watch_end;
mod watch_model;
mod watch_pace;
mod watch_progress;
mod watch_purge;
mod watch_race;
mod watch_resume;
mod watch_slow;
