//! Pacenote: a gRPC job service with streaming progress.
//!
//! A client submits a job and gets its id once the job is on disk. Then it watches progress, partial
//! output and the result arrive live, over a stream that it can cut anywhere and resume without a hole
//! or a duplicate. The store is an SQLite file; nothing else has to be installed. This crate is the
//! server, its command line and a client; the `pacenote` binary is a thin wrapper.
//!
//! # Jobs of your own
//!
//! A job type is a Rust function of a [`Context`](embed::Context) and an input, both input and result
//! being whatever serde knows:
//!
//! ```
//! use pacenote::embed::{Client, Config, Context, HandlerError, Progress};
//! use pacenote::embed::{RunOptions, Server, Update, request};
//! use tokio::sync::oneshot;
//!
//! async fn sum(context: Context, numbers: Vec<i64>) -> Result<i64, HandlerError> {
//!     let (mut sum, total) = (0, numbers.len() as i64);
//!     for (number, done) in numbers.iter().zip(1..) {
//!         sum += number;
//!         context.progress(Progress::units(done, Some(total), "numbers")).await?;
//!     }
//!     Ok(sum)
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let config = Config { store: folder.path().join("jobs.db"), ..Config::default() };
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?.to_string();
//! let (stop, stopped) = oneshot::channel::<()>();
//! let server = Server::new(config).handler("sum", sum);
//! let serving = tokio::spawn(server.serve(listener, async move {
//!     let _ = stopped.await;
//! }));
//!
//! // Any gRPC client will do; this one comes back by itself when its connection breaks.
//! let client = Client::connect(address).await?;
//! let mut watch = client.run(request("sum", &[1, 2, 3])?, RunOptions::default());
//! while let Some(update) = watch.next().await {
//!     if let Update::Finished(job) = update? {
//!         assert_eq!(job.result, request("", &6)?.input);
//!     }
//! }
//!
//! drop(stop);
//! serving.await??;
//! # Ok(())
//! # }
//! ```
//!
//! A longer one, with partial output and cancellation, is `examples/embed.rs`.
//!
//! # The rooms
//!
//! From the top floor to the ground; a room uses only rooms below it (ARCHITECTURE.md has the arrows
//! and the reasons).
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`server`] | builds the parts, starts and stops them in order: [`Server`](server::Server) |
//! | [`grpc`], [`worker`], [`maintenance`] | the network, the pool that runs jobs, the timers |
//! | [`queue`] | [`JobQueue`](queue::JobQueue), the one door for every change |
//! | [`store`], [`events`] | the log on disk, and who is listening to it in memory |
//! | [`executor`] | what runs a job: Rust functions and programs |
//! | [`client`] | a client that knows only the wire: calls, and a watch that resumes |
//! | [`wire`], [`pb`] | the published messages, and the words of `job` as such |
//! | [`error`], [`config`], [`job`] | the words and the rules; pure |
//!
//! [`embed`] gathers what a program that uses this crate starts from.

#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod embed;
#[cfg(feature = "server")]
pub mod error;
#[cfg(feature = "server")]
pub mod events;
#[cfg(feature = "client")]
pub mod executor;
#[cfg(feature = "server")]
pub mod grpc;
pub mod job;
#[cfg(feature = "server")]
pub mod maintenance;
#[cfg(feature = "client")]
pub mod pb;
#[cfg(feature = "server")]
pub mod queue;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "client")]
pub mod wire;
#[cfg(feature = "server")]
pub mod worker;
