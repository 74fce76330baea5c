//! `pacenote config`: is the configuration right, and what holds?

use clap::{Args, Subcommand};

use crate::cli::exit::Failure;
use crate::cli::serve::ServeArgs;
use crate::cli::{say, to_stdout};
use crate::config::listen;
use crate::config::print::to_toml;
use crate::config::settings::Settings;

/// Looks at the configuration without serving.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Say whether `serve` would accept it: exit 0, or 78 with every problem
    Check(ServeArgs),
    /// Print the settings that hold, each with where it came from
    Print(PrintArgs),
}

/// What to print.
#[derive(Args, Debug)]
pub struct PrintArgs {
    /// Print the defaults alone, whatever file, environment and flags say
    #[arg(long)]
    pub defaults: bool,
    /// What `serve` would be given.
    #[command(flatten)]
    pub settings: ServeArgs,
}

/// Runs one of them.
///
/// # Errors
/// A configuration that was refused.
pub fn run(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(args) => check(args),
        ConfigCommand::Print(args) => print(args),
    }
}

fn check(args: ServeArgs) -> Result<(), Failure> {
    let settings = args.resolve()?;
    listen::allowed(&settings)?;
    for warning in &settings.warnings {
        say(&format!("warning: {warning}\n"));
    }
    to_stdout(&format!("{}\n", summary(&settings)))
}

fn print(args: PrintArgs) -> Result<(), Failure> {
    let settings = if args.defaults {
        Settings::default()
    } else {
        args.settings.resolve()?
    };
    to_stdout(&to_toml(&settings))
}

fn summary(settings: &Settings) -> String {
    let file = settings.file.as_ref();
    let source = file.map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    let config = &settings.config;
    let types = config.job_types.len();
    format!(
        "ok: {source}; listen {}, store {}, {} workers, {types} configured job {}",
        settings.listen,
        config.store.display(),
        config.workers,
        if types == 1 { "type" } else { "types" },
    )
}
