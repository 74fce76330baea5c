//! Rules: what stays when the process does not.

use std::sync::Arc;

use pacenote::job::payload::Payload;
use pacenote::job::{JobSnapshot, JobState, Outcome};
use pacenote::store::{Purge, StoreError};

use super::bench::{Bench, cancel, changed, demand, done, output};

/// Everything that a store holds, as it is read.
async fn everything(bench: &Bench) -> Vec<(JobSnapshot, usize)> {
    let mut all = Vec::new();
    for job in bench.all().await {
        let log = bench.log(&job.key).await.len();
        all.push((bench.get(&job.key).await, log));
    }
    all
}

async fn fill(bench: &Bench) {
    let news = (0..20).map(|_| bench.new_job().input(Payload::data(vec![1; 5000])).entry());
    bench.commit(news.collect(), vec![]).await;
    for job in bench.claim(10).await {
        bench
            .report(&job, vec![output(Payload::text("half way"))])
            .await;
        match job.key.id.as_uuid().as_u128() >> 64 {
            number if number % 3 == 0 => {
                let result = Some(Payload::text("done"));
                bench.finish(&job, Outcome::Succeeded(result)).await;
            }
            number if number % 3 == 1 => {
                bench.change(&job.key, cancel()).await;
            }
            _ => {}
        }
    }
    let over = bench.finished(bench.new_job()).await;
    bench.purge(vec![Purge::Job(over.key.clone())]).await;
}

pub(crate) async fn what_was_answered_outlives_a_crash(mut bench: Bench) {
    for _ in 0..3 {
        fill(&bench).await;
        let (before, depths) = (everything(&bench).await, bench.depths().await);
        bench.crash().await;
        assert_eq!(everything(&bench).await, before);
        assert_eq!(bench.depths().await, depths);
    }
    // Attempts that it does not remember can still be ended: their rows know them.
    for job in bench.all().await {
        if job.state.is_leased() {
            let over = bench.finish(&job, Outcome::Succeeded(None)).await;
            assert!(over.state.is_terminal());
        }
    }
}

pub(crate) async fn what_was_answered_outlives_a_close(mut bench: Bench) {
    fill(&bench).await;
    let before = everything(&bench).await;
    bench.close_and_open().await;
    assert_eq!(everything(&bench).await, before);
}

pub(crate) async fn the_secret_is_kept(mut bench: Bench) {
    let secret = bench.store().secret();
    assert_ne!(secret, [0; 32]);
    bench.crash().await;
    assert_eq!(bench.store().secret(), secret);
}

/// Goal: where a row is not as it was read, nothing of the group is stored and the store goes on, for
/// that job too. Method: a row is changed from beside the writer, which remembers it as leased.
pub(crate) async fn a_row_changed_behind_the_writer_fails_its_group_alone(bench: Bench) {
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let leased = Arc::clone(&committed.claimed[0].job);
    bench.meddle(&leased.key).await;
    let bystander = bench.new_job();
    let entries = vec![
        bystander.clone().entry(),
        changed(
            &leased.key,
            super::bench::finish(1, Outcome::Succeeded(None)),
        ),
    ];
    let refused = bench.try_commit(entries, vec![demand("work", 1)]).await;
    assert!(
        matches!(refused, Err(StoreError::Internal(_))),
        "{refused:?}"
    );
    assert_eq!(bench.find(&bystander.new.key).await, None);
    assert_eq!(bench.get(&leased.key).await.job.state, JobState::Running);
    assert_eq!(bench.log(&leased.key).await.len(), 2);
    let job = bench.submit(bystander).await;
    assert_eq!(job.state, JobState::Queued);
    let over = bench.commit(
        vec![changed(
            &leased.key,
            super::bench::finish(1, Outcome::Succeeded(None)),
        )],
        vec![],
    );
    assert_eq!(done(&over.await.replies[0]).0.state, JobState::Succeeded);
}

/// The same for a job that waits, which its writer remembers too: the claim that fails leaves it where it
/// is, and the next one has it with what an attempt needs.
pub(crate) async fn a_waiting_row_changed_behind_the_writer_is_claimed_by_the_next_group(
    bench: Bench,
) {
    let input = Payload::text("the input");
    let job = bench.submit(bench.new_job().input(input.clone())).await;
    bench.meddle(&job.key).await;
    let refused = bench.try_commit(vec![], vec![demand("work", 1)]).await;
    assert!(
        matches!(refused, Err(StoreError::Internal(_))),
        "{refused:?}"
    );
    assert_eq!(bench.get(&job.key).await.job.state, JobState::Queued);
    let claimed = bench.commit(vec![], vec![demand("work", 1)]).await.claimed;
    assert_eq!(claimed[0].job.key, job.key);
    assert_eq!(claimed[0].payloads.input, Some(input));
}

/// Goal: what is claimed is the same whether it is remembered or read. Method: more wait than any store
/// remembers, so that the oldest were forgotten, and each is claimed with its own input.
pub(crate) async fn what_is_claimed_out_of_a_long_queue_has_its_own_input(bench: Bench) {
    let waiting = 2_500;
    let input = |number: usize| Payload::text(format!("input {number}"));
    let entries = |from: usize| {
        let jobs = (from..from + 500).map(|number| bench.new_job().input(input(number)).entry());
        jobs.collect()
    };
    for from in (0..waiting).step_by(500) {
        bench.commit(entries(from), vec![]).await;
    }
    let mut next = 0;
    while next < waiting {
        let claimed = bench
            .commit(vec![], vec![demand("work", 250)])
            .await
            .claimed;
        assert_eq!(claimed.len(), 250);
        for claimed in claimed {
            assert_eq!(claimed.payloads.input, Some(input(next)));
            next += 1;
        }
    }
}
