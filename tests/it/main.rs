//! Through the public door: a real server on a free port, a real store, real gRPC.

mod crash;
mod harness;
mod jobs;
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
