//! One attempt at a job of a server elsewhere: run it, tell what it tells, stop it when it has to stop, and
//! say how it went.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::client::error::ClientError;
use crate::client::worker::Crew;
use crate::client::worker::hold::{Cause, Hold};
use crate::executor::reporter::{self, Reports};
use crate::executor::{Attempt, DRAIN_GRACE, Executor, SLACK, checked, crashed};
use crate::job::event::JobError;
use crate::job::limits::CANCEL_GRACE_DEFAULT;
use crate::job::name::{JobId, JobKey, Name, default_tenant};
use crate::job::{Outcome, Report};
use crate::pb;
use crate::wire::{self, reports};

/// Reports that are taken in one go, and events of one call. The server takes up to 1,000.
const REPORTS_MAX: usize = 512;
/// How large a call may be that has more than one event; a larger event travels alone. Chosen: as a watch's
/// batches, so that a slow line passes one within its deadline.
const REPORT_BYTES_MAX: usize = 256 << 10;

/// How long a handler has to stop whose report was refused. Chosen: as long as in a drain.
const REFUSED_GRACE: Duration = DRAIN_GRACE;

/// Renews a lease until it is dropped, also by a panic.
struct Kept<'a>(&'a Crew, &'a Hold);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.holds.let_go(self.1);
    }
}

/// Runs an attempt to its end and tells it.
pub(super) async fn run(
    crew: Arc<Crew>,
    leased: pb::LeasedJob,
    hold: Arc<Hold>,
    place: OwnedSemaphorePermit,
) {
    let _kept = Kept(&crew, &hold);
    let job = leased.job.unwrap_or_default();
    let (job_id, number) = (job.job_id.clone(), job.attempt);
    tracing::debug!(job = job_id, attempt = number, "attempt begins");
    let teller = Teller {
        crew: &crew,
        hold: &hold,
        number: 0,
    };
    let outcome = match prepare(&crew, job, &hold) {
        Ok((executor, attempt, reports)) => teller.follow(executor, attempt, reports, place).await,
        Err(problem) => Outcome::Failed(JobError::permanent("INPUT_INVALID", problem)),
    };
    let told = tokio::select! {
        biased;
        () = hold.lost.cancelled() => Ok(()),
        told = tell_end(&crew, &hold, outcome) => told,
    };
    match told {
        Ok(()) => tracing::debug!(job = job_id, attempt = number, "attempt ended"),
        Err(error) => {
            tracing::warn!(job = job_id, attempt = number, %error, "the end of an attempt was refused");
        }
    }
}

/// Gives back what came too late to begin.
pub(super) async fn hand_back(crew: Arc<Crew>, hold: Arc<Hold>) {
    let _kept = Kept(&crew, &hold);
    if let Err(error) = tell_end(&crew, &hold, Outcome::HandedBack).await {
        tracing::warn!(%error, "a job was not taken back");
    }
}

/// Who runs it, what it works on, and where what it tells arrives.
fn prepare(
    crew: &Crew,
    job: pb::Job,
    hold: &Hold,
) -> Result<(Arc<dyn Executor>, Attempt, Reports), String> {
    let job_type = Name::new(&job.r#type).map_err(|problem| format!("type {problem}"))?;
    let executor = crew.executors.get(&job_type).cloned();
    let executor = executor.ok_or_else(|| format!("type {job_type} was not leased for"))?;
    let id = JobId::parse(&job.job_id).map_err(|problem| format!("job_id {problem}"))?;
    let payload = |field: &str, payload: Option<pb::Payload>| {
        let payload = payload.map_or(Ok(None), wire::from_payload);
        // On its own: it came as a part of an answer that may hold a thousand others.
        payload
            .map(|payload| payload.map(|payload| payload.detached()))
            .map_err(|problem| format!("{field} {problem}"))
    };
    let grace = job.timeouts.and_then(|timeouts| timeouts.cancel_grace);
    let grace = grace.and_then(|grace| Duration::try_from(grace).ok());
    hold.grace.shorten(grace.unwrap_or(CANCEL_GRACE_DEFAULT));
    let (reporter, reports) = reporter::channel();
    let attempt = Attempt {
        key: JobKey {
            tenant: Name::new(&job.tenant).unwrap_or_else(|_| default_tenant()),
            id,
        },
        job_type,
        number: u32::try_from(job.attempt).unwrap_or(1),
        input: payload("input", job.input)?,
        checkpoint: payload("checkpoint", job.checkpoint)?,
        reporter,
        stop: hold.stop.clone(),
        grace: hold.grace.clone(),
        quarters: crew.quarters.handle().clone(),
    };
    Ok((executor, attempt, reports))
}

/// Tells the server what an attempt tells, in order.
struct Teller<'a> {
    crew: &'a Crew,
    hold: &'a Hold,
    /// Of the newest report.
    number: i64,
}

impl Teller<'_> {
    /// Runs an attempt until it has ended and all that it told is with the server. The place is given back once
    /// nothing runs: what comes then waits for the server alone.
    async fn follow(
        mut self,
        executor: Arc<dyn Executor>,
        attempt: Attempt,
        mut reports: Reports,
        place: OwnedSemaphorePermit,
    ) -> Outcome {
        let (crew, hold) = (self.crew, self.hold);
        let work = async move { executor.run(attempt).await };
        let mut work = AbortOnDropHandle::new(tokio::spawn(work));
        let over = CancellationToken::new();
        let mut telling = pin!(self.tell(&mut reports, &over));
        let mut told = None;
        let mut drains = false;
        let mut overdue = pin!(overdue(hold));
        let outcome = loop {
            tokio::select! {
                // Cancel safe: its outcome is still there next time.
                outcome = &mut work => break outcome.unwrap_or_else(|error| crashed(&error)),
                refused = &mut telling, if told.is_none() => {
                    if refused.is_err() {
                        hold.grace.shorten(REFUSED_GRACE);
                        hold.stop.cancel();
                    }
                    told = Some(refused);
                }
                () = hold.out_of_touch(), if hold.cause() < Some(Cause::OutOfTouch) => {
                    hold.stop(Cause::OutOfTouch);
                }
                () = crew.hand_back.cancelled(), if !drains => {
                    drains = true;
                    hold.stop(Cause::Drain);
                }
                () = &mut overdue => {
                    tracing::error!("the executor does not come back: it is left behind");
                    work.abort();
                    break Outcome::Cancelled;
                }
            }
        };
        drop(place);
        over.cancel();
        let told = match told {
            Some(told) => told,
            None => telling.await,
        };
        match told {
            Err(error) => {
                let error = JobError::permanent("REPORT_REFUSED", error.to_string());
                Outcome::Failed(error.cut())
            }
            Ok(()) => decided(outcome, hold.cause()),
        }
    }

    /// Tells what comes, until the attempt is over and all is told, or nothing may be told any more. Whoever
    /// reports after that is told that the attempt is over.
    ///
    /// # Errors
    /// What the server refused for another reason than the lease.
    async fn tell(
        &mut self,
        reports: &mut Reports,
        over: &CancellationToken,
    ) -> Result<(), ClientError> {
        let lost = self.hold.lost.clone();
        let told = tokio::select! {
            biased;
            () = lost.cancelled() => Ok(()),
            told = self.tell_all(reports, over) => told,
        };
        reports.close();
        told
    }

    async fn tell_all(
        &mut self,
        reports: &mut Reports,
        over: &CancellationToken,
    ) -> Result<(), ClientError> {
        loop {
            let taken = tokio::select! {
                // Cancel safe: a report is taken or still waits.
                taken = reports.take(REPORTS_MAX) => taken,
                () = over.cancelled() => reports.close(),
            };
            if taken.is_empty() {
                return Ok(());
            }
            for request in requests(taken) {
                self.send(request).await?;
            }
        }
    }

    async fn send(&mut self, mut request: pb::ReportRequest) -> Result<(), ClientError> {
        self.number += 1;
        request.report_number = self.number;
        request.lease_token = self.hold.token.clone();
        let sent = Instant::now();
        let answer = self
            .crew
            .link
            .insist(request, |mut service, request| async move {
                service.report(request).await
            });
        match answer.await {
            Ok(answer) => {
                let holds = &self.crew.holds;
                holds.renewed(self.hold, sent, answer.cancel_requested);
                Ok(())
            }
            Err(error) if is_refused_as_it_is(&error) => Err(error),
            // The lease, or the right to work at all.
            Err(error) => {
                tracing::info!(%error, "a lease is lost");
                self.hold.stop(Cause::Lost);
                Ok(())
            }
        }
    }
}

/// Whether the server found fault with what was sent, and not with the lease.
fn is_refused_as_it_is(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(refusal) if refusal.code == "INVALID_ARGUMENT")
}

/// Comes when an executor that was told to stop has broken its promise to come back.
async fn overdue(hold: &Hold) {
    hold.stop.cancelled().await;
    hold.grace.passed(SLACK).await;
}

/// Reports as requests of a bounded size. Of progress that follows progress the newest stands, as on the
/// server; and of checkpoints.
fn requests(reports: Vec<Report>) -> Vec<pb::ReportRequest> {
    use pb::worker_event::Event;
    let is_progress = |event: &pb::WorkerEvent| matches!(event.event, Some(Event::Progress(_)));
    let mut requests = vec![pb::ReportRequest::default()];
    let mut bytes = 0;
    for report in reports {
        let (event, checkpoint) = match reports::to_event(report) {
            Ok(event) => (Some(event), None),
            Err(checkpoint) => (None, Some(checkpoint)),
        };
        let more = event.as_ref().map_or(0, Message::encoded_len)
            + checkpoint.as_ref().map_or(0, Message::encoded_len);
        let last = requests.last().expect("one at least");
        let is_full = bytes > 0 && bytes + more > REPORT_BYTES_MAX;
        if is_full || last.events.len() == REPORTS_MAX {
            requests.push(pb::ReportRequest::default());
            bytes = 0;
        }
        bytes += more;
        let request = requests.last_mut().expect("one at least");
        if checkpoint.is_some() {
            request.checkpoint = checkpoint;
        }
        if let Some(event) = event {
            match request.events.last_mut() {
                Some(last) if is_progress(last) && is_progress(&event) => *last = event,
                _ => request.events.push(event),
            }
        }
    }
    requests
}

/// How an attempt went, given why it was told to stop, if it was.
fn decided(outcome: Outcome, cause: Option<Cause>) -> Outcome {
    match (cause, checked(outcome, cause.is_some())) {
        (Some(Cause::Drain | Cause::OutOfTouch), Outcome::Succeeded(result)) => {
            Outcome::Succeeded(result)
        }
        (Some(Cause::Drain | Cause::OutOfTouch), _) => Outcome::HandedBack,
        (Some(Cause::Cancel | Cause::Lost) | None, outcome) => outcome,
    }
}

/// Tells how an attempt went until that is answered.
///
/// # Errors
/// Why it was refused.
async fn tell_end(crew: &Crew, hold: &Hold, outcome: Outcome) -> Result<(), ClientError> {
    match finish(crew, hold, outcome.clone()).await {
        // Said as an error that can be told, so that the job does not hang.
        Err(error) if is_refused_as_it_is(&error) => {
            finish(crew, hold, Outcome::Failed(instead(outcome, &error))).await
        }
        told => told,
    }
}

/// The error in place of an outcome that the server refused.
fn instead(outcome: Outcome, refused: &ClientError) -> JobError {
    tracing::warn!(error = %refused, "what an attempt came to was refused as it is");
    match outcome {
        // It is the reason or what stands beside it: whether and when to try again stays as the handler said.
        Outcome::Failed(error) => JobError {
            reason: "HANDLER_ERROR".to_owned(),
            message: format!("{}: {}", error.reason, error.message),
            metadata: BTreeMap::new(),
            ..error
        },
        _ => JobError::permanent("RESULT_INVALID", refused.to_string()),
    }
    .cut()
}

async fn finish(crew: &Crew, hold: &Hold, outcome: Outcome) -> Result<(), ClientError> {
    let request = reports::to_finish(hold.token.clone(), outcome);
    let answer = crew
        .link
        .insist(request, |mut service, request| async move {
            service.finish(request).await
        });
    answer.await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::payload::Payload;
    use crate::job::progress::Progress;

    fn output(bytes: usize) -> Report {
        Report::Output {
            stream: "stdout".to_owned(),
            chunk: Payload::text("x".repeat(bytes)),
        }
    }

    fn counts(requests: &[pb::ReportRequest]) -> Vec<usize> {
        let counts = requests.iter().map(|request| request.events.len());
        counts.collect()
    }

    fn at(fraction: f64) -> Report {
        Report::Progress(Progress::fraction(fraction))
    }

    #[test]
    fn a_request_is_bounded_and_a_larger_event_travels_alone() {
        let sizes = [100 << 10, 100 << 10, 100 << 10, 1 << 19, 1];
        let requests = requests(sizes.map(output).into());
        assert_eq!(counts(&requests), [2, 1, 1, 1]);
    }

    #[test]
    fn a_request_has_no_more_events_than_the_server_takes() {
        let many = requests((0..1_024).map(|_| output(1)).collect());
        assert_eq!(counts(&many), [REPORTS_MAX, 1_024 - REPORTS_MAX]);
    }

    #[test]
    fn what_is_refused_is_told_as_what_is_not() {
        let refused = ClientError::cut("no such reason");
        let odd = JobError::retryable("rate-limited", "come back");
        let told = instead(Outcome::Failed(odd), &refused);
        assert_eq!(
            (told.reason.as_str(), told.retryable),
            ("HANDLER_ERROR", true)
        );
        assert_eq!(told.message, "rate-limited: come back");
        let told = instead(Outcome::Succeeded(None), &refused);
        assert_eq!(
            (told.reason.as_str(), told.retryable),
            ("RESULT_INVALID", false)
        );
    }

    #[test]
    fn the_newest_progress_and_the_newest_checkpoint_stand() {
        let checkpoint = |text: &str| Report::Checkpoint(Payload::text(text));
        let told = vec![
            at(0.1),
            checkpoint("a"),
            at(0.2),
            output(1),
            at(0.3),
            checkpoint("b"),
        ];
        let requests = requests(told);
        let [request] = &requests[..] else {
            panic!("{requests:?}")
        };
        let fractions: Vec<Option<f64>> = request
            .events
            .iter()
            .map(|event| match &event.event {
                Some(pb::worker_event::Event::Progress(progress)) => progress.fraction,
                _ => None,
            })
            .collect();
        assert_eq!(fractions, [Some(0.2), None, Some(0.3)]);
        let newest = wire::to_payload(Payload::text("b"));
        assert_eq!(request.checkpoint, Some(newest));
    }

    #[test]
    fn why_it_was_stopped_decides_what_its_attempt_comes_to() {
        let done = || Outcome::Succeeded(None);
        for cause in [Cause::Drain, Cause::OutOfTouch] {
            assert_eq!(decided(done(), Some(cause)), done());
            assert_eq!(
                decided(Outcome::Cancelled, Some(cause)),
                Outcome::HandedBack
            );
        }
        assert_eq!(
            decided(Outcome::Cancelled, Some(Cause::Cancel)),
            Outcome::Cancelled
        );
        let Outcome::Failed(error) = decided(Outcome::Cancelled, None) else {
            panic!("nobody asked for it")
        };
        assert_eq!(error.reason, "HANDLER_CANCELLED");
    }
}
