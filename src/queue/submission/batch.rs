//! Jobs that are submitted together: all of what is wrong with any of them, and what two of them ask for
//! that both cannot have.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Violations};
use crate::job::NewJob;
use crate::job::limits::BATCH_MAX;
use crate::job::name::{BatchId, JobId, Name};
use crate::job::policy::OnConflict;
use crate::queue::submission::{Against, Submission};

/// The jobs of a batch, where nothing is wrong with it.
pub(in crate::queue) fn check_batch(
    submissions: Vec<Submission>,
    id: BatchId,
    new_id: impl Fn() -> JobId,
    against: Against<'_>,
) -> Result<Vec<NewJob>, Error> {
    let count = submissions.len();
    if !(1..=BATCH_MAX).contains(&count) {
        let problem = format!("has {count} entries; 1 to {BATCH_MAX} are accepted");
        return Err(Error::invalid("requests", problem));
    }
    let mut violations = Violations::default();
    let mut jobs = Vec::with_capacity(count);
    let tenant = submissions[0].tenant.clone();
    for (index, submission) in submissions.into_iter().enumerate() {
        if submission.tenant != tenant {
            violations.add(format!("requests[{index}]"), "is of another tenant");
        }
        let prefix = format!("requests[{index}].");
        let new = submission.checked(&prefix, new_id(), against, &mut violations);
        jobs.extend(new.map(|new| (index, new)));
    }
    check_contradictions(&jobs, &mut violations);
    violations.into_result()?;
    let mut jobs: Vec<NewJob> = jobs.into_iter().map(|(_, new)| new).collect();
    for new in &mut jobs {
        // Nobody else has it yet: nothing is copied.
        Arc::make_mut(&mut new.spec).batch_id = Some(id);
    }
    Ok(jobs)
}

/// Names what an item asks for that an earlier one has: a key for another request, or a unique place,
/// unless it would be answered with that earlier one.
fn check_contradictions(jobs: &[(usize, NewJob)], violations: &mut Violations) {
    let mut keys: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut places: HashMap<(&Name, &str), usize> = HashMap::new();
    for (index, new) in jobs {
        let spec = &new.spec;
        if let Some(key) = &spec.idempotency_key {
            let (first, fingerprint) = *keys.entry(key).or_insert((*index, &spec.fingerprint));
            if fingerprint != spec.fingerprint {
                let field = format!("requests[{index}].idempotency_key");
                let problem = format!("is that of requests[{first}], which is another request");
                violations.add(field, problem);
            }
            if first != *index {
                continue;
            }
        }
        if let Some(unique) = &spec.unique {
            let place = (&spec.job_type, unique.key.as_str());
            let first = *places.entry(place).or_insert(*index);
            if first != *index && new.on_conflict != OnConflict::ReturnExisting {
                let field = format!("requests[{index}].unique");
                let problem = format!(
                    "is asked for by requests[{first}]; only ON_CONFLICT_RETURN_EXISTING is accepted \
                     behind it"
                );
                violations.add(field, problem);
            }
        }
    }
}
