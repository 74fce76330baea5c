//! The words of the steps and of the reference in those of the queue, and back.

use std::sync::Arc;

use pacenote::error::{Error, Limit, Precondition};
use pacenote::job::event::{LogLevel, LogLine};
use pacenote::job::name::{JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::progress::Progress;
use pacenote::job::queue::Given;
use pacenote::job::{Job, JobState, Report};
use pacenote::queue::{Edit, LimitsEdit, Start, Submission, TimeoutOverrides, UniqueRequest};

use super::TENANTS;
use crate::model::reference::{Refused, Reply, seconds, text_of};
use crate::model::steps::{Queue, Submit, Telling};

/// Whether a job that could run but for its concurrency key stands in its lane or beside it is the
/// server's own business: what matters is who runs.
pub(super) fn in_line(state: JobState) -> JobState {
    match state {
        JobState::Blocked => JobState::Queued,
        as_it_is => as_it_is,
    }
}

pub(super) fn tenant_of(submit: &Submit) -> Name {
    tenant(submit.tenant)
}

pub(super) fn tenant(number: u8) -> Name {
    let tenant = TENANTS[usize::from(number) % TENANTS.len()];
    Name::new(tenant).expect("a name")
}

pub(super) fn submission(submit: &Submit) -> Submission {
    let input = Payload::text(submit.input.to_string());
    let delay = seconds(submit.delay);
    Submission {
        tenant: tenant_of(submit),
        queue: match submit.queue {
            Queue::First => String::new(),
            Queue::Second => submit.queue.name().to_string(),
        },
        priority: i32::from(submit.priority),
        idempotency_key: submit.idempotency_key.map(text_of).unwrap_or_default(),
        start: delay.map_or(Start::AtOnce, Start::After),
        unique: submit.unique.map(|(place, choice)| UniqueRequest {
            key: format!("place {place}"),
            on_conflict: Some(choice),
            window: None,
        }),
        concurrency_key: submit
            .concurrency_key
            .map(|key| format!("shared-{key}"))
            .unwrap_or_default(),
        timeouts: TimeoutOverrides {
            queue_timeout: seconds(submit.queue_timeout),
            total_timeout: seconds(submit.total_timeout),
            ..TimeoutOverrides::default()
        },
        retention: seconds(submit.retention),
        ..Submission::new(submit.job_type.name().as_str(), Some(input))
    }
}

/// The same job, asked for by another tenant.
pub(super) fn stranger(key: &JobKey) -> JobKey {
    let other = TENANTS
        .iter()
        .find(|tenant| **tenant != key.tenant.as_str());
    JobKey {
        tenant: Name::new(other.expect("there are two")).expect("a name"),
        id: key.id,
    }
}

pub(super) fn reply(answer: Result<Arc<Job>, Error>) -> Reply {
    match answer {
        Ok(job) => Reply::Job(job.key.clone(), in_line(job.state)),
        Err(error) => refused(error),
    }
}

pub(super) fn refused(error: Error) -> Reply {
    Reply::Refused(why(error))
}

pub(super) fn why(error: Error) -> Refused {
    match error {
        Error::NotFound { .. } => Refused::NotFound,
        Error::KeyReused { id } => Refused::KeyReused(id),
        Error::UniqueTaken { id } => Refused::UniqueTaken(id),
        Error::BatchTaken { .. } => Refused::BatchTaken,
        Error::Precondition(Precondition::StaleLease) => Refused::StaleLease,
        Error::Precondition(Precondition::NotCancelling) => Refused::NotCancelling,
        Error::Precondition(Precondition::NotRetryable { state, retried_by }) => {
            Refused::NotRetryable(in_line(state), retried_by)
        }
        Error::Exhausted {
            limit: Limit::Waiting { waiting, asked, .. },
            ..
        } => Refused::NoRoom(waiting, asked),
        Error::Unavailable { .. } => Refused::Unknown,
        other => Refused::Otherwise(format!("{other:?}")),
    }
}

/// A limit as it is set: what is not said any more holds again.
pub(super) fn limits(most: Option<u8>, of_key: Option<u8>) -> LimitsEdit {
    LimitsEdit {
        concurrency: most.map_or(Edit::Reset, |most| Edit::To(Given::Most(u32::from(most)))),
        key_concurrency: of_key.map_or(Edit::Reset, |most| Edit::To(u32::from(most))),
        ..LimitsEdit::default()
    }
}

pub(super) fn reports(telling: Telling) -> Vec<Report> {
    match telling {
        Telling::Nothing => vec![],
        Telling::Progress(percent) => {
            vec![Report::Progress(Progress::fraction(
                f64::from(percent) / 100.0,
            ))]
        }
        Telling::Output => vec![Report::Output {
            stream: "stdout".to_owned(),
            chunk: Payload::text("a line\n"),
        }],
        Telling::Log => vec![Report::Log(LogLine::new(LogLevel::Info, "a line"))],
        Telling::Checkpoint => vec![Report::Checkpoint(Payload::text("here"))],
    }
}
