//! Every pair of state and change, in one table; and the bound of a job's log.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::job::event::{Event, LogLevel};
use crate::job::limits::{ATTEMPTS_LOST_MAX, LIST_MAX};
use crate::job::name::JobId;

const START: Timestamp = Timestamp::from_micros(1_000_000);
const NOW: Timestamp = Timestamp::from_micros(2_000_000);
const STALL_AT: Timestamp = Timestamp::from_micros(901_000_000);
const LEASE_END: Timestamp = Timestamp::from_micros(17_000_000);
const TICK: Duration = Duration::from_micros(1);

/// A job to be, with three attempts and a log of so many bytes.
pub(super) fn new_job(log_bytes_max: u64) -> NewJob {
    let key = JobKey {
        tenant: Name::of("default"),
        id: JobId::new(Uuid::from_u128(7)),
    };
    let spec = JobSpec {
        log_bytes_max,
        progress_interval: Duration::ZERO,
        ..JobSpec::of(Name::of("x"))
    };
    NewJob::new(key, spec, None)
}

/// The columns of [`TABLE`].
const STATES: [JobState; 9] = JobState::ALL;

/// A cell is `!Refusal`, or `state:events:charge`, with one letter an event: S for a change of state, A
/// for the end of an attempt, C for a cancel request, L for a log line; `=` changes nothing at all.
///
/// The attempts of a job are three: the rows ending in `at_last` have two charged already.
const TABLE: &str = "
change           scheduled       blocked         queued          running         cancelling      succeeded   failed      cancelled   expired
claim            !NotQueued      !NotQueued      running:S:0     !NotQueued      !NotQueued      !NotQueued  !NotQueued  !NotQueued  !NotQueued
claim_overdue    !NotQueued      !NotQueued      !NotQueued      !NotQueued      !NotQueued      !NotQueued  !NotQueued  !NotQueued  !NotQueued
report           !StaleLease     !StaleLease     !StaleLease     running:L:0     cancelling:L:0  !StaleLease !StaleLease !StaleLease !StaleLease
heartbeat        !StaleLease     !StaleLease     !StaleLease     running::0      cancelling::0   !StaleLease !StaleLease !StaleLease !StaleLease
report_late      !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease !StaleLease !StaleLease !StaleLease
succeed          !StaleLease     !StaleLease     !StaleLease     succeeded:S:1   cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
fail             !StaleLease     !StaleLease     !StaleLease     scheduled:AS:1  cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
fail_no_wait     !StaleLease     !StaleLease     !StaleLease     queued:AS:1     cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
fail_at_last     !StaleLease     !StaleLease     !StaleLease     failed:S:1      cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
fail_for_good    !StaleLease     !StaleLease     !StaleLease     failed:S:1      cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
say_cancelled    !StaleLease     !StaleLease     !StaleLease     !NotCancelling  cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
hand_back        !StaleLease     !StaleLease     !StaleLease     queued:AS:0     cancelled:S:0   !StaleLease !StaleLease !StaleLease !StaleLease
finish_late      !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease !StaleLease !StaleLease !StaleLease
finish_early     !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease !StaleLease !StaleLease !StaleLease
lose             !StaleLease     !StaleLease     !StaleLease     queued:AS:1     cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
lose_at_last     !StaleLease     !StaleLease     !StaleLease     failed:S:1      cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
lose_renewed     !StaleLease     !StaleLease     !StaleLease     !NotDue         !NotDue         !StaleLease !StaleLease !StaleLease !StaleLease
lose_late        !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease !StaleLease !StaleLease !StaleLease
cancel           cancelled:S:0   cancelled:S:0   cancelled:S:0   cancelling:CS:0 =               =           =           =           =
become_due       queued:S:0      !NotDue         !NotDue         !NotDue         !NotDue         !NotDue     !NotDue     !NotDue     !NotDue
become_due_early !NotDue         !NotDue         !NotDue         !NotDue         !NotDue         !NotDue     !NotDue     !NotDue     !NotDue
snooze           !StaleLease     !StaleLease     !StaleLease     scheduled:AS:0  cancelled:S:0   !StaleLease !StaleLease !StaleLease !StaleLease
run_out          !StaleLease     !StaleLease     !StaleLease     expired:S:1     cancelled:S:1   !StaleLease !StaleLease !StaleLease !StaleLease
stall            !StaleLease     !StaleLease     !StaleLease     running:T:0     cancelling:T:0  !StaleLease !StaleLease !StaleLease !StaleLease
stall_early      !StaleLease     !StaleLease     !StaleLease     !NotDue         !NotDue         !StaleLease !StaleLease !StaleLease !StaleLease
stall_late       !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease     !StaleLease !StaleLease !StaleLease !StaleLease
expire           expired:S:0     expired:S:0     expired:S:0     !NotDue         !NotDue         !NotDue     !NotDue     !NotDue     !NotDue
expire_early     !NotDue         !NotDue         !NotDue         !NotDue         !NotDue         !NotDue     !NotDue     !NotDue     !NotDue
hold             !NotQueued      !NotQueued      blocked:S:0     !NotQueued      !NotQueued      !NotQueued  !NotQueued  !NotQueued  !NotQueued
unblock          !NotBlocked     queued:S:0      !NotBlocked     !NotBlocked     !NotBlocked     !NotBlocked !NotBlocked !NotBlocked !NotBlocked
retried          !NotRetryable   !NotRetryable   !NotRetryable   !NotRetryable   !NotRetryable   !NotRetryable failed::0  cancelled::0 expired::0
";

fn lose(attempt: u32, before: Timestamp) -> Change {
    Change::Lose { attempt, before }
}

/// The change of a row. Attempt 2 holds the lease.
fn change(row: &str) -> Change {
    let retryable = JobError::retryable("BROKEN", "again");
    let finish = |outcome| Change::Finish {
        attempt: 2,
        outcome,
        chance: 0.5,
        fingerprint: None,
    };
    let report = |attempt, reports| Change::Report {
        attempt,
        reports,
        heard_at: START,
        lease_until: LEASE_END,
        number: 0,
    };
    let stall = |attempt, steady_now| Change::Stall {
        attempt,
        steady_now,
    };
    let line = || Report::Log(LogLine::new(LogLevel::Info, "hello"));
    match row {
        "claim" | "claim_overdue" => Change::Claim {
            worker_id: "w".to_owned(),
            heard_at: START,
            lease_until: LEASE_END,
            term: None,
        },
        "report" => report(2, vec![line()]),
        "heartbeat" => report(2, vec![]),
        "report_late" => report(1, vec![line()]),
        "succeed" => finish(Outcome::Succeeded(Some(Payload::text("done")))),
        "fail" | "fail_at_last" => finish(Outcome::Failed(retryable)),
        "fail_no_wait" => Change::Finish {
            attempt: 2,
            outcome: Outcome::Failed(retryable),
            chance: 0.0,
            fingerprint: None,
        },
        "fail_for_good" => finish(Outcome::Failed(JobError::permanent("BROKEN", "no use"))),
        "say_cancelled" => finish(Outcome::Cancelled),
        "hand_back" => finish(Outcome::HandedBack),
        "finish_late" => Change::Finish {
            attempt: 1,
            outcome: Outcome::Succeeded(None),
            chance: 0.5,
            fingerprint: None,
        },
        "finish_early" => Change::Finish {
            attempt: 3,
            outcome: Outcome::HandedBack,
            chance: 0.5,
            fingerprint: None,
        },
        "lose" | "lose_at_last" => lose(2, START.after(TICK)),
        "lose_renewed" => lose(2, START),
        "lose_late" => lose(1, START.after(TICK)),
        "cancel" => Change::Cancel {
            cause: CancelCause::Requested,
            reason: "enough".to_owned(),
            requested_by: "me".to_owned(),
        },
        "become_due" | "become_due_early" => Change::BecomeDue,
        "snooze" => finish(Outcome::Snoozed(Duration::from_secs(60))),
        "run_out" => finish(Outcome::Expired),
        "stall" => stall(2, STALL_AT),
        "stall_early" => stall(2, STALL_AT.before(Duration::from_micros(1))),
        "stall_late" => stall(1, STALL_AT),
        "expire" | "expire_early" => Change::Expire,
        "hold" => Change::Hold,
        "unblock" => Change::Unblock,
        "retried" => Change::Retried {
            by: JobId::new(Uuid::from_u128(8)),
        },
        other => panic!("no change {other}"),
    }
}

/// A job in a state, in its second attempt.
fn job_in(state: JobState, row: &str) -> Job {
    let (job, _) = Job::submit(&new_job(1_000), START);
    let mut fields = JobFields::clone(&job);
    fields.state = state;
    fields.attempt = 2;
    fields.attempts_charged = if row.ends_with("at_last") { 2 } else { 1 };
    fields.last_sequence = 5;
    fields.version = 4;
    fields.lease_expires_at = state.is_leased().then_some(START);
    fields.ended_at = state.is_terminal().then_some(START);
    let early = u64::from(row == "become_due_early");
    fields.stall_at = state.is_leased().then_some(STALL_AT);
    fields.deadline_at = match row {
        "expire" | "claim_overdue" => Some(NOW),
        "expire_early" | "claim" => Some(NOW.after(Duration::from_micros(1))),
        _ => None,
    };
    fields.run_at = NOW.after(Duration::from_micros(early));
    Job::from_fields(fields)
}

fn letter(event: &Event) -> char {
    match event.kind {
        EventKind::StateChange { .. } => 'S',
        EventKind::AttemptEnd { .. } => 'A',
        EventKind::CancelRequested { .. } => 'C',
        EventKind::Log(_) => 'L',
        EventKind::Progress(_) => 'P',
        EventKind::Output { .. } => 'O',
        EventKind::Stalled { .. } => 'T',
    }
}

/// What came of a change, as a cell.
fn cell(before: &Job, after: &Job, result: &Result<Applied, Refusal>) -> String {
    match result {
        Err(refusal) => {
            let refusal = format!("{refusal:?}");
            format!("!{}", refusal.split(' ').next().unwrap_or_default())
        }
        Ok(_) if before == after => "=".to_owned(),
        Ok(applied) => format!(
            "{}:{}:{}",
            after.state.as_str(),
            applied.events.iter().map(letter).collect::<String>(),
            after.attempts_charged - before.attempts_charged
        ),
    }
}

/// Goal: a change does what the table says and nothing else, and whatever is refused leaves no trace.
#[test]
fn every_change_in_every_state_is_as_the_table_says() {
    let mut pairs = 0;
    for line in TABLE.trim().lines().skip(1) {
        let mut cells = line.split_whitespace();
        let row = cells.next().expect("a change");
        let cells: Vec<&str> = cells.collect();
        assert_eq!(cells.len(), STATES.len(), "{row}");
        for (state, expected) in STATES.into_iter().zip(cells) {
            let before = job_in(state, row);
            let mut after = before.clone();
            let result = after.apply(change(row), NOW);
            assert_eq!(cell(&before, &after, &result), expected, "{row} {state:?}");
            check_traces(&before, &after, &result, &format!("{row} {state:?}"));
            pairs += 1;
        }
    }
    assert_eq!(pairs, 31 * 9);
}

fn check_traces(before: &Job, after: &Job, result: &Result<Applied, Refusal>, pair: &str) {
    let Ok(applied) = result else {
        assert_eq!(before, after, "{pair}");
        return;
    };
    let numbers: Vec<i64> = applied.events.iter().map(|event| event.sequence).collect();
    let dense: Vec<i64> = (before.last_sequence + 1..=after.last_sequence).collect();
    assert_eq!(numbers, dense, "{pair}");
    if before == after {
        return;
    }
    assert_eq!(after.version, before.version + 1, "{pair}");
    assert_eq!(
        after.lease_expires_at,
        after.state.is_leased().then_some(match pair {
            // Asking does not renew a lease.
            "cancel Running" | "stall Running" | "stall Cancelling" => START,
            _ => LEASE_END,
        }),
        "{pair}"
    );
    let ended_now = !before.state.is_terminal();
    let ended = if ended_now { NOW } else { START };
    let ended = after.state.is_terminal().then_some(ended);
    assert_eq!(after.ended_at, ended, "{pair}");
    let succeeded = after.state == JobState::Succeeded;
    assert_eq!(applied.result.is_some(), succeeded, "{pair}");
    if let Some(last) = applied.events.iter().rfind(|event| letter(event) == 'S') {
        let EventKind::StateChange { from, to, .. } = last.kind else {
            panic!("{last:?}");
        };
        assert_eq!((from, to), (Some(before.state), after.state), "{pair}");
    }
}

fn running(log_bytes_max: u64) -> Job {
    let (mut job, _) = Job::submit(&new_job(log_bytes_max), START);
    job.apply(change("claim"), START).expect("it waits");
    job
}

fn report(job: &mut Job, reports: Vec<Report>) -> Applied {
    let change = Change::Report {
        attempt: job.attempt,
        reports,
        heard_at: START,
        lease_until: LEASE_END,
        number: 0,
    };
    job.apply(change, NOW).expect("it holds the lease")
}

fn output(stream: &str, text: &str) -> Report {
    Report::Output {
        stream: stream.to_owned(),
        chunk: Payload::text(text),
    }
}

#[test]
fn three_attempts_lost_in_a_row_end_a_job_whatever_budget_is_left() {
    let mut new = new_job(1_000);
    Arc::make_mut(&mut new.spec).retry_policy.max_attempts = 100;
    let (mut job, _) = Job::submit(&new, START);
    let lose_one = |job: &mut Job| {
        job.apply(change("claim"), NOW).expect("it waits");
        let attempt = job.attempt;
        job.apply(lose(attempt, LEASE_END.after(TICK)), NOW)
            .expect("it holds the lease");
    };
    lose_one(&mut job);
    lose_one(&mut job);
    // An attempt that comes back breaks the row.
    job.apply(change("claim"), NOW).expect("it waits");
    let attempt = job.attempt;
    let hand_back = Change::Finish {
        attempt,
        outcome: Outcome::HandedBack,
        chance: 0.0,
        fingerprint: None,
    };
    job.apply(hand_back, NOW).expect("it holds the lease");
    for lost in 1..=ATTEMPTS_LOST_MAX {
        assert_eq!(job.state, JobState::Queued, "lost {lost}");
        lose_one(&mut job);
    }
    assert_eq!((job.state, job.attempts_charged), (JobState::Failed, 5));
    assert_eq!(
        job.detail.error.as_ref().expect("why").reason,
        "WORKER_LOST"
    );
}

#[test]
fn the_log_is_full_at_its_bound_and_one_byte_past_it_is_dropped_said_once_and_counted() {
    let mut job = running(266);
    let log = |text: &str| Report::Log(LogLine::new(LogLevel::Info, text));
    let long = "x".repeat(74);
    // Two of them have no length, and count all the same.
    for kept in [output("out", &long), log(""), output("out", ""), log("90")] {
        assert_eq!(report(&mut job, vec![kept]).events.len(), 1, "at it");
    }
    assert_eq!(job.detail.dropped_log_bytes, 0);

    let applied = report(&mut job, vec![output("out", "x")]);
    assert_eq!(job.detail.dropped_log_bytes, 1);
    let [said] = &applied.events[..] else {
        panic!("{applied:?}");
    };
    let EventKind::Log(line) = &said.kind else {
        panic!("{said:?}");
    };
    assert_eq!(line.level, LogLevel::Warn);
    assert!(line.message.contains("266 bytes"), "{}", line.message);

    let more = vec![output("out", "abc"), log("de"), output("new", "f")];
    assert_eq!(report(&mut job, more).events, [], "said once");
    assert_eq!(job.detail.dropped_log_bytes, 7);
    let progress = vec![Report::Progress(Progress::fraction(0.5))];
    assert_eq!(report(&mut job, progress).events.len(), 1, "always stored");
    job.apply(change_of(&job), NOW).expect("it holds the lease");
    assert_eq!(job.state, JobState::Succeeded);
}

fn change_of(job: &Job) -> Change {
    Change::Finish {
        attempt: job.attempt,
        outcome: Outcome::Succeeded(None),
        chance: 0.5,
        fingerprint: None,
    }
}

#[test]
fn once_something_was_dropped_nothing_smaller_slips_in_behind_it() {
    let mut job = running(10);
    report(&mut job, vec![output("out", "12345678901")]);
    assert_eq!(report(&mut job, vec![output("out", "1")]).events, []);
    assert_eq!(job.detail.dropped_log_bytes, 12);
    assert_eq!(job.detail.streams["out"], 12, "offsets count what is gone");
}

#[test]
fn an_attempt_has_at_most_a_hundred_output_streams() {
    let mut job = running(10_000);
    for number in 0..LIST_MAX {
        let kept = report(&mut job, vec![output(&format!("s{number}"), "x")]);
        assert_eq!(kept.events.len(), 1, "{number}");
    }
    let said = report(&mut job, vec![output("one-more", "xyz")]);
    assert!(matches!(
        said.events[..],
        [Event {
            kind: EventKind::Log(_),
            ..
        }]
    ));
    assert_eq!(job.detail.dropped_log_bytes, 3);
    assert_eq!(job.detail.streams.len(), LIST_MAX);
}
