//! The binary: reads the command line, runs the command, sets the exit code.

use std::process::ExitCode;

use clap::Parser;

use pacenote::cli::{Cli, run, say};

/// A server is many small allocations that end on another thread than they began on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            say(&format!("error: {}\n", failure.message.trim_end()));
            ExitCode::from(failure.exit.code())
        }
    }
}
