//! Stands in for the commands of clients until they exist.

use std::process::ExitCode;

use clap::Subcommand;

/// The commands of clients: none yet.
#[derive(Subcommand, Debug)]
pub enum JobsCommand {}

/// Runs one.
pub fn run(command: JobsCommand) -> ExitCode {
    match command {}
}
