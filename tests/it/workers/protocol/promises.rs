//! What the model is checked for, by name: what always holds, and what has to be reached.

use pacenote::job::JobState;
use stateright::Property;

use super::server::Effect;
use super::{Protocol, Rule, State, Worker};

/// What always holds: a property for each rule.
macro_rules! promises {
    ($($name:literal: $rule:ident;)*) => {
        pub(super) fn promises() -> Vec<Property<Protocol>> {
            vec![$(Property::always($name, |_, state: &State| {
                state.broken != Some(Rule::$rule)
            })),*]
        }

        pub(super) fn name_of(rule: Rule) -> &'static str {
            match rule {
                $(Rule::$rule => $name,)*
            }
        }
    };
}

promises! {
    "at most one result is accepted": OneResult;
    "no two leases live at once": OneLease;
    "no two workers are at work at once, by their own clocks": OneAtWork;
    "an old fence changes nothing": AnOldFenceChangesNothing;
    "the holder of a lease is heard": TheHolderIsHeard;
    "terminal is for ever": TerminalIsForEver;
    "a log is dense": TheLogIsDense;
    "a cancel that was answered holds": ACancelHolds;
    "an end that is told again is answered again": AnEndToldAgainIsAnsweredAgain;
    "a numbered report is stored once": ReportsAreStoredOnce;
    "no lease ends before its term": NoLeaseEndsEarly;
}

/// What has to be reached, so that what always holds says something.
pub(super) fn sights() -> Vec<Property<Protocol>> {
    vec![
        Property::sometimes("a stale end is refused", |_, state: &State| {
            state.effect == Some(Effect::StaleFinishRefused)
        }),
        Property::sometimes("a stale report is refused", |_, state: &State| {
            state.effect == Some(Effect::StaleReportRefused)
        }),
        Property::sometimes("an end is answered again", |_, state: &State| {
            state.effect == Some(Effect::EndAnsweredAgain)
        }),
        Property::sometimes("a doubled report is skipped", |_, state: &State| {
            state.effect == Some(Effect::DoubledReportSkipped)
        }),
        Property::sometimes(
            "a lease is renewed under the sweeper",
            |_, state: &State| state.effect == Some(Effect::SweepCameTooLate),
        ),
        Property::sometimes("a cancel comes before a result", |_, state: &State| {
            state.effect == Some(Effect::CancelBeatAResult)
        }),
        Property::sometimes(
            "the other worker takes a lost lease over",
            |_, state: &State| state.server.was_taken_over(),
        ),
        Property::sometimes("a lease outlives the server", |_, state: &State| {
            let at_work = |worker: &Worker| matches!(worker, Worker::Works(_));
            let server = &state.server;
            server.crashed
                && server.job.attempt == 1
                && server.job.state == JobState::Succeeded
                && !state.workers.iter().any(at_work)
        }),
        Property::sometimes("three lost attempts end the job", |_, state: &State| {
            let job = &state.server.job;
            let error = job.detail.error.as_ref();
            job.state == JobState::Failed
                && job.attempts_charged < job.spec.retry_policy.max_attempts
                && error.is_some_and(|error| error.reason == "WORKER_LOST")
        }),
        Property::sometimes("a job is cancelled at its loss", |_, state: &State| {
            let job = &state.server.job;
            job.state == JobState::Cancelled && job.attempts_lost > 0
        }),
    ]
}
