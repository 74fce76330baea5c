//! Leases of workers that are other programs: what they send again has no second effect.

use std::time::Duration;

use super::apply_tests::new_job;
use super::*;
use crate::job::event::LogLevel;

const NOW: Timestamp = Timestamp::from_micros(1_000_000);
const TERM: Duration = Duration::from_secs(15);

fn claim(job: &mut Job) {
    let claim = Change::Claim {
        worker_id: "w".to_owned(),
        heard_at: NOW,
        lease_until: NOW.after(TERM),
        term: Some(TERM),
    };
    job.apply(claim, NOW).expect("it waits");
}

/// A job whose first attempt a worker of another program holds.
fn leased_out() -> Job {
    let (mut job, _) = Job::submit(&new_job(1_024), NOW);
    claim(&mut job);
    job
}

fn hand_back(attempt: u32, fingerprint: Option<&str>) -> Change {
    Change::Finish {
        attempt,
        outcome: Outcome::HandedBack,
        chance: 0.5,
        fingerprint: fingerprint.map(str::to_owned),
    }
}

/// How many events a report leaves, which renews the lease until `until`.
fn report(job: &mut Job, number: i64, until: Timestamp) -> usize {
    let line = Report::Log(LogLine::new(LogLevel::Info, "hello"));
    let change = Change::Report {
        attempt: job.attempt,
        reports: vec![line],
        heard_at: NOW,
        lease_until: until,
        number,
    };
    let stored = job.apply(change, NOW).expect("it holds the lease");
    assert_eq!(job.lease_expires_at, Some(until));
    stored.events.len()
}

/// Goal: a report that was stored is not stored again, and renews the lease all the same; one that is not
/// counted is always stored; the next attempt counts anew.
#[test]
fn a_numbered_report_is_stored_once() {
    let mut job = leased_out();
    let later = NOW.after(TERM * 2);
    for (number, events) in [(1, 1), (1, 0), (3, 1), (2, 0), (3, 0), (0, 1), (0, 1)] {
        assert_eq!(report(&mut job, number, later), events, "{number}");
    }
    job.apply(hand_back(1, None), NOW).expect("its end");
    assert_eq!(job.detail.remote_lease, None);
    claim(&mut job);
    assert_eq!(report(&mut job, 1, later), 1);
}

/// Goal: the same end of the same attempt changes nothing, whatever has happened since but another end; any
/// other is late.
#[test]
fn an_end_that_was_told_can_be_told_again() {
    let mut job = leased_out();
    job.apply(hand_back(1, Some("a")), NOW).expect("its end");
    for is_claimed_again in [false, true] {
        if is_claimed_again {
            claim(&mut job);
        }
        let before = job.clone();
        let again = job.apply(hand_back(1, Some("a")), NOW);
        assert_eq!(again, Ok(Applied::default()));
        for other in [Some("b"), None] {
            let late = job.apply(hand_back(1, other), NOW);
            assert_eq!(late, Err(Refusal::StaleLease));
        }
        assert_eq!(job, before);
    }
    job.apply(hand_back(2, None), NOW).expect("its end");
    let late = job.apply(hand_back(1, Some("a")), NOW);
    assert_eq!(late, Err(Refusal::StaleLease));
}

/// Goal: a claim of which nobody heard leaves all as it was but the attempt's number; only the attempt that holds the
/// lease can be taken back, and one that was asked to stop is over.
#[test]
fn a_claim_that_nobody_heard_of_is_none() {
    let mut new = new_job(1_024);
    let spec = std::sync::Arc::make_mut(&mut new.spec);
    spec.timeouts.queue_timeout = Some(TERM);
    spec.timeouts.total_timeout = Some(TERM * 2);
    let (mut job, _) = Job::submit(&new, NOW);
    let before = job.clone();
    claim(&mut job);
    assert_eq!(job.deadline_at, None);
    let undelivered = |attempt| Change::Undelivered { attempt };
    let refused = job.apply(undelivered(2), NOW);
    assert_eq!(refused, Err(Refusal::StaleLease));
    job.apply(undelivered(1), NOW).expect("it holds the lease");
    let stands = |job: &Job| {
        (
            job.state,
            job.run_at,
            job.deadline_at,
            job.detail.started_at,
        )
    };
    assert_eq!(stands(&job), stands(&before));
    let counts = (job.attempt, job.attempts_charged, job.attempts_lost);
    assert_eq!(counts, (1, 0, 0));
    job.apply(Change::Expire, NOW.after(TERM)).expect("overdue");
    let error = job.detail.error.as_ref().expect("why");
    assert_eq!(error.reason, "QUEUE_TIMEOUT");

    let mut job = leased_out();
    let lose = Change::Lose {
        attempt: 1,
        before: Timestamp::from_micros(i64::MAX),
    };
    job.apply(lose, NOW).expect("it holds the lease");
    claim(&mut job);
    job.apply(undelivered(2), NOW).expect("it holds the lease");
    assert_eq!((job.attempts_charged, job.attempts_lost), (1, 1));
    assert_eq!(job.detail.started_at, Some(NOW), "by the first attempt");
    claim(&mut job);
    let cancel = Change::Cancel {
        cause: CancelCause::Requested,
        reason: String::new(),
        requested_by: "me".to_owned(),
    };
    job.apply(cancel, NOW).expect("it runs");
    job.apply(undelivered(3), NOW).expect("it holds the lease");
    assert_eq!(job.state, JobState::Cancelled);
}
