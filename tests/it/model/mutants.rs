//! Planted bugs: for each invariant a store that breaks it, and histories that no honest server makes. A
//! checker that never found anything proves nothing.

use std::sync::Arc;

use pacenote::store::memory::Memory;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest_state_machine::ReferenceStateMachine;
use tokio::runtime::Builder;

use super::draw::Steps;
use super::lies;
use super::mortal::Lie;
use super::steps::Step;
use super::world::World;
use crate::invariants::Invariant;

/// Runs that a lie is looked for in. Chosen: most are found in the first.
const RUNS: usize = 40;

/// The same runs every time.
fn runs() -> impl Iterator<Item = Vec<Step>> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = Steps::sequential_strategy(30..60);
    (0..RUNS).map(move |_| {
        let tree = steps.new_tree(&mut runner).expect("steps");
        tree.current().1
    })
}

/// Plays runs on a store that lies, until it is found out.
async fn is_found(lie: Arc<dyn Lie>, is_found_in: impl Fn(&World) -> bool) -> bool {
    for steps in runs() {
        let mut world = World::new(Memory::new(), Arc::clone(&lie)).await;
        for step in steps {
            world.take(step).await;
            if is_found_in(&world) {
                return true;
            }
        }
        world.settle().await;
        if is_found_in(&world) {
            return true;
        }
    }
    false
}

/// Whether the reference notices a store that lies and breaks no invariant by it.
fn is_noticed(lie: impl Lie + 'static) -> bool {
    let runtime = Builder::new_current_thread().enable_all().build();
    let found = is_found(Arc::new(lie), World::has_mismatch);
    runtime.expect("a runtime").block_on(found)
}

/// Goal: the checker finds a bug of each kind in what it is told, and says which kind it is. Method: the
/// same steps as those of the model, on a store that lies in one way.
macro_rules! every_lie_is_found {
    ($($name:ident: $invariant:ident, $lie:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let runtime = Builder::new_current_thread().enable_all().build();
                let found = is_found(Arc::new($lie), |world: &World| {
                    world.checker().has_found(Invariant::$invariant)
                });
                assert!(runtime.expect("a runtime").block_on(found));
            }
        )*

        #[test]
        fn there_is_a_lie_for_every_invariant() {
            let lies = [$(Invariant::$invariant),*];
            for invariant in Invariant::ALL {
                assert!(lies.contains(&invariant), "{invariant:?}");
            }
        }
    };
}

every_lie_is_found! {
    a_forgotten_job_is_found: Durability, lies::Forgets;
    a_second_end_is_found: OneTerminal, lies::EndsTwice;
    a_dropped_event_is_found: Gapless, lies::DropsAnEvent;
    a_look_at_the_past_is_found: Monotone, lies::ShowsThePast::default();
    a_fence_that_falls_is_found: AttemptsAscend, lies::LowersTheFence;
    a_second_lease_is_found: OneLease, lies::HandsOutTwice::default();
    an_old_fence_is_found: Fencing, lies::TakesOldFences::default();
    a_second_result_is_found: AtMostOneResult, lies::TakesTwoResults::default();
    a_forgotten_key_is_found: Idempotency, lies::ForgetsKeys;
    a_revived_job_is_found: NoResurrection, lies::Revives;
    a_watch_that_tells_tales_is_found: WatchIsTheLog, lies::TellsTales;
    a_forgotten_cancel_is_found: CancelHolds, lies::ForgetsCancels::default();
    a_wrong_counter_is_found: Conservation, lies::Miscounts;
    a_list_of_another_tenant_is_found: TenantsApart, lies::MixesTenants;
    a_job_that_is_never_due_is_found: Liveness, lies::NeverDue;
}

#[test]
fn a_forgotten_retry_is_noticed() {
    assert!(is_noticed(lies::ForgetsRetries));
}

#[test]
fn a_job_beyond_the_quota_is_noticed() {
    assert!(is_noticed(lies::TakesOneTooMany));
}

#[test]
fn a_job_beyond_the_limit_of_its_key_is_noticed() {
    assert!(is_noticed(lies::RunsOneTooMany));
}

#[test]
fn a_forgotten_setting_is_noticed() {
    assert!(is_noticed(lies::ForgetsSettings));
}

#[test]
fn a_job_that_goes_too_soon_is_noticed() {
    assert!(is_noticed(lies::KeepsTooShort));
}
