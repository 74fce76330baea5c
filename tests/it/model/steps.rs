//! What may happen, one step after another, and how steps are drawn.

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

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
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Submit {
    pub(crate) tenant: u8,
    pub(crate) job_type: Type,
    pub(crate) priority: i8,
    pub(crate) idempotency_key: Option<u8>,
    /// The input. With a key, another one is another request.
    pub(crate) input: u8,
    /// A place is free when it comes.
    pub(crate) with_place: bool,
}

/// Which one of those that there are, counted round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick(u16);

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

/// What has to be known for drawing the next step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sketch {
    submits: usize,
    places: usize,
}

/// Draws steps. What becomes of them is predicted by `Reference` while they are taken, because nobody
/// knows before which job a free place is given to.
pub(crate) struct Steps;

impl ReferenceStateMachine for Steps {
    type State = Sketch;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Sketch> {
        Just(Sketch::default()).boxed()
    }

    fn transitions(_: &Sketch) -> BoxedStrategy<Step> {
        prop_oneof![
            12 => call().prop_map(Step::Call),
            5 => job_type().prop_map(Step::Claim),
            2 => prop_oneof![0..2_000_u32, Just(20_000), Just(3_600_000)].prop_map(Step::Pass),
            1 => (-100_000..100_000_i32).prop_map(Step::SetClock),
            1 => Just(Step::Sweep),
            2 => (pick(), any::<Cut>()).prop_map(|(pick, cut)| Step::Watch(pick, cut)),
            1 => proptest::option::of((call(), dies())).prop_map(Step::Crash),
        ]
        .boxed()
    }

    fn preconditions(sketch: &Sketch, step: &Step) -> bool {
        match step {
            Step::Call(call) | Step::Crash(Some((call, _))) => match call {
                Call::Submit(_) => true,
                Call::Report(..) | Call::Finish(..) => sketch.places > 0,
                Call::Cancel(_)
                | Call::CancelAsStranger(_)
                | Call::Delete(_)
                | Call::DeleteFront(..) => sketch.submits > 0,
            },
            Step::Claim(_) | Step::Watch(..) | Step::Crash(None) => sketch.submits > 0,
            Step::Pass(_) | Step::SetClock(_) | Step::Sweep => true,
        }
    }

    fn apply(mut sketch: Sketch, step: &Step) -> Sketch {
        match step {
            Step::Call(Call::Submit(submit)) => {
                sketch.submits += 1;
                sketch.places += usize::from(submit.with_place);
            }
            Step::Claim(_) => sketch.places += 1,
            _ => {}
        }
        sketch
    }
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        5 => submit().prop_map(Call::Submit),
        3 => (pick(), telling()).prop_map(|(pick, telling)| Call::Report(pick, telling)),
        5 => (pick(), end()).prop_map(|(pick, end)| Call::Finish(pick, end)),
        2 => pick().prop_map(Call::Cancel),
        1 => pick().prop_map(Call::CancelAsStranger),
        1 => pick().prop_map(Call::Delete),
        1 => (pick(), 0..=100_u8).prop_map(|(pick, percent)| Call::DeleteFront(pick, percent)),
    ]
}

fn submit() -> impl Strategy<Value = Submit> {
    let key = proptest::option::weighted(0.4, 0..3_u8);
    let scalars = (0..2_u8, job_type(), -1..=1_i8, key, 0..2_u8, any::<bool>());
    scalars.prop_map(
        |(tenant, job_type, priority, idempotency_key, input, with_place)| Submit {
            tenant,
            job_type,
            priority,
            idempotency_key,
            input,
            with_place,
        },
    )
}

fn pick() -> impl Strategy<Value = Pick> {
    // Mostly one of the newest.
    prop_oneof![3 => 0..4_u16, 1 => any::<u16>()].prop_map(Pick)
}

fn job_type() -> impl Strategy<Value = Type> {
    prop_oneof![3 => Just(Type::Work), 1 => Just(Type::Once)]
}

fn telling() -> impl Strategy<Value = Telling> {
    prop_oneof![
        Just(Telling::Nothing),
        (0..=100_u8).prop_map(Telling::Progress),
        Just(Telling::Output),
        Just(Telling::Log),
        Just(Telling::Checkpoint),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        3 => Just(End::Succeeds),
        3 => any::<u8>().prop_map(End::Fails),
        1 => Just(End::FailsForGood),
        2 => Just(End::IsCancelled),
        1 => Just(End::HandsBack),
    ]
}

fn dies() -> impl Strategy<Value = Dies> {
    prop_oneof![Just(Dies::BeforeTheCommit), Just(Dies::AfterTheCommit)]
}
