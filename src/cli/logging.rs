//! The server's own log: on stderr, text for a terminal, JSON for everything else.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::settings::Settings;
use crate::config::value::LogFormat;

/// Starts logging for the whole process. Called once; a second call changes nothing.
///
/// # Errors
/// Where the filter is malformed, which the settings have ruled out.
pub fn init(settings: &Settings) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(&settings.log)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let is_terminal = std::io::stderr().is_terminal();
    let is_text = match settings.log_format {
        LogFormat::Auto => is_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // https://no-color.org: any value that is not empty.
    let has_colors =
        is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let started = if is_text {
        builder.with_ansi(has_colors).try_init()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_ansi(false)
            .try_init()
    };
    if started.is_err() {
        tracing::debug!("somebody else has started logging");
    }
    Ok(())
}
