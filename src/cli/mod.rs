//! The command line.

pub mod jobs;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "pacenote", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: jobs::JobsCommand,
}

/// Parses the arguments and runs the command.
pub async fn main() -> ExitCode {
    jobs::run(Arguments::parse().command).await
}
