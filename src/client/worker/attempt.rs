//! One attempt at a job of a server elsewhere: run it, tell what it tells, stop it when it has to stop, and
//! say how it went.

use std::pin::pin;
use std::sync::Arc;

use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::client::error::ClientError;
use crate::client::worker::Crew;
use crate::client::worker::hold::{Cause, Hold};
use crate::executor::reporter::{self, Reports};
use crate::executor::{Attempt, DRAIN_GRACE, Executor, Grace, SLACK, checked, crashed};
use crate::job::event::JobError;
use crate::job::limits::CANCEL_GRACE_DEFAULT;
use crate::job::name::{JobId, JobKey, Name, default_tenant};
use crate::job::{Outcome, Report};
use crate::pb;
use crate::wire::{self, reports};

/// Reports that are taken in one go, and events of one call. The server takes up to 1,000.
const REPORTS_MAX: usize = 512;
/// How large a call may be that has more than one event; a larger event travels alone. Chosen: as a watch's batches, so that a slow line
/// passes one within its deadline.
const REPORT_BYTES_MAX: usize = 256 << 10;

/// Runs an attempt to its end and tells it.
pub(super) async fn run(
    crew: Arc<Crew>,
    leased: pb::LeasedJob,
    hold: Arc<Hold>,
    place: OwnedSemaphorePermit,
) {
    let job = leased.job.unwrap_or_default();
    let job_id = job.job_id.clone();
    let number = job.attempt;
    tracing::debug!(job = job_id, attempt = number, "attempt begins");
    let teller = Teller {
        crew: &crew,
        hold: &hold,
        number: 0,
    };
    let outcome = match prepare(&crew, job, &hold) {
        Ok((executor, attempt, reports)) => teller.follow(executor, attempt, reports).await,
        Err(problem) => Outcome::Failed(JobError::permanent("INPUT_INVALID", problem)),
    };
    // Whatever comes now waits for the server alone.
    drop(place);
    let told = tokio::select! {
        told = tell_end(&crew, &hold, outcome) => told,
        () = hold.lost.cancelled() => Ok(()),
    };
    crew.holds.let_go(&hold);
    match told {
        Ok(()) => tracing::debug!(job = job_id, attempt = number, "attempt ended"),
        Err(error) => {
            tracing::warn!(job = job_id, attempt = number, %error, "the end of an attempt was refused");
        }
    }
}

/// Gives back what came too late to begin.
pub(super) async fn hand_back(crew: Arc<Crew>, hold: Arc<Hold>) {
    if let Err(error) = tell_end(&crew, &hold, Outcome::HandedBack).await {
        tracing::warn!(%error, "a job was not taken back");
    }
    crew.holds.let_go(&hold);
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
    let grace = grace.and_then(|grace| std::time::Duration::try_from(grace).ok());
    let (reporter, reports) = reporter::channel();
    let attempt = Attempt {
        key: JobKey {
            tenant: default_tenant(),
            id,
        },
        job_type,
        number: u32::try_from(job.attempt).unwrap_or(1),
        input: payload("input", job.input)?,
        checkpoint: payload("checkpoint", job.checkpoint)?,
        reporter,
        stop: hold.stop.clone(),
        grace: Grace::new(grace.unwrap_or(CANCEL_GRACE_DEFAULT)),
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
    /// Runs an attempt until it has ended and all that it told is with the server.
    async fn follow(
        mut self,
        executor: Arc<dyn Executor>,
        attempt: Attempt,
        mut reports: Reports,
    ) -> Outcome {
        let (crew, hold, grace) = (self.crew, self.hold, attempt.grace.clone());
        let mut work = AbortOnDropHandle::new(tokio::spawn(executor.run(attempt)));
        let over = CancellationToken::new();
        let telling = self.tell(&mut reports, &over);
        let mut telling = pin!(telling);
        let mut told = None;
        let mut overdue = pin!(overdue(hold, &grace));
        let outcome = loop {
            tokio::select! {
                // Cancel safe: its outcome is still there next time.
                outcome = &mut work => break outcome.unwrap_or_else(|error| crashed(&error)),
                refused = &mut telling, if told.is_none() => {
                    if refused.is_err() {
                        hold.stop.cancel();
                    }
                    told = Some(refused);
                }
                () = hold.out_of_touch(), if hold.cause() < Some(Cause::OutOfTouch) => {
                    hold.stop(Cause::OutOfTouch);
                }
                () = crew.hand_back.cancelled(), if hold.cause().is_none() => {
                    grace.shorten(DRAIN_GRACE);
                    hold.stop(Cause::Drain);
                }
                () = &mut overdue => {
                    tracing::error!("the executor does not come back: it is left behind");
                    work.abort();
                    break Outcome::Cancelled;
                }
            }
        };
        over.cancel();
        if told.is_none() {
            told = tokio::select! {
                refused = &mut telling => Some(refused),
                () = hold.lost.cancelled() => None,
            };
        }
        match told {
            Some(Err(error)) => {
                Outcome::Failed(JobError::permanent("REPORT_REFUSED", error.to_string()).cut())
            }
            _ => decided(outcome, hold.cause()),
        }
    }

    /// Tells what comes, until the attempt is over and all is told.
    ///
    /// # Errors
    /// What the server refused for another reason than the lease.
    async fn tell(
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
            let is_last = over.is_cancelled();
            if taken.is_empty() {
                return Ok(());
            }
            for request in requests(taken) {
                self.send(request).await?;
            }
            if is_last && !reports.any() {
                return Ok(());
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
            Err(ClientError::Refused(refusal)) if refusal.code == "INVALID_ARGUMENT" => {
                Err(ClientError::Refused(refusal))
            }
            // The lease, or the right to work at all.
            Err(error) => {
                tracing::info!(%error, "a lease is lost");
                self.hold.stop(Cause::Lost);
                Ok(())
            }
        }
    }
}

/// Comes when an executor that was told to stop has broken its promise to come back.
async fn overdue(hold: &Hold, grace: &Grace) {
    hold.stop.cancelled().await;
    tokio::time::sleep(grace.get() + SLACK).await;
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
        if bytes > 0 && bytes + more > REPORT_BYTES_MAX {
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
    let refused = match finish(crew, hold, outcome).await {
        Err(ClientError::Refused(refusal)) if refusal.code == "INVALID_ARGUMENT" => refusal,
        told => return told,
    };
    // Said as an error, so that the job does not hang.
    let error = JobError::permanent("RESULT_INVALID", refused.to_string()).cut();
    finish(crew, hold, Outcome::Failed(error)).await
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

    fn at(fraction: f64) -> Report {
        Report::Progress(Progress::fraction(fraction))
    }

    #[test]
    fn a_request_is_bounded_and_a_larger_event_travels_alone() {
        let sizes = [100 << 10, 100 << 10, 100 << 10, 1 << 19, 1];
        let requests = requests(sizes.map(output).into());
        let counts: Vec<usize> = requests
            .iter()
            .map(|request| request.events.len())
            .collect();
        assert_eq!(counts, [2, 1, 1, 1]);
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
