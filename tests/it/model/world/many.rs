//! What is done to many jobs at once, or to queues and types: retries, deletes, the end of a retention, and
//! what is set.

use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::time::Clock;
use pacenote::queue::Skipped;
use pacenote::store::{ListQuery, View};

use super::World;
use super::words::{in_line, limits, refused, tenant, why};
use crate::harness::soon;
use crate::invariants::history::{Observation, Seen};
use crate::model::reference::{Refused, Reply};
use crate::model::steps::{Rule, Which};
use crate::store::bench::query;

/// Pages that are asked for, whatever a store that lies says. Chosen: no run has so many jobs.
const PAGES_MAX: usize = 1_000;
/// Jobs that are retried in one commit: all that a process which dies in it may have retried.
const ONE_COMMIT: u8 = 8;

impl World {
    pub(super) async fn set(&mut self, rule: Rule) -> Reply {
        let queue = self.queue();
        let set = match rule {
            Rule::PauseQueue(name, paused) => soon(queue.pause_queue(&name.name(), paused)).await,
            Rule::PauseType(name, paused) => soon(queue.pause_type(&name.name(), paused)).await,
            Rule::Limit(name, most, of_key) => {
                soon(queue.set_limits(&name.name(), limits(most, of_key))).await
            }
        };
        set.map_or_else(refused, |()| Reply::Done)
    }

    pub(super) async fn retry(&mut self, key: &JobKey) -> (Reply, Reply) {
        let new = self.clock.next_id();
        let expected = self.reference.retry(key, new, self.clock.now());
        let retried = soon(self.queue().retry(key)).await;
        self.note_made(&JobKey {
            tenant: key.tenant.clone(),
            id: new,
        });
        let found = match retried {
            Err(error) => refused(error),
            Ok((job, deduplicated)) => {
                let (key, state, seen) = (job.key.clone(), in_line(job.state), Seen::of(&job));
                if deduplicated {
                    self.see(Observation::Answered(seen));
                    Reply::Deduplicated(key, state)
                } else {
                    self.retried(seen);
                    Reply::Job(key, state)
                }
            }
        };
        (expected, found)
    }

    /// A retry was acknowledged with this new job.
    fn retried(&mut self, job: Seen) {
        let idempotency_key = None;
        self.see(Observation::Submitted {
            job,
            idempotency_key,
        });
    }

    /// Page by page; only the first one where the process dies in that. `None` where it could not die, for
    /// want of a commit.
    pub(super) async fn retry_many(&mut self, which: &Which, dies: bool) -> Option<(Reply, Reply)> {
        let tenant = tenant(which.tenant);
        let (page_size, most) = match dies {
            true => {
                let page_size = which.page_size.min(ONE_COMMIT);
                (page_size, usize::from(page_size))
            }
            false => (which.page_size, usize::MAX),
        };
        if dies && !self.reference.any_to_retry(&tenant, which, most) {
            return None;
        }
        let (clock, now) = (self.clock.clone(), self.clock.now());
        let first = clock.next_id();
        let ids = |after| clock.id_after(after);
        let expected = self.reference.retry_many(&tenant, which, most, ids, now);
        let news: Vec<JobKey> = self.reference.jobs.keys().cloned().collect();
        let news = news.into_iter().filter(|key| key.id >= first);
        self.made.extend(news);
        let (mut retried, mut skipped, mut refused) = (Vec::new(), Vec::new(), None);
        let mut token = Some(String::new());
        for _ in 0..PAGES_MAX {
            let Some(page) = token.take() else { break };
            let found = self.queue();
            let found = found.retry_many(question(which), i32::from(page_size), &page);
            match soon(found).await {
                Ok(page) => {
                    retried.extend(page.retried);
                    skipped.extend(page.skipped);
                    token = page.next_token;
                }
                Err(error) => refused = Some(why(error)),
            }
        }
        let found = self.retried_many(&tenant, retried, skipped, refused).await;
        Some((expected, found))
    }

    async fn retried_many(
        &mut self,
        tenant: &Name,
        retried: Vec<(JobId, JobId)>,
        skipped: Vec<(JobId, Skipped)>,
        refused: Option<Refused>,
    ) -> Reply {
        for (_, new) in &retried {
            let key = JobKey {
                tenant: tenant.clone(),
                id: *new,
            };
            match soon(self.queue().get(&key, View::Basic)).await {
                Ok(found) => self.retried(Seen::of(&found.job)),
                Err(error) => {
                    let what = format!("job {new} was made by a retry: {error:?}");
                    self.mismatches.push(what);
                }
            }
        }
        match refused {
            Some(Refused::Unknown) => Reply::Refused(Refused::Unknown),
            refused => Reply::Retried {
                retried,
                skipped,
                refused,
            },
        }
    }

    /// As [`World::retry_many`].
    pub(super) async fn delete_many(
        &mut self,
        which: &Which,
        dies: bool,
    ) -> Option<(Reply, Reply)> {
        let tenant = tenant(which.tenant);
        let most = match dies {
            true => usize::from(which.page_size),
            false => usize::MAX,
        };
        let gone = self.reference.found(&tenant, which, most);
        if dies && gone.is_empty() {
            return None;
        }
        for key in &gone {
            self.reference.delete(key);
        }
        let (mut deleted, mut refused) = (0, None);
        let mut token = Some(String::new());
        for _ in 0..PAGES_MAX {
            let Some(page) = token.take() else { break };
            let found = self.queue();
            let found = found.delete_many(question(which), i32::from(which.page_size), &page);
            match soon(found).await {
                Ok(page) => {
                    deleted += page.deleted;
                    token = page.next_token;
                }
                Err(error) => refused = Some(why(error)),
            }
        }
        Some(self.removed(gone, deleted, refused))
    }

    /// What is kept no longer: round by round; only the first one where the process dies in that, of which
    /// all are.
    pub(super) async fn retire(&mut self, at_once: usize, dies: bool) -> (Reply, Reply) {
        let gone = self.reference.to_go(self.clock.now());
        for key in &gone {
            self.reference.delete(key);
        }
        let at_once = if dies { gone.len().max(1) } else { at_once };
        let (mut removed, mut refused) = (0, None);
        for _ in 0..PAGES_MAX {
            match soon(self.queue().purge_due(at_once)).await {
                Ok(retired) => {
                    removed += retired.jobs;
                    if !retired.more {
                        let next = self.reference.next_to_go();
                        self.expect("the next to go", &next, &retired.next);
                        break;
                    }
                }
                Err(error) => {
                    refused = Some(why(error));
                    break;
                }
            }
        }
        self.removed(gone, removed, refused)
    }

    /// What was to be removed, and how many were.
    fn removed(
        &mut self,
        gone: Vec<JobKey>,
        removed: usize,
        refused: Option<Refused>,
    ) -> (Reply, Reply) {
        let expected = Reply::Removed(gone.len());
        let found = match refused {
            None => Reply::Removed(removed),
            Some(why) => Reply::Refused(why),
        };
        for key in gone {
            self.see(if found == expected {
                Observation::Deleted(key)
            } else {
                Observation::DeleteUnknown(key)
            });
        }
        (expected, found)
    }
}

fn question(which: &Which) -> ListQuery {
    ListQuery {
        states: which.states.clone(),
        ..query(tenant(which.tenant).as_str())
    }
}
