//! The queue against a model: whatever is asked, told, cancelled, retried, deleted, paused, timed out and
//! killed in whatever order, every job is as the rules say, every answer is as the rules say, and all that is
//! seen keeps the invariants. On every store.
//!
//! `PACENOTE_TEST_MODEL_CASES` says how many runs there are of each store.

mod clock;
mod draw;
mod histories;
mod lies;
mod mortal;
mod mutants;
mod reference;
mod steps;
mod stories;
mod world;

use std::sync::Arc;

use pacenote::store::memory::Memory;
use proptest::prelude::*;
use proptest_state_machine::StateMachineTest;
use tokio::runtime::{Builder, Runtime};

use self::draw::{Sketch, Steps};
use self::mortal::Honest;
use self::steps::Step;
use self::world::World;
use crate::harness::count_of;
use crate::store::bench::{Backend, Sqlite};

/// A place for a store of a kind.
trait Kind: 'static {
    type Backend: Backend;

    fn backend() -> Self::Backend;
}

struct OnMemory;

impl Kind for OnMemory {
    type Backend = Memory;

    fn backend() -> Memory {
        Memory::new()
    }
}

struct OnSqlite;

impl Kind for OnSqlite {
    type Backend = Sqlite;

    fn backend() -> Sqlite {
        Sqlite::new()
    }
}

/// A queue, on a store of this kind.
struct Queue<K>(std::marker::PhantomData<K>);

impl<K: Kind> StateMachineTest for Queue<K> {
    type SystemUnderTest = (Runtime, World);
    type Reference = Steps;

    fn init_test(_: &Sketch) -> (Runtime, World) {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let world = runtime.block_on(World::new(K::backend(), Arc::new(Honest)));
        (runtime, world)
    }

    fn apply((runtime, mut world): (Runtime, World), _: &Sketch, step: Step) -> (Runtime, World) {
        runtime.block_on(world.take(step));
        (runtime, world)
    }

    fn check_invariants((_, world): &(Runtime, World), _: &Sketch) {
        let faults = world.faults();
        assert!(faults.is_empty(), "{faults:#?}");
    }

    fn teardown((runtime, mut world): (Runtime, World), sketch: Sketch) {
        runtime.block_on(world.settle());
        runtime.block_on(world.outlive());
        Self::check_invariants(&(runtime, world), &sketch);
    }
}

fn config(cases: usize) -> ProptestConfig {
    ProptestConfig {
        cases: count_of("PACENOTE_TEST_MODEL_CASES", cases) as u32,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest_state_machine::prop_state_machine! {
    #![proptest_config(config(48))]
    #[test]
    fn jobs_live_by_the_rules_on_memory(sequential 10..90 => Queue<OnMemory>);
}

proptest_state_machine::prop_state_machine! {
    #![proptest_config(config(16))]
    #[test]
    fn jobs_live_by_the_rules_on_sqlite(sequential 10..90 => Queue<OnSqlite>);
}
