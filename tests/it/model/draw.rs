//! How steps are drawn.

use pacenote::job::JobState;
use pacenote::job::JobState::{Cancelled, Expired, Failed, Succeeded};
use pacenote::job::policy::OnConflict;
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

use super::steps::{
    Among, Call, Cut, Dies, End, Pick, Queue, Rule, Step, Submit, Telling, Type, Which,
};

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
            15 => call().prop_map(Step::Call),
            6 => job_type().prop_map(Step::Claim),
            2 => time().prop_map(Step::Pass),
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
                Call::Submit(_) | Call::Batch(_) | Call::Set(_) => true,
                Call::Report(..) | Call::Finish(..) => sketch.places > 0,
                Call::Cancel(_)
                | Call::CancelAsStranger(_)
                | Call::Delete(_)
                | Call::DeleteFront(..)
                | Call::Retry(..)
                | Call::RetryMany(_)
                | Call::DeleteMany(_)
                | Call::Retire(_) => sketch.submits > 0,
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
            Step::Call(Call::Batch(jobs)) => sketch.submits += jobs.len(),
            Step::Claim(_) => sketch.places += 1,
            _ => {}
        }
        sketch
    }
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        5 => submit().prop_map(Call::Submit),
        1 => proptest::collection::vec(submit(), 1..5).prop_map(batch),
        3 => (pick(), telling()).prop_map(|(pick, telling)| Call::Report(pick, telling)),
        5 => (pick(), end()).prop_map(|(pick, end)| Call::Finish(pick, end)),
        2 => pick().prop_map(Call::Cancel),
        1 => pick().prop_map(Call::CancelAsStranger),
        1 => pick().prop_map(Call::Delete),
        1 => (pick(), 0..=100_u8).prop_map(|(pick, percent)| Call::DeleteFront(pick, percent)),
        2 => (pick(), among()).prop_map(|(pick, among)| Call::Retry(pick, among)),
        1 => which(ANY_OF.map(<[_]>::to_vec).to_vec()).prop_map(Call::RetryMany),
        1 => which(OVER_IN.map(<[_]>::to_vec).to_vec()).prop_map(Call::DeleteMany),
        1 => (1..4_u8).prop_map(Call::Retire),
        2 => rule().prop_map(Call::Set),
    ]
}

/// What may be retried, and more than that.
const ANY_OF: [&[JobState]; 3] = [&[Failed], &[Failed, Cancelled, Expired], &[]];
/// What may be deleted.
const OVER_IN: [&[JobState]; 3] = [&[Succeeded], &[Failed, Cancelled], &[Expired]];

fn which(states: Vec<Vec<JobState>>) -> impl Strategy<Value = Which> {
    let states = prop::sample::select(states);
    // More than are retried in one commit, too.
    let page_size = prop_oneof![1..4_u8, Just(10)];
    (0..2_u8, states, page_size).prop_map(|(tenant, states, page_size)| Which {
        tenant,
        states,
        page_size,
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    // Rather let go than held: what nothing is started of is soon a run in which nothing happens.
    let pause = || prop::bool::weighted(0.35);
    let limit = || proptest::option::of(1..3_u8);
    prop_oneof![
        2 => (queue(), pause()).prop_map(|(queue, paused)| Rule::PauseQueue(queue, paused)),
        2 => (job_type(), pause()).prop_map(|(job_type, paused)| Rule::PauseType(job_type, paused)),
        3 => (queue(), limit(), limit()).prop_map(|(queue, most, of_key)| {
            Rule::Limit(queue, most, of_key)
        }),
    ]
}

fn queue() -> impl Strategy<Value = Queue> {
    prop_oneof![3 => Just(Queue::First), 1 => Just(Queue::Second)]
}

/// Less than a lease, more than one, more than a retention, and more than a key is kept.
fn time() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..2_000_u32,
        4 => Just(20_000),
        4 => Just(3_600_000),
        1 => Just(86_400_000),
    ]
}

fn submit() -> impl Strategy<Value = Submit> {
    let key = proptest::option::weighted(0.4, 0..3_u8);
    let kind = (job_type(), queue());
    let scalars = (0..2_u8, kind, -1..=1_i8, key, 0..2_u8, any::<bool>());
    let rarely = |range| proptest::option::weighted(0.15, range);
    let unique = proptest::option::weighted(0.2, (0..2_u8, on_conflict()));
    let waits = (
        rarely(1..30_u8),
        unique,
        proptest::option::weighted(0.3, 0..2_u8),
        rarely(1..60_u8),
        rarely(1..60_u8),
        rarely(0..60_u8),
    );
    (scalars, waits).prop_map(|(scalars, waits)| {
        let (tenant, (job_type, queue), priority, idempotency_key, input, with_place) = scalars;
        let (delay, unique, concurrency_key, queue_timeout, total_timeout, retention) = waits;
        Submit {
            tenant,
            job_type,
            queue,
            priority,
            idempotency_key,
            input,
            delay,
            unique,
            concurrency_key,
            queue_timeout,
            total_timeout,
            retention,
            with_place,
        }
    })
}

fn on_conflict() -> impl Strategy<Value = OnConflict> {
    prop_oneof![
        Just(OnConflict::ReturnExisting),
        Just(OnConflict::Reject),
        Just(OnConflict::ReplaceWaiting),
        Just(OnConflict::CancelRunning),
    ]
}

/// Keys of its own: two jobs of a batch with one key would be refused before the store is asked.
fn batch(mut jobs: Vec<Submit>) -> Call {
    let tenant = jobs.first().map_or(0, |job| job.tenant);
    for (job, place) in jobs.iter_mut().zip(10..) {
        job.tenant = tenant;
        job.unique = None;
        job.idempotency_key = job.idempotency_key.map(|_| place);
    }
    Call::Batch(jobs)
}

fn pick() -> impl Strategy<Value = Pick> {
    // Mostly one of the newest.
    prop_oneof![3 => 0..4_u16, 1 => any::<u16>()].prop_map(Pick)
}

fn among() -> impl Strategy<Value = Among> {
    prop_oneof![4 => Just(Among::Over), 1 => Just(Among::All)]
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
        1 => (1..30_u8).prop_map(End::Snoozes),
    ]
}

fn dies() -> impl Strategy<Value = Dies> {
    prop_oneof![Just(Dies::BeforeTheCommit), Just(Dies::AfterTheCommit)]
}
