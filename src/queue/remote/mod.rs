//! Workers that are other programs: a sibling of the pool, with the same claims, reports and ends through
//! the same door.
//!
//! Nothing is kept of them but their leases: a token says all that its holder has to know, so that a worker
//! may come back over another connection, and to a server that was started again.

mod take_over;
mod token;
mod waits;
mod watch_over;

pub(super) use take_over::LeftOver;
pub(super) use waits::Waiters;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::{Error, Precondition, Violations};
use crate::job::limits::{LEASE_TERMS, LEASED_MAX, LIST_MAX, POLL_MAX, STRING_BYTES_MAX};
use crate::job::name::Name;
use crate::job::time::Timestamp;
use crate::job::{Change, Job, JobSnapshot, JobState, Outcome, Report};
use crate::queue::attempts::StopCause;
use crate::queue::lease::report_bytes;
use crate::queue::polls::{HandedOut, Poll};
use crate::queue::remote::token::Holder;
use crate::queue::schedule::Wanted;
use crate::queue::settings::SettingChange;
use crate::queue::writer::{Answer, Request};
use crate::queue::{Handed, JobQueue, Lease};
use crate::store::{Entry, View};

/// What a worker asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkRequest {
    /// Whose jobs.
    pub tenant: Name,
    /// Who it is: 1 to 1,024 bytes. Shown with the jobs that it holds.
    pub worker_id: String,
    /// What it can run: 1 to 100.
    pub types: Vec<Name>,
    /// Where its jobs may wait: up to 100; empty for anywhere.
    pub queues: Vec<Name>,
    /// How many more jobs it has room for: 1 to 1,000.
    pub max_jobs: usize,
    /// How long a lease holds without a word from it: 5 s to 5 min.
    pub term: Duration,
    /// How long to wait for work: up to 5 min.
    pub wait: Duration,
}

/// What a worker gets.
#[derive(Clone, PartialEq, Debug)]
pub struct Work {
    /// Jobs that are its own now. Empty where none came in time.
    pub jobs: Vec<LeasedJob>,
    /// This server is about to stop, and has no more work.
    pub drain: bool,
    /// How long the call had waited when the first of the jobs was claimed.
    pub waited: Duration,
}

/// A job that a worker holds.
#[derive(Clone, PartialEq, Debug)]
pub struct LeasedJob {
    /// With its input, and the newest checkpoint of the attempts before.
    pub snapshot: JobSnapshot,
    /// What the worker has to show with everything that it tells of this attempt.
    pub token: String,
    /// When the lease ends, by the server's wall clock, unless it is renewed.
    pub expires_at: Timestamp,
}

/// What became of a renewal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Renewal {
    /// The lease holds.
    Renewed(LeaseStanding),
    /// It is not its holder's any more.
    Lost,
    /// Nothing can be said: what is stored of its job is damaged, or could not be written. It ends when its
    /// term does, unless a later renewal says otherwise.
    Unknown,
}

/// How a lease stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseStanding {
    /// When it ends, by the server's wall clock, unless it is renewed again.
    pub expires_at: Timestamp,
    /// Somebody asked the job to stop, for this reason.
    pub cancel: Option<String>,
}

impl JobQueue {
    /// Waits for work, and claims it. `fits` is asked job by job whether it still goes into the answer; those
    /// behind one that does not are handed back, uncharged.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Safe: what was claimed for a caller that has gone is handed back, uncharged.
    pub async fn lease(
        &self,
        request: WorkRequest,
        fits: impl FnMut(&JobSnapshot) -> bool,
    ) -> Result<Work, Error> {
        let mut violations = Violations::default();
        request.check(&mut violations);
        violations.into_result()?;
        let asked_at = self.shared.clock.steady();
        let WorkRequest {
            tenant,
            worker_id,
            types,
            queues,
            max_jobs,
            term,
            wait,
        } = request;
        self.remember_types(&tenant, &types).await?;
        // From here on: whoever sees it wait may submit what it waits for.
        let _waits = self.shared.waiters.enter(&tenant)?;
        let (reply, answer) = oneshot::channel();
        let poll = Poll {
            wanted: Wanted {
                tenant,
                types: types.into_iter().collect(),
                queues: queues.into_iter().collect(),
            },
            places: max_jobs,
            worker_id: worker_id.clone(),
            term,
            reply,
        };
        if !self.is_draining() {
            self.send(Request::Poll(poll)).await?;
        }
        let (handed, drain) = self.first_of(answer, wait).await?;
        let holder = |lease| Holder {
            lease,
            worker_id: worker_id.clone(),
            term,
        };
        let jobs = handed.map(|handed| self.leased(handed, holder, fits));
        let jobs = jobs.unwrap_or_default();
        let ends = jobs
            .iter()
            .filter_map(|job| job.snapshot.job.lease_expires_at);
        let waited = ends.min().map_or(Duration::ZERO, |ends| {
            ends.since(asked_at).saturating_sub(term)
        });
        Ok(Work {
            jobs,
            drain,
            waited,
        })
    }

    /// Workers of other programs that wait for work now: jobs of their types are taken.
    pub fn waiting_workers(&self) -> usize {
        self.shared.waiters.all()
    }

    /// Stores what an attempt tells, which renews its lease. What comes with a number that came before in
    /// this attempt is not stored again. Nothing told is a heartbeat.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`StaleLease`](Precondition::StaleLease), [`Error::NotFound`], [`Error::Exhausted`],
    /// [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn report_as(
        &self,
        tenant: &Name,
        token: &str,
        number: i64,
        reports: Vec<Report>,
    ) -> Result<LeaseStanding, Error> {
        let holder = self.holder(tenant, "lease_token", token)?;
        let bytes = reports.iter().map(report_bytes).sum();
        let tells = !reports.is_empty();
        if tells {
            // It is not silent, whether or not there is room for what it tells.
            self.shared.attempts.hear(&holder.lease, Instant::now());
        }
        let entry = self.renewal(&holder, number, reports);
        match self.change_one(entry, bytes).await {
            Ok(answer) => self.standing(&holder, answer).await,
            Err(error) => {
                if let Some(wait) = error.retry_after().filter(|_| tells) {
                    // Nor is whoever was told to come back later, until then.
                    let attempts = &self.shared.attempts;
                    attempts.hear(&holder.lease, Instant::now() + wait);
                }
                Err(error)
            }
        }
    }

    /// Renews leases. Answers each in order: one that cannot be read, or written, takes no other along.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, some of it may happen although nobody hears of it.
    pub async fn extend_leases(
        &self,
        tenant: &Name,
        tokens: &[String],
    ) -> Result<Vec<Renewal>, Error> {
        let mut violations = Violations::default();
        if tokens.is_empty() || tokens.len() > LEASED_MAX {
            let problem = format!(
                "has {} entries; 1 to {LEASED_MAX} are accepted",
                tokens.len()
            );
            violations.add("lease_tokens", problem);
        }
        let secret = self.shared.store.secret();
        let mut holders = Vec::with_capacity(tokens.len());
        for (index, token) in tokens.iter().enumerate() {
            let field = format!("lease_tokens[{index}]");
            holders.extend(violations.check(&field, token::parse(&secret, tenant, token)));
        }
        violations.into_result()?;
        let answers = self.renew_apart(&holders).await?;
        let mut renewals = Vec::with_capacity(answers.len());
        for (holder, answer) in holders.iter().zip(answers) {
            let standing = match answer {
                Some(answer) => self.standing(holder, answer).await.map(Some),
                None => Ok(None),
            };
            renewals.push(match standing {
                Ok(Some(standing)) => Renewal::Renewed(standing),
                Err(Error::Precondition(Precondition::StaleLease) | Error::NotFound { .. }) => {
                    Renewal::Lost
                }
                // Why is in the log.
                Ok(None) | Err(Error::Internal { .. }) => {
                    tracing::warn!(job = %holder.lease.key.id, "a lease is neither renewed nor lost");
                    Renewal::Unknown
                }
                Err(error) => return Err(error),
            });
        }
        Ok(renewals)
    }

    /// Renews leases in one commit, and where that fails by our own fault in smaller ones, so that those of which
    /// nothing can be stored fail alone: `None` for them.
    async fn renew_apart(&self, holders: &[Holder]) -> Result<Vec<Option<Answer>>, Error> {
        /// How often a commit that failed is made again as two. Chosen: three bad ones of a thousand are
        /// found; where it is more, the store's trouble is not theirs.
        const SPLITS_MAX: usize = 32;
        let mut splits = 0;
        let mut answers = Vec::with_capacity(holders.len());
        let mut left = vec![holders];
        while let Some(part) = left.pop() {
            let entries = part
                .iter()
                .map(|holder| self.renewal(holder, 0, Vec::new()));
            match self.change(entries.collect(), 0).await {
                Ok(stored) => answers.extend(stored.into_iter().map(Some)),
                Err(Error::Internal { .. }) if part.len() > 1 && splits < SPLITS_MAX => {
                    splits += 1;
                    let (some, others) = part.split_at(part.len() / 2);
                    left.extend([others, some]);
                }
                Err(Error::Internal { .. }) => answers.extend(part.iter().map(|_| None)),
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }

    /// Ends an attempt. The same end told again by its holder is answered again, and changes nothing;
    /// `fingerprint` says which ends are the same.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`StaleLease`](Precondition::StaleLease),
    /// [`NotCancelling`](Precondition::NotCancelling), [`Error::NotFound`], [`Error::Exhausted`],
    /// [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn finish_as(
        &self,
        tenant: &Name,
        token: &str,
        outcome: Outcome,
        fingerprint: String,
    ) -> Result<Arc<Job>, Error> {
        let holder = self.holder(tenant, "lease_token", token)?;
        let bytes = match &outcome {
            Outcome::Succeeded(Some(result)) => result.as_bytes().len(),
            _ => 0,
        };
        let change = Change::Finish {
            attempt: holder.lease.attempt,
            outcome,
            chance: self.shared.clock.chance(),
            fingerprint: Some(fingerprint),
        };
        self.change_job(&holder.lease.key, change, bytes).await
    }

    /// What came for a poll before its time was over, and whether it ended because the server does.
    async fn first_of(
        &self,
        mut answer: oneshot::Receiver<HandedOut>,
        wait: Duration,
    ) -> Result<(Option<HandedOut>, bool), Error> {
        let drain = tokio::select! {
            biased;
            // A receiver is cancel safe: what was sent is still there.
            handed = &mut answer => match handed {
                Ok(handed) => return Ok((Some(handed), false)),
                Err(_) if self.is_draining() => return Ok((None, true)),
                // The writer has ended.
                Err(_) => return Err(Error::outcome_unknown()),
            },
            () = self.drained() => true,
            () = self.looked_for(wait) => false,
        };
        // From here on nothing can come any more; what came at the last moment counts.
        answer.close();
        Ok((answer.try_recv().ok(), drain))
    }

    /// Waits, and at least until the writer has looked for work once.
    async fn looked_for(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
        self.settle().await;
    }

    fn leased(
        &self,
        handed: HandedOut,
        holder: impl Fn(Lease) -> Holder,
        mut fits: impl FnMut(&JobSnapshot) -> bool,
    ) -> Vec<LeasedJob> {
        let snapshot = |handed: &Handed| JobSnapshot {
            job: Arc::clone(&handed.claimed.job),
            payloads: handed.claimed.payloads.clone(),
        };
        let secret = self.shared.store.secret();
        let handed = handed.take_while(|handed| fits(&snapshot(handed)));
        let leased = handed.into_iter().map(|handed| {
            let snapshot = snapshot(&handed);
            let job = &snapshot.job;
            let holder = holder(Lease {
                key: job.key.clone(),
                attempt: job.attempt,
            });
            self.watch_over(Arc::clone(job), handed.stop);
            LeasedJob {
                token: token::token(&secret, &holder),
                expires_at: self.shared.clock.now().after(holder.term),
                snapshot,
            }
        });
        leased.collect()
    }

    /// Whatever a worker once leased for is known from then on, so that jobs of it may wait for the worker.
    async fn remember_types(&self, tenant: &Name, types: &[Name]) -> Result<(), Error> {
        let new: BTreeSet<&Name> = {
            let known = self.known_types();
            let types = types.iter();
            types.filter(|name| !known.has(tenant, name)).collect()
        };
        for name in new {
            let change = SettingChange::LeaseType(name.clone(), tenant.clone());
            self.set(change).await?;
        }
        Ok(())
    }

    fn holder(&self, tenant: &Name, field: &str, token: &str) -> Result<Holder, Error> {
        let secret = self.shared.store.secret();
        token::parse(&secret, tenant, token).map_err(|problem| Error::invalid(field, problem))
    }

    fn renewal(&self, holder: &Holder, number: i64, reports: Vec<Report>) -> Entry {
        let Holder { lease, term, .. } = holder;
        Entry::Change {
            key: lease.key.clone(),
            change: self.report_change(lease, number, reports, *term),
        }
    }

    async fn standing(&self, holder: &Holder, answer: Answer) -> Result<LeaseStanding, Error> {
        let key = &holder.lease.key;
        let job = match self.job_of(key, answer)? {
            Some(job) => Some(job),
            // What it told is held back; only where it has to stop is its job needed.
            None if self.shared.attempts.cause(&holder.lease) == Some(StopCause::Cancel) => {
                Some(self.get(key, View::Basic).await?.job)
            }
            None => None,
        };
        let clock = &self.shared.clock;
        // Where what it told is held back, its lease was renewed within the last third of its term.
        let holds_for = match job.as_ref().and_then(|job| job.lease_expires_at) {
            Some(ends) => ends.since(clock.steady()),
            None => holder.term * 2 / 3,
        };
        let cancelling = job.filter(|job| job.state == JobState::Cancelling);
        Ok(LeaseStanding {
            expires_at: clock.now().after(holds_for),
            cancel: cancelling.map(|job| job.detail.cancel_reason.clone()),
        })
    }
}

impl WorkRequest {
    /// Adds what is out of bounds.
    pub(crate) fn check(&self, violations: &mut Violations) {
        let worker_id = self.worker_id.len();
        if !(1..=STRING_BYTES_MAX).contains(&worker_id) {
            let problem = format!("is {worker_id} bytes; 1 to {STRING_BYTES_MAX} are accepted");
            violations.add("worker_id", problem);
        }
        let types = self.types.len();
        if !(1..=LIST_MAX).contains(&types) {
            let problem = format!("has {types} entries; 1 to {LIST_MAX} are accepted");
            violations.add("types", problem);
        }
        let queues = self.queues.len();
        if queues > LIST_MAX {
            let problem = format!("has {queues} entries; at most {LIST_MAX} are accepted");
            violations.add("queues", problem);
        }
        let max_jobs = self.max_jobs;
        if !(1..=LEASED_MAX).contains(&max_jobs) {
            let problem = format!("is {max_jobs}; 1 to {LEASED_MAX} are accepted");
            violations.add("max_jobs", problem);
        }
        if !LEASE_TERMS.contains(&self.term) {
            violations.add(
                "lease",
                format!("is {:?}; 5s to 5m are accepted", self.term),
            );
        }
        if self.wait > POLL_MAX {
            violations.add(
                "wait",
                format!("is {:?}; at most 5m are accepted", self.wait),
            );
        }
    }
}
