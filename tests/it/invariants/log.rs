//! What must hold of one job's log, and of the job beside it.

use pacenote::job::{Job, JobState};

use super::Invariant::{
    AtMostOneResult, AttemptsAscend, CancelHolds, Fencing, Gapless, NoResurrection, OneLease,
    OneTerminal,
};
use super::history::{Entry, What};
use super::{Found, Invariant};

/// Reads a log as the story of a job.
pub(super) struct Reader<'a> {
    job: &'a Job,
    /// `None` where the front of the log is purged, until an event says it.
    state: Option<JobState>,
    attempt: u32,
    ends: u32,
    successes: u32,
    cancelled: bool,
    found: Vec<Found>,
}

impl<'a> Reader<'a> {
    /// Everything that is wrong with a log.
    pub(super) fn read(job: &'a Job, log: &[Entry]) -> Vec<Found> {
        let mut reader = Self {
            job,
            state: None,
            attempt: 0,
            ends: 0,
            successes: 0,
            cancelled: false,
            found: Vec::new(),
        };
        let sequences = log.iter().map(|entry| entry.sequence);
        if !sequences.clone().eq(job.first_sequence..=job.last_sequence) {
            let (first, last) = (job.first_sequence, job.last_sequence);
            let sequences: Vec<_> = sequences.collect();
            reader.fault(Gapless, format!("{first} to {last} are {sequences:?}"));
        }
        if job.first_sequence > 1 {
            if !job.state.is_terminal() {
                reader.fault(Gapless, "has lost its front although it is not over");
            }
            reader.attempt = log.first().map_or(0, |entry| entry.attempt);
        }
        for entry in log {
            reader.entry(entry);
        }
        reader.end();
        reader.found
    }

    fn fault(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.found.push(Found {
            invariant,
            what: format!("job {}: {}", self.job.key.id, what.into()),
        });
    }

    fn entry(&mut self, entry: &Entry) {
        if self.state.is_some_and(JobState::is_terminal) {
            self.fault(OneTerminal, format!("{entry:?} after its end"));
        }
        match entry.what {
            What::Moved(from, to) => self.moved(entry, from, to),
            What::Told => {
                let front_is_gone = self.job.first_sequence > 1;
                let leased = self.state.map_or(front_is_gone, JobState::is_leased);
                if !leased || entry.attempt != self.attempt {
                    let (state, attempt) = (self.state, self.attempt);
                    let what = format!("{entry:?} while {state:?} in attempt {attempt}");
                    self.fault(Fencing, what);
                }
            }
            What::Other => {}
        }
        if entry.attempt < self.attempt {
            self.fault(
                AttemptsAscend,
                format!("{entry:?} after attempt {}", self.attempt),
            );
        }
    }

    fn moved(&mut self, entry: &Entry, from: Option<JobState>, to: JobState) {
        let begins = entry.sequence == 1;
        if begins != from.is_none() {
            self.fault(Gapless, format!("{entry:?} is no beginning"));
        }
        if let Some(state) = self.state {
            if state.is_terminal() {
                self.fault(NoResurrection, format!("{entry:?} after {state:?}"));
            } else if from != Some(state) {
                self.fault(Gapless, format!("{entry:?} after {state:?}"));
            }
        }
        if to == JobState::Running {
            if self.state.is_some_and(JobState::is_leased) {
                self.fault(OneLease, format!("{entry:?} beside {:?}", self.state));
            }
            if entry.attempt <= self.attempt && self.state.is_some() {
                self.fault(AttemptsAscend, format!("{entry:?} after {}", self.attempt));
            }
            if self.cancelled {
                self.fault(CancelHolds, format!("{entry:?} after a cancel"));
            }
            self.attempt = entry.attempt;
        }
        self.cancelled |= to == JobState::Cancelling;
        if self.cancelled && to.is_terminal() && to != JobState::Cancelled {
            self.fault(CancelHolds, format!("ends in {to:?} after a cancel"));
        }
        self.ends += u32::from(to.is_terminal());
        self.successes += u32::from(to == JobState::Succeeded);
        self.state = Some(to);
    }

    fn end(&mut self) {
        let job = self.job;
        if self.state.is_some_and(|state| state != job.state) {
            let what = format!("is {:?}, its log ends in {:?}", job.state, self.state);
            let invariant = if self.ends > 0 {
                NoResurrection
            } else {
                Gapless
            };
            self.fault(invariant, what);
        }
        if self.ends != u32::from(job.state.is_terminal()) {
            let what = format!("is {:?} with {} terminal events", job.state, self.ends);
            self.fault(OneTerminal, what);
        }
        if self.successes > 1 {
            self.fault(
                AtMostOneResult,
                format!("succeeds {} times", self.successes),
            );
        }
        if self.attempt != job.attempt {
            let what = format!("is in attempt {}, its log in {}", job.attempt, self.attempt);
            self.fault(AttemptsAscend, what);
        }
        if job.state.is_leased() != job.lease_expires_at.is_some() {
            let what = format!("is {:?} with lease {:?}", job.state, job.lease_expires_at);
            self.fault(OneLease, what);
        }
    }
}
