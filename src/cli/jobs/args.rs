//! The arguments of the commands that talk to a server, and their help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::jobs::options::JobOptions;
use crate::cli::server_default;
use crate::pb::job::State;

/// What every help of these commands ends with.
const EXIT_CODES: &str = "\
Exit codes:
  0    the job succeeded (get, list, events, cancel: the call worked)
  1    the job failed
  2    wrong usage
  3    the job was cancelled or has expired
  4    could not connect, or the connection did not come back
  5    the server refused
  75   wait ran out of time
  130  stopped with Ctrl-C; the job goes on";

/// The commands that talk to a server as a client.
#[derive(Clone, Debug, Subcommand)]
pub enum JobsCommand {
    /// Store a job, and watch it if asked
    #[command(after_help = concat_help("Examples:
  pacenote submit sleep --input '{\"seconds\": 5}' --watch
  pacenote submit checksum --input '{\"path\": \".\"}' --label team=docs
  pacenote submit checksum --delay 1h --unique nightly --on-conflict replace
  make-input | pacenote submit thumbnail --idempotency-key page-17 -"))]
    Submit(Box<SubmitArgs>),
    /// Store many jobs, all or none of them
    #[command(after_help = concat_help("Each line of the file is a SubmitRequest as JSON:
  {\"type\": \"sleep\", \"input\": {\"json\": {\"seconds\": 5}}, \"idempotencyKey\": \"page-17\"}

Example:
  make-lines | pacenote submit-batch -"))]
    SubmitBatch(SubmitBatchArgs),
    /// Show a job
    #[command(after_help = concat_help("Example:
  pacenote get 0198c0de-0000-7000-8000-000000000001 --json"))]
    Get(GetArgs),
    /// List jobs, newest first
    #[command(after_help = concat_help("Example:
  pacenote list --state failed --type thumbnail --limit 10"))]
    List(ListArgs),
    /// Watch a job to its end, or many jobs; comes back by itself where the connection breaks
    ///
    /// Many jobs are chosen by a label, queue, type, batch or ids, which all have to match. A watch of a
    /// batch or of ids ends with the last of them and exits by the worst outcome; any other goes on.
    #[command(after_help = concat_help("Examples:
  pacenote watch 0198c0de-0000-7000-8000-000000000001 --after 0
  pacenote watch --label team=docs --type thumbnail
  pacenote watch --batch 0198c0de-0000-7000-8000-000000000002 --roll-up"))]
    Watch(WatchArgs),
    /// Wait for a job to end, then show it
    #[command(after_help = concat_help("Example:
  pacenote wait 0198c0de-0000-7000-8000-000000000001 --timeout 5m"))]
    Wait(WaitArgs),
    /// Ask a job to stop
    #[command(after_help = concat_help("Example:
  pacenote cancel 0198c0de-0000-7000-8000-000000000001 --reason 'wrong input'"))]
    Cancel(CancelArgs),
    /// Print the log of a job as it is now
    #[command(after_help = concat_help("Example:
  pacenote events 0198c0de-0000-7000-8000-000000000001 --after 40 --limit 10"))]
    Events(EventsArgs),
}

/// Examples first, then what scripts need.
fn concat_help(examples: &str) -> String {
    format!("{examples}\n\n{EXIT_CODES}")
}

impl JobsCommand {
    /// What all of them take.
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::Submit(args) => &args.common,
            Self::SubmitBatch(args) => &args.common,
            Self::Get(args) => &args.common,
            Self::List(args) => &args.common,
            Self::Watch(args) => &args.common,
            Self::Wait(args) => &args.common,
            Self::Cancel(args) => &args.common,
            Self::Events(args) => &args.common,
        }
    }
}

/// Where the server is and how to speak.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Address of the server [env: PACENOTE_SERVER]
    #[arg(long, default_value_t = server_default(), value_name = "HOST:PORT")]
    pub server: String,
    /// Print data as canonical proto JSON, an object a line
    #[arg(long)]
    pub json: bool,
    /// Print nothing but data: of a watch, what the job itself wrote, or its result where it wrote
    /// nothing
    #[arg(long, short)]
    pub quiet: bool,
}

/// `pacenote submit`.
#[derive(Clone, Debug, Args)]
pub struct SubmitArgs {
    /// The job type
    #[arg(value_name = "TYPE")]
    pub job_type: String,
    /// `-`: read the input from stdin
    #[arg(value_name = "-", value_parser = ["-"], conflicts_with_all = ["input", "input_file"])]
    pub stdin: Option<String>,
    /// The input, as JSON
    #[arg(long, value_name = "JSON", conflicts_with = "input_file")]
    pub input: Option<String>,
    /// A file with the input, as JSON; `-` for stdin
    #[arg(long, value_name = "FILE")]
    pub input_file: Option<PathBuf>,
    /// Send the input as it is, with this media type, instead of as JSON
    #[arg(long, value_name = "TYPE/SUBTYPE")]
    pub media_type: Option<String>,
    /// Where it waits [default: the type's own queue]
    #[arg(long)]
    pub queue: Option<String>,
    /// -1000 to 1000; higher runs sooner
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// A label to find it by; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// The same key with the same request gives the same job
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub idempotency_key: Option<String>,
    /// Watch it to its end and exit by its outcome
    #[arg(long, short)]
    pub watch: bool,
    /// Only check the request: nothing is stored
    #[arg(long, conflicts_with = "watch")]
    pub validate_only: bool,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
    /// When and how it runs.
    #[command(flatten)]
    pub options: JobOptions,
}

/// `pacenote submit-batch`.
#[derive(Clone, Debug, Args)]
pub struct SubmitBatchArgs {
    /// A file with 1 to 1000 requests, a line each, as canonical proto JSON; `-` for stdin
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// `pacenote get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    pub job_id: String,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// `pacenote list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Only jobs in this state; may be given again
    #[arg(long = "state", value_enum, value_delimiter = ',')]
    pub states: Vec<StateArg>,
    /// Only jobs of this type; may be given again
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<String>,
    /// Only jobs of this queue; may be given again
    #[arg(long = "queue", value_name = "QUEUE")]
    pub queues: Vec<String>,
    /// The job made with this key
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Most jobs to print
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "all")]
    pub limit: u32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "TOKEN")]
    pub page_token: Option<String>,
    /// Print all of them, however many
    #[arg(long)]
    pub all: bool,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// What chooses many jobs, or is about many.
const MANY: [&str; 8] = [
    "ids", "labels", "queues", "types", "batch", "all", "cursor", "roll_up",
];

/// `pacenote watch`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("which")
    .args(["job_id", "ids", "labels", "queues", "types", "batch", "all"])
    .required(true)
    .multiple(true))]
pub struct WatchArgs {
    /// The job's id
    #[arg(value_name = "ID", conflicts_with_all = MANY)]
    pub job_id: Option<String>,
    /// One of these jobs; may be given again
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<String>,
    /// Jobs with this label; may be given again, and all of them have to be there
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Jobs of this queue; may be given again
    #[arg(long = "queue", value_name = "QUEUE")]
    pub queues: Vec<String>,
    /// Jobs of this type; may be given again
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<String>,
    /// Jobs of this batch
    #[arg(long, value_name = "ID")]
    pub batch: Option<String>,
    /// All jobs
    #[arg(long)]
    pub all: bool,
    /// Of many jobs: begin where an earlier watch of the same jobs ended
    #[arg(long, value_name = "CURSOR")]
    pub cursor: Option<String>,
    /// Of many jobs: show how many are how far, in place of what happens
    #[arg(long)]
    pub roll_up: bool,
    /// Begin with the event after this one; 0 for all that is kept [default: begin with the job as it
    /// is now]
    #[arg(long, value_name = "SEQUENCE", conflicts_with_all = MANY, value_parser = clap::value_parser!(i64).range(0..))]
    pub after: Option<i64>,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// `pacenote wait`.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    pub job_id: String,
    /// How long to wait, as 30s or 5m; then exit with 75 [default: until it ends]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// `pacenote cancel`.
#[derive(Clone, Debug, Args)]
pub struct CancelArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    pub job_id: String,
    /// Stored with the job
    #[arg(long, default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// `pacenote events`.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    pub job_id: String,
    /// Begin with the event after this one
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub after: i64,
    /// Most events to print [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// A job's state as it is typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[expect(
    missing_docs,
    reason = "the words of `Job.State`; the help lists them bare"
)]
pub enum StateArg {
    Scheduled,
    Blocked,
    Queued,
    Running,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
}

impl From<StateArg> for State {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Scheduled => Self::Scheduled,
            StateArg::Blocked => Self::Blocked,
            StateArg::Queued => Self::Queued,
            StateArg::Running => Self::Running,
            StateArg::Cancelling => Self::Cancelling,
            StateArg::Succeeded => Self::Succeeded,
            StateArg::Failed => Self::Failed,
            StateArg::Cancelled => Self::Cancelled,
            StateArg::Expired => Self::Expired,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it has no `=`")?;
    if key.is_empty() {
        return Err("it has no key before the `=`".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}
