//! Everything that is stored, read back and compared with the reference.

use std::collections::BTreeMap;
use std::sync::Arc;

use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::time::Timestamp;
use pacenote::job::{Job, JobState};
use pacenote::queue::{EventQuery, JobQueue};
use pacenote::store::{JobStore, ListQuery, View};

use super::words::in_line;
use super::{TENANTS, World};
use crate::harness::soon;
use crate::invariants::history::{Entry, Observation, Seen, Snapshot, Stored};
use crate::model::reference::Expected;
use crate::store::bench::query;

impl World {
    /// Reads everything back, through the door wherever there is one.
    pub(super) async fn look(&mut self) {
        let queue = self.queue();
        let mut snapshot = Snapshot::default();
        for tenant in TENANTS {
            let jobs = self.list(&queue, tenant).await;
            let ids = jobs.iter().map(|job| job.key.id).collect();
            let tenant = Name::new(tenant).expect("a name");
            self.see(Observation::Shown(tenant, ids));
            for job in jobs {
                snapshot.jobs.push(self.read(&queue, job).await);
            }
        }
        let depths = self.process().mortal.depths().await.expect("a read");
        let depths = depths.into_iter();
        snapshot.depths = depths.map(|(lane, state, n)| ((lane, state), n)).collect();
        self.compare(&snapshot);
        self.see(Observation::Snapshot(snapshot));
    }

    async fn list(&mut self, queue: &JobQueue, tenant: &str) -> Vec<Arc<Job>> {
        let (mut jobs, mut token) = (Vec::new(), Some(String::new()));
        while let Some(page) = token {
            let query = ListQuery {
                limit: 0,
                ..query(tenant)
            };
            let listed = soon(queue.list(query, 7, &page, View::Basic)).await;
            match listed {
                Ok(page) => {
                    jobs.extend(page.jobs.into_iter().map(|snapshot| snapshot.job));
                    token = page.next_token;
                }
                Err(error) => {
                    self.mismatches.push(format!("a list: {error:?}"));
                    break;
                }
            }
        }
        jobs
    }

    /// A job as it is read by itself, with its log where that is not known yet.
    async fn read(&mut self, queue: &JobQueue, job: Arc<Job>) -> Stored {
        let mut stored = Stored {
            job,
            result: None,
            log: None,
        };
        let key = stored.job.key.clone();
        if self.read.get(&key) == Some(&stored.job.version) {
            return stored;
        }
        match soon(queue.get(&key, View::Full)).await {
            Ok(found) => {
                self.expect("a job and its list", &stored.job, &found.job);
                self.see(Observation::Answered(Seen::of(&found.job)));
                if let Some(expected) = self.reference.jobs.get(&key) {
                    let input = Payload::text(expected.request.input.to_string());
                    self.expect("the input", &Some(input), &found.payloads.input);
                }
                stored.result = found.payloads.result.map(|p| p.as_bytes().to_vec());
            }
            Err(error) => {
                let what = format!("job {} is listed and not found: {error:?}", key.id);
                self.mismatches.push(what);
            }
        }
        let mut log = Vec::new();
        let mut after = 0;
        // In a log that lies, no page goes on.
        for _ in 0..100 {
            let query = EventQuery {
                after,
                page_size: 1000,
                tags: Vec::new(),
            };
            match soon(queue.events(&key, &query)).await {
                Ok(page) => {
                    log.extend(page.events.iter().map(Entry::decoded));
                    let done = page.through == after || page.through >= stored.job.last_sequence;
                    after = page.through;
                    if done {
                        break;
                    }
                }
                Err(error) => {
                    self.mismatches.push(format!("a log: {error:?}"));
                    break;
                }
            }
        }
        stored.log = Some(log);
        self.read.insert(key, stored.job.version);
        stored
    }

    fn compare(&mut self, snapshot: &Snapshot) {
        let expected: BTreeMap<JobKey, _> = self
            .reference
            .jobs
            .iter()
            .map(|(key, job)| (key.clone(), outline(job)))
            .collect();
        let found: BTreeMap<JobKey, _> = snapshot
            .jobs
            .iter()
            .map(|stored| (stored.job.key.clone(), outline_of(&stored.job)))
            .collect();
        self.expect("the jobs", &expected, &found);
    }
}

/// What the reference knows of a job.
#[derive(PartialEq, Debug)]
struct Outline {
    state: JobState,
    attempts: [u32; 3],
    priority: i32,
    queue: Name,
    /// Of one that waits.
    run_at: Option<Timestamp>,
    purge_at: Option<Timestamp>,
    retry_of: Option<JobId>,
    retried_by: Option<JobId>,
}

fn outline(job: &Expected) -> Outline {
    Outline {
        state: job.state,
        attempts: [job.attempt, job.charged, job.lost],
        priority: i32::from(job.request.priority),
        queue: job.request.queue.name(),
        run_at: job.state.is_waiting().then_some(job.run_at),
        purge_at: job.purge_at,
        retry_of: job.retry_of,
        retried_by: job.retried_by,
    }
}

fn outline_of(job: &Job) -> Outline {
    Outline {
        state: in_line(job.state),
        attempts: [job.attempt, job.attempts_charged, job.attempts_lost],
        priority: job.spec.priority,
        queue: job.spec.queue.clone(),
        run_at: job.state.is_waiting().then_some(job.run_at),
        purge_at: job.purge_at,
        retry_of: job.spec.retry_of,
        retried_by: job.detail.retried_by,
    }
}
