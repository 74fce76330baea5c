//! Runs that the model found something in, told again by name.

use std::sync::Arc;

use pacenote::job::policy::OnConflict;
use pacenote::store::memory::Memory;

use super::mortal::Honest;
use super::steps::{Call, End, Pick, Step, Submit, Type};
use super::world::World;
use crate::store::bench::{Backend, Sqlite};

async fn tell(backend: impl Backend, steps: &[Step]) {
    let mut world = World::new(backend, Arc::new(Honest)).await;
    for step in steps {
        world.take(step.clone()).await;
    }
    world.settle().await;
    world.outlive().await;
    assert_eq!(world.faults(), Vec::<String>::new());
}

async fn tell_all(steps: &[Step]) {
    tell(Memory::new(), steps).await;
    tell(Sqlite::new(), steps).await;
}

/// Goal: a place that is held for no time is free once its job is over, whatever the clock says.
#[tokio::test]
async fn a_job_that_is_over_holds_no_place_although_the_clock_was_set_back() {
    for on_conflict in [OnConflict::ReturnExisting, OnConflict::Reject] {
        let only_one = Step::Call(Call::Submit(Submit {
            unique: Some((0, on_conflict)),
            ..Submit::plain(0, Type::Work)
        }));
        tell_all(&[
            only_one.clone(),
            Step::Claim(Type::Work),
            Step::Call(Call::Finish(Pick::newest(), End::Succeeds)),
            Step::SetClock(-1),
            only_one,
        ])
        .await;
    }
}
