//! What workers do and are told, written down as it happens: one file for all of them, a line a thing, in one
//! write each, so that a worker that is killed has written what it did.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    /// A job was handed to the worker.
    Begun,
    /// Its handler is at work: it has just looked at the worker's clock.
    Alive,
    /// The worker begins to say something.
    Says,
    /// It was answered: what it said counts.
    Told,
    /// Its end was answered, with this state of the job.
    Ended,
    /// It was told that the lease is lost.
    Stale,
    /// Its term is over by its own clock.
    Stopped,
}

const WORDS: [(Word, &str); 7] = [
    (Word::Begun, "begun"),
    (Word::Alive, "alive"),
    (Word::Says, "says"),
    (Word::Told, "told"),
    (Word::Ended, "ended"),
    (Word::Stale, "stale"),
    (Word::Stopped, "stopped"),
];

/// A line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    /// By the machine's monotonic clock, which is the same in all processes. Microseconds.
    pub(crate) steady: i64,
    /// By its wall clock, as the log of a job has it. Microseconds.
    pub(crate) wall: i64,
    pub(crate) worker: String,
    pub(crate) word: Word,
    pub(crate) job: String,
    pub(crate) attempt: u32,
    /// The text of a report, `end` for an end; with [`Word::Ended`] the state.
    pub(crate) what: String,
}

/// The pen of one worker.
pub(crate) struct Journal {
    file: File,
    worker: String,
}

impl Journal {
    pub(crate) fn of(worker: &str, path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self {
            file: file.expect("a file"),
            worker: worker.to_owned(),
        }
    }

    pub(crate) fn write(&self, word: Word, job: &str, attempt: u32, what: &str) {
        self.write_at(steady(), word, job, attempt, what);
    }

    /// As of a moment that was looked at before.
    pub(crate) fn write_at(&self, at: i64, word: Word, job: &str, attempt: u32, what: &str) {
        let spelled = WORDS.iter().find(|(known, _)| *known == word);
        let spelled = spelled.expect("every word has a spelling").1;
        let (wall, worker) = (wall(), &self.worker);
        let line = format!("{at} {wall} {worker} {spelled} {job} {attempt} {what}\n");
        (&self.file).write_all(line.as_bytes()).expect("written");
    }
}

/// All that was written so far; a line that is being written is left out.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(parse).collect()
}

fn parse(line: &str) -> Line {
    let parts: Vec<&str> = line.splitn(7, ' ').collect();
    let [steady, wall, worker, word, job, attempt, what] = parts[..] else {
        panic!("no line of a journal: {line:?}");
    };
    let word = WORDS.iter().find(|(_, spelled)| *spelled == word);
    Line {
        steady: steady.parse().expect("a time"),
        wall: wall.parse().expect("a time"),
        worker: worker.to_owned(),
        word: word.expect("a word").0,
        job: job.to_owned(),
        attempt: attempt.parse().expect("a number"),
        what: what.to_owned(),
    }
}

/// The machine's monotonic clock. Microseconds.
pub(crate) fn steady() -> i64 {
    micros(ClockId::CLOCK_MONOTONIC)
}

fn wall() -> i64 {
    micros(ClockId::CLOCK_REALTIME)
}

fn micros(clock: ClockId) -> i64 {
    let time = clock_gettime(clock).expect("every machine has it");
    time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000
}
