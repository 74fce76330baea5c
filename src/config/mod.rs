//! What a server is told before it starts: parsed and checked, so that everything behind it can trust it.
//!
//! The types here are for everyone; where the values come from (flag over environment over file over
//! default) is the business of `settings`; the file's own form that of `file`.

pub mod file;
pub mod job_type;
pub mod key;
pub mod listen;
pub mod print;
pub mod problem;
pub mod queue;
mod section;
pub mod settings;
pub mod template;
pub mod value;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod settings_tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::job::limits;
use crate::job::name::Name;
use crate::job::policy::{GivenRetention, RetryPolicy, Timeouts};
use crate::job::queue::GivenLimits;

/// Everything a server is told. [`Config::default`] is what `pacenote serve` uses without flags or file.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The SQLite file. Default `pacenote.db` in the current folder.
    pub store: PathBuf,
    /// Most jobs running at once in this process. Default four a core.
    pub workers: usize,
    /// The only folder that the built-in `checksum` may walk. Default: the current folder.
    pub checksum_root: PathBuf,
    /// Output and log lines kept of one job. Bytes. Default 16 MiB.
    pub log_bytes_max: u64,
    /// Open watches of one tenant. Default 10,000.
    pub watchers_max: usize,
    /// Jobs of one tenant that may wait. Default 100,000.
    pub waiting_max: usize,
    /// How long a drain may take. Default 30 s.
    pub drain_timeout: Duration,
    /// The configured job types, by name.
    pub job_types: BTreeMap<Name, JobType>,
    /// What bounds queues, by name. What is set at run time stands above it.
    pub queues: BTreeMap<Name, GivenLimits>,
    /// How the jobs of tenants are treated, by name; one that is not named has the defaults.
    pub tenants: BTreeMap<Name, TenantSettings>,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store: PathBuf::from("pacenote.db"),
            workers: 4 * cores,
            checksum_root: PathBuf::from("."),
            log_bytes_max: limits::LOG_BYTES_DEFAULT,
            watchers_max: limits::WATCHERS_DEFAULT,
            waiting_max: limits::WAITING_DEFAULT,
            drain_timeout: limits::DRAIN_DEFAULT,
            job_types: BTreeMap::new(),
            queues: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }
}

/// A configured job type.
#[derive(Clone, PartialEq, Debug)]
pub struct JobType {
    /// How its jobs are treated.
    pub settings: TypeSettings,
    /// The program that the pool runs for it. `None`: its jobs wait for workers of other programs.
    pub command: Option<CommandConfig>,
}

/// How the jobs of one type are treated, whatever runs them.
#[derive(Clone, PartialEq, Debug)]
pub struct TypeSettings {
    /// Where its jobs wait unless the caller says otherwise. Default `default`.
    pub queue: Name,
    /// Most of its jobs running at once in this process. `None`: as many as the pool has places.
    pub concurrency: Option<usize>,
    /// How often, and after what wait, failed attempts are repeated.
    pub retry_policy: RetryPolicy,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How long its jobs are kept once they are over. Default: as their tenant says, and where it says
    /// nothing 7 days, and 30 days where they failed.
    pub retention: GivenRetention,
    /// How long the front of a job's log is kept once the job is over, however it ended: afterwards its log
    /// begins with what was stored together with its last event. The job and its result stay. 0 to a year.
    /// Default `None`: as long as the job; so is a time that is no shorter than that.
    pub event_retention: Option<Duration>,
    /// The most that a submit may ask for in place of these. Default: no less than the bounds of the
    /// protocol. A type of the file has what it sets itself.
    pub caps: Caps,
    /// At most one progress event of a job is stored in this time; zero for one a commit. Default 50 ms.
    pub progress_interval: Duration,
}

impl Default for TypeSettings {
    fn default() -> Self {
        Self {
            queue: Name::of("default"),
            concurrency: None,
            retry_policy: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            retention: GivenRetention::default(),
            event_retention: None,
            caps: Caps::default(),
            progress_interval: limits::PROGRESS_INTERVAL_DEFAULT,
        }
    }
}

/// How the jobs of one tenant are treated, whatever their types.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TenantSettings {
    /// How many of its jobs are started in a round where several tenants wait. 1 to 100; default 1.
    pub weight: u32,
    /// How long its jobs are kept once they are over, where their type says nothing. The shorter one that is
    /// said is also the most that a submit of the tenant may ask for, whatever its type allows. Default:
    /// nothing is said.
    pub retention: GivenRetention,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            weight: limits::WEIGHT_DEFAULT,
            retention: GivenRetention::default(),
        }
    }
}

/// The most that a submit may ask for. `None`: as much as the bounds of the protocol allow.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Caps {
    /// Of `retry_policy.max_attempts`.
    pub max_attempts: Option<u32>,
    /// Of `retry_policy.initial_backoff`.
    pub initial_backoff: Option<Duration>,
    /// Of `retry_policy.max_backoff`.
    pub max_backoff: Option<Duration>,
    /// Of `retry_policy.backoff_multiplier`.
    pub backoff_multiplier: Option<f64>,
    /// Of `timeouts.queue_timeout`.
    pub queue_timeout: Option<Duration>,
    /// Of `timeouts.run_timeout`.
    pub run_timeout: Option<Duration>,
    /// Of `timeouts.total_timeout`.
    pub total_timeout: Option<Duration>,
    /// Of `timeouts.heartbeat_timeout`.
    pub heartbeat_timeout: Option<Duration>,
    /// Of `timeouts.stall_time`.
    pub stall_time: Option<Duration>,
    /// Of `timeouts.cancel_grace`.
    pub cancel_grace: Option<Duration>,
    /// Of `retention`.
    pub retention: Option<Duration>,
}

/// A program that runs a job type.
#[derive(Clone, PartialEq, Debug)]
pub struct CommandConfig {
    /// The program and its arguments, never a shell. `{input.width}` is a placeholder for a scalar of
    /// the input and fills exactly one argument (alone or within text); `{{` and `}}` are braces.
    pub command: Vec<String>,
    /// Its working folder. Absolute once parsed.
    pub dir: PathBuf,
    /// Added to its small environment.
    pub env: BTreeMap<String, String>,
    /// Whether a placeholder's value that fills a whole argument may begin with `-`.
    pub allow_dash: bool,
    /// What becomes its job's result.
    pub result: ResultMode,
    /// Where its job's progress comes from.
    pub progress: ProgressMode,
}

/// What becomes the result of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ResultMode {
    /// What it wrote to stdout, as text; beyond 1 MiB the last of it.
    #[default]
    StdoutText,
    /// What it wrote to stdout, parsed as JSON.
    StdoutJson,
    /// What it wrote as `{"result": …}` to `PACENOTE_EVENTS`.
    Events,
}

/// Where a command's progress comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProgressMode {
    /// From `PACENOTE_EVENTS`, and from percentages in its output where they can be told for sure.
    #[default]
    Auto,
    /// From `PACENOTE_EVENTS` alone.
    Events,
    /// None.
    Off,
}
