//! Rules: what stays when the process does not.

use pacenote::job::payload::Payload;
use pacenote::job::{JobSnapshot, Outcome};
use pacenote::store::{OpenError, Purge, StoreError};

use super::bench::{Bench, cancel, demand, output};

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

pub(crate) async fn a_second_store_is_told_that_the_first_is_open(mut bench: Bench) {
    for _ in 0..2 {
        match bench.open_second().await {
            Err(OpenError::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("two stores are open"),
        }
        bench.submit(bench.new_job()).await;
        bench.crash().await;
    }
    assert_eq!(bench.all().await.len(), 2);
}

pub(crate) async fn a_closed_store_stores_nothing(mut bench: Bench) {
    let job = bench.finished(bench.new_job()).await;
    bench.store().close().await;
    bench.store().close().await;
    let new = bench.new_job();
    let group = bench.group(vec![new.clone().entry()], vec![]);
    let refused = bench.store().commit(group).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    let refused = bench.store().purge(vec![Purge::Job(job.key.clone())]).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    bench.crash().await;
    assert_eq!(bench.find(&new.new.key).await, None);
    assert_eq!(bench.get(&job.key).await.job, job);
}

pub(crate) async fn the_secret_is_kept(mut bench: Bench) {
    let secret = bench.store().secret();
    assert_ne!(secret, [0; 32]);
    bench.crash().await;
    assert_eq!(bench.store().secret(), secret);
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
