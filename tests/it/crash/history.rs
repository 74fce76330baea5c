//! What was done to a server and what became of it, and the rules that every such history has to keep.
//!
//! A rule that never caught anything proves nothing: each has a test that breaks it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pacenote::job::JobState;

/// Everything that is known after a run.
#[derive(Clone, Default, Debug)]
pub(crate) struct History {
    /// What the store holds in the end, by id.
    pub(crate) jobs: BTreeMap<String, Stored>,
    /// The counters, by state.
    pub(crate) depths: BTreeMap<JobState, i64>,
    /// Key and job of every submit that was answered.
    pub(crate) submits: Vec<(String, String)>,
    /// Job of every cancel that was answered, and its state in the answer.
    pub(crate) cancels: Vec<(String, JobState)>,
    /// Job and sequences of every watch that came to its end.
    pub(crate) watches: Vec<(String, Vec<i64>)>,
    /// What was refused that should not have been.
    pub(crate) refusals: Vec<String>,
    /// What the programs wrote, in the order in which they wrote it.
    pub(crate) lines: Vec<Line>,
}

/// A job in the store.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) state: JobState,
    pub(crate) last_sequence: i64,
    /// Sequence of every event, and the state that it led to.
    pub(crate) log: Vec<(i64, Option<JobState>)>,
}

/// A sign of life of a program.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) word: String,
    pub(crate) job: String,
    pub(crate) attempt: u32,
}

impl History {
    /// Every rule that is broken, in words.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut violations = self.refusals.clone();
        self.check_submits(&mut violations);
        for (id, job) in &self.jobs {
            check_log(id, job, &mut violations);
        }
        self.check_depths(&mut violations);
        self.check_cancels(&mut violations);
        self.check_watches(&mut violations);
        self.check_attempts(&mut violations);
        violations
    }

    /// I1 and I9: nothing acknowledged is lost, and a key makes one job, whoever heard of it.
    fn check_submits(&self, violations: &mut Vec<String>) {
        let mut by_key: HashMap<&str, &str> = HashMap::new();
        for (id, job) in &self.jobs {
            if let Some(other) = by_key.insert(&job.key, id) {
                violations.push(format!("key {} made {other} and {id}", job.key));
            }
        }
        for (key, id) in &self.submits {
            match by_key.get(key.as_str()) {
                Some(stored) if stored == id => {}
                stored => violations.push(format!("{key}: acknowledged {id}, stored {stored:?}")),
            }
        }
    }

    /// I13: counters equal rows.
    fn check_depths(&self, violations: &mut Vec<String>) {
        let mut counted: BTreeMap<JobState, i64> = BTreeMap::new();
        for job in self.jobs.values() {
            *counted.entry(job.state).or_default() += 1;
        }
        if counted != self.depths {
            violations.push(format!("counters {:?}, rows {counted:?}", self.depths));
        }
    }

    /// I12: an acknowledged cancel ends in CANCELLED, or came after the end.
    fn check_cancels(&self, violations: &mut Vec<String>) {
        for (id, answered) in &self.cancels {
            let state = self.jobs.get(id).map(|job| job.state);
            let expected = if answered.is_terminal() {
                *answered
            } else {
                JobState::Cancelled
            };
            if state != Some(expected) {
                violations.push(format!(
                    "{id}: cancel said {answered:?}, ended in {state:?}"
                ));
            }
        }
    }

    /// I11: a watch that was cut and resumed shows the log, once and in order.
    fn check_watches(&self, violations: &mut Vec<String>) {
        for (id, sequences) in &self.watches {
            let last = self.jobs.get(id).map_or(0, |job| job.last_sequence);
            let dense = sequences.iter().copied().eq(1..=last);
            if !dense {
                violations.push(format!("{id}: 1 to {last} watched as {sequences:?}"));
            }
        }
    }

    /// I6, on the machine itself: once an attempt has shown a sign of life, no earlier one shows any.
    fn check_attempts(&self, violations: &mut Vec<String>) {
        let mut newest: HashMap<&str, u32> = HashMap::new();
        let mut starts = BTreeSet::new();
        for line in &self.lines {
            let newest = newest.entry(&line.job).or_default();
            if line.attempt < *newest {
                violations.push(format!(
                    "{}: {} of attempt {} beside attempt {newest}",
                    line.job, line.word, line.attempt
                ));
            }
            *newest = line.attempt.max(*newest);
            if line.word == "start" && !starts.insert((&line.job, line.attempt)) {
                let (job, attempt) = (&line.job, line.attempt);
                violations.push(format!("{job}: attempt {attempt} ran twice"));
            }
        }
    }
}

/// I2, I3 and I10: a dense log with one terminal event, which is its last.
fn check_log(id: &str, job: &Stored, violations: &mut Vec<String>) {
    if !job.state.is_terminal() {
        violations.push(format!("{id} is {:?} in the end", job.state));
    }
    let sequences = job.log.iter().map(|(sequence, _)| *sequence);
    if !sequences.eq(1..=job.last_sequence) {
        violations.push(format!(
            "{id}: log of 1 to {}: {:?}",
            job.last_sequence, job.log
        ));
    }
    let ends: Vec<_> = job
        .log
        .iter()
        .filter(|(_, to)| to.is_some_and(JobState::is_terminal))
        .collect();
    if ends.len() != 1 || ends[0] != &(job.last_sequence, Some(job.state)) {
        violations.push(format!("{id}: {:?} with the ends {ends:?}", job.state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job that was run twice, because the server was killed, and one that was cancelled.
    fn good() -> History {
        let log = |ends: &[(i64, JobState)]| {
            let last = ends.last().expect("an end").0;
            let to = |at| ends.iter().find(|(end, _)| *end == at).map(|end| end.1);
            (1..=last).map(|at| (at, to(at))).collect::<Vec<_>>()
        };
        let job = |key: &str, state, last_sequence| Stored {
            key: key.to_owned(),
            state,
            last_sequence,
            log: log(&[(1, JobState::Queued), (last_sequence, state)]),
        };
        let line = |word: &str, attempt| Line {
            word: word.to_owned(),
            job: "a".to_owned(),
            attempt,
        };
        History {
            jobs: BTreeMap::from([
                ("a".to_owned(), job("ka", JobState::Succeeded, 7)),
                ("b".to_owned(), job("kb", JobState::Cancelled, 3)),
            ]),
            depths: BTreeMap::from([(JobState::Succeeded, 1), (JobState::Cancelled, 1)]),
            submits: vec![("ka".to_owned(), "a".to_owned())],
            cancels: vec![("b".to_owned(), JobState::Cancelling)],
            watches: vec![("a".to_owned(), (1..=7).collect())],
            refusals: vec![],
            lines: vec![line("start", 1), line("start", 2), line("end", 2)],
        }
    }

    type Bug = fn(&mut History);

    #[test]
    fn every_planted_bug_is_found() {
        assert_eq!(good().violations(), Vec::<String>::new());
        let bugs: [(&str, Bug); 13] = [
            ("an acknowledged submit is lost", |h| {
                h.submits.push(("kc".to_owned(), "c".to_owned()));
            }),
            ("a key answered with two jobs", |h| {
                h.submits.push(("ka".to_owned(), "b".to_owned()));
            }),
            ("a key made two jobs", |h| h.job("b").key = "ka".to_owned()),
            ("a job never ends", |h| h.job("a").state = JobState::Running),
            ("a hole in a log", |h| {
                h.job("a").log.remove(3);
            }),
            ("an event twice", |h| h.job("a").log.insert(3, (3, None))),
            ("two ends", |h| h.job("a").log[4].1 = Some(JobState::Failed)),
            ("an end that is not the last event", |h| {
                h.job("a").last_sequence = 8;
                h.job("a").log.push((8, None));
            }),
            ("a row that is not counted", |h| {
                h.depths.remove(&JobState::Cancelled);
            }),
            ("a cancel that was forgotten", |h| {
                h.cancels.push(("a".to_owned(), JobState::Cancelling));
            }),
            ("a hole in a watch", |h| {
                h.watches[0].1.remove(2);
            }),
            ("two attempts at once", |h| h.lines.swap(0, 1)),
            ("an attempt that ran twice", |h| {
                h.lines.push(h.lines[1].clone());
            }),
        ];
        for (name, bug) in bugs {
            let mut history = good();
            bug(&mut history);
            assert!(!history.violations().is_empty(), "{name}");
        }
    }

    impl History {
        fn job(&mut self, id: &str) -> &mut Stored {
            self.jobs.get_mut(id).expect("it is there")
        }
    }
}
