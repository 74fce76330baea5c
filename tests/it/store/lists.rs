//! Rules: pages and filters.

use std::time::Duration;

use pacenote::job::name::Name;
use pacenote::job::{JobState, Outcome};
use pacenote::store::ListQuery;

use super::bench::{Bench, query};

pub(crate) async fn a_list_is_newest_first_in_pages(bench: Bench) {
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(bench.submit(bench.new_job()).await.key.id);
        bench.submit(bench.new_job().tenant("other")).await;
    }
    ids.reverse();
    assert_eq!(bench.list(query("default")).await, ids);
    assert_eq!(bench.list(query("nobody")).await, []);
    let mut paged = Vec::new();
    loop {
        let page = ListQuery {
            before_id: paged.last().copied(),
            limit: 3,
            ..query("default")
        };
        let page = bench.list(page).await;
        if page.is_empty() {
            break;
        }
        // What comes meanwhile is newer than any page that follows.
        bench.submit(bench.new_job()).await;
        paged.extend(page);
    }
    assert_eq!(paged, ids);
}

/// Goal: every filter, alone and together with others, gives what a filter over everything gives.
pub(crate) async fn filters_hold_together(bench: Bench) {
    for index in 0..24 {
        bench.pass(Duration::from_secs(1));
        let new = bench
            .new_job()
            .job_type(["work", "play"][index % 2])
            .queue(["default", "q2", "q3"][index % 3])
            .idempotent(&format!("key {index}"), "print");
        let committed = bench.commit(vec![new.hand_over()], vec![]).await;
        if index % 4 != 0 {
            bench
                .finish(&committed.claimed[0].job, Outcome::Succeeded(None))
                .await;
        }
    }
    let all = bench.all().await;
    let times = [None, Some(all[12].created_at)];
    let states = [
        vec![],
        vec![JobState::Running],
        vec![JobState::Running, JobState::Succeeded],
    ];
    let types = [vec![], vec![Name::of("work")], vec![Name::of("none")]];
    let queues = [vec![], vec![Name::of("q2"), Name::of("q3")]];
    let keys = [None, Some("key 7".to_owned()), Some("key".to_owned())];
    for case in 0..3 * 3 * 2 * 2 * 2 * 2 * 3 {
        let query = ListQuery {
            states: states[case % 3].clone(),
            types: types[case / 3 % 3].clone(),
            queues: queues[case / 9 % 2].clone(),
            created_after: times[case / 18 % 2],
            created_before: times[case / 36 % 2],
            before_id: [None, Some(all[5].key.id)][case / 72 % 2],
            idempotency_key: keys[case / 144 % 3].clone(),
            ..query("default")
        };
        let expected: Vec<_> = all
            .iter()
            .filter(|job| {
                let key = &query.idempotency_key;
                query.admits(job) && (key.is_none() || job.spec.idempotency_key == *key)
            })
            .map(|job| job.key.id)
            .collect();
        assert_eq!(bench.list(query.clone()).await, expected, "{query:?}");
    }
}
