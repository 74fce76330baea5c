//! What may happen, one step after another.

use pacenote::job::JobState;
use pacenote::job::policy::OnConflict;

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Somebody asks for something.
    Call(Call),
    /// A place becomes free for a type, and is taken away again where nothing is claimed.
    Claim(Type),
    /// Time passes: on both clocks, and what is due is made due.
    Pass(u32),
    /// The wall clock is set, forwards or backwards; the steady one is not.
    SetClock(i32),
    /// Leases that ended are swept.
    Sweep,
    /// A watch is read until it has nothing more, and left open. It goes on from where it was cut, by a
    /// crash or here.
    Watch(Pick, Cut),
    /// The process dies, perhaps in the middle of a call, and another one opens the store.
    Crash(Option<(Call, Dies)>),
}

/// A call that changes something, or asks for what is another's.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Submit(Submit),
    /// All of them, or none: of one tenant, with a key each or none, and without unique places.
    Batch(Vec<Submit>),
    /// What an attempt tells, whether or not it holds the lease.
    Report(Pick, Telling),
    /// How an attempt ended, by its own word, whether or not it holds the lease.
    Finish(Pick, End),
    Cancel(Pick),
    /// By a tenant whose job it is not.
    CancelAsStranger(Pick),
    Delete(Pick),
    /// The front of a log, up to so many percent of it.
    DeleteFront(Pick, u8),
    /// A new job: of one that is over, or of any.
    Retry(Pick, Among),
    /// New jobs of all that are found.
    RetryMany(Which),
    /// All that are found, in states that are final.
    DeleteMany(Which),
    /// What is kept no longer, so many at a time.
    Retire(u8),
    Set(Rule),
}

/// What is set for a queue or a type, until it is set again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// It starts nothing; or something again.
    PauseQueue(Queue, bool),
    PauseType(Type, bool),
    /// So many of its jobs run at once, and so many with one concurrency key; `None` for what holds where
    /// nobody says.
    Limit(Queue, Option<u8>, Option<u8>),
}

/// Jobs that are found together.
#[derive(Clone, Debug)]
pub(crate) struct Which {
    pub(crate) tenant: u8,
    /// In one of these states; empty for all.
    pub(crate) states: Vec<JobState>,
    /// So many a page.
    pub(crate) page_size: u8,
}

/// A request.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Submit {
    pub(crate) tenant: u8,
    pub(crate) job_type: Type,
    pub(crate) queue: Queue,
    pub(crate) priority: i8,
    pub(crate) idempotency_key: Option<u8>,
    /// The input. With a key, another one is another request.
    pub(crate) input: u8,
    /// When it may begin: in so many seconds.
    pub(crate) delay: Option<u8>,
    /// One of two places that it is to be the only one of.
    pub(crate) unique: Option<(u8, OnConflict)>,
    /// One of two keys, with each of which one job runs at once.
    pub(crate) concurrency_key: Option<u8>,
    /// Seconds that it may wait before it begins.
    pub(crate) queue_timeout: Option<u8>,
    /// Seconds that it may take, all in all.
    pub(crate) total_timeout: Option<u8>,
    /// Seconds that it is kept once it is over; as long as its type says where it does not say.
    pub(crate) retention: Option<u8>,
    /// A place is free when it comes.
    pub(crate) with_place: bool,
}

impl Submit {
    /// Nothing asked for but a type.
    pub(crate) fn plain(tenant: u8, job_type: Type) -> Self {
        Self {
            tenant,
            job_type,
            queue: Queue::First,
            priority: 0,
            idempotency_key: None,
            input: 0,
            delay: None,
            unique: None,
            concurrency_key: None,
            queue_timeout: None,
            total_timeout: None,
            retention: None,
            with_place: false,
        }
    }

    /// What has to be the same for a key to give the same job.
    pub(crate) fn request(&self) -> Self {
        Self {
            idempotency_key: None,
            with_place: false,
            ..self.clone()
        }
    }
}

/// Which one of those that there are, counted round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick(pub(super) u16);

impl Pick {
    pub(crate) fn newest() -> Self {
        Self(0)
    }

    pub(crate) fn of<T>(self, all: &[T]) -> Option<&T> {
        // The newest are the most interesting, and the first that a smaller number means.
        let len = all.len();
        (len > 0).then(|| &all[len - 1 - usize::from(self.0) % len])
    }
}

/// A job type, with what it allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Type {
    /// Three attempts.
    Work,
    /// One attempt.
    Once,
}

/// Where a job waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Queue {
    /// That of its type.
    First,
    /// One that it asks for.
    Second,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Telling {
    Nothing,
    Progress(u8),
    Output,
    Log,
    Checkpoint,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Succeeds,
    /// With the chance that its retry waits by.
    Fails(u8),
    FailsForGood,
    IsCancelled,
    HandsBack,
    /// For so many seconds.
    Snoozes(u8),
}

/// Among which jobs one is picked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Among {
    Over,
    All,
}

/// Whether a watch is cut before it is read.
pub(crate) type Cut = bool;

/// When the process dies in a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dies {
    BeforeTheCommit,
    /// And before anybody is told of it.
    AfterTheCommit,
}
