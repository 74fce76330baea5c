//! What the holder of a lease says: how its attempt goes, and how it ended.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Unavailable};
use crate::job::limits::{EVENT_BYTES_MIN, LEASE};
use crate::job::name::JobKey;
use crate::job::{Change, Job, Outcome, Report};
use crate::queue::JobQueue;
use crate::store::Entry;

/// The right to tell of, and to end, one attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Whose job, and which one.
    pub key: JobKey,
    /// Which attempt: the fence.
    pub attempt: u32,
}

impl JobQueue {
    /// An attempt of this process is over, and its end could not be stored: from here on it is lost when its
    /// lease ends, like any other. Nothing happens where its end was stored.
    pub fn abandon(&self, lease: &Lease) {
        let now = self.shared.clock.steady();
        let attempts = &self.shared.attempts;
        attempts.forget(&lease.key, lease.attempt, now);
    }

    /// Stores what an attempt tells, which renews its lease. An empty report is a heartbeat. Progress
    /// may be answered before it is stored, because newer progress may still replace it.
    ///
    /// # Errors
    /// [`StaleLease`](crate::error::Precondition::StaleLease), [`Error::NotFound`], [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn report(&self, lease: &Lease, reports: Vec<Report>) -> Result<(), Error> {
        let bytes = reports.iter().map(report_bytes).sum();
        let entry = Entry::Change {
            key: lease.key.clone(),
            change: self.report_change(lease, 0, reports, LEASE),
        };
        let answer = self.change_one(entry, bytes).await?;
        self.job_of(&lease.key, answer).map(|_| ())
    }

    /// Ends an attempt, after what it still had to tell, in one transaction. Answers the job after it.
    ///
    /// # Errors
    /// [`StaleLease`](crate::error::Precondition::StaleLease), [`NotCancelling`](crate::error::Precondition::NotCancelling), [`Error::NotFound`],
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn finish(
        &self,
        lease: &Lease,
        reports: Vec<Report>,
        outcome: Outcome,
    ) -> Result<Arc<Job>, Error> {
        let mut bytes = reports.iter().map(report_bytes).sum();
        if let Outcome::Succeeded(Some(result)) = &outcome {
            bytes += result.as_bytes().len();
        }
        let mut entries = Vec::with_capacity(2);
        if !reports.is_empty() {
            entries.push(Entry::Change {
                key: lease.key.clone(),
                change: self.report_change(lease, 0, reports, LEASE),
            });
        }
        entries.push(Entry::Change {
            key: lease.key.clone(),
            change: Change::Finish {
                attempt: lease.attempt,
                outcome,
                chance: self.shared.clock.chance(),
                fingerprint: None,
            },
        });
        let mut answers = self.change(entries, bytes).await?;
        let answer = answers.pop().ok_or_else(Error::outcome_unknown)?;
        self.job_of(&lease.key, answer)?
            .ok_or_else(|| Error::internal(&"the end of an attempt was held back"))
    }

    /// What stores a report, and renews the lease for a term. `number`: see [`Change::Report`].
    pub(super) fn report_change(
        &self,
        lease: &Lease,
        number: i64,
        reports: Vec<Report>,
        term: Duration,
    ) -> Change {
        let now = self.shared.clock.steady();
        Change::Report {
            attempt: lease.attempt,
            reports,
            heard_at: now,
            lease_until: now.after(term),
            number,
        }
    }
}

/// How often an internal error is taken for one of a single group.
const INTERNAL_RETRIES: u32 = 5;

/// Whether what an attempt has to say may be stored later although it could not be now. Full disks are freed
/// and other programs let go of the database; of our own mistakes some are of one group only; everything
/// else stays as it is: a lease that is lost, a store that has failed. `failures`: how often it failed before.
pub(crate) fn may_heal(error: &Error, failures: u32) -> bool {
    match error {
        Error::Exhausted { .. }
        | Error::Unavailable {
            reason: Unavailable::StoreBusy,
            ..
        } => true,
        Error::Internal { .. } => failures < INTERNAL_RETRIES,
        _ => false,
    }
}

/// What a report takes of the room of what waits to be stored.
pub(super) fn report_bytes(report: &Report) -> usize {
    let content = match report {
        Report::Progress(progress) => {
            progress.unit.len() + progress.phase.len() + progress.message.len()
        }
        Report::Output { chunk, .. } => chunk.as_bytes().len(),
        Report::Log(line) => line.bytes(),
        Report::Checkpoint(checkpoint) => checkpoint.as_bytes().len(),
    };
    content.max(EVENT_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::event::{LogLevel, LogLine};
    use crate::job::payload::Payload;
    use crate::job::progress::Progress;

    #[test]
    fn all_that_a_report_holds_counts_and_what_is_empty_as_well() {
        let long = || "x".repeat(500);
        let output = |text: String| Report::Output {
            stream: "stdout".to_owned(),
            chunk: Payload::text(text),
        };
        let line = |text: String| Report::Log(LogLine::new(LogLevel::Info, text));
        let mut of_fields = LogLine::new(LogLevel::Info, long());
        of_fields.fields.insert("a".to_owned(), long().into());
        let progress = Progress {
            phase: long(),
            message: long(),
            ..Progress::fraction(0.5)
        };
        for (report, bytes) in [
            (output(String::new()), EVENT_BYTES_MIN),
            (line(String::new()), EVENT_BYTES_MIN),
            (Report::Progress(Progress::default()), EVENT_BYTES_MIN),
            (Report::Checkpoint(Payload::text("")), EVENT_BYTES_MIN),
            (output(long()), 500),
            (line(long()), 500),
            (Report::Log(of_fields), 500 + r#"{"a":""}"#.len() + 500),
            (Report::Progress(progress), 1_000),
            (Report::Checkpoint(Payload::text(long())), 500),
        ] {
            assert_eq!(report_bytes(&report), bytes, "{report:?}");
        }
    }
}
