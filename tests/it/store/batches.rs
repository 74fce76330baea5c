//! Rules: new jobs that come together, all of them or none.

use pacenote::job::JobState;
use pacenote::job::name::Name;
use pacenote::store::{Committed, NotTaken, Reply, WaitingRoom};

use super::bench::{Bench, NewJobBuilder, batch_id, batch_of, done, query};

/// The jobs that a batch was answered with, each with whether its key had made it before.
fn taken(committed: &Committed) -> Vec<(pacenote::job::name::JobId, bool)> {
    match &committed.replies[0] {
        Reply::Batch(jobs) => jobs
            .iter()
            .map(|(job, known)| (job.key.id, *known))
            .collect(),
        other => panic!("not taken: {other:?}"),
    }
}

fn ids(jobs: &[NewJobBuilder]) -> Vec<pacenote::job::name::JobId> {
    jobs.iter().map(|job| job.new.key.id).collect()
}

pub(crate) async fn a_batch_is_answered_in_its_order(bench: Bench) {
    let jobs: Vec<_> = (0..50).map(|_| bench.new_job().batch(7)).rev().collect();
    let committed = bench.commit(vec![batch_of(&jobs)], vec![]).await;
    let answered: Vec<_> = ids(&jobs).into_iter().map(|id| (id, false)).collect();
    assert_eq!(taken(&committed), answered);
    for job in bench.all().await {
        assert_eq!(job.spec.batch_id, Some(batch_id(7)));
        assert_eq!((job.state, job.last_sequence), (JobState::Queued, 1));
    }
    let published: Vec<_> = committed.published.iter().map(|p| p.job.key.id).collect();
    assert_eq!(published, ids(&jobs));
}

pub(crate) async fn a_batch_sent_again_gives_the_same_jobs(bench: Bench) {
    let jobs = |number: u128| -> Vec<_> {
        let job = |n: usize| {
            bench
                .new_job()
                .batch(number)
                .idempotent(&format!("k{n}"), "a")
        };
        (0..5).map(job).collect()
    };
    let first = jobs(1);
    bench.commit(vec![batch_of(&first)], vec![]).await;
    let mut again = jobs(2);
    again.push(bench.new_job().batch(2).idempotent("new", "a"));
    let committed = bench.commit(vec![batch_of(&again)], vec![]).await;
    let mut answered: Vec<_> = ids(&first).into_iter().map(|id| (id, true)).collect();
    answered.push((again[5].new.key.id, false));
    assert_eq!(taken(&committed), answered);
    let kept = bench.get(&first[0].new.key).await.job;
    assert_eq!(kept.spec.batch_id, Some(batch_id(1)), "it keeps its batch");
    assert_eq!(bench.all().await.len(), 6);
}

pub(crate) async fn a_key_twice_in_a_batch_makes_one_job(bench: Bench) {
    let jobs = [0; 3].map(|_| bench.new_job().idempotent("k", "a"));
    let committed = bench.commit(vec![batch_of(&jobs)], vec![]).await;
    let id = jobs[0].new.key.id;
    assert_eq!(taken(&committed), [(id, false), (id, true), (id, true)]);
}

/// Goal: one bad item, and nothing is stored of the others, nor is a key used or a place taken. Method: the
/// good items come again alone.
pub(crate) async fn a_batch_with_a_bad_item_stores_nothing(bench: Bench) {
    let used = bench.submit(bench.new_job().idempotent("used", "a")).await;
    let jobs = [
        bench.new_job().idempotent("new", "a"),
        bench.new_job().idempotent("used", "b"),
        bench.new_job(),
        bench.new_job().idempotent("used", "c"),
    ];
    let entries = vec![batch_of(&jobs), bench.new_job().entry()];
    let committed = bench.commit(entries, vec![]).await;
    let reused = NotTaken::KeyReused(used.key.id);
    let refused = vec![(1, reused.clone()), (3, reused)];
    assert_eq!(committed.replies[0], Reply::BatchNotTaken(refused));
    done(&committed.replies[1]);
    assert_eq!(bench.all().await.len(), 2);
    let other = bench.new_job().idempotent("new", "b");
    let committed = bench.commit(vec![batch_of(&[other])], vec![]).await;
    assert!(!taken(&committed)[0].1, "the key is free");
}

/// Goal: as many wait as may, and not one more, whether they come alone, in a batch or as retries. Method:
/// the room of a tenant is given with each group; another tenant's is none of its business.
pub(crate) async fn what_finds_no_room_is_refused(bench: Bench) {
    let jobs: Vec<_> = (0..3).map(|_| bench.new_job()).collect();
    let group = |entries, max| {
        let mut group = bench.group(entries, vec![]);
        let room = WaitingRoom { waiting: 0, max };
        group.room.insert(Name::of("default"), room);
        group
    };
    let full = |waiting, max| NotTaken::NoRoom {
        room: WaitingRoom { waiting, max },
        asked: 1,
    };
    let committed = bench.commit_group(group(vec![batch_of(&jobs)], 2)).await;
    assert!(matches!(
        &committed.replies[0],
        Reply::BatchNotTaken(refused) if matches!(refused[..], [(0, NotTaken::NoRoom { .. })])
    ));
    let entries = vec![
        bench.new_job().entry(),
        batch_of(&jobs),
        bench.new_job().tenant("other").entry(),
        bench.new_job().entry(),
        bench.new_job().hand_over(),
    ];
    let committed = bench.commit_group(group(entries, 4)).await;
    done(&committed.replies[0]);
    assert_eq!(taken(&committed_at(&committed, 1)).len(), 3);
    done(&committed.replies[2]);
    assert_eq!(committed.replies[3], Reply::NotTaken(full(4, 4)));
    let (handed_over, _) = done(&committed.replies[4]);
    assert_eq!(handed_over.state, JobState::Running, "it does not wait");
    assert_eq!(bench.list(query("default")).await.len(), 5);
}

fn committed_at(committed: &Committed, at: usize) -> Committed {
    let mut one = committed.clone();
    one.replies.drain(..at);
    one
}
