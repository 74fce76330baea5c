//! The command line.

pub mod demo;
pub mod jobs;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "pacenote", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Jobs(Box<jobs::JobsCommand>),
    /// See it work: a server, three jobs, a cut and a proof
    Demo(demo::DemoArgs),
}

/// Parses the arguments and runs the command.
pub async fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Jobs(command) => jobs::run(*command).await,
        Command::Demo(args) => demo::run(args).await,
    }
}
