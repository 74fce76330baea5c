//! [`Job::apply`]: the one place where a job changes.

use crate::job::event::{ErrorCode, Event, EventKind, JobError, LogLevel, LogLine};
use crate::job::limits::{
    ATTEMPTS_LOST_MAX, DURATION_MAX, EVENT_BYTES_MIN, IDEMPOTENCY_KEY_KEPT, LIST_MAX,
};
use crate::job::time::Timestamp;
use crate::job::{
    Applied, CancelCause, Change, Job, JobState, Outcome, Refusal, RemoteLease, Report, ToldEnd,
};

impl Job {
    /// Makes a change, or refuses it and leaves everything as it was. A cancel that comes twice or too
    /// late is no error and changes nothing.
    ///
    /// # Errors
    /// The [`Refusal`]: the change is late, or not for a job in this state.
    pub fn apply(&mut self, change: Change, now: Timestamp) -> Result<Applied, Refusal> {
        let mut applied = Applied::default();
        match change {
            Change::Claim {
                worker_id,
                heard_at,
                lease_until,
                term,
            } => {
                let is_first = self.detail.started_at.is_none();
                self.claim(&mut applied, worker_id, now)?;
                self.0.detail.remote_lease = term.map(|term| RemoteLease {
                    term,
                    last_report: 0,
                    is_first,
                });
                self.0.lease_expires_at = Some(lease_until);
                self.hear(heard_at);
            }
            Change::Report {
                attempt,
                reports,
                heard_at,
                lease_until,
                number,
            } => {
                self.check_lease(attempt)?;
                self.0.lease_expires_at = Some(lease_until);
                if !reports.is_empty() {
                    self.hear(heard_at);
                }
                let came_before = !self.count_report(number);
                for report in reports.into_iter().filter(|_| !came_before) {
                    self.report(&mut applied, report, now);
                }
            }
            Change::Finish {
                attempt,
                outcome,
                chance,
                fingerprint,
            } => {
                let told = fingerprint.map(|fingerprint| ToldEnd {
                    attempt,
                    fingerprint,
                });
                if told.is_some() && self.detail.told_end == told {
                    return Ok(applied);
                }
                self.check_lease(attempt)?;
                self.finish(&mut applied, outcome, chance, now)?;
                self.0.detail.told_end = told;
            }
            Change::Undelivered { attempt } => {
                self.check_lease(attempt)?;
                self.wait_on(&mut applied, now);
            }
            Change::Lose { attempt, before } => {
                self.check_lease(attempt)?;
                if self.lease_expires_at.is_some_and(|ends| ends >= before) {
                    return Err(Refusal::NotDue);
                }
                self.lose(&mut applied, now);
            }
            Change::Stall {
                attempt,
                steady_now,
            } => {
                self.check_lease(attempt)?;
                self.stall(&mut applied, steady_now, now)?;
            }
            Change::Cancel {
                cause,
                reason,
                requested_by,
            } => {
                if cause == CancelCause::QueuePurged && !self.state.is_waiting() {
                    return Err(Refusal::NotWaiting);
                }
                if !self.can_be_cancelled() {
                    return Ok(applied);
                }
                self.cancel(&mut applied, cause, reason, requested_by, now);
            }
            Change::BecomeDue => {
                if self.state != JobState::Scheduled || self.run_at > now {
                    return Err(Refusal::NotDue);
                }
                self.move_to(&mut applied, JobState::Queued, "", now);
            }
            Change::Expire => {
                if !self.state.is_waiting() || !self.is_overdue(now) {
                    return Err(Refusal::NotDue);
                }
                self.expire(&mut applied, now);
            }
            Change::Hold => {
                if self.state != JobState::Queued {
                    return Err(Refusal::NotQueued);
                }
                self.move_to(&mut applied, JobState::Blocked, "CONCURRENCY_KEY", now);
            }
            Change::Unblock => {
                if self.state != JobState::Blocked {
                    return Err(Refusal::NotBlocked);
                }
                self.move_to(&mut applied, JobState::Queued, "", now);
            }
            Change::Retried { by } => {
                self.check_retry()?;
                self.0.detail.retried_by = Some(by);
            }
        }
        self.0.version += 1;
        Ok(applied)
    }

    /// Whether a cancel would change anything.
    pub fn can_be_cancelled(&self) -> bool {
        !self.state.is_terminal() && self.state != JobState::Cancelling
    }

    /// Whether its deadline has passed while it waits.
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        self.deadline_at.is_some_and(|at| at <= now)
    }

    fn check_lease(&self, attempt: u32) -> Result<(), Refusal> {
        if self.state.is_leased() && self.attempt == attempt {
            Ok(())
        } else {
            Err(Refusal::StaleLease)
        }
    }

    fn claim(
        &mut self,
        applied: &mut Applied,
        worker_id: String,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        // One whose time is over expires, whoever is the first to look.
        if self.state != JobState::Queued || self.is_overdue(now) {
            return Err(Refusal::NotQueued);
        }
        self.0.attempt += 1;
        // Whoever runs it sees to its deadline.
        self.0.deadline_at = None;
        let detail = &mut self.0.detail;
        detail.started_at.get_or_insert(now);
        detail.worker_id = worker_id;
        detail.error = None;
        detail.progress = None;
        detail.progress_origin = None;
        detail.streams.clear();
        self.move_to(applied, JobState::Running, "", now);
        Ok(())
    }

    /// The attempt has told something, or has just begun.
    fn hear(&mut self, heard_at: Timestamp) {
        self.0.stall_at = Some(heard_at.after(self.spec.timeouts.stall_time));
        self.0.stalled_since = None;
    }

    fn stall(
        &mut self,
        applied: &mut Applied,
        steady_now: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let stall_at = self.stall_at.filter(|at| *at <= steady_now);
        let Some(stall_at) = stall_at else {
            return Err(Refusal::NotDue);
        };
        let silent = steady_now.since(stall_at) + self.spec.timeouts.stall_time;
        let silent_since = now.before(silent);
        self.0.stall_at = None;
        self.0.stalled_since = Some(silent_since);
        self.record(applied, now, EventKind::Stalled { silent_since });
        Ok(())
    }

    /// Takes note of a report's number. Answers whether it is new.
    fn count_report(&mut self, number: i64) -> bool {
        match &mut self.0.detail.remote_lease {
            Some(lease) if number > 0 => {
                let is_new = number > lease.last_report;
                lease.last_report = lease.last_report.max(number);
                is_new
            }
            Some(_) | None => true,
        }
    }

    fn report(&mut self, applied: &mut Applied, report: Report, now: Timestamp) {
        match report {
            Report::Progress(progress) => {
                let detail = &mut self.0.detail;
                let merged = progress.merged(&mut detail.progress_origin, now);
                // What an encoded progress event costs beyond its texts, roughly: ids and numbers.
                detail.progress_bytes +=
                    (96 + merged.unit.len() + merged.phase.len() + merged.message.len()) as u64;
                detail.progress = Some(merged.clone());
                self.record(applied, now, EventKind::Progress(merged));
            }
            Report::Output { stream, chunk } => {
                let len = chunk.as_bytes().len() as u64;
                let streams = &mut self.0.detail.streams;
                if !streams.contains_key(&stream) && streams.len() >= LIST_MAX {
                    self.drop_from_log(applied, len, now);
                    return;
                }
                let next = streams.entry(stream.clone()).or_default();
                let offset = *next;
                *next += len;
                if self.keep_in_log(applied, len, now) {
                    let output = EventKind::Output {
                        stream,
                        offset,
                        chunk,
                    };
                    self.record(applied, now, output);
                }
            }
            Report::Log(line) => {
                if self.keep_in_log(applied, line.bytes() as u64, now) {
                    self.record(applied, now, EventKind::Log(line));
                }
            }
            Report::Checkpoint(checkpoint) => applied.checkpoint = Some(checkpoint),
        }
    }

    /// Whether another `len` bytes of output or log fit under the job's bound. Once they do not,
    /// nothing more is kept, so that what is there has no holes but the one at its end.
    fn keep_in_log(&mut self, applied: &mut Applied, len: u64, now: Timestamp) -> bool {
        let detail = &mut self.0.detail;
        // What is empty takes room as well.
        let counted = len.max(EVENT_BYTES_MIN as u64);
        if detail.dropped_log_bytes == 0 && detail.log_bytes + counted <= self.0.spec.log_bytes_max
        {
            detail.log_bytes += counted;
            return true;
        }
        self.drop_from_log(applied, len, now);
        false
    }

    fn drop_from_log(&mut self, applied: &mut Applied, len: u64, now: Timestamp) {
        let first = self.detail.dropped_log_bytes == 0;
        // An empty line that found no room was dropped all the same: the counter has to say so.
        self.0.detail.dropped_log_bytes += len.max(1);
        if first {
            let message = format!(
                "the log has reached its bound of {} bytes in {LIST_MAX} streams at most: further output and log lines are dropped",
                self.spec.log_bytes_max
            );
            self.record(
                applied,
                now,
                EventKind::Log(LogLine::new(LogLevel::Warn, message)),
            );
        }
    }

    fn finish(
        &mut self,
        applied: &mut Applied,
        outcome: Outcome,
        chance: f64,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let asked_to_stop = self.state == JobState::Cancelling;
        if outcome == Outcome::Cancelled && !asked_to_stop {
            return Err(Refusal::NotCancelling);
        }
        self.0.attempts_lost = 0;
        let uncharged = matches!(outcome, Outcome::HandedBack | Outcome::Snoozed(_));
        if asked_to_stop {
            // Whatever the attempt has to say comes after the cancel, which was acknowledged.
            self.0.attempts_charged += u32::from(!uncharged);
            self.end(applied, JobState::Cancelled, "CANCEL_REQUESTED", now);
            return Ok(());
        }
        match outcome {
            Outcome::Succeeded(result) => {
                self.0.attempts_charged += 1;
                applied.result = result;
                self.end(applied, JobState::Succeeded, "", now);
            }
            Outcome::Failed(error) => {
                self.0.attempts_charged += 1;
                let policy = &self.spec.retry_policy;
                let final_reason = policy.non_retryable_reasons.contains(&error.reason);
                if error.retryable && !final_reason && self.attempts_charged < policy.max_attempts {
                    let asked = error.retry_after.map(|wait| wait.min(DURATION_MAX));
                    let wait =
                        asked.unwrap_or_else(|| policy.backoff(self.attempts_charged, chance));
                    let next = NextAttempt::charged(error, now.after(wait));
                    self.wait_for_next_attempt(applied, next, now);
                } else {
                    self.fail(applied, error, now);
                }
            }
            Outcome::HandedBack => {
                // It keeps its place, and waits for nothing although the clock was set back.
                let next = NextAttempt::uncharged("HANDED_BACK", self.run_at.min(now));
                self.wait_for_next_attempt(applied, next, now);
            }
            Outcome::Snoozed(wait) => {
                let at = now.after(wait.min(DURATION_MAX));
                let next = NextAttempt::uncharged("SNOOZED", at);
                self.wait_for_next_attempt(applied, next, now);
            }
            Outcome::Expired => {
                self.0.attempts_charged += 1;
                self.expire(applied, now);
            }
            // Refused above unless it was asked for.
            Outcome::Cancelled => {}
        }
        Ok(())
    }

    fn lose(&mut self, applied: &mut Applied, now: Timestamp) {
        self.0.attempts_charged += 1;
        self.0.attempts_lost += 1;
        if self.state == JobState::Cancelling {
            self.end(applied, JobState::Cancelled, "CANCEL_REQUESTED", now);
            return;
        }
        let error = JobError::retryable(
            "WORKER_LOST",
            format!(
                "the worker of attempt {} is gone: {} lost in a row, {} of {} charged",
                self.attempt,
                self.attempts_lost,
                self.attempts_charged,
                self.spec.retry_policy.max_attempts
            ),
        )
        .with_code(ErrorCode::Unavailable);
        if self.attempts_lost >= ATTEMPTS_LOST_MAX
            || self.attempts_charged >= self.spec.retry_policy.max_attempts
        {
            self.fail(applied, error, now);
        } else {
            self.wait_for_next_attempt(applied, NextAttempt::charged(error, now), now);
        }
    }

    /// Nobody heard of its claim.
    fn wait_on(&mut self, applied: &mut Applied, now: Timestamp) {
        if self.state == JobState::Cancelling {
            self.end(applied, JobState::Cancelled, "CANCEL_REQUESTED", now);
            return;
        }
        let lease = self.detail.remote_lease;
        let run_at = self.run_at;
        let next = NextAttempt::uncharged("HANDED_BACK", run_at.min(now));
        self.wait_for_next_attempt(applied, next, now);
        self.0.run_at = run_at;
        if lease.is_some_and(|lease| lease.is_first) {
            self.0.detail.started_at = None;
            let timeouts = &self.spec.timeouts;
            self.0.deadline_at = timeouts.to_be_started_by(run_at, self.detail.expires_at);
        }
    }

    /// Its deadline has passed.
    fn expire(&mut self, applied: &mut Applied, now: Timestamp) {
        let of_start =
            self.detail.started_at.is_none() && self.deadline_at != self.detail.expires_at;
        let (reason, message) = if of_start {
            (
                "QUEUE_TIMEOUT",
                "it was not started within its queue timeout",
            )
        } else {
            ("TOTAL_TIMEOUT", "it did not end within its total timeout")
        };
        let error = JobError::permanent(reason, message).with_code(ErrorCode::DeadlineExceeded);
        self.0.detail.error = Some(error);
        self.end(applied, JobState::Expired, reason, now);
    }

    fn cancel(
        &mut self,
        applied: &mut Applied,
        cause: CancelCause,
        reason: String,
        requested_by: String,
        now: Timestamp,
    ) {
        match self.state {
            JobState::Scheduled | JobState::Blocked | JobState::Queued => {
                self.0.detail.cancel_reason = reason;
                self.end(applied, JobState::Cancelled, cause.as_str(), now);
            }
            JobState::Running => {
                self.0.detail.cancel_reason.clone_from(&reason);
                let request = EventKind::CancelRequested {
                    reason,
                    requested_by,
                };
                self.record(applied, now, request);
                self.move_to(applied, JobState::Cancelling, cause.as_str(), now);
            }
            JobState::Cancelling
            | JobState::Succeeded
            | JobState::Failed
            | JobState::Cancelled
            | JobState::Expired => {}
        }
    }

    /// The attempt is over and the job is not.
    fn wait_for_next_attempt(&mut self, applied: &mut Applied, next: NextAttempt, now: Timestamp) {
        self.0.run_at = next.at;
        self.0.detail.error.clone_from(&next.error);
        let end = EventKind::AttemptEnd {
            charged: next.error.is_some(),
            error: next.error,
            next_attempt_at: next.at.max(now),
        };
        self.record(applied, now, end);
        self.end_lease();
        // It was started in time: from here on only its end has a deadline.
        self.0.deadline_at = self.detail.expires_at;
        let state = if next.at > now {
            JobState::Scheduled
        } else {
            JobState::Queued
        };
        self.move_to(applied, state, &next.reason, now);
    }

    fn fail(&mut self, applied: &mut Applied, error: JobError, now: Timestamp) {
        let reason = error.reason.clone();
        self.0.detail.error = Some(error);
        self.end(applied, JobState::Failed, &reason, now);
    }

    fn end_lease(&mut self) {
        self.0.lease_expires_at = None;
        self.0.stall_at = None;
        self.0.stalled_since = None;
        self.0.detail.remote_lease = None;
    }

    fn end(&mut self, applied: &mut Applied, state: JobState, reason: &str, now: Timestamp) {
        self.end_lease();
        self.0.ended_at = Some(now);
        self.0.deadline_at = None;
        let kept_until = self.kept_until(state, now);
        let events_kept = self.spec.event_retention.map(|kept| now.after(kept));
        self.0.purge_at = Some(kept_until);
        // Where all of it goes no later, nobody has to come for its front.
        self.0.events_purge_at = events_kept.filter(|at| *at < kept_until);
        self.move_to(applied, state, reason, now);
    }

    /// When a job that ends now may be removed.
    fn kept_until(&self, state: JobState, now: Timestamp) -> Timestamp {
        let retention = self.spec.retention;
        let kept = match state {
            JobState::Failed => retention.failed,
            _ => retention.finished,
        };
        let of_key = self.spec.idempotency_key.as_ref();
        let of_key = of_key.map(|_| self.created_at.after(IDEMPOTENCY_KEY_KEPT));
        now.after(kept).max(of_key.unwrap_or(now))
    }

    fn move_to(&mut self, applied: &mut Applied, to: JobState, reason: &str, now: Timestamp) {
        let from = Some(self.state);
        self.0.state = to;
        let moved = EventKind::StateChange {
            from,
            to,
            reason: reason.to_owned(),
        };
        self.record(applied, now, moved);
    }

    pub(super) fn record(&mut self, applied: &mut Applied, now: Timestamp, kind: EventKind) {
        self.0.last_sequence += 1;
        self.0.updated_at = now;
        applied.events.push(Event {
            sequence: self.last_sequence,
            at: now,
            attempt: self.attempt,
            kind,
        });
    }
}

/// What comes after an attempt that was not the last one.
struct NextAttempt {
    /// When it may begin.
    at: Timestamp,
    /// Why the one before it is over.
    reason: String,
    /// How that one failed; `None` where it did not, and charges nothing.
    error: Option<JobError>,
}

impl NextAttempt {
    fn charged(error: JobError, at: Timestamp) -> Self {
        Self {
            at,
            reason: error.reason.clone(),
            error: Some(error),
        }
    }

    fn uncharged(reason: &str, at: Timestamp) -> Self {
        Self {
            at,
            reason: reason.to_owned(),
            error: None,
        }
    }
}
