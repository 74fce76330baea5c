//! Every bound, in one place, each with its reason.
//!
//! A bound that users may need to move is a default here and a field in the configuration; the others
//! are fixed, because clients rely on them.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Largest request. Bytes. The receive default of gRPC libraries in every language.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest message that the codec takes in, so that our own refusal, which names the field, comes first.
pub const CODEC_BYTES_MAX: usize = 2 * REQUEST_BYTES_MAX;
/// Largest payload as encoded protobuf. Bytes. Chosen: a row, not a file; references come later.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// A page of jobs or events ends early here, below what clients accept. Bytes.
pub const PAGE_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Entries of a page where the caller does not say.
pub const PAGE_SIZE_DEFAULT: usize = 50;
/// Most entries of a page.
pub const PAGE_SIZE_MAX: usize = 1_000;
/// Jobs that are looked at for one page, whether they are shown or not. Chosen: some ten milliseconds.
pub const LIST_ROWS_MAX: usize = 10_000;
/// Longest that a statement reads in the store: the write-ahead log behind it grows meanwhile. Chosen: a
/// page by its index takes milliseconds, and what a fast disk writes in a second has room in a log.
pub const READ_TIME_MAX: Duration = Duration::from_secs(1);
/// Longest that a read waits for other reads. Chosen: thirty of the longest.
pub const READ_WAIT_MAX: Duration = Duration::from_secs(30);
/// Type, queue, label and stream names. Bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Idempotency keys. Bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Labels of a job.
pub const LABELS_MAX: usize = 64;
/// A label's value. Bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;
/// Nesting of a JSON payload. Protobuf libraries, prost and Java's among them, decode at most 100
/// nested messages; an object in an object takes three, and the deepest place for a payload is an
/// output chunk of a Run, seven down. Deeper JSON goes as text with media type application/json.
pub const JSON_DEPTH_MAX: usize = 30;
/// The integers that a double, and so a JSON number, holds exactly: 2^53 either way. Source: RFC 8785.
pub const EXACT_INTEGER_MAX: u64 = 1 << 53;
/// Strings that have no bound of their own. Bytes.
pub const STRING_BYTES_MAX: usize = 1024;
/// Error details, log messages and log fields. Bytes.
pub const DETAIL_BYTES_MAX: usize = 16 * 1024;
/// Entries of an error's metadata.
pub const ERROR_METADATA_MAX: usize = 32;
/// Lists that have no bound of their own; also the output streams of one attempt.
pub const LIST_MAX: usize = 100;
/// Highest and, negated, lowest priority.
pub const PRIORITY_MAX: i32 = 1_000;
/// Most attempts a job may be given.
pub const ATTEMPTS_MAX: u32 = 100;
/// Attempts where nobody says.
pub const ATTEMPTS_DEFAULT: u32 = 3;
/// Attempts lost in a row (lease expired, server crashed) that end a job whatever budget is left, so
/// that a job that kills its worker cannot block a queue.
pub const ATTEMPTS_LOST_MAX: u32 = 3;
/// Longest duration in any field: a year.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Durations in fields that have no bounds of their own.
pub const DURATIONS: RangeInclusive<Duration> = Duration::ZERO..=DURATION_MAX;
/// Timeouts of a job. Chosen: at 0 every job would end before it begins, and below a millisecond nobody
/// could keep one.
pub const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=DURATION_MAX;
/// Longest long poll.
pub const POLL_MAX: Duration = Duration::from_secs(300);
/// Long poll where the caller does not say.
pub const POLL_DEFAULT: Duration = Duration::from_secs(30);
/// First retry's longest wait where nobody says.
pub const INITIAL_BACKOFF_DEFAULT: Duration = Duration::from_secs(1);
/// Any retry's longest wait where nobody says.
pub const MAX_BACKOFF_DEFAULT: Duration = Duration::from_secs(600);
/// Growth of a retry's longest wait.
pub const BACKOFF_MULTIPLIER_DEFAULT: f64 = 2.0;
/// Growths of a retry's longest wait. Chosen: below 1 waits would shrink, and with 10 the fourth retry of
/// a second's wait comes after a quarter of an hour.
pub const BACKOFF_MULTIPLIERS: RangeInclusive<f64> = 1.0..=10.0;
/// Reasons of errors that a caller names. Bytes. Chosen: what `google.rpc.ErrorInfo` allows, and one.
pub const REASON_BYTES_MAX: usize = 64;
/// Unique keys. Bytes. As idempotency keys.
pub const UNIQUE_KEY_BYTES_MAX: usize = 255;
/// From asking an attempt to stop until it is forced to, where nobody says.
pub const CANCEL_GRACE_DEFAULT: Duration = Duration::from_secs(5);
/// Output and log lines kept of one job where nobody says. Bytes. States and progress always are.
pub const LOG_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;
/// What an event counts at least, in the log's bound and in what waits to be stored, however little it says. Bytes.
/// Chosen: its number, time, attempt and names, as they are encoded, come to about that.
pub const EVENT_BYTES_MIN: usize = 64;
/// At most one progress event of a job is stored in this time where nobody says: 20 a second move a bar
/// smoothly.
pub const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_millis(50);
/// Longest line of a command's output that is looked at for a percentage; longer ones are skipped. Bytes.
/// Output itself is not cut: it is delivered in chunks of at most 64 KiB.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Silence of an attempt after which its job is said to be stalled, where nobody says.
pub const STALL_TIME_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// How long a job is kept once it has succeeded, was cancelled or has expired, where nobody says.
pub const RETENTION_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a job is kept once it has failed, where nobody says: somebody has to look at it first.
pub const DEAD_LETTER_RETENTION_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);
/// An idempotency key holds at least this long, whatever the retention: callers repeat their requests
/// for about a day.
pub const IDEMPOTENCY_KEY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Jobs of one tenant that may wait where nobody says.
pub const WAITING_DEFAULT: usize = 100_000;
/// Jobs of one batch.
pub const BATCH_MAX: usize = 1_000;
/// Jobs with one concurrency key that run at once where nobody says.
pub const KEY_CONCURRENCY_DEFAULT: usize = 1;
/// How long a claim holds without a heartbeat.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often the pool renews its leases: two may go missing.
pub const LEASE_HEARTBEAT: Duration = Duration::from_secs(5);
/// What a worker of another program may ask for as the term of its leases.
pub const LEASE_TERMS: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(300);
/// Jobs that one call leases, events that one call reports, and leases that one call extends.
pub const LEASED_MAX: usize = 1_000;
/// Calls for work of one tenant that may wait. Chosen: as many as watches; each is looked at in each round of
/// the writer.
pub const WORKERS_WAITING_MAX: usize = 10_000;
/// Job types that are known because a worker leased for them, with those that are paused. Chosen: they are
/// kept in memory.
pub const LEASED_TYPES_MAX: usize = 10_000;
/// Events in one message of a watch, and in one stored segment.
pub const BATCH_EVENTS_MAX: usize = 256;
/// Bytes of events in one message of a watch, and in one stored segment. One larger event travels alone.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Open watches of one tenant where nobody says.
pub const WATCHERS_DEFAULT: usize = 10_000;
/// Jobs that one watch may name. Chosen: as many as one batch; their ids are 36 KiB of a request.
pub const WATCH_JOB_IDS_MAX: usize = 1_000;
/// At most one roll-up of many jobs in this time where nobody says. Chosen: four a second look live.
pub const ROLL_UP_INTERVAL_DEFAULT: Duration = Duration::from_millis(250);
/// Sign of life on a quiet watch: shortest interval.
pub const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
/// Sign of life on a quiet watch: longest interval.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(300);
/// Sign of life on a quiet watch where the caller does not say.
pub const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(15);
/// How long a drain may take where nobody says.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(30);
/// Most jobs of one queue running at once. Chosen: ten processes of the largest pool.
pub const QUEUE_CONCURRENCY_MAX: u32 = 100_000;
/// Most jobs of one queue started in one period. Chosen: far beyond what one store commits in a second.
pub const RATE_STARTS_MAX: u32 = 1_000_000;
/// Shortest period of a rate limit: the writer's timer is no finer.
pub const RATE_PERIOD_MIN: Duration = Duration::from_millis(1);
/// Longest period of a rate limit. Chosen: quotas of other services are by the day at most.
pub const RATE_PERIOD_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most jobs with one concurrency key running at once.
pub const KEY_CONCURRENCY_MAX: u32 = 10_000;
/// A tenant's share where nobody says.
pub const WEIGHT_DEFAULT: u32 = 1;
/// A tenant's largest share: so many jobs of it are started in one round.
pub const WEIGHT_MAX: u32 = 100;
/// Queues that may be paused or have limits set at run time. Chosen: each is looked at by itself, and
/// callers make up the names of queues.
pub const SET_QUEUES_MAX: usize = 1_000;
/// Most jobs that one call ends of a queue. Chosen: a few seconds.
pub const PURGE_JOBS_MAX: u32 = 100_000;
/// Jobs that one call ends of a queue where the caller does not say.
pub const PURGE_JOBS_DEFAULT: u32 = 10_000;
