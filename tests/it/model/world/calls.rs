//! What is asked of a queue, what it answers, and what the reference says it should.

use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::JobKey;
use pacenote::job::payload::Payload;
use pacenote::job::time::Clock;
use pacenote::job::{Job, JobState, Outcome};
use pacenote::queue::Lease;
use pacenote::store::{Purge, Purged};

use super::World;
use super::words::{in_line, refused, reply, reports, stranger, submission, tenant_of};
use crate::harness::soon;
use crate::invariants::history::{Observation, Seen};
use crate::model::reference::{Refused, Reply, text_of};
use crate::model::steps::{Among, Call, Dies, End, Submit};

impl World {
    /// Makes a call and compares its answer with the reference's. In a call that the process dies in, only
    /// what is stored may have changed.
    pub(super) async fn call(&mut self, call: Call, dies: Option<Dies>) {
        if let Some(dies) = dies {
            self.process().mortal.0.die_in_next(dies);
        }
        let before = self.reference.clone();
        let Some((expected, reply)) = self.make(call.clone(), dies.is_some()).await else {
            return;
        };
        let expected = match dies {
            None => expected,
            Some(_) => {
                if dies == Some(Dies::BeforeTheCommit) {
                    self.reference = before;
                }
                Reply::Refused(Refused::Unknown)
            }
        };
        self.expect(&format!("{call:?}"), &expected, &reply);
    }

    /// What the reference says of a call, and what the queue says. `None` where there is nothing to call
    /// about.
    async fn make(&mut self, call: Call, dies: bool) -> Option<(Reply, Reply)> {
        Some(match call {
            Call::Submit(submit) => self.submit(submit, dies).await,
            Call::Batch(submits) => self.submit_batch(submits).await,
            Call::Report(pick, telling) => {
                let lease = pick.of(&self.leases)?.clone();
                let expected = self.reference.report(&lease, self.clock.steady());
                let reported = soon(self.queue().report(&lease, reports(telling))).await;
                if reported.is_ok() {
                    self.see(Observation::ReportAccepted(lease.key, lease.attempt));
                }
                (expected, reported.map_or_else(refused, |()| Reply::Done))
            }
            Call::Finish(pick, end) => {
                let lease = pick.of(&self.leases)?.clone();
                self.finish(&lease, end).await
            }
            Call::Cancel(pick) => {
                let key = pick.of(&self.made)?.clone();
                let expected = self.reference.cancel(&key, self.clock.now());
                let cancelled = soon(self.queue().cancel(&key, "enough".to_owned())).await;
                if let Ok(job) = &cancelled {
                    self.see(Observation::Cancelled(Seen::of(job)));
                }
                (expected, reply(cancelled))
            }
            Call::CancelAsStranger(pick) => {
                let key = stranger(pick.of(&self.made)?);
                let cancelled = soon(self.queue().cancel(&key, String::new())).await;
                if let Ok(job) = &cancelled {
                    let shown = Observation::Shown(key.tenant, vec![job.key.id]);
                    self.see(shown);
                }
                (Reply::Refused(Refused::NotFound), reply(cancelled))
            }
            Call::Delete(pick) => {
                let key = pick.of(&self.made)?.clone();
                self.reference.delete(&key);
                self.purge(Purge::Job(key)).await
            }
            Call::DeleteFront(pick, percent) => {
                let key = pick.of(&self.made)?.clone();
                let last = self.checker.last_sequence(&key);
                let through = last * i64::from(percent) / 100;
                self.purge(Purge::Events(key, through)).await
            }
            Call::Retry(pick, among) => {
                let made = self.made.iter();
                let made = made.filter(|key| match among {
                    Among::Over => self.reference.is_over(key),
                    Among::All => true,
                });
                let key = (*pick.of(&made.collect::<Vec<_>>())?).clone();
                self.retry(&key).await
            }
            Call::RetryMany(which) => self.retry_many(&which, dies).await?,
            Call::DeleteMany(which) => self.delete_many(&which, dies).await?,
            Call::Retire(at_once) => self.retire(usize::from(at_once), dies).await,
            Call::Set(rule) => {
                self.reference.set(rule);
                (Reply::Done, self.set(rule).await)
            }
        })
    }

    async fn submit(&mut self, submit: Submit, dies: bool) -> (Reply, Reply) {
        let key = JobKey {
            tenant: tenant_of(&submit),
            id: self.clock.next_id(),
        };
        let with_place = submit.with_place && !dies;
        if with_place {
            self.expire().await;
        }
        // Whether one that has no room is handed over, and needs none, is the schedule's own business.
        let with_place = with_place && self.reference.has_room(&key.tenant);
        let expected = self
            .reference
            .submit(key.clone(), &submit, self.clock.now());
        if with_place {
            let job_type = submit.job_type.name();
            self.process().places.give_back(&job_type);
        }
        let submitted = soon(self.queue().submit(submission(&submit))).await;
        self.note_made(&key);
        let found = match submitted {
            Err(error) => refused(error),
            Ok((job, deduplicated)) => {
                let found = self.submitted(&submit, &job, deduplicated);
                // With a place, it may run already.
                match found {
                    Reply::Job(key, JobState::Running) if with_place => {
                        Reply::Job(key, JobState::Queued)
                    }
                    as_it_is => as_it_is,
                }
            }
        };
        if with_place {
            self.take_handed(submit.job_type, Some(&key)).await;
        }
        (expected, found)
    }

    async fn submit_batch(&mut self, submits: Vec<Submit>) -> (Reply, Reply) {
        // The batch has an id of its own, before those of its jobs.
        let jobs: Vec<_> = (1..)
            .zip(&submits)
            .map(|(place, submit)| {
                let key = JobKey {
                    tenant: tenant_of(submit),
                    id: self.clock.id_after(place),
                };
                (key, submit.clone())
            })
            .collect();
        let expected = self.reference.submit_batch(&jobs, self.clock.now());
        let submissions = submits.iter().map(submission).collect();
        let stored = soon(self.queue().submit_batch(submissions)).await;
        for (key, _) in &jobs {
            self.note_made(key);
        }
        let found = match stored {
            Err(error) => refused(error),
            Ok(batch) => {
                let stored = submits.iter().zip(&batch.jobs);
                let replies =
                    stored.map(|(submit, (job, known))| self.submitted(submit, job, *known));
                Reply::Batch(replies.collect())
            }
        };
        (expected, found)
    }

    pub(super) fn note_made(&mut self, key: &JobKey) {
        if self.reference.jobs.contains_key(key) {
            self.made.push(key.clone());
        }
    }

    /// A submit was acknowledged with this job.
    fn submitted(&mut self, submit: &Submit, job: &Job, deduplicated: bool) -> Reply {
        let idempotency_key = submit.idempotency_key.map(text_of);
        let seen = Seen::of(job);
        let by_place = deduplicated
            && (idempotency_key.is_none() || job.spec.idempotency_key != idempotency_key);
        self.see(if by_place {
            Observation::Answered(seen)
        } else {
            Observation::Submitted {
                job: seen,
                idempotency_key,
            }
        });
        let (key, state) = (job.key.clone(), in_line(job.state));
        if deduplicated {
            Reply::Deduplicated(key, state)
        } else {
            Reply::Job(key, state)
        }
    }

    pub(super) async fn finish(&mut self, lease: &Lease, end: End) -> (Reply, Reply) {
        let chance = match end {
            End::Fails(chance) => f64::from(chance) / 256.0,
            _ => 0.5,
        };
        self.clock.set_chance(chance);
        let expected = self.reference.finish(lease, end, chance, self.clock.now());
        let result = Payload::text(format!("of attempt {}", lease.attempt));
        let outcome = match end {
            End::Succeeds => Outcome::Succeeded(Some(result.clone())),
            End::Fails(_) => Outcome::Failed(JobError::retryable("BROKEN", "again")),
            End::FailsForGood => Outcome::Failed(JobError::permanent("BROKEN", "for good")),
            End::IsCancelled => Outcome::Cancelled,
            End::HandsBack => Outcome::HandedBack,
            End::Snoozes(for_) => Outcome::Snoozed(Duration::from_secs(u64::from(for_))),
        };
        let finished = soon(self.queue().finish(lease, Vec::new(), outcome)).await;
        if let Ok(job) = &finished {
            let (key, attempt) = (lease.key.clone(), lease.attempt);
            // Accepted first, seen then: the answer shows the job after it.
            self.see(match job.state {
                JobState::Succeeded => {
                    Observation::ResultAccepted(key, attempt, result.as_bytes().to_vec())
                }
                _ => Observation::ReportAccepted(key, attempt),
            });
            self.see(Observation::Answered(Seen::of(job)));
        }
        (expected, reply(finished))
    }

    async fn purge(&mut self, purge: Purge) -> (Reply, Reply) {
        let purged = soon(self.queue().purge(vec![purge.clone()])).await;
        let found = match purged {
            Ok(purged) => {
                for one in purged {
                    if let Purged::Job(key) = one {
                        self.see(Observation::Deleted(key));
                    }
                }
                Reply::Done
            }
            Err(error) => {
                if let Purge::Job(key) = purge {
                    self.see(Observation::DeleteUnknown(key));
                }
                refused(error)
            }
        };
        (Reply::Done, found)
    }
}
