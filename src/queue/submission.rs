//! What a caller wants done, and what is wrong with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::config::TypeSettings;
use crate::error::{Error, Violations};
use crate::job::limits::{
    IDEMPOTENCY_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, PRIORITY_MAX,
};
use crate::job::name::{JobId, JobKey, Name};
use crate::job::payload::{Content, Payload};
use crate::job::{JobSpec, NewJob};

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
#[derive(Clone, Debug)]
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
        }
    }

    /// Checks everything at once. `prefix` is what stands before the fields' names in the request.
    pub(super) fn check(
        self,
        prefix: &str,
        id: JobId,
        types: &BTreeMap<Name, KnownType>,
        log_bytes_max: u64,
    ) -> Result<NewJob, Error> {
        let mut violations = Violations::default();
        let field = |name: &str| format!("{prefix}{name}");
        let known = check_type(&self.job_type, &field("type"), types, &mut violations);
        let queue = if self.queue.is_empty() {
            known.map(|(_, known)| known.settings.queue.clone())
        } else {
            violations.check(&field("queue"), Name::new(&self.queue))
        };
        check_scalars(&self, &field, &mut violations);
        let has_key = !self.idempotency_key.is_empty();
        let fingerprint = if has_key {
            fingerprint(&self)
        } else {
            String::new()
        };
        let input = violations.check(&field("input"), self.input);
        if let (Some((_, known)), Some(input)) = (known, &input)
            && let Err(problems) = (known.check)(input.as_ref())
        {
            for (path, problem) in problems {
                violations.add(field(&path), problem);
            }
        }
        violations.into_result()?;
        let (Some((job_type, known)), Some(queue), Some(input)) = (known, queue, input) else {
            return Err(Error::internal(
                &"a request without violations has a part missing",
            ));
        };
        Ok(NewJob::new(
            JobKey {
                tenant: self.tenant,
                id,
            },
            JobSpec {
                queue,
                priority: self.priority,
                labels: self.labels,
                idempotency_key: has_key.then_some(self.idempotency_key),
                fingerprint,
                retry_policy: known.settings.retry_policy.clone(),
                timeouts: known.settings.timeouts.clone(),
                log_bytes_max,
                progress_interval: known.settings.progress_interval,
                ..JobSpec::of(job_type.clone())
            },
            input,
        ))
    }
}

/// Who owns what nobody else does: the one tenant there is until keys exist.
pub fn default_tenant() -> Name {
    Name::of("default")
}

pub(super) fn check_type<'a>(
    job_type: &str,
    field: &str,
    types: &'a BTreeMap<Name, KnownType>,
    violations: &mut Violations,
) -> Option<(&'a Name, &'a KnownType)> {
    let name = violations.check(field, Name::new(job_type))?;
    if let Some(known) = types.get_key_value(&name) {
        return Some(known);
    }
    let mut near: Vec<(usize, &str)> = types
        .keys()
        .map(|known| {
            (
                strsim::damerau_levenshtein(job_type, known.as_str()),
                known.as_str(),
            )
        })
        .collect();
    near.sort();
    let nearest: Vec<&str> = near.iter().take(3).map(|(_, name)| *name).collect();
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

/// SHA-256 over the request as it was sent, normalised, without its key and with no defaults filled
/// in; in hex.
fn fingerprint(submission: &Submission) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(submission.job_type.as_bytes());
    add(submission.queue.as_bytes());
    add(&submission.priority.to_le_bytes());
    if let Ok(Some(input)) = &submission.input {
        let kind: &[u8] = match input.content() {
            Content::Json(_) => b"json",
            Content::Text(_) => b"text",
            Content::Data(_) => b"data",
        };
        add(kind);
        add(input.given_media_type().unwrap_or_default().as_bytes());
        add(input.as_bytes());
    }
    for (name, value) in &submission.labels {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
