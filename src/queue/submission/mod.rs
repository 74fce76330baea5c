//! What a caller wants done, and what is wrong with it.

mod batch;
mod fingerprint;
mod overrides;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use overrides::{RetryOverrides, TimeoutOverrides};

use crate::config::value::duration_text;
use crate::config::{TenantSettings, TypeSettings};
use crate::error::{Error, Violations};
use crate::job::limits::{
    DURATION_MAX, DURATIONS, IDEMPOTENCY_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX,
    PRIORITY_MAX, UNIQUE_KEY_BYTES_MAX,
};
use crate::job::name::{JobId, JobKey, Name, default_tenant};
use crate::job::payload::Payload;
use crate::job::policy::OnConflict;
use crate::job::time::Timestamp;
use crate::job::{JobSpec, NewJob, Unique};
use crate::queue::settings::Live;
use crate::queue::submission::overrides::Merge;

pub(super) use batch::check_batch;

/// Says what is wrong with an input, field by field, before its job is stored.
pub type InputCheck =
    Arc<dyn Fn(Option<&Payload>) -> Result<(), Vec<(String, String)>> + Send + Sync>;

/// A job type as the queue knows it: how its jobs are treated, not what runs them.
#[derive(Clone)]
pub struct KnownType {
    /// How its jobs are treated.
    pub settings: TypeSettings,
    /// What is wrong with an input.
    pub check: InputCheck,
}

/// A job that somebody wants done, as it came in.
#[derive(Clone, PartialEq, Debug)]
pub struct Submission {
    /// Who asks.
    pub tenant: Name,
    /// What should run it.
    pub job_type: String,
    /// What it works on, or what is wrong with that.
    pub input: Result<Option<Payload>, String>,
    /// Where it should wait; empty for the type's own queue.
    pub queue: String,
    /// The same key with the same request gives the same job; empty for none.
    pub idempotency_key: String,
    /// Higher runs sooner.
    pub priority: i32,
    /// For finding it again.
    pub labels: BTreeMap<String, String>,
    /// When it may first run.
    pub start: Start,
    /// In place of the type's own, field by field.
    pub retry_policy: RetryOverrides,
    /// In place of the type's own, field by field.
    pub timeouts: TimeoutOverrides,
    /// How long it is kept once it is over, however it ends. 0 to a year; `None`: the type's, or its
    /// tenant's.
    pub retention: Option<Duration>,
    /// What it shares a limit with in its queue. A name; empty for nothing.
    pub concurrency_key: String,
    /// What it is to be the only one of, if anything.
    pub unique: Option<UniqueRequest>,
    /// Fields that could not even be read, each with what is wrong with it.
    pub unreadable: Vec<(String, String)>,
}

/// When a job may first run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Start {
    /// As soon as it is stored.
    #[default]
    AtOnce,
    /// At that time; in the past: at once. At most a year ahead.
    At(Timestamp),
    /// So long after it is stored. 0 to a year.
    After(Duration),
}

/// What a job is to be the only one of, within its tenant and type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UniqueRequest {
    /// 1 to 255 bytes.
    pub key: String,
    /// What becomes of it where another one has its place. `None`: that one is answered.
    pub on_conflict: Option<OnConflict>,
    /// How long after it is stored it has its place, over or not. 0 to a year; `None`: until it is over.
    pub window: Option<Duration>,
}

/// The types that jobs may be of.
#[derive(Clone, Copy)]
pub(super) struct KnownTypes<'a> {
    /// Those that somebody configured, whoever asks.
    pub(super) configured: &'a BTreeMap<Name, KnownType>,
    /// How the others are treated.
    pub(super) other: &'a KnownType,
    /// Where those are that workers have leased for.
    pub(super) live: &'a Mutex<Live>,
}

impl<'a> KnownTypes<'a> {
    fn find(self, tenant: &Name, name: &Name) -> Option<&'a KnownType> {
        self.configured
            .get(name)
            .or_else(|| self.is_leased(tenant, name).then_some(self.other))
    }

    /// Whether a tenant's jobs may be of a type.
    pub(super) fn has(self, tenant: &Name, name: &Name) -> bool {
        self.find(tenant, name).is_some()
    }

    fn is_leased(self, tenant: &Name, name: &Name) -> bool {
        let live = self.lock();
        let of_type = live.types.get(name);
        of_type.is_some_and(|of_type| of_type.leased_by.contains(tenant))
    }

    /// Those that are spelled most like it.
    fn nearest(self, tenant: &Name, name: &str) -> Vec<Name> {
        // Copied: the writer takes this lock as well.
        let leased: Vec<Name> = self.lock().leased_by(tenant).cloned().collect();
        let all = self.configured.keys().chain(&leased);
        let distance = |known: &Name| strsim::damerau_levenshtein(name, known.as_str());
        let mut near: Vec<(usize, &Name)> = all.map(|known| (distance(known), known)).collect();
        near.sort();
        near.dedup();
        near.into_iter()
            .take(3)
            .map(|(_, name)| name.clone())
            .collect()
    }

    fn lock(self) -> MutexGuard<'a, Live> {
        // Nothing in here can be left half done by a panic.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a submission is checked against.
#[derive(Clone, Copy)]
pub(super) struct Against<'a> {
    pub(super) types: KnownTypes<'a>,
    pub(super) tenants: &'a BTreeMap<Name, TenantSettings>,
    pub(super) log_bytes_max: u64,
    pub(super) now: Timestamp,
}

impl KnownType {
    /// A type that is treated as all are where nobody says, and takes every input.
    pub(super) fn plain() -> Self {
        Self {
            settings: TypeSettings::default(),
            check: Arc::new(|_| Ok(())),
        }
    }
}

impl Submission {
    /// A job of a type, with everything else as it is by default.
    pub fn new(job_type: impl Into<String>, input: Option<Payload>) -> Self {
        Self {
            tenant: default_tenant(),
            job_type: job_type.into(),
            input: Ok(input),
            queue: String::new(),
            idempotency_key: String::new(),
            priority: 0,
            labels: BTreeMap::new(),
            start: Start::AtOnce,
            retry_policy: RetryOverrides::default(),
            timeouts: TimeoutOverrides::default(),
            retention: None,
            concurrency_key: String::new(),
            unique: None,
            unreadable: Vec::new(),
        }
    }

    /// Checks everything at once. `prefix` is what stands before the fields' names in the request.
    pub(super) fn check(
        self,
        prefix: &str,
        id: JobId,
        against: Against<'_>,
    ) -> Result<NewJob, Error> {
        let mut violations = Violations::default();
        let new = self.checked(prefix, id, against, &mut violations);
        violations.into_result()?;
        new.ok_or_else(|| Error::internal(&"a request without violations has a part missing"))
    }

    /// The job, where nothing is wrong with it; what is, is added.
    fn checked(
        self,
        prefix: &str,
        id: JobId,
        against: Against<'_>,
        violations: &mut Violations,
    ) -> Option<NewJob> {
        let field = |name: &str| format!("{prefix}{name}");
        let found = check_type(
            &self.tenant,
            &self.job_type,
            &field("type"),
            against.types,
            violations,
        );
        let (job_type, known) = found.unzip();
        for (name, problem) in &self.unreadable {
            violations.add(field(name), problem);
        }
        let queue = if self.queue.is_empty() {
            known.map(|known| known.settings.queue.clone())
        } else {
            violations.check(&field("queue"), Name::new(&self.queue))
        };
        check_scalars(&self, &field, violations);
        check_start(self.start, against.now, &field, violations);
        let concurrency_key = match self.concurrency_key.as_str() {
            "" => None,
            key => violations.check(&field("concurrency_key"), Name::new(key)),
        };
        let unknown = TypeSettings::default();
        let of_tenant = against.tenants.get(&self.tenant);
        let mut merge = Merge {
            prefix,
            job_type: &self.job_type,
            own: known.map_or(&unknown, |known| &known.settings),
            tenant: &self.tenant,
            of_tenant: of_tenant.map(|tenant| tenant.retention).unwrap_or_default(),
            violations,
        };
        let retry_policy = merge.retry_policy(&self.retry_policy);
        let timeouts = merge.timeouts(&self.timeouts);
        let retention = merge.retention(self.retention);
        let unique = self
            .unique
            .as_ref()
            .map(|unique| check_unique(unique, &mut merge));
        let has_key = !self.idempotency_key.is_empty();
        let fingerprint = if has_key {
            fingerprint::fingerprint(&self)
        } else {
            String::new()
        };
        let input = violations.check(&field("input"), self.input);
        if let (Some(known), Some(input)) = (known, &input)
            && let Err(problems) = (known.check)(input.as_ref())
        {
            for (path, problem) in problems {
                violations.add(field(&path), problem);
            }
        }
        let (job_type, known, queue, input) = (job_type?, known?, queue?, input?);
        let spec = JobSpec {
            queue,
            priority: self.priority,
            labels: self.labels,
            idempotency_key: has_key.then_some(self.idempotency_key),
            fingerprint,
            concurrency_key,
            unique,
            retry_policy,
            timeouts,
            retention,
            event_retention: known.settings.event_retention,
            log_bytes_max: against.log_bytes_max,
            progress_interval: known.settings.progress_interval,
            ..JobSpec::of(job_type)
        };
        let key = JobKey {
            tenant: self.tenant,
            id,
        };
        let on_conflict = self.unique.and_then(|unique| unique.on_conflict);
        let (start_at, delay) = match self.start {
            Start::AtOnce => (None, Duration::ZERO),
            Start::At(at) => (Some(at), Duration::ZERO),
            Start::After(delay) => (None, delay),
        };
        Some(NewJob {
            start_at,
            delay,
            on_conflict: on_conflict.unwrap_or_default(),
            ..NewJob::new(key, spec, input)
        })
    }
}

pub(super) fn check_type<'a>(
    tenant: &Name,
    job_type: &str,
    field: &str,
    types: KnownTypes<'a>,
    violations: &mut Violations,
) -> Option<(Name, &'a KnownType)> {
    let name = violations.check(field, Name::new(job_type))?;
    if let Some(known) = types.find(tenant, &name) {
        return Some((name, known));
    }
    let nearest = types.nearest(tenant, job_type);
    let nearest: Vec<&str> = nearest.iter().map(Name::as_str).collect();
    let served = if nearest.is_empty() {
        "no types are served".to_owned()
    } else {
        format!("the nearest served types are {}", nearest.join(", "))
    };
    let description = format!("is {job_type}, which nobody serves; {served}");
    violations.add_with_reason(field, description, "UNKNOWN_TYPE");
    None
}

fn check_scalars(
    submission: &Submission,
    field: &impl Fn(&str) -> String,
    violations: &mut Violations,
) {
    let key = submission.idempotency_key.len();
    if key > IDEMPOTENCY_KEY_BYTES_MAX {
        let problem = format!("is {key} bytes; 1 to {IDEMPOTENCY_KEY_BYTES_MAX} are accepted");
        violations.add(field("idempotency_key"), problem);
    }
    let priority = submission.priority;
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority) {
        let problem = format!("is {priority}; -{PRIORITY_MAX} to {PRIORITY_MAX} is accepted");
        violations.add(field("priority"), problem);
    }
    let labels = submission.labels.len();
    if labels > LABELS_MAX {
        let problem = format!("has {labels} entries; at most {LABELS_MAX} are accepted");
        violations.add(field("labels"), problem);
    }
    for (name, value) in submission.labels.iter().take(LABELS_MAX + 1) {
        let label = field(&format!("labels[{name:?}]"));
        if let Err(problem) = Name::new(name) {
            violations.add(label.clone(), format!("has a key that {problem}"));
        }
        if value.len() > LABEL_VALUE_BYTES_MAX {
            let problem = format!(
                "is {} bytes; at most {LABEL_VALUE_BYTES_MAX} are accepted",
                value.len()
            );
            violations.add(label, problem);
        }
    }
}

fn check_start(
    start: Start,
    now: Timestamp,
    field: &impl Fn(&str) -> String,
    violations: &mut Violations,
) {
    let most = duration_text(DURATION_MAX);
    match start {
        Start::AtOnce => {}
        Start::At(at) => {
            let ahead = at.since(now);
            if ahead > DURATION_MAX {
                let ahead = duration_text(ahead);
                let problem = format!("is {ahead} ahead; at most {most} is accepted");
                violations.add(field("schedule_time"), problem);
            }
        }
        Start::After(delay) => {
            if delay > DURATION_MAX {
                let delay = duration_text(delay);
                let problem = format!("is {delay}; 0s to {most} is accepted");
                violations.add(field("delay"), problem);
            }
        }
    }
}

fn check_unique(unique: &UniqueRequest, merge: &mut Merge<'_>) -> Unique {
    let key = unique.key.len();
    if key == 0 {
        merge.refuse("unique.key", "is required".to_owned());
    } else if key > UNIQUE_KEY_BYTES_MAX {
        let problem = format!("is {key} bytes; 1 to {UNIQUE_KEY_BYTES_MAX} are accepted");
        merge.refuse("unique.key", problem);
    }
    let window = merge.span("unique.window", unique.window, &DURATIONS, None);
    Unique {
        key: unique.key.clone(),
        window: window.unwrap_or_default(),
    }
}
