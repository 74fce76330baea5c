//! What can no longer be shown is said: purges before, under and behind a watch of many jobs; and batches,
//! which end.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::future::join_all;
use pacenote::config::TypeSettings;
use pacenote::job::limits::{LOG_BYTES_DEFAULT, WAITING_DEFAULT};
use pacenote::job::name::{BatchId, JobId, JobKey, Name};
use pacenote::job::time::{SystemClock, Timestamp};
use pacenote::job::{JobSpec, NewJob};
use pacenote::pb;
use pacenote::queue::{
    JobQueue, JobsContent, JobsMessage, JobsWatch, JobsWatchOptions, KnownType, QueueSettings,
    Submission, default_tenant,
};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{
    ClaimTerms, Entry, Group, JobFilter, JobStore, Purge, Purged, ReadError, TenantLog, TenantRange,
};

use crate::fronted::{Front, Fronted};
use crate::harness::{Puppets, TestServer, folder, job_key, output, soon};
use crate::watch_jobs::{JobsTold, JobsWatched, begin, ids, team, watch_jobs};

/// A job that is over.
async fn over_of(server: &TestServer, puppets: &Puppets, team: &str) -> String {
    let (id, puppet) = begin(server, puppets, team).await;
    puppet.store(&server.queue, vec![output("x")]).await;
    puppet.succeed();
    server.end_of(&id).await;
    id
}

async fn purge(server: &TestServer, id: &str) {
    let purge = vec![Purge::Job(job_key(id))];
    server.queue.purge(purge).await.expect("purged");
}

async fn resume(server: &TestServer, request: pb::WatchJobsRequest, cursor: &str) -> JobsWatched {
    let request = pb::WatchJobsRequest {
        after_cursor: cursor.to_owned(),
        ..request
    };
    watch_jobs(server, request).await
}

#[tokio::test]
async fn a_cursor_before_a_purge_gets_one_gap_and_one_behind_it_gets_none() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let begun = watch_jobs(&server, team("a")).await.opened().await.cursor;
    let purged = over_of(&server, &puppets, "a").await;
    let between = watch_jobs(&server, team("a")).await.opened().await.cursor;
    let kept = over_of(&server, &puppets, "a").await;
    purge(&server, &purged).await;
    let mut watch = resume(&server, team("a"), &begun).await;
    let first = watch.until(|told| told.messages == 1).await;
    let [gap] = &first.gaps[..] else {
        panic!("{first:?}");
    };
    assert_eq!((gap.job_id.as_str(), gap.first_missing_sequence), ("", 0));
    assert_eq!(gap.cause(), pb::event_gap::Cause::Retention);
    let told = watch.until(|told| !told.finished.is_empty()).await;
    assert_eq!(told.sequences_of(&kept), [1, 2, 3, 4]);
    assert!(told.gaps.is_empty(), "said once");
    // Cut behind the gap it is not said again.
    let mut again = resume(&server, team("a"), &first.cursor).await;
    let told = again.until(|told| !told.finished.is_empty()).await;
    assert!(told.gaps.is_empty());
    assert_eq!(told.sequences_of(&kept), [1, 2, 3, 4]);
    let mut behind = resume(&server, team("a"), &between).await;
    let told = behind.until(|told| !told.finished.is_empty()).await;
    assert!(told.gaps.is_empty(), "all that it asks for is there");
    // Nothing that was asked for live is missing either.
    let mut fresh = watch_jobs(&server, team("a")).await;
    assert!(fresh.opened().await.gaps.is_empty());
}

#[tokio::test]
async fn what_was_told_before_it_was_purged_is_no_gap() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut watch = watch_jobs(&server, team("a")).await;
    let begun = watch.opened().await;
    let id = over_of(&server, &puppets, "a").await;
    let told = watch.until(|told| !told.finished.is_empty()).await;
    assert_eq!(told.finished_ids(), [id.as_str()]);
    purge(&server, &id).await;
    let next = over_of(&server, &puppets, "a").await;
    let rest = watch.until(|told| !told.finished.is_empty()).await;
    assert!(rest.gaps.is_empty());
    assert_eq!(rest.sequences_of(&next), [1, 2, 3, 4]);
    let mut resumed = resume(&server, team("a"), &told.cursor).await;
    let rest = resumed.until(|told| !told.finished.is_empty()).await;
    assert!(rest.gaps.is_empty(), "begun at {}", begun.cursor);
}

/// Asked for by ids it is known whose events are missing; and what is gone is over.
#[tokio::test]
async fn a_purge_is_told_by_job_where_jobs_were_asked_for_by_their_ids() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (first, one) = begin(&server, &puppets, "a").await;
    let (second, two) = begin(&server, &puppets, "a").await;
    let (third, three) = begin(&server, &puppets, "a").await;
    let request = ids(&[&first, &second, &third]);
    let begun = watch_jobs(&server, request.clone())
        .await
        .opened()
        .await
        .cursor;
    for puppet in [one, two, three] {
        puppet.store(&server.queue, vec![output("x")]).await;
        puppet.succeed();
    }
    for id in [&first, &second, &third] {
        server.end_of(id).await;
    }
    purge(&server, &first).await;
    let front = vec![Purge::Events(job_key(&second), 2)];
    server.queue.purge(front).await.expect("purged");
    let told = resume(&server, request.clone(), &begun)
        .await
        .read_to_end()
        .await;
    let gaps: Vec<(&str, i64, i64)> = told
        .gaps
        .iter()
        .map(|gap| {
            (
                gap.job_id.as_str(),
                gap.first_missing_sequence,
                gap.last_missing_sequence,
            )
        })
        .collect();
    assert_eq!(gaps, [(first.as_str(), 0, 0), (second.as_str(), 1, 2)]);
    assert_eq!(told.finished_ids(), [second, third]);
    let anew = watch_jobs(&server, request).await.read_to_end().await;
    assert_eq!(anew.gaps.len(), 1, "only the job that is gone");
}

/// Goal: that a purge was told hides none of what lies further back than that one. Method: of three jobs the
/// middle one goes, and is told; the first one goes, and the watch goes on with the cursor of that gap.
#[tokio::test]
async fn a_purge_further_back_than_one_that_was_told_is_told_as_well() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let begun = watch_jobs(&server, team("a")).await.opened().await.cursor;
    let (first, one) = begin(&server, &puppets, "a").await;
    let (second, two) = begin(&server, &puppets, "a").await;
    let (third, three) = begin(&server, &puppets, "a").await;
    let by_ids = ids(&[&first, &second, &third]);
    let begun_by_ids = watch_jobs(&server, by_ids.clone()).await.opened().await;
    for (id, puppet) in [(&first, one), (&second, two), (&third, three)] {
        puppet.succeed();
        server.end_of(id).await;
    }
    let rest = watch_jobs(&server, team("a")).await.opened().await.cursor;
    purge(&server, &second).await;
    let told = async |request, cursor: &str| {
        let mut watch = resume(&server, request, cursor).await;
        watch.until(|told| told.messages == 1).await
    };
    let of_all = told(team("a"), &begun).await;
    let of_ids = told(by_ids.clone(), &begun_by_ids.cursor).await;
    let gap_of = |told: &JobsTold| told.gaps.iter().map(|gap| gap.job_id.clone()).next();
    assert_eq!(gap_of(&of_all), Some(String::new()), "{of_all:?}");
    assert_eq!(gap_of(&of_ids), Some(second), "{of_ids:?}");
    purge(&server, &first).await;
    let mut watch = resume(&server, team("a"), &of_all.cursor).await;
    let again = watch.until(|told| !told.finished.is_empty()).await;
    assert_eq!(gap_of(&again), Some(String::new()), "{again:?}");
    assert_eq!(again.finished_ids(), [third.as_str()]);
    let mut watch = resume(&server, by_ids, &of_ids.cursor).await;
    let again = watch.read_to_end().await;
    assert_eq!(gap_of(&again), Some(first), "{again:?}");
    assert_eq!(again.finished_ids(), [third]);
    // Who is beyond both has missed nothing.
    let (next, puppet) = begin(&server, &puppets, "a").await;
    puppet.succeed();
    let mut watch = resume(&server, team("a"), &rest).await;
    let beyond = watch.until(|told| !told.finished.is_empty()).await;
    assert_eq!(beyond.finished_ids(), [next]);
    assert!(beyond.gaps.is_empty(), "{beyond:?}");
}

/// A store in which a job goes before each look at the tenant's log: to who reads it, purges never end.
struct Purging {
    store: SqliteStore,
    left: Arc<Mutex<Vec<JobKey>>>,
}

#[async_trait]
impl Front for Purging {
    fn store(&self) -> &dyn JobStore {
        &self.store
    }

    async fn log_after(&self, range: &TenantRange) -> Result<TenantLog, ReadError> {
        let next = self.left.lock().expect("no panic").pop();
        if let Some(key) = next {
            let purged = self.store.purge(vec![Purge::Job(key)]).await;
            assert!(matches!(purged.as_deref(), Ok([Purged::Job(_)])));
        }
        self.store.log_after(range).await
    }
}

/// What a watch told of jobs that stay while others behind them go, one before each look at the log.
struct Meanwhile {
    gaps: usize,
    /// Of a hundred: jobs that had not gone yet when all that stay were told.
    left: usize,
}

/// More jobs stay than one look at the log brings.
async fn watch_while_others_go(roll_up: bool) -> Meanwhile {
    const KEPT: usize = 300;
    let dir = folder();
    let store = SqliteStore::open(&dir.path().join("jobs.db")).await;
    let left = Arc::<Mutex<Vec<JobKey>>>::default();
    let purging = Purging {
        store: store.expect("a store"),
        left: Arc::clone(&left),
    };
    let queue = queue(Arc::new(Fronted(purging))).await;
    let options = JobsWatchOptions {
        roll_up,
        ..JobsWatchOptions::default()
    };
    let all = JobFilter::all_of(default_tenant());
    let mut watch = queue.watch_jobs(all, options).await.expect("a watch");
    next(&mut watch).await.expect("the beginning");
    over(&queue, KEPT).await;
    let going = over(&queue, 100).await;
    *left.lock().expect("no panic") = going;
    let (mut told, mut gaps) = (0, 0);
    while told < KEPT {
        match next(&mut watch).await.expect("no end").content {
            JobsContent::Finished(jobs) => told += jobs.len(),
            JobsContent::RollUp(all) => told = usize::try_from(all.cancelled).expect("a few"),
            JobsContent::Gap(_) => gaps += 1,
            _ => {}
        }
    }
    let left = left.lock().expect("no panic").len();
    Meanwhile { gaps, left }
}

/// Goal: what stays is told while what lies behind it goes, however long that takes: a watch that waited for
/// the end of the purges would have told nothing before the last job had gone.
#[tokio::test]
async fn a_watch_goes_on_while_purges_never_end() {
    let seen = watch_while_others_go(false).await;
    assert!(seen.left > 0, "{} gaps before what stays", seen.gaps);
    assert!(seen.gaps > 0, "what goes is missing");
}

/// The same of one that only counts: what it counts anew is through, so that the next purge cannot undo it.
#[tokio::test]
async fn a_watch_that_counts_goes_on_while_purges_never_end() {
    let seen = watch_while_others_go(true).await;
    assert!(seen.left > 0, "all had gone before what stays was told");
    assert!(seen.left < 100, "it has read no log");
}

/// Jobs of a queue that are over.
async fn over(queue: &JobQueue, count: usize) -> Vec<JobKey> {
    let lives = (0..count).map(async |_| {
        let submitted = queue.submit(Submission::new("work", None)).await;
        let key = submitted.expect("stored").0.key.clone();
        queue.cancel(&key, String::new()).await.expect("it waits");
        key
    });
    join_all(lives).await
}

/// A queue in this process, whose watch the test leaves unread.
async fn queue(store: Arc<dyn JobStore>) -> JobQueue {
    let known = KnownType {
        settings: TypeSettings::default(),
        check: Arc::new(|_| Ok(())),
    };
    let settings = QueueSettings {
        types: [(Name::of("work"), known)].into(),
        log_bytes_max: LOG_BYTES_DEFAULT,
        watchers_max: 10,
        waiting_max: WAITING_DEFAULT,
        ..QueueSettings::default()
    };
    let queue = JobQueue::open(store, Arc::new(SystemClock::new()), settings).await;
    queue.expect("a queue")
}

async fn next(watch: &mut JobsWatch) -> Option<JobsMessage> {
    soon(watch.next()).await.expect("no error")
}

/// Goal: who was too slow for the channel and for retention hears which job is gone, and ends. Method: a
/// watch that reads nothing while its job ends and goes, and more happens than the channel holds.
#[tokio::test]
async fn a_purge_under_a_watch_that_lags_ends_it_all_the_same() {
    for more in [0, 1_100] {
        let dir = folder();
        let store = SqliteStore::open(&dir.path().join("jobs.db"))
            .await
            .expect("a store");
        let queue = queue(Arc::new(store)).await;
        let (job, _) = queue
            .submit(Submission::new("work", None))
            .await
            .expect("stored");
        let filter = JobFilter {
            ids: [job.key.id].into(),
            ..JobFilter::all_of(default_tenant())
        };
        let mut watch = queue
            .watch_jobs(filter, JobsWatchOptions::default())
            .await
            .expect("a watch");
        let first = next(&mut watch).await.expect("a snapshot");
        assert!(
            matches!(first.content, JobsContent::Snapshot(_)),
            "{first:?}"
        );
        queue
            .cancel(&job.key, String::new())
            .await
            .expect("it waits");
        queue
            .purge(vec![Purge::Job(job.key.clone())])
            .await
            .expect("purged");
        let others = (0..more).map(|_| queue.submit(Submission::new("work", None)));
        for stored in join_all(others).await {
            stored.expect("stored");
        }
        let mut gaps = Vec::new();
        while let Some(message) = next(&mut watch).await {
            if let JobsContent::Gap(gap) = message.content {
                gaps.push(gap.job);
            }
        }
        assert_eq!(gaps, [Some(job.key.id)], "with {more} others behind it");
    }
}

/// A batch ends once its jobs are over, also where it is watched anew or from a cursor.
#[tokio::test]
async fn a_watch_by_batch_ends_with_its_last_job() {
    let dir = folder();
    let store = SqliteStore::open(&dir.path().join("jobs.db"))
        .await
        .expect("a store");
    let store = Arc::new(store);
    let batch = BatchId::new(uuid::Uuid::from_u128(77));
    let jobs: Vec<JobId> = (1..=3_u128)
        .map(|n| JobId::new(uuid::Uuid::from_u128(n)))
        .collect();
    let new = jobs.iter().map(|id| {
        let key = JobKey {
            tenant: default_tenant(),
            id: *id,
        };
        let spec = JobSpec {
            batch_id: Some(batch),
            ..JobSpec::of(Name::of("work"))
        };
        NewJob::new(key, spec, None)
    });
    let group = Group {
        entries: vec![Entry::Batch(new.collect())],
        demand: Vec::new(),
        room: Default::default(),
        key_limits: Arc::default(),
        claimants: [(
            0,
            ClaimTerms {
                worker_id: String::new(),
                heard_at: Timestamp::default(),
                lease_until: Timestamp::default(),
                term: None,
            },
        )]
        .into(),
        now: Timestamp::default(),
    };
    store.commit(group).await.expect("stored");
    let queue = queue(store).await;
    queue
        .submit(Submission::new("work", None))
        .await
        .expect("stored");
    let filter = JobFilter {
        batch_id: Some(batch),
        ..JobFilter::all_of(default_tenant())
    };
    let open = async |cursor: &str| {
        let options = JobsWatchOptions {
            after_cursor: cursor.to_owned(),
            ..JobsWatchOptions::default()
        };
        queue
            .watch_jobs(filter.clone(), options)
            .await
            .expect("a watch")
    };
    let read = async |watch: &mut JobsWatch| {
        let (mut shown, mut finished, mut cursor) = (0, Vec::new(), String::new());
        while let Some(message) = next(watch).await {
            match message.content {
                JobsContent::Snapshot(jobs) => shown += jobs.len(),
                JobsContent::Finished(jobs) => finished.extend(jobs.iter().map(|j| j.job.key.id)),
                _ => {}
            }
            if cursor.is_empty() {
                cursor = message.cursor;
            }
            if finished.is_empty() && !cursor.is_empty() {
                for id in &jobs {
                    let key = JobKey {
                        tenant: default_tenant(),
                        id: *id,
                    };
                    queue.cancel(&key, String::new()).await.expect("it waits");
                }
            }
        }
        (shown, finished, cursor)
    };
    let mut watch = open("").await;
    let (shown, finished, cursor) = read(&mut watch).await;
    assert_eq!((shown, finished), (3, jobs.clone()));
    assert_eq!(read(&mut open("").await).await.1, jobs);
    assert_eq!(read(&mut open(&cursor).await).await.1, jobs);
    // One that was never there has nothing to wait for.
    let unknown = JobFilter {
        batch_id: Some(BatchId::new(uuid::Uuid::from_u128(78))),
        ..filter.clone()
    };
    let mut watch = queue
        .watch_jobs(unknown, JobsWatchOptions::default())
        .await
        .expect("a watch");
    let only = next(&mut watch).await.expect("why there is nothing");
    assert!(matches!(only.content, JobsContent::Gap(gap) if gap.job.is_none()));
    assert!(read(&mut watch).await.1.is_empty());
}
