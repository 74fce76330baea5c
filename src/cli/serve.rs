//! `pacenote serve`: from flags to a server that serves, and from a signal to its end.
//!
//! The first SIGTERM or SIGINT starts a drain, the second ends the process at once, with 128 and the
//! signal's number. `listening on ADDRESS` is printed once the server serves, never before.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::exit::{Exit, Failure};
use crate::cli::{logging, say};
use crate::config::key;
use crate::config::listen;
use crate::config::settings::{Given, LISTEN_DEFAULT, Settings};
use crate::server::{ServeError, Server};

const EXIT_BY_SIGNAL: i32 = 128;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// The settings that can be given as flags. Flag over environment over file over default. All are
/// taken as text, so that a bad one is refused in the same words wherever it was given.
#[derive(Args, Clone, Default, Debug)]
#[command(next_help_heading = "Settings")]
pub struct ServeArgs {
    /// Settings file [env: PACENOTE_CONFIG] [default: pacenote.toml, if it is in the current folder]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to serve on; port 0 picks a free one [env: PACENOTE_LISTEN] [default: 127.0.0.1:7430]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Allow an address beyond this machine without keys and TLS [env: PACENOTE_INSECURE]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<String>,
    /// Where jobs are kept [env: PACENOTE_STORE] [default: sqlite:pacenote.db]
    #[arg(long, value_name = "sqlite:FILE")]
    pub store: Option<String>,
    /// Most jobs running at once in this process [env: PACENOTE_WORKERS] [default: four a core]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// The only folder that `checksum` may walk [env: PACENOTE_CHECKSUM_ROOT] [default: the current one]
    #[arg(long, value_name = "FOLDER")]
    pub checksum_root: Option<String>,
    /// Output and log lines kept of one job [env: PACENOTE_LOG_BYTES_MAX] [default: 16 MiB]
    #[arg(long, value_name = "BYTES")]
    pub log_bytes_max: Option<String>,
    /// Open watches of one tenant [env: PACENOTE_WATCHERS_MAX] [default: 10000]
    #[arg(long, value_name = "N")]
    pub watchers_max: Option<String>,
    /// Jobs of one tenant that may wait [env: PACENOTE_WAITING_MAX] [default: 100000]
    #[arg(long, value_name = "N")]
    pub waiting_max: Option<String>,
    /// How long a drain may take [env: PACENOTE_DRAIN_TIMEOUT] [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// Which records to log, such as `debug` or `info,pacenote=debug` [env: PACENOTE_LOG, RUST_LOG]
    /// [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// auto (text on a terminal, JSON otherwise), text or json [env: PACENOTE_LOG_FORMAT]
    /// [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ServeArgs {
    /// What was given here and in the environment of this process.
    pub fn given(self) -> Given {
        let flags = [
            (key::LISTEN, self.listen),
            (key::INSECURE, self.insecure),
            (key::STORE, self.store),
            (key::WORKERS, self.workers),
            (key::CHECKSUM_ROOT, self.checksum_root),
            (key::LOG_BYTES_MAX, self.log_bytes_max),
            (key::WATCHERS_MAX, self.watchers_max),
            (key::WAITING_MAX, self.waiting_max),
            (key::DRAIN_TIMEOUT, self.drain_timeout),
            (key::LOG, self.log),
            (key::LOG_FORMAT, self.log_format),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(key, text)| Some((key.name, text?)));
        let named =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Given {
            file: self.config,
            flags: given.collect(),
            environment: named.collect(),
        }
    }

    /// The settings that hold.
    ///
    /// # Errors
    /// Every problem with them.
    pub fn resolve(self) -> Result<Settings, Failure> {
        Ok(Settings::resolve(&self.given())?)
    }
}

/// Serves until told to stop.
///
/// # Errors
/// What ended it, with the exit code.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let settings = args.resolve()?;
    let addresses = listen::allowed(&settings)?;
    logging::init(&settings).map_err(|error| Failure::new(Exit::Config, error.to_string()))?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = Runtime::new().map_err(|error| Failure::new(Exit::Storage, error.to_string()))?;
    let served = runtime.block_on(serve(settings, &addresses));
    // The drain has ended: whatever still blocks a thread does not hold up the exit.
    runtime.shutdown_background();
    served
}

async fn serve(settings: Settings, addresses: &[SocketAddr]) -> Result<(), Failure> {
    // Before anything can be interrupted half-way: from here on a signal is a request.
    let drain = CancellationToken::new();
    let signals = Signals::new().map_err(|error| Failure::new(Exit::Storage, error.to_string()))?;
    // Owned by this function, which stops it below.
    let watching = tokio::spawn(signals.watch(drain.clone()));
    let listener = bind(&settings.listen, addresses).await?;
    let address = local_address(&listener)?;
    if listen::is_exposed(&address) {
        tracing::warn!(%address, "serving beyond this machine without keys and TLS: whoever reaches it may run jobs");
    }
    let greeting = greeting(address, &settings);
    let server = Server::new(settings.config).on_ready(move || say(&greeting));
    let served = server.serve(listener, drain.cancelled_owned()).await;
    watching.abort();
    served.map_err(failure)
}

async fn bind(listen: &str, addresses: &[SocketAddr]) -> Result<TcpListener, Failure> {
    TcpListener::bind(addresses).await.map_err(|error| {
        let help = if error.kind() == std::io::ErrorKind::AddrInUse {
            "; another program serves there: stop it, or choose another port with --listen 127.0.0.1:0"
        } else {
            ""
        };
        Failure::new(Exit::Config, format!("cannot listen on {listen}: {error}{help}"))
    })
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(|error| {
        Failure::new(
            Exit::Config,
            format!("the listener has no address: {error}"),
        )
    })
}

/// What a person sees when the server serves; programs read its first line.
fn greeting(address: SocketAddr, settings: &Settings) -> String {
    let target = listen::reachable(address);
    let server = match target.to_string() {
        target if target == LISTEN_DEFAULT => String::new(),
        target => format!(" --server {target}"),
    };
    let store = absolute(&settings.config.store);
    let file = settings
        .file
        .as_deref()
        .map_or_else(|| "none".to_owned(), absolute);
    let mut types = vec!["checksum", "sleep"];
    types.extend(settings.config.job_types.keys().map(|name| name.as_str()));
    let types = types.join(", ");
    format!(
        "listening on {address}\n\
         \x20 gRPC     {target}, with reflection and health\n\
         \x20 store    {store}\n\
         \x20 config   {file}\n\
         \x20 types    {types}\n\
         \x20 try      pacenote submit sleep --watch{server}\n\
         \x20 or       grpcurl -plaintext -d '{{\"type\": \"sleep\"}}' {target} pacenote.v1.JobService/Submit\n"
    )
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).map_or_else(
        |_| path.display().to_string(),
        |path| path.display().to_string(),
    )
}

fn failure(error: ServeError) -> Failure {
    let message = error.to_string();
    match error {
        ServeError::Config(_) => Failure::new(Exit::Config, message),
        ServeError::StoreLocked { .. } => Failure::new(Exit::Locked, message),
        ServeError::Storage(_) => Failure::new(Exit::Storage, message),
    }
}

/// The two signals that ask a server to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes them over from their default, which would end the process.
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The first trips `drain`, the second ends the process.
    async fn watch(mut self, drain: CancellationToken) {
        loop {
            let number = tokio::select! {
                // recv() is cancel safe: no signal is lost.
                _ = self.interrupt.recv() => SIGINT,
                // recv() is cancel safe: no signal is lost.
                _ = self.terminate.recv() => SIGTERM,
            };
            if drain.is_cancelled() {
                say("second signal: ending at once\n");
                // The one exit beside main's: nothing that is still running may hold it up.
                std::process::exit(EXIT_BY_SIGNAL + number);
            }
            tracing::info!("draining; a second signal ends at once");
            drain.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    use crate::cli::Cli;
    use crate::config::key::KEYS;

    #[test]
    fn every_key_has_its_flag_and_the_help_names_its_variable() {
        let mut cli = Cli::command();
        let serve = cli.find_subcommand_mut("serve").expect("there is serve");
        let help = serve.render_long_help().to_string();
        for key in KEYS {
            assert!(
                help.contains(&format!("{} <", key.flag()))
                    || help.contains(&format!("{}[", key.flag())),
                "{key:?}"
            );
            assert!(help.contains(&key.variable()), "{key:?}");
        }
    }

    #[test]
    fn a_greeting_names_an_address_that_a_client_can_use() {
        let settings = Settings::default();
        let of = |address: &str| greeting(address.parse().expect("an address"), &settings);
        assert!(of("0.0.0.0:9").starts_with("listening on 0.0.0.0:9\n"));
        assert!(of("0.0.0.0:9").contains("--server 127.0.0.1:9\n"));
        assert!(!of(LISTEN_DEFAULT).contains("--server"));
    }

    #[test]
    fn every_end_of_a_server_has_its_exit_code() {
        let locked = failure(ServeError::StoreLocked {
            message: "in use by another server (pid 42)".to_owned(),
            pid: Some(42),
        });
        assert_eq!(locked.exit.code(), 75);
        assert!(locked.message.contains("42"), "{locked}");
        assert_eq!(failure(ServeError::Config(String::new())).exit.code(), 78);
        assert_eq!(failure(ServeError::Storage(String::new())).exit.code(), 74);
    }
}
