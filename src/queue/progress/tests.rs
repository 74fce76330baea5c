use uuid::Uuid;

use super::*;
use crate::job::limits::LEASE;
use crate::job::name::{JobId, Name};
use crate::job::payload::Payload;
use crate::job::{CancelCause, JobSpec, NewJob, Outcome};

const INTERVAL: Duration = Duration::from_millis(50);

/// A gate that knows one running job, and a clock that the test owns.
struct Bench {
    gate: ProgressGate,
    job: Job,
}

impl Bench {
    fn new(interval: Duration) -> Self {
        let spec = JobSpec {
            log_bytes_max: 4000,
            progress_interval: interval,
            ..JobSpec::of(Name::of("work"))
        };
        let key = JobKey {
            tenant: Name::of("default"),
            id: JobId::new(Uuid::from_u128(1)),
        };
        let new = NewJob::new(key, spec, None);
        let (job, _) = Job::submit(&new, at(0));
        let mut bench = Self {
            gate: ProgressGate::default(),
            job,
        };
        bench.claim(0);
        bench
    }

    fn claim(&mut self, now: u64) {
        let claim = Change::Claim {
            worker_id: "w".to_owned(),
            heard_at: at(now),
            lease_until: at(now).after(LEASE),
            term: None,
        };
        self.job.apply(claim, at(now)).expect("it waits");
        self.gate.committed(&self.job);
    }

    fn change(&self, change: Change) -> Entry {
        Entry::Change {
            key: self.job.key.clone(),
            change,
        }
    }

    fn report(&self, now: u64, reports: Vec<Report>) -> Entry {
        self.change(Change::Report {
            attempt: self.job.attempt,
            reports,
            heard_at: at(now),
            lease_until: at(now).after(LEASE),
            number: 0,
        })
    }

    /// One group of entries at a time in milliseconds; what comes out of it, as short words.
    fn group(&mut self, now: u64, entries: Vec<Entry>) -> Vec<String> {
        let out = self.group_entries(now, entries);
        out.iter().flat_map(|(entry, _)| words(entry)).collect()
    }

    /// A group whose commit fails: whoever waits for a reply sends again, the rest is taken back.
    fn fail(&mut self, now: u64, entries: Vec<Entry>) {
        for (entry, slot) in self.group_entries(now, entries) {
            if slot.is_none() {
                self.gate.take_back(entry, at(now));
            }
        }
    }

    fn group_entries(&mut self, now: u64, entries: Vec<Entry>) -> Vec<Addressed> {
        let mut out = Vec::new();
        for (slot, entry) in entries.into_iter().enumerate() {
            self.gate.admit(entry, Some(slot), at(now), &mut out);
        }
        self.gate.end_group(at(now), &mut out);
        out
    }
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(1_000_000_000).after(Duration::from_millis(millis))
}

fn progress(percent: u32) -> Report {
    Report::Progress(Progress::fraction(f64::from(percent) / 100.0))
}

fn output() -> Report {
    Report::Output {
        stream: "stdout".to_owned(),
        chunk: Payload::text("x"),
    }
}

fn lose() -> Change {
    Change::Lose {
        attempt: 1,
        before: Timestamp::from_micros(i64::MAX),
    }
}

fn finish(attempt: u32) -> Change {
    Change::Finish {
        attempt,
        outcome: Outcome::Succeeded(None),
        chance: 0.5,
        fingerprint: None,
    }
}

fn words(entry: &Entry) -> Vec<String> {
    let Entry::Change { change, .. } = entry else {
        return vec!["submit".to_owned()];
    };
    let one = match change {
        Change::Report { reports, .. } if reports.is_empty() => "heartbeat",
        Change::Report { reports, .. } => {
            let word = |report: &Report| match report {
                Report::Progress(progress) => {
                    format!("{:.0}%", progress.fraction.unwrap_or(-1.0) * 100.0)
                }
                Report::Output { .. } => "output".to_owned(),
                Report::Log(_) => "log".to_owned(),
                Report::Checkpoint(_) => "checkpoint".to_owned(),
            };
            return reports.iter().map(word).collect();
        }
        Change::Finish { .. } => "finish",
        Change::Undelivered { .. } => "undelivered",
        Change::Cancel { .. } => "cancel",
        Change::Lose { .. } => "lose",
        Change::Claim { .. } => "claim",
        Change::BecomeDue => "due",
        Change::Stall { .. } => "stall",
        Change::Expire => "expire",
        Change::Hold => "hold",
        Change::Unblock => "unblock",
        Change::Retried { .. } => "retried",
    };
    vec![one.to_owned()]
}

#[test]
fn the_first_progress_after_a_quiet_time_goes_at_once() {
    let mut bench = Bench::new(INTERVAL);
    let first = bench.report(0, vec![progress(1)]);
    assert_eq!(bench.group(0, vec![first]), ["1%"]);
    let after_quiet = bench.report(50, vec![progress(2)]);
    assert_eq!(bench.group(50, vec![after_quiet]), ["2%"]);
    assert_eq!(bench.gate.next_due(), None);
}

#[test]
fn at_most_one_progress_is_stored_in_an_interval_and_the_newest_stands_for_the_rest() {
    let mut bench = Bench::new(INTERVAL);
    let mut stored = Vec::new();
    for millis in 0..=1000 {
        let report = bench.report(millis, vec![progress(millis as u32 / 10)]);
        for word in bench.group(millis, vec![report]) {
            stored.push((millis, word));
        }
    }
    let times: Vec<u64> = stored.iter().map(|(millis, _)| *millis).collect();
    assert_eq!(times, (0..=20).map(|step| step * 50).collect::<Vec<_>>());
    for (millis, word) in stored {
        assert_eq!(word, format!("{}%", millis / 10), "the newest is stored");
    }
}

#[test]
fn held_progress_is_due_when_its_interval_ends_although_nothing_more_comes() {
    let mut bench = Bench::new(INTERVAL);
    let first = bench.report(0, vec![progress(1)]);
    bench.group(0, vec![first]);
    let held = bench.report(10, vec![progress(2)]);
    assert!(bench.group(10, vec![held]).is_empty());
    assert_eq!(bench.gate.next_due(), Some(at(50)));
    assert!(bench.group(49, vec![]).is_empty());
    assert_eq!(bench.group(50, vec![]), ["2%"]);
    assert_eq!(bench.gate.next_due(), None);
}

#[test]
fn held_progress_is_stored_before_any_other_event_and_before_the_end() {
    let cancel = Change::Cancel {
        cause: CancelCause::Requested,
        reason: String::new(),
        requested_by: String::new(),
    };
    let others = [(finish(1), "finish"), (cancel, "cancel"), (lose(), "lose")];
    for (change, word) in others {
        let mut bench = Bench::new(INTERVAL);
        let first = bench.report(0, vec![progress(1)]);
        bench.group(0, vec![first]);
        let held = bench.report(1, vec![progress(2), progress(3)]);
        assert!(bench.group(1, vec![held]).is_empty());
        let change = bench.change(change);
        assert_eq!(bench.group(2, vec![change]), ["3%", word]);
    }
    let mut bench = Bench::new(INTERVAL);
    let first = bench.report(0, vec![progress(1)]);
    bench.group(0, vec![first]);
    let held = bench.report(1, vec![progress(2)]);
    bench.group(1, vec![held]);
    let mixed = bench.report(2, vec![output(), progress(4), progress(5), output()]);
    assert_eq!(
        bench.group(2, vec![mixed]),
        ["2%", "output", "5%", "output"]
    );
}

#[test]
fn an_interval_of_zero_is_one_progress_a_commit() {
    let mut bench = Bench::new(Duration::ZERO);
    for millis in 0..5 {
        let reports = [
            bench.report(millis, vec![progress(1), progress(2)]),
            bench.report(millis, vec![progress(3)]),
        ];
        assert_eq!(bench.group(millis, reports.to_vec()), ["3%"]);
    }
}

/// Each stored progress costs 96 bytes here, and a quarter of the log's bound is 1,000.
#[test]
fn the_interval_doubles_each_time_progress_has_filled_a_quarter_of_the_log() {
    let intervals = |base: Duration| {
        let mut bench = Bench::new(base);
        let mut intervals = Vec::new();
        for _ in 0..45 {
            let report = bench.report(0, vec![progress(1)]);
            let Entry::Change { change, .. } = report else {
                unreachable!("a report is a change")
            };
            bench.job.apply(change, at(0)).expect("it runs");
            bench.gate.committed(&bench.job);
            intervals.push(bench.gate.jobs[&bench.job.key].interval.as_millis());
        }
        intervals.dedup();
        intervals
    };
    assert_eq!(intervals(INTERVAL), [50, 100, 200, 400, 800]);
    assert_eq!(intervals(Duration::ZERO), [0, 2, 4, 8, 16]);
    let long = Duration::from_secs(50);
    assert_eq!(intervals(long), [50_000, 60_000], "it grows to a minute");
}

#[test]
fn a_report_that_is_held_back_still_keeps_its_lease() {
    let mut bench = Bench::new(Duration::from_secs(3600));
    let mut renewed_at = 0;
    let mut out = Vec::new();
    for second in 0..120 {
        let now = second * 1000;
        let report = bench.report(now, vec![progress(second as u32 % 100)]);
        for (entry, _) in bench.group_entries(now, vec![report]) {
            assert!(now - renewed_at <= LEASE.as_millis() as u64 / 2, "{now}");
            renewed_at = now;
            out.extend(words(&entry));
        }
    }
    assert!(119_000 - renewed_at <= LEASE.as_millis() as u64 / 2);
    let stored = out.iter().filter(|word| word.ends_with('%')).count();
    assert_eq!(stored, 1, "and is still held back: {out:?}");
}

#[test]
fn held_progress_does_not_take_back_what_a_heartbeat_renewed() {
    let mut bench = Bench::new(Duration::from_secs(3600));
    for now in [0, 1] {
        let report = bench.report(now, vec![progress(1)]);
        bench.group(now, vec![report]);
    }
    let heartbeat = bench.report(9000, vec![]);
    assert_eq!(bench.group(9000, vec![heartbeat]), ["heartbeat"]);
    let end = bench.change(finish(1));
    let out = bench.group_entries(9001, vec![end]);
    let Entry::Change {
        change: Change::Report { lease_until, .. },
        ..
    } = &out[0].0
    else {
        panic!("the held progress comes first: {out:?}")
    };
    assert_eq!(*lease_until, at(9000).after(LEASE));
}

#[test]
fn a_checkpoint_is_no_event_and_does_not_hurry_progress() {
    let mut bench = Bench::new(INTERVAL);
    let first = bench.report(0, vec![progress(1)]);
    bench.group(0, vec![first]);
    let checkpoint = Report::Checkpoint(Payload::text("here"));
    let report = bench.report(1, vec![progress(2), checkpoint]);
    assert_eq!(bench.group(1, vec![report]), ["checkpoint"]);
    assert_eq!(bench.group(50, vec![]), ["2%"]);
}

#[test]
fn a_late_report_is_refused_by_the_store_and_does_not_replace_what_is_held() {
    let mut bench = Bench::new(INTERVAL);
    bench.job.apply(lose(), at(0)).expect("it runs");
    bench.gate.committed(&bench.job);
    bench.claim(0);
    let first = bench.report(0, vec![progress(1)]);
    bench.group(0, vec![first]);
    let held = bench.report(1, vec![progress(2)]);
    bench.group(1, vec![held]);
    let late = bench.change(Change::Report {
        attempt: 1,
        reports: vec![progress(90)],
        heard_at: at(2),
        lease_until: at(2).after(LEASE),
        number: 0,
    });
    let out = bench.group_entries(2, vec![late]);
    let late = out.iter().find(|(entry, _)| words(entry) == ["90%"]);
    assert_eq!(late.map(|(_, slot)| *slot), Some(Some(0)), "it is asked");
    let later: Vec<String> = out.iter().flat_map(|(entry, _)| words(entry)).collect();
    let mut all = later;
    all.extend(bench.group(60, vec![]));
    assert!(all.contains(&"2%".to_owned()), "{all:?}");
}

#[test]
fn what_a_failed_commit_held_comes_again_unless_there_is_newer() {
    let mut bench = Bench::new(INTERVAL);
    let first = bench.report(0, vec![progress(1)]);
    bench.group(0, vec![first]);
    let held = bench.report(1, vec![progress(2)]);
    bench.group(1, vec![held]);
    // An output releases it, and the commit fails: what was answered as held must not be lost.
    let report = bench.report(2, vec![output()]);
    bench.fail(2, vec![report]);
    assert_eq!(bench.group(502, vec![]), ["2%"]);

    bench.gate.committed(&bench.job);
    let held = bench.report(503, vec![progress(3)]);
    bench.group(503, vec![held]);
    let out = bench.group_entries(600, vec![]);
    let newer = bench.report(601, vec![progress(4)]);
    assert!(bench.group_entries(601, vec![newer]).is_empty());
    for (entry, _) in out {
        bench.gate.take_back(entry, at(602));
    }
    assert_eq!(bench.group(700, vec![]), ["4%"]);
}

#[test]
fn held_progress_survives_a_failed_commit_that_began_with_a_checkpoint() {
    let mut bench = Bench::new(INTERVAL);
    for millis in 0..2 {
        let report = bench.report(millis, vec![progress(millis as u32 + 1)]);
        bench.group(millis, vec![report]);
    }
    let checkpoint = Report::Checkpoint(Payload::text("here"));
    let report = bench.report(2, vec![checkpoint, output()]);
    bench.fail(2, vec![report]);
    assert_eq!(bench.group(502, vec![]), ["2%"]);
}

#[test]
fn what_a_failed_commit_held_waits_for_half_a_second_whatever_the_interval() {
    let mut bench = Bench::new(Duration::ZERO);
    let first = bench.report(0, vec![progress(1)]);
    let mut out = bench.group_entries(0, vec![first]);
    let (entry, _) = out.remove(0);
    bench.gate.take_back(entry, at(0));
    assert!(bench.group(499, vec![]).is_empty());
    assert_eq!(bench.group(500, vec![]), ["1%"]);
}

#[test]
fn a_job_that_ends_leaves_nothing_behind() {
    let mut bench = Bench::new(INTERVAL);
    for millis in 0..2 {
        let report = bench.report(millis, vec![progress(1)]);
        bench.group(millis, vec![report]);
    }
    bench.job.apply(finish(1), at(3)).expect("it runs");
    bench.gate.committed(&bench.job);
    assert!(bench.gate.jobs.is_empty() && bench.gate.due.is_empty());
}

#[test]
fn what_comes_behind_an_end_in_its_group_is_for_the_job_to_judge() {
    let mut bench = Bench::new(INTERVAL);
    let first = bench.report(0, vec![progress(1)]);
    bench.group(0, vec![first]);
    let held = bench.report(1, vec![progress(2)]);
    assert!(bench.group_entries(1, vec![held]).is_empty());
    let late = bench.report(2, vec![progress(3)]);
    let out = bench.group_entries(2, vec![bench.change(finish(1)), late]);
    assert_eq!(out.len(), 3, "what was held, the end, and what is late");
    // The commit fails: the attempt lives, and its progress is merged as before.
    for (entry, slot) in out {
        if slot.is_none() {
            bench.gate.take_back(entry, at(2));
        }
    }
    let next = bench.report(3, vec![progress(4)]);
    assert!(bench.group_entries(3, vec![next]).is_empty());
    assert_eq!(bench.group(503, vec![]), ["4%"]);
}
