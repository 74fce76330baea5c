//! The command line: which commands there are, and nothing of what they do.
//!
//! Data goes to stdout, everything else to stderr. Exit codes are in `exit`; only `main` sets them.

pub mod bench;
pub mod config;
pub mod demo;
pub mod exit;
pub mod health;
pub mod jobs;
pub mod logging;
pub mod queues;
pub mod serve;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cli::exit::{Exit, Failure};
use crate::config::settings::LISTEN_DEFAULT;

const TEMPLATE: &str = "\
{about}

Examples:
  pacenote serve                                  serve on 127.0.0.1:7430, keep jobs in pacenote.db
  pacenote serve --config pacenote.toml           with job types of your own
  pacenote config check                           is pacenote.toml right?
  pacenote health && echo serving                 ask a running server
  pacenote demo                                   see it work, on a store that goes with it
  pacenote submit sleep --watch                   submit a job and watch it to its end
  pacenote watch ID --after 12                    resume a watch behind event 12

{usage-heading} {usage}

{all-args}{after-help}
";

/// A gRPC job service with streaming progress.
#[derive(Parser, Debug)]
#[command(
    name = "pacenote",
    version,
    about,
    help_template = TEMPLATE,
    arg_required_else_help = true,
    propagate_version = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve jobs until told to stop
    Serve(serve::ServeArgs),
    /// Look at the configuration without serving
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Ask a server whether it serves: exit 0 yes, 1 no, 4 not reached
    Health(health::HealthArgs),
    /// See it work: a server, three jobs, a watch that is cut and resumed
    Demo(demo::DemoArgs),
    /// Measure what this machine gets out of it, beside what the machine can do
    Bench(bench::BenchArgs),
    /// The server that `bench` measures.
    #[command(hide = true)]
    BenchSubject(bench::subject::SubjectArgs),
    /// Look at queues and job types, pause, bound or purge them
    #[command(subcommand)]
    Queues(queues::QueuesCommand),
    /// The commands of clients.
    #[command(flatten)]
    Jobs(Box<jobs::JobsCommand>),
}

/// Runs a command to its end.
///
/// # Errors
/// What to say on stderr and the exit code.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Serve(args) => serve::run(args).map(|()| ExitCode::SUCCESS),
        Command::Config(command) => config::run(command).map(|()| ExitCode::SUCCESS),
        Command::Health(args) => health::run(args).map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Bench(args) => block_on(bench::run(args)),
        Command::BenchSubject(args) => bench::subject::serve(args).map(|()| ExitCode::SUCCESS),
        Command::Queues(command) => block_on(queues::run(command)),
        Command::Jobs(command) => block_on(jobs::run(*command)),
    }
}

/// Runs a command of a client on a runtime of its own.
fn block_on(command: impl Future<Output = ExitCode>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::new(Exit::Storage, error.to_string()))?;
    let code = runtime.block_on(command);
    // Whatever still blocks a thread, such as a read of the terminal, does not hold up the exit.
    runtime.shutdown_background();
    Ok(code)
}

/// Tells people something. Where nobody reads stderr any more, that is no reason to end a server, as
/// `eprintln!` would.
pub fn say(text: &str) {
    // Nobody is reading: fine.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes data. A reader that has gone away (`| head`) is no failure.
pub(crate) fn to_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// The server where `--server` names none. Not clap's `env`: to it, a variable that is set to nothing,
/// as scripts and compose files leave them, would be an address.
pub(crate) fn server_default() -> String {
    match std::env::var_os("PACENOTE_SERVER") {
        Some(server) if !server.is_empty() => server.to_string_lossy().into_owned(),
        _ => LISTEN_DEFAULT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
