//! Rules: one job a key.

use pacenote::store::{ListQuery, NotTaken, Purge, Reply};

use super::bench::{Bench, done, query};

pub(crate) async fn the_same_key_and_request_give_the_same_job(bench: Bench) {
    let first = bench.submit(bench.new_job().idempotent("k", "a")).await;
    let again = bench.new_job().idempotent("k", "a");
    let committed = bench.commit(vec![again.clone().entry()], vec![]).await;
    assert_eq!(done(&committed.replies[0]), (first.clone(), true));
    assert!(committed.published.is_empty());
    assert_eq!(bench.find(&again.new.key).await, None);
    // Whatever has become of it, and however often it is asked.
    let running = bench.claim(1).await.remove(0);
    let entries = vec![again.clone().entry(), again.hand_over()];
    let committed = bench.commit(entries, vec![]).await;
    assert_eq!(done(&committed.replies[0]), (running.clone(), true));
    assert_eq!(done(&committed.replies[1]), (running, true));
    assert!(committed.claimed.is_empty());
}

pub(crate) async fn the_same_key_with_another_request_is_refused(bench: Bench) {
    let first = bench.submit(bench.new_job().idempotent("k", "a")).await;
    let entries = vec![
        bench.new_job().idempotent("k", "b").entry(),
        bench.new_job().idempotent("k2", "b").entry(),
        bench.new_job().idempotent("k2", "a").entry(),
    ];
    let committed = bench.commit(entries, vec![]).await;
    assert_eq!(
        committed.replies[0],
        Reply::NotTaken(NotTaken::KeyReused(first.key.id))
    );
    let (second, _) = done(&committed.replies[1]);
    assert_eq!(
        committed.replies[2],
        Reply::NotTaken(NotTaken::KeyReused(second.key.id))
    );
    assert_eq!(bench.all().await.len(), 2);
}

pub(crate) async fn a_key_used_twice_in_one_group_makes_one_job(bench: Bench) {
    let entries = (0..100).map(|_| bench.new_job().idempotent("k", "a").hand_over());
    let committed = bench.commit(entries.collect(), vec![]).await;
    let (first, deduplicated) = done(&committed.replies[0]);
    assert!(!deduplicated);
    for reply in &committed.replies[1..] {
        assert_eq!(done(reply), (first.clone(), true));
    }
    assert_eq!((committed.claimed.len(), bench.all().await.len()), (1, 1));
}

pub(crate) async fn a_key_belongs_to_its_tenant(bench: Bench) {
    let entries = vec![
        bench.new_job().idempotent("k", "a").entry(),
        bench.new_job().tenant("other").idempotent("k", "b").entry(),
    ];
    let committed = bench.commit(entries, vec![]).await;
    let (one, _) = done(&committed.replies[0]);
    let (other, _) = done(&committed.replies[1]);
    assert_ne!(one.key, other.key);
    let again = bench.new_job().tenant("other").idempotent("k", "b");
    let committed = bench.commit(vec![again.entry()], vec![]).await;
    assert_eq!(done(&committed.replies[0]), (other, true));
    let by_key = ListQuery {
        idempotency_key: Some("k".to_owned()),
        ..query("default")
    };
    assert_eq!(bench.list(by_key).await, [one.key.id]);
}

pub(crate) async fn a_key_is_free_again_once_its_job_is_purged(bench: Bench) {
    let first = bench.finished(bench.new_job().idempotent("k", "a")).await;
    bench.purge(vec![Purge::Job(first.key.clone())]).await;
    let second = bench.submit(bench.new_job().idempotent("k", "b")).await;
    assert_ne!(second.key, first.key);
}

pub(crate) async fn keys_are_compared_byte_by_byte(bench: Bench) {
    let keys = [
        "k", "K", "k ", "k\0", "k\0a", "k\0b", "\0", "é", "e\u{301}", "'", "\"", "%", "1",
    ];
    let entries = keys.map(|key| bench.new_job().idempotent(key, "a").entry());
    let committed = bench.commit(entries.into(), vec![]).await;
    let made: Vec<_> = committed.replies.iter().map(done).collect();
    assert!(made.iter().all(|(_, deduplicated)| !deduplicated));
    for (key, (job, _)) in keys.iter().zip(&made) {
        let again = bench.new_job().idempotent(key, "a").entry();
        let committed = bench.commit(vec![again], vec![]).await;
        assert_eq!(done(&committed.replies[0]), (job.clone(), true), "{key:?}");
        let by_key = ListQuery {
            idempotency_key: Some((*key).to_owned()),
            ..query("default")
        };
        assert_eq!(bench.list(by_key).await, [job.key.id], "{key:?}");
    }
}
