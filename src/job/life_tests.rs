//! Whatever comes in whatever order, a job's life keeps its rules.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::job::apply_tests::new_job;
use crate::job::event::{Event, LogLevel};

/// A change, told in terms of the job it will meet: `late` is how many attempts ago it was sent.
#[derive(Clone, Debug)]
enum Move {
    Claim,
    Report {
        late: u32,
        reports: Vec<Report>,
    },
    Finish {
        late: u32,
        outcome: Outcome,
        chance: f64,
    },
    Undelivered {
        late: u32,
    },
    Lose {
        late: u32,
    },
    Stall {
        late: u32,
    },
    Cancel,
    BecomeDue,
    Expire,
    Hold,
    Unblock,
    Wait,
}

fn reports() -> impl Strategy<Value = Vec<Report>> {
    let one = prop_oneof![
        (0.0..=1.0_f64).prop_map(|fraction| Report::Progress(Progress::fraction(fraction))),
        ("[a-c]", ".{0,9}").prop_map(|(stream, text)| Report::Output {
            stream,
            chunk: Payload::text(text),
        }),
        ".{0,9}".prop_map(|text| Report::Log(LogLine::new(LogLevel::Info, text))),
        ".{0,9}".prop_map(|text| Report::Checkpoint(Payload::text(text))),
    ];
    prop::collection::vec(one, 0..4)
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Succeeded(Some(Payload::text("done")))),
        Just(Outcome::Failed(JobError::retryable("BROKEN", "again"))),
        Just(Outcome::Failed(JobError::retryable("BROKEN", "again"))),
        Just(Outcome::Failed(JobError::permanent("BROKEN", "no use"))),
        Just(Outcome::Cancelled),
        Just(Outcome::HandedBack),
        Just(Outcome::HandedBack),
        (0..900_u64).prop_map(|secs| Outcome::Snoozed(Duration::from_secs(secs))),
        Just(Outcome::Expired),
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    // Mostly in time, now and then late.
    let late = || prop_oneof![5 => Just(0_u32), 1 => 1..3_u32];
    let one = prop_oneof![
        6 => Just(Move::Claim),
        4 => (late(), reports()).prop_map(|(late, reports)| Move::Report { late, reports }),
        3 => (late(), outcomes(), 0.0..1.0_f64)
            .prop_map(|(late, outcome, chance)| Move::Finish { late, outcome, chance }),
        2 => late().prop_map(|late| Move::Lose { late }),
        1 => late().prop_map(|late| Move::Undelivered { late }),
        1 => Just(Move::Cancel),
        3 => Just(Move::BecomeDue),
        1 => late().prop_map(|late| Move::Stall { late }),
        1 => Just(Move::Expire),
        1 => Just(Move::Hold),
        2 => Just(Move::Unblock),
        3 => Just(Move::Wait),
    ];
    prop::collection::vec(one, 1..60)
}

fn to_change(made: Move, job: &Job, now: Timestamp) -> Option<Change> {
    let lease_until = now.after(Duration::from_secs(15));
    let of = |late: u32| job.attempt.saturating_sub(late);
    Some(match made {
        Move::Claim => Change::Claim {
            worker_id: "w".to_owned(),
            heard_at: now,
            lease_until,
            term: None,
        },
        Move::Report { late, reports } => Change::Report {
            attempt: of(late),
            reports,
            heard_at: now,
            lease_until,
            number: 0,
        },
        Move::Finish {
            late,
            outcome,
            chance,
        } => Change::Finish {
            attempt: of(late),
            outcome,
            chance,
            fingerprint: None,
        },
        Move::Undelivered { late } => Change::Undelivered { attempt: of(late) },
        Move::Lose { late } => Change::Lose {
            attempt: of(late),
            before: Timestamp::from_micros(i64::MAX),
        },
        Move::Cancel => Change::Cancel {
            cause: CancelCause::Requested,
            reason: String::new(),
            requested_by: "me".to_owned(),
        },
        Move::BecomeDue => Change::BecomeDue,
        Move::Stall { late } => Change::Stall {
            attempt: of(late),
            steady_now: now,
        },
        Move::Expire => Change::Expire,
        Move::Hold => Change::Hold,
        Move::Unblock => Change::Unblock,
        Move::Wait => return None,
    })
}

fn ends_job(event: &Event) -> bool {
    matches!(event.kind, EventKind::StateChange { to, .. } if to.is_terminal())
}

/// What must hold from one version of a job to the next.
fn check_step(before: &Job, after: &Job, result: &Result<Applied, Refusal>) {
    assert!(after.attempt >= before.attempt && after.attempt - before.attempt <= 1);
    assert!(after.attempts_charged >= before.attempts_charged);
    assert!(after.attempts_charged <= after.spec.retry_policy.max_attempts);
    assert!(after.attempts_charged <= after.attempt);
    assert_eq!(after.lease_expires_at.is_some(), after.state.is_leased());
    assert_eq!(after.ended_at.is_some(), after.state.is_terminal());
    assert!(after.deadline_at.is_none() || after.state.is_waiting());
    assert!(after.state.is_leased() || (after.stall_at, after.stalled_since) == (None, None));
    if before.state.is_terminal() || result.is_err() {
        assert_eq!(before, after, "nothing changes");
        return;
    }
    let changed = before != after;
    assert_eq!(after.version - before.version, i64::from(changed));
    if before.state == JobState::Cancelling {
        let goes_on = after.state == JobState::Cancelling || after.state == JobState::Cancelled;
        assert!(goes_on && after.attempt == before.attempt, "{after:?}");
    }
    let fraction = |job: &Job| job.detail.progress.as_ref().and_then(|p| p.fraction);
    if before.attempt == after.attempt && fraction(before).is_some() {
        assert!(fraction(after) >= fraction(before), "progress went back");
    }
    let kept = after.detail.log_bytes <= after.spec.log_bytes_max;
    assert!(kept, "the log is over its bound");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_comes_in_whatever_order_the_rules_hold(
        moves in moves(),
        queue_secs in prop::option::of(0..2_000_u64),
        total_secs in prop::option::of(0..9_000_u64),
    ) {
        let mut now = Timestamp::from_micros(1_000_000);
        let mut new = new_job(40);
        let timeouts = &mut Arc::make_mut(&mut new.spec).timeouts;
        timeouts.queue_timeout = queue_secs.map(Duration::from_secs);
        timeouts.total_timeout = total_secs.map(Duration::from_secs);
        let (mut job, submitted) = Job::submit(&new, now);
        let mut log = submitted.events;
        for made in moves {
            now = now.after(Duration::from_secs(if matches!(made, Move::Wait) { 700 } else { 1 }));
            let Some(change) = to_change(made, &job, now) else { continue };
            let before = job.clone();
            let result = job.apply(change, now);
            check_step(&before, &job, &result);
            log.extend(result.into_iter().flat_map(|applied| applied.events));
        }
        let sequences: Vec<i64> = log.iter().map(|event| event.sequence).collect();
        prop_assert_eq!(sequences, (1..=job.last_sequence).collect::<Vec<_>>());
        let ends = log.iter().filter(|event| ends_job(event)).count();
        prop_assert_eq!(ends, usize::from(job.state.is_terminal()));
        if job.state.is_terminal() {
            prop_assert!(ends_job(&log[log.len() - 1]), "the terminal event is the last");
        }
    }
}
