//! The words of a history: what was answered, handed out, watched and read back.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use pacenote::job::name::{JobId, JobKey, Lane, Name};
use pacenote::job::segment::EncodedEvent;
use pacenote::job::{Job, JobState};
use pacenote::pb;
use pacenote::pb::job_event::Event;
use prost::Message;

/// One thing that somebody saw. A history is in the order in which they came.
#[derive(Clone, Debug)]
pub(crate) enum Observation {
    /// A submit was acknowledged, with this job.
    Submitted {
        job: Seen,
        idempotency_key: Option<String>,
    },
    /// A call was answered with a job.
    Answered(Seen),
    /// A cancel was acknowledged, with this job.
    Cancelled(Seen),
    /// An attempt was handed to a worker.
    Claimed(JobKey, u32),
    /// What an attempt told was accepted.
    ReportAccepted(JobKey, u32),
    /// The result of an attempt was accepted.
    ResultAccepted(JobKey, u32, Vec<u8>),
    /// A job was deleted, by somebody who may.
    Deleted(JobKey),
    /// A delete was asked for, and nobody knows what became of it.
    DeleteUnknown(JobKey),
    /// A response to a tenant had these ids in it.
    Shown(Name, Vec<JobId>),
    /// A watch that began behind a sequence and told these events.
    Watched {
        key: JobKey,
        after: i64,
        events: Vec<Entry>,
        /// The state in its last message, where it ended with OK.
        ended: Option<JobState>,
    },
    /// All that is stored.
    Snapshot(Snapshot),
    /// No fault is left, the time for everything has come, and workers took what they could.
    Settled,
}

/// A job as an answer showed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) key: JobKey,
    pub(crate) state: JobState,
    pub(crate) attempt: u32,
    pub(crate) last_sequence: i64,
}

impl Seen {
    pub(crate) fn of(job: &Job) -> Self {
        Self {
            key: job.key.clone(),
            state: job.state,
            attempt: job.attempt,
            last_sequence: job.last_sequence,
        }
    }
}

/// All that is stored at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) jobs: Vec<Stored>,
    /// The counters.
    pub(crate) depths: BTreeMap<(Lane, JobState), i64>,
}

/// A job in the store.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) job: Arc<Job>,
    pub(crate) result: Option<Vec<u8>>,
    /// All that is kept of it; `None` where it was not read again.
    pub(crate) log: Option<Vec<Entry>>,
}

/// An event of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) sequence: i64,
    pub(crate) attempt: u32,
    pub(crate) what: What,
    /// Of all of its bytes.
    pub(crate) print: u64,
}

/// What an event says, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// The job moved on.
    Moved(Option<JobState>, JobState),
    /// Progress, output or a log line.
    Told,
    /// Anything else.
    Other,
}

impl Entry {
    /// An event as a segment or a watch has it.
    pub(crate) fn decoded(event: &EncodedEvent) -> Self {
        let decoded = pb::JobEvent::decode(event.bytes.clone()).expect("an event");
        assert_eq!(decoded.sequence, event.sequence);
        Self::read(&decoded, &event.bytes)
    }

    /// An event as a client has it. Only to be compared with others that came this way.
    pub(crate) fn of(event: &pb::JobEvent) -> Self {
        Self::read(event, &event.encode_to_vec())
    }

    fn read(decoded: &pb::JobEvent, bytes: &[u8]) -> Self {
        let mut print = DefaultHasher::new();
        bytes.hash(&mut print);
        Self {
            sequence: decoded.sequence,
            attempt: u32::try_from(decoded.attempt).expect("an attempt"),
            what: match &decoded.event {
                Some(Event::StateChange(moved)) => What::Moved(
                    state(moved.from_state()),
                    state(moved.to_state()).expect("a state"),
                ),
                Some(Event::Progress(_) | Event::Output(_) | Event::Log(_)) => What::Told,
                _ => What::Other,
            },
            print: print.finish(),
        }
    }
}

/// A state as a client has it; `None` where there is none.
pub(crate) fn state(state: pb::job::State) -> Option<JobState> {
    use pb::job::State;
    Some(match state {
        State::Unspecified => return None,
        State::Scheduled => JobState::Scheduled,
        State::Blocked => JobState::Blocked,
        State::Queued => JobState::Queued,
        State::Running => JobState::Running,
        State::Cancelling => JobState::Cancelling,
        State::Succeeded => JobState::Succeeded,
        State::Failed => JobState::Failed,
        State::Cancelled => JobState::Cancelled,
        State::Expired => JobState::Expired,
    })
}
