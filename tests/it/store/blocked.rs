//! Rules: how many jobs run with one concurrency key, who waits for them, and who goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::Name;
use pacenote::job::{Change, Job, JobState, Outcome};
use pacenote::pb;
use pacenote::store::{BlockedLine, Committed, Demand, Entry};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::bench::{Bench, NewJobBuilder, cancel, changed, demand, done, finish, lose};
use crate::harness::count_of;

fn states(jobs: &[Arc<Job>]) -> Vec<JobState> {
    jobs.iter().map(|job| job.state).collect()
}

async fn state_of(bench: &Bench, job: &Job) -> JobState {
    bench.get(&job.key).await.job.state
}

/// Submits, in groups of their own.
async fn submit_all(bench: &Bench, news: Vec<NewJobBuilder>) -> Vec<Arc<Job>> {
    let entries = news.into_iter().map(NewJobBuilder::entry).collect();
    let committed = bench.commit(entries, vec![]).await;
    committed
        .replies
        .iter()
        .map(|reply| done(reply).0)
        .collect()
}

/// The changes of state in a job's log, each with its reason.
async fn log_of(bench: &Bench, job: &Job) -> Vec<(i32, String)> {
    let log = bench.log(&job.key).await.into_iter();
    let moves = log.filter_map(|event| match event.event {
        Some(pb::job_event::Event::StateChange(change)) => Some((change.to_state, change.reason)),
        _ => None,
    });
    moves.collect()
}

pub(crate) async fn as_many_run_with_a_key_as_may_and_the_next_goes_on_in_order(bench: Bench) {
    bench.limit_keys(2);
    let priorities = [0, 0, 0, 5, -5];
    let news = priorities.map(|priority| bench.new_job().concurrency_key("k").priority(priority));
    let free = bench.new_job().priority(-9);
    let jobs = submit_all(&bench, news.into_iter().chain([free]).collect()).await;
    let claimed = bench.claim(9).await;
    let ids: Vec<_> = claimed.iter().map(|job| job.key.id).collect();
    // The one without a key is not held up by those that wait.
    assert_eq!(ids, [3, 0, 5].map(|index: usize| jobs[index].key.id));
    let now = async || {
        let mut all = Vec::new();
        for job in &jobs {
            all.push(bench.get(&job.key).await.job);
        }
        states(&all)
    };
    use JobState::{Blocked, Queued, Running, Succeeded};
    assert_eq!(
        now().await,
        [Running, Blocked, Blocked, Running, Blocked, Running]
    );
    bench.finish(&claimed[0], Outcome::Succeeded(None)).await;
    assert_eq!(
        now().await,
        [Running, Queued, Blocked, Succeeded, Blocked, Running]
    );
    // More urgent than both that wait: it is next, although one was let go on before it came.
    let urgent = bench.new_job().concurrency_key("k").priority(9);
    let urgent = bench.submit(urgent).await;
    let next = bench.claim(9).await;
    assert_eq!(next[0].key, urgent.key);
    assert_eq!(
        now().await,
        [Running, Blocked, Blocked, Succeeded, Blocked, Running]
    );
    let blocked = pb::job::State::Blocked as i32;
    let log = log_of(&bench, &jobs[1]).await;
    let held = (blocked, "CONCURRENCY_KEY".to_owned());
    assert_eq!(
        log.iter().filter(|moved| **moved == held).count(),
        2,
        "{log:?}"
    );
}

pub(crate) async fn a_key_belongs_to_its_tenant_and_queue(bench: Bench) {
    let news = vec![
        bench.new_job().concurrency_key("k"),
        bench.new_job().concurrency_key("k").tenant("other"),
        bench.new_job().concurrency_key("k").queue("other"),
        bench.new_job().concurrency_key("l"),
    ];
    let mut demands = Vec::new();
    for new in &news {
        let mut demand = demand("work", 9);
        demand.lane.queue = new.new.spec.queue.clone();
        demand.lane.tenant = new.new.key.tenant.clone();
        demands.push(demand);
    }
    demands.dedup_by_key(|demand| demand.lane.clone());
    demands.pop();
    submit_all(&bench, news).await;
    let committed = bench.commit(vec![], demands).await;
    assert_eq!(committed.claimed.len(), 4);
}

/// Goal: one that waits goes on whatever took away the one that ran. Method: a way each, with one that
/// runs, one that is next, and one behind it.
pub(crate) async fn whoever_makes_room_lets_one_go_on_whatever_its_end(mut bench: Bench) {
    let broken = JobError::retryable("BROKEN", "again").with_retry_after(Duration::from_secs(60));
    let expired = |new: NewJobBuilder| {
        new.spec(|spec| spec.timeouts.queue_timeout = Some(Duration::from_secs(1)))
    };
    // What takes it away, and whether it waits in front of the others afterwards.
    let ways: [(&str, Change, bool); 7] = [
        ("succeeds", finish(1, Outcome::Succeeded(None)), false),
        (
            "fails",
            finish(1, Outcome::Failed(JobError::permanent("BROKEN", "no"))),
            false,
        ),
        ("waits", finish(1, Outcome::Failed(broken)), false),
        (
            "snoozes",
            finish(1, Outcome::Snoozed(Duration::from_secs(60))),
            false,
        ),
        ("expires", finish(1, Outcome::Expired), false),
        ("hands back", finish(1, Outcome::HandedBack), true),
        ("is lost", lose(1), false),
    ];
    for (way, change, comes_first) in ways {
        let new = || bench.new_job().concurrency_key("k");
        let jobs = submit_all(&bench, vec![new(), new(), expired(new())]).await;
        bench.pass(Duration::from_micros(1));
        let running = bench.claim(9).await.remove(0);
        assert_eq!(running.key, jobs[0].key, "{way}");
        assert_eq!(state_of(&bench, &jobs[1]).await, JobState::Blocked, "{way}");
        bench.crash().await;
        bench.change(&running.key, change).await;
        assert_eq!(state_of(&bench, &jobs[1]).await, JobState::Queued, "{way}");
        assert_eq!(state_of(&bench, &jobs[2]).await, JobState::Blocked, "{way}");
        // Whoever is next is taken away before it runs.
        bench.change(&jobs[1].key, cancel()).await;
        assert_eq!(state_of(&bench, &jobs[2]).await, JobState::Queued, "{way}");
        let next = bench.claim(9).await.remove(0);
        let expected = if comes_first { &jobs[0] } else { &jobs[2] };
        assert_eq!(next.key, expected.key, "{way}");
        bench.finish(&next, Outcome::Succeeded(None)).await;
        // Over by now, or waiting for its time.
        for job in jobs {
            bench.change(&job.key, cancel()).await;
        }
    }
}

pub(crate) async fn a_type_that_nobody_claims_does_not_hold_up_another(bench: Bench) {
    let of = |job_type: &str, priority| {
        let new = bench.new_job().concurrency_key("k").job_type(job_type);
        new.priority(priority)
    };
    let jobs = submit_all(&bench, vec![of("work", 9), of("paused", 5), of("work", 0)]).await;
    let both = || vec![demand("paused", 9), demand("work", 9)];
    let committed = bench.commit(vec![], both()).await;
    assert_eq!(
        committed.claimed[0].job.key, jobs[0].key,
        "the first of both lanes"
    );
    assert_eq!(committed.claimed.len(), 1);
    bench
        .finish(&committed.claimed[0].job, Outcome::Succeeded(None))
        .await;
    // From here on nobody claims `paused`, which would be next.
    let claimed = bench.claim(9).await;
    assert_eq!(claimed[0].key, jobs[2].key);
    bench.finish(&claimed[0], Outcome::Succeeded(None)).await;
    let committed = bench.commit(vec![], both()).await;
    assert_eq!(committed.claimed[0].job.key, jobs[1].key);
}

/// Goal: neither what is handed over nor what is QUEUED takes the place of one that waits, in the commit
/// in which the place becomes free.
pub(crate) async fn what_arrives_does_not_overtake_what_waits(bench: Bench) {
    for hand_over in [true, false] {
        let new = || bench.new_job().concurrency_key("k");
        let jobs = submit_all(&bench, vec![new(), new()]).await;
        let running = bench.claim(9).await.remove(0);
        bench.pass(Duration::from_secs(1));
        let ends = changed(&running.key, finish(1, Outcome::Succeeded(None)));
        let late = new();
        let committed = if hand_over {
            bench
                .commit(
                    vec![ends, late.clone().hand_over()],
                    vec![demand("work", 1)],
                )
                .await
        } else {
            bench.submit(late.clone()).await;
            bench.commit(vec![ends], vec![demand("work", 1)]).await
        };
        assert_eq!(committed.claimed, [], "the next group decides");
        let claimed = bench.claim(9).await;
        assert_eq!(claimed.len(), 1);
        assert_eq!(claimed[0].key, jobs[1].key);
        assert_eq!(bench.get(&late.new.key).await.job.state, JobState::Blocked);
        for key in [&jobs[1].key, &late.new.key] {
            bench.change(key, cancel()).await;
        }
        bench.finish(&claimed[0], Outcome::Cancelled).await;
    }
}

/// Goal: what was let go on is claimed before what comes after it, also where that could be handed over in
/// the very commit that claims.
pub(crate) async fn what_arrives_later_does_not_overtake_what_was_let_go_on(bench: Bench) {
    let new = || bench.new_job().concurrency_key("k");
    let jobs = submit_all(&bench, vec![new(), new()]).await;
    let running = bench.claim(9).await.remove(0);
    let ends = changed(&running.key, finish(1, Outcome::Succeeded(None)));
    bench.commit(vec![ends], vec![]).await;
    assert_eq!(bench.get(&jobs[1].key).await.job.state, JobState::Queued);
    let late = new();
    let committed = bench
        .commit(vec![late.clone().hand_over()], vec![demand("work", 1)])
        .await;
    let claimed: Vec<_> = committed.claimed.iter().map(|one| &one.job.key).collect();
    assert_eq!(claimed, [&jobs[1].key]);
    assert_eq!(bench.get(&late.new.key).await.job.attempt, 0);
}

pub(crate) async fn what_arrives_as_the_last_one_ends_is_not_left_behind(bench: Bench) {
    let new = || bench.new_job().concurrency_key("k");
    bench.submit(new()).await;
    let running = bench.claim(1).await.remove(0);
    let late = new();
    let group = vec![
        late.clone().hand_over(),
        changed(&running.key, finish(1, Outcome::Succeeded(None))),
    ];
    bench.commit(group, vec![]).await;
    let claimed = bench.claim(9).await;
    assert_eq!(claimed[0].key, late.new.key);
}

pub(crate) async fn a_line_of_a_full_key_does_not_hold_up_its_lane(bench: Bench) {
    let long = count_of("PACENOTE_TEST_BLOCKED", 600);
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..long {
        entries.push(bench.new_job().concurrency_key("k").priority(1).entry());
    }
    let behind = bench.new_job();
    entries.push(behind.clone().entry());
    bench
        .store()
        .commit(bench.group(entries, vec![]))
        .await
        .expect("stored");
    let mut claimed = Vec::new();
    let mut groups = 0;
    while !claimed.contains(&behind.new.key) {
        let group = bench.group(vec![], vec![demand("work", 2)]);
        let committed = bench.store().commit(group).await.expect("stored");
        claimed.extend(
            committed
                .claimed
                .into_iter()
                .map(|claimed| claimed.job.key.clone()),
        );
        groups += 1;
        let set_aside = committed.depth_changes.iter();
        let set_aside = set_aside.filter(|(_, state, _)| *state == JobState::Blocked);
        let set_aside: i64 = set_aside.map(|(_, _, by)| by).sum();
        assert!(set_aside <= 256, "one group is not held up for ever");
        assert!(groups <= long / 256 + 2, "{groups}");
    }
    assert_eq!(claimed.len(), 2);
}

pub(crate) async fn lines_are_read_one_after_another(bench: Bench) {
    let of = |tenant: &str, key: &str, job_type: &str| {
        let new = bench.new_job().tenant(tenant).concurrency_key(key);
        new.job_type(job_type)
    };
    let lines = [
        ("a", "k", "x"),
        ("a", "k", "y"),
        ("a", "l", "x"),
        ("b", "k", "x"),
    ];
    let mut wanted = Vec::new();
    for (tenant, key, job_type) in lines {
        let news = (0..4).map(|_| of(tenant, key, job_type)).collect();
        let jobs = submit_all(&bench, news).await;
        let mut demand = demand(job_type, 9);
        demand.lane.tenant = jobs[0].key.tenant.clone();
        bench.commit(vec![], vec![demand]).await;
        let line = BlockedLine {
            tenant: jobs[0].key.tenant.clone(),
            key: Name::new(key).expect("a name"),
            job_type: Name::new(job_type).expect("a name"),
        };
        // Of the second type of one key, none runs.
        let first = usize::from(job_type == "x");
        let keys: Vec<_> = jobs[first..first + 2]
            .iter()
            .map(|job| job.key.clone())
            .collect();
        wanted.push((line, keys));
    }
    let mut found = Vec::new();
    let mut last = None;
    let queue = Name::of("default");
    while let Some((line, keys)) = bench
        .store()
        .next_blocked(&queue, last.as_ref(), 2)
        .await
        .expect("a read")
    {
        last = Some(line.clone());
        found.push((line, keys));
    }
    assert_eq!(found, wanted);
    let other = Name::of("other");
    assert_eq!(bench.store().next_blocked(&other, None, 2).await, Ok(None));
}

/// What a random run does next, and what has to hold after it.
struct Life {
    bench: Bench,
    random: StdRng,
    limit: usize,
}

const TYPES: [&str; 2] = ["one", "two"];
const KEYS: [&str; 2] = ["k", "l"];

impl Life {
    async fn all(&self) -> Vec<Arc<Job>> {
        self.bench.all().await
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let index = self.random.random_range(0..from.len().max(1));
        from.get(index).cloned()
    }

    fn outcome(&mut self) -> Outcome {
        let minute = Duration::from_secs(60);
        let again = JobError::retryable("BROKEN", "again");
        match self.random.random_range(0..7) {
            0 => Outcome::Succeeded(None),
            1 => Outcome::Failed(JobError::permanent("BROKEN", "no")),
            2 => Outcome::Failed(again.with_retry_after(Duration::ZERO)),
            3 => Outcome::Failed(again.with_retry_after(minute)),
            4 => Outcome::Snoozed(minute),
            5 => Outcome::Expired,
            _ => Outcome::HandedBack,
        }
    }

    fn new_job(&mut self) -> NewJobBuilder {
        let job_type = TYPES[self.random.random_range(0..2)];
        let new = self.bench.new_job().job_type(job_type);
        let new = new.priority(self.random.random_range(0..3));
        match self.random.random_range(0..4) {
            0 => new,
            1 => new.concurrency_key(KEYS[1]),
            _ => new.concurrency_key(KEYS[0]),
        }
    }

    fn entry(&mut self, all: &[Arc<Job>]) -> Option<Entry> {
        let of = |states: &[JobState]| -> Vec<Arc<Job>> {
            let jobs = all.iter().filter(|job| states.contains(&job.state));
            jobs.cloned().collect()
        };
        let leased = of(&[JobState::Running, JobState::Cancelling]);
        Some(match self.random.random_range(0..10) {
            0..=3 => {
                let new = self.new_job();
                let waits = of(&[JobState::Queued]);
                let waits = waits
                    .iter()
                    .any(|job| job.spec.job_type == new.new.spec.job_type);
                if !waits && self.random.random_bool(0.5) {
                    new.hand_over()
                } else {
                    new.entry()
                }
            }
            4..=6 => {
                let job = self.pick(&leased)?;
                changed(&job.key, finish(job.attempt, self.outcome()))
            }
            7 => {
                let job = self.pick(&leased)?;
                changed(&job.key, lose(job.attempt))
            }
            8 => changed(&self.pick(all)?.key, cancel()),
            _ => changed(
                &self.pick(&of(&[JobState::Scheduled]))?.key,
                Change::BecomeDue,
            ),
        })
    }

    fn demands(&mut self) -> Vec<Demand> {
        let mut demands = Vec::new();
        for job_type in TYPES {
            if self.random.random_bool(0.4) {
                demands.push(demand(job_type, self.random.random_range(1..4)));
            }
        }
        demands
    }

    async fn step(&mut self) {
        let before = self.all().await;
        let count = self.random.random_range(0..5);
        let entries: Vec<Entry> = (0..count).filter_map(|_| self.entry(&before)).collect();
        let demands = self.demands();
        self.bench
            .pass(Duration::from_secs(self.random.random_range(0..30)));
        let committed = self.bench.commit(entries, demands).await;
        self.check(&before, &committed).await;
        if self.random.random_bool(0.05) {
            self.bench.crash().await;
        }
    }

    /// The limit holds; whoever waits for others has somebody to wait for; and nobody was overtaken for
    /// whom there is no place now.
    async fn check(&self, before: &[Arc<Job>], committed: &Committed) {
        let all = self.all().await;
        let rank = |job: &Job| (-job.spec.priority, job.run_at, job.key.id);
        let mut running: BTreeMap<&Name, usize> = BTreeMap::new();
        for job in all.iter().filter(|job| job.state.is_leased()) {
            if let Some(key) = &job.spec.concurrency_key {
                *running.entry(key).or_default() += 1;
            }
        }
        assert!(running.values().all(|running| *running <= self.limit));
        let of = |key: &Name, job_type: &Name, state: JobState| {
            let jobs = all.iter().filter(|job| {
                job.spec.concurrency_key.as_ref() == Some(key)
                    && job.spec.job_type == *job_type
                    && job.state == state
            });
            jobs.count()
        };
        for job in all.iter().filter(|job| job.state == JobState::Blocked) {
            let key = job.spec.concurrency_key.as_ref().expect("a key");
            let could_run = running.get(key).copied().unwrap_or(0)
                + of(key, &job.spec.job_type, JobState::Queued);
            assert!(could_run >= self.limit, "left behind: {job:?}");
        }
        let waited: HashMap<_, _> = before.iter().map(|job| (&job.key, job)).collect();
        for claimed in &committed.claimed {
            let job = &claimed.job;
            let Some(key) = &job.spec.concurrency_key else {
                continue;
            };
            let overtaken = all.iter().filter(|other| {
                let waits = |job: &Job| matches!(job.state, JobState::Queued | JobState::Blocked);
                other.spec.concurrency_key.as_ref() == Some(key)
                    && other.spec.job_type == job.spec.job_type
                    && waits(other)
                    && waited.get(&other.key).is_some_and(|before| waits(before))
                    && rank(other) < rank(job)
            });
            let left = self.limit - running.get(key).copied().unwrap_or(0);
            assert!(overtaken.count() <= left, "overtook others: {job:?}");
        }
    }

    /// Everybody of a type comes to run and ends, whatever becomes of the other types.
    async fn drain(&mut self, job_types: &[&str]) {
        for _ in 0..10_000 {
            self.bench.pass(Duration::from_secs(100));
            let before = self.all().await;
            let mut entries = Vec::new();
            for job in before.iter() {
                if job.state.is_leased() {
                    let ends = finish(job.attempt, Outcome::Succeeded(None));
                    entries.push(changed(&job.key, ends));
                } else if job.state == JobState::Scheduled {
                    entries.push(changed(&job.key, Change::BecomeDue));
                }
            }
            let of_types = before.iter().filter(|job| {
                job_types.contains(&job.spec.job_type.as_str()) && !job.state.is_terminal()
            });
            if of_types.count() == 0 {
                return;
            }
            let demands = job_types
                .iter()
                .map(|job_type| demand(job_type, 2))
                .collect();
            let committed = self.bench.commit(entries, demands).await;
            self.check(&before, &committed).await;
        }
        panic!("they never end: {:?}", self.all().await);
    }
}

/// Goal: whatever is done to jobs with keys, in whatever groups, crashes in between: no more run than may,
/// none is overtaken, and none waits for nobody. Method: random groups, checked one by one; then one type
/// is paused and the other one has to come to its end, and then both.
pub(crate) async fn whatever_happens_no_more_run_and_nobody_is_left_behind(bench: Bench) {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let limit = random.random_range(1..4);
    bench.limit_keys(limit);
    let mut life = Life {
        bench,
        random,
        limit,
    };
    for _ in 0..count_of("PACENOTE_TEST_KEYS", 150) {
        life.step().await;
    }
    life.drain(&TYPES[..1]).await;
    life.drain(&TYPES).await;
}
