//! What a program that serves jobs of its own, or talks to a server, starts from: names that lead to
//! where things are defined.

pub use crate::client::{Client, ClientError, RunOptions, Update, WatchOptions, request};
pub use crate::config::{Caps, Config, TenantSettings, TypeSettings};
pub use crate::executor::handler::{Context, HandlerError, HandlerExecutor};
pub use crate::job::event::LogLevel;
pub use crate::job::name::Name;
pub use crate::job::payload::Payload;
pub use crate::job::policy::GivenRetention;
pub use crate::job::progress::Progress;
pub use crate::server::{ServeError, Server};
