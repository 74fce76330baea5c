//! What workers wrote down, held against what the store has: the invariants that the log alone cannot show,
//! because they are about what a worker was told and when it was at work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::journal::{Line, Word};
use super::worker::succeeded;
use crate::invariants::{Found, Invariant};

/// How late a lease may be swept after its end: FAULTS F32. Chosen there.
const SWEPT_WITHIN: Duration = Duration::from_secs(2);
/// How much the wall clock and the monotonic one may drift apart within a drill, and a line may be written
/// after what it tells of.
const DRIFT: Duration = Duration::from_millis(100);

/// A job as its log tells it.
#[derive(Clone, Default, Debug)]
pub(super) struct Tale {
    /// When each attempt was claimed, by the server's wall clock. Microseconds.
    pub(super) claims: BTreeMap<u32, i64>,
    /// When each attempt was given up whose lease ran out.
    pub(super) losses: BTreeMap<u32, i64>,
    /// The output, and the attempt that it is said to be of.
    pub(super) outputs: Vec<(String, u32)>,
    pub(super) result: Option<String>,
}

/// A time in which what a worker sent did not come; by the wall clock, in microseconds.
#[derive(Clone, Debug)]
pub(super) struct Silence {
    pub(super) worker: String,
    pub(super) from: i64,
    pub(super) to: i64,
}

/// What is known of the time.
pub(super) struct Pace {
    pub(super) term: Duration,
    pub(super) silences: Vec<Silence>,
    /// How much later than it should a busy machine does what is to be done.
    pub(super) late: Duration,
    /// The server was there all the time: it has no excuse for a lease that is swept late.
    pub(super) server_was_there: bool,
}

/// Everything that is wrong with what workers were told.
pub(super) fn check(lines: &[Line], tales: &BTreeMap<String, Tale>) -> Vec<Found> {
    let mut evidence = Evidence {
        tales,
        attempts: BTreeMap::new(),
        found: Vec::new(),
    };
    for line in lines {
        let attempt = (line.job.as_str(), line.attempt);
        evidence.attempts.entry(attempt).or_default().push(line);
    }
    evidence.claims();
    evidence.words();
    evidence.at_work();
    evidence.results();
    evidence.found
}

struct Evidence<'a> {
    tales: &'a BTreeMap<String, Tale>,
    /// In the order of the attempts of each job.
    attempts: BTreeMap<(&'a str, u32), Vec<&'a Line>>,
    found: Vec<Found>,
}

impl Evidence<'_> {
    fn fault(&mut self, invariant: Invariant, job: &str, what: String) {
        let what = format!("job {job}: {what}");
        self.found.push(Found { invariant, what });
    }

    /// I5 and I6: each attempt that was begun was claimed, by one worker and once.
    fn claims(&mut self) {
        for ((job, attempt), lines) in self.attempts.clone() {
            let begun = lines.iter().filter(|line| line.word == Word::Begun);
            let by: Vec<&str> = begun.map(|line| line.worker.as_str()).collect();
            let of_one = lines.iter().all(|line| line.worker == lines[0].worker);
            if by.len() != 1 || !of_one {
                let what = format!("attempt {attempt} was given to {by:?}");
                self.fault(Invariant::OneLease, job, what);
            }
            let tale = self.tales.get(job);
            if !tale.is_some_and(|tale| tale.claims.contains_key(&attempt)) {
                let what = format!("attempt {attempt} is not in its log");
                self.fault(Invariant::AttemptsAscend, job, what);
            }
        }
    }

    /// I7: what was accepted is in the log, once, under the attempt that said it, and was said while the
    /// attempt held its lease.
    fn words(&mut self) {
        for (job, tale) in self.tales {
            let mut texts = BTreeSet::new();
            for (text, attempt) in &tale.outputs {
                if !texts.insert(text) {
                    self.fault(
                        Invariant::Idempotency,
                        job,
                        format!("{text} is there twice"),
                    );
                }
                if !text.starts_with(&format!("{attempt}.")) {
                    let what = format!("{text} is stored as of attempt {attempt}");
                    self.fault(Invariant::Fencing, job, what);
                }
            }
        }
        for ((job, attempt), lines) in self.attempts.clone() {
            let Some(tale) = self.tales.get(job) else {
                continue;
            };
            for line in lines.iter().filter(|line| line.word == Word::Told) {
                if !tale.outputs.iter().any(|(text, _)| *text == line.what) {
                    let what = format!("{} was accepted and is not stored", line.what);
                    self.fault(Invariant::Durability, job, what);
                }
            }
            let Some(lost) = tale.losses.get(&attempt) else {
                continue;
            };
            let accepted = lines.iter().filter(|line| match line.word {
                Word::Ended => true,
                Word::Told => said(&lines, line).is_some_and(|said| said.wall > *lost),
                Word::Begun | Word::Alive | Word::Says | Word::Stale | Word::Stopped => false,
            });
            for line in accepted {
                let what = format!("{line:?} although attempt {attempt} was lost at {lost}");
                self.fault(Invariant::Fencing, job, what);
            }
        }
    }

    /// I6, by the clock that all workers share: no attempt is at work once a later one has begun.
    fn at_work(&mut self) {
        let mut before: Option<(&str, u32, i64)> = None;
        for ((job, attempt), lines) in self.attempts.clone() {
            let at_work = |line: &&&Line| matches!(line.word, Word::Begun | Word::Alive);
            let times = lines.iter().filter(at_work).map(|line| line.steady);
            let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
                continue;
            };
            if let Some((of, earlier, until)) = before
                && of == job
                && until >= first
            {
                let what = format!("attempt {earlier} at {until}, attempt {attempt} from {first}");
                self.fault(Invariant::OneLease, job, what);
            }
            before = Some((job, attempt, last));
        }
    }

    /// I8: one result is accepted, and it is the one that is stored.
    fn results(&mut self) {
        let mut accepted: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        for ((job, attempt), lines) in &self.attempts {
            let mut lines = lines.iter();
            if lines.any(|line| line.word == Word::Ended && line.what == succeeded()) {
                accepted.entry(job).or_default().insert(*attempt);
            }
        }
        for (job, attempts) in accepted {
            let result = self.tales.get(job).and_then(|tale| tale.result.as_ref());
            let of = result.and_then(|result| result.rsplit(' ').next()?.parse().ok());
            if attempts.len() != 1 || of != attempts.first().copied() {
                let what = format!("accepted of {attempts:?}, stored {result:?}");
                self.fault(Invariant::AtMostOneResult, job, what);
            }
        }
    }
}

/// The newest time that it was said before it was answered.
fn said<'a>(lines: &[&'a Line], told: &Line) -> Option<&'a Line> {
    let before = |line: &&&Line| {
        line.word == Word::Says && line.what == told.what && line.steady <= told.steady
    };
    lines
        .iter()
        .filter(before)
        .max_by_key(|line| line.steady)
        .copied()
}

/// What is wrong with when leases were given up: none before its term, and each soon after it.
pub(super) fn check_pace(
    lines: &[Line],
    tales: &BTreeMap<String, Tale>,
    pace: &Pace,
) -> Vec<Found> {
    let mut found = Vec::new();
    for (job, tale) in tales {
        for (attempt, lost) in &tale.losses {
            let of = |line: &&Line| line.job == *job && line.attempt == *attempt;
            let lines: Vec<&Line> = lines.iter().filter(of).collect();
            let claimed = tale.claims.get(attempt).copied().unwrap_or_default();
            let answered = lines.iter().filter(|line| line.word == Word::Told);
            let heard = answered
                .filter_map(|told| said(&lines, told))
                .map(|said| said.wall);
            let heard = heard.max().unwrap_or(claimed).max(claimed);
            if *lost < heard + micros(pace.term) - micros(DRIFT) {
                found.push(Found {
                    invariant: Invariant::OneLease,
                    what: format!("job {job}: attempt {attempt}, heard at {heard}, lost at {lost}"),
                });
            }
            let came = lines.iter().filter(|line| line.word == Word::Says);
            let came = came.map(|line| pace.came(line)).filter(|at| at < lost);
            let last = came.max().unwrap_or(claimed).max(claimed);
            let latest = last + micros(pace.term + SWEPT_WITHIN + DRIFT + pace.late);
            if pace.server_was_there && *lost > latest {
                found.push(Found {
                    invariant: Invariant::Liveness,
                    what: format!(
                        "job {job}: attempt {attempt}, last word at {last}, lost at {lost}"
                    ),
                });
            }
        }
    }
    found
}

impl Pace {
    /// When a word came to the server: what was said into a silence, or just before it, at its end at the
    /// latest.
    fn came(&self, line: &Line) -> i64 {
        let hit = self.silences.iter().find(|silence| {
            let from = silence.from - micros(DRIFT);
            silence.worker == line.worker && (from..=silence.to).contains(&line.wall)
        });
        hit.map_or(line.wall, |silence| silence.to)
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).expect("a short time")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn line(at: i64, worker: &str, word: Word, attempt: u32, what: &str) -> Line {
        Line {
            steady: at * SECOND,
            wall: at * SECOND,
            worker: worker.to_owned(),
            word,
            job: "a".to_owned(),
            attempt,
            what: what.to_owned(),
        }
    }

    /// A job that was lost by one worker and done by another, with a late word that was refused.
    fn good() -> (Vec<Line>, BTreeMap<String, Tale>) {
        let lines = vec![
            line(1, "x", Word::Begun, 1, "-"),
            line(1, "x", Word::Alive, 1, "-"),
            line(2, "x", Word::Says, 1, "1.1"),
            line(2, "x", Word::Told, 1, "1.1"),
            line(5, "x", Word::Alive, 1, "-"),
            line(6, "x", Word::Stopped, 1, "-"),
            line(9, "y", Word::Begun, 2, "-"),
            line(9, "y", Word::Says, 2, "2.1"),
            line(9, "x", Word::Says, 1, "end"),
            line(9, "x", Word::Stale, 1, "end"),
            line(10, "y", Word::Told, 2, "2.1"),
            line(10, "y", Word::Alive, 2, "-"),
            line(11, "y", Word::Says, 2, "end"),
            line(11, "y", Word::Ended, 2, succeeded()),
        ];
        let tale = Tale {
            claims: [(1, SECOND), (2, 9 * SECOND)].into(),
            losses: [(1, 8 * SECOND)].into(),
            outputs: vec![("1.1".to_owned(), 1), ("2.1".to_owned(), 2)],
            result: Some("done 2".to_owned()),
        };
        (lines, [("a".to_owned(), tale)].into())
    }

    fn pace() -> Pace {
        Pace {
            term: Duration::from_secs(5),
            silences: Vec::new(),
            late: Duration::ZERO,
            server_was_there: true,
        }
    }

    type Lie = fn(&mut Vec<Line>, &mut Tale);

    #[test]
    fn every_lie_is_found() {
        let (lines, tales) = good();
        assert_eq!(check(&lines, &tales), []);
        assert_eq!(check_pace(&lines, &tales, &pace()), []);
        let lies: [(&str, Invariant, Lie); 12] = [
            (
                "an attempt given to two",
                Invariant::OneLease,
                |lines, _| {
                    lines.push(line(9, "z", Word::Begun, 2, "-"));
                },
            ),
            (
                "an attempt that was never claimed",
                Invariant::AttemptsAscend,
                |_, tale| {
                    tale.claims.remove(&1);
                },
            ),
            ("two at work", Invariant::OneLease, |lines, _| {
                lines.push(line(10, "x", Word::Alive, 1, "-"));
            }),
            (
                "a report stored twice",
                Invariant::Idempotency,
                |_, tale| {
                    tale.outputs.push(("2.1".to_owned(), 2));
                },
            ),
            (
                "a report of an old attempt",
                Invariant::Fencing,
                |_, tale| {
                    tale.outputs.push(("1.2".to_owned(), 2));
                },
            ),
            (
                "a late report that is accepted",
                Invariant::Fencing,
                |lines, tale| {
                    lines.push(line(9, "x", Word::Says, 1, "1.2"));
                    lines.push(line(9, "x", Word::Told, 1, "1.2"));
                    tale.outputs.push(("1.2".to_owned(), 1));
                },
            ),
            (
                "a late end that is accepted",
                Invariant::Fencing,
                |lines, _| {
                    lines.push(line(9, "x", Word::Ended, 1, "STATE_RUNNING"));
                },
            ),
            ("a report that is lost", Invariant::Durability, |_, tale| {
                tale.outputs.remove(0);
            }),
            ("two results", Invariant::AtMostOneResult, |lines, _| {
                lines.push(line(7, "x", Word::Ended, 1, succeeded()));
            }),
            ("another result", Invariant::AtMostOneResult, |_, tale| {
                tale.result = Some("late 1".to_owned());
            }),
            ("a lease that ends early", Invariant::OneLease, |_, tale| {
                tale.losses.insert(1, 6 * SECOND);
            }),
            ("a lease that ends late", Invariant::Liveness, |_, tale| {
                tale.losses.insert(1, 17 * SECOND);
            }),
        ];
        for (name, invariant, lie) in lies {
            let (mut lines, mut tales) = good();
            lie(&mut lines, tales.get_mut("a").expect("the job"));
            let mut found = check(&lines, &tales);
            found.extend(check_pace(&lines, &tales, &pace()));
            let is_found = found.iter().any(|one| one.invariant == invariant);
            assert!(is_found, "{name}: {found:?}");
        }
    }
}
