//! What a memory store holds: the rows of the SQLite store as ordered maps, each index with the same order.
//!
//! A group is planned, checked, and only then written, so that nothing of a group that fails is ever seen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::payload::Payload;
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Job, JobFields, JobSnapshot, JobState, Payloads};
use crate::store::plan::{BESIDE_BYTES_MAX, Known, Plan, Role, plan};
use crate::store::{
    Claimed, Committed, Due, Entry, Group, ListQuery, LogPart, LogRange, Purge, Purged, StoreError,
    View,
};

/// All that is stored.
pub(super) struct Tables {
    /// In the order of a tenant's lists, backwards.
    jobs: BTreeMap<JobKey, Row>,
    /// Idempotency keys: one job a key.
    keys: HashMap<(Name, String), JobId>,
    /// What waits in each lane, in the order of its claims. No lane is empty.
    ready: BTreeMap<Lane, BTreeSet<(Reverse<i32>, Timestamp, JobId)>>,
    /// What waits for its time.
    scheduled: BTreeSet<(Timestamp, JobKey)>,
    /// What runs, by the end of its lease.
    leased: BTreeSet<(Timestamp, JobKey)>,
    /// How many jobs there are. No counter is zero.
    depths: BTreeMap<(Lane, JobState), i64>,
    next_position: i64,
    secret: [u8; 32],
}

/// A job, what stands beside it, and its log.
struct Row {
    job: Arc<Job>,
    payloads: Arc<Payloads>,
    /// Ascending, without holes.
    log: Vec<Arc<Segment>>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            jobs: BTreeMap::new(),
            keys: HashMap::new(),
            ready: BTreeMap::new(),
            scheduled: BTreeSet::new(),
            leased: BTreeSet::new(),
            depths: BTreeMap::new(),
            next_position: 1,
            secret: rand::random(),
        }
    }
}

/// Groups: read, planned, checked, written.
impl Tables {
    pub(super) fn commit(&mut self, group: Group) -> Result<Committed, StoreError> {
        let known = self.read(&group);
        let plan = plan(group, known, self.next_position);
        self.check(&plan)?;
        Ok(self.write(plan))
    }

    fn read(&self, group: &Group) -> Known {
        let mut known = Known::default();
        for entry in &group.entries {
            match entry {
                Entry::Change { key, .. } => self.learn(key, &mut known),
                Entry::Submit { new, .. } => {
                    let Some(key) = &new.spec.idempotency_key else {
                        continue;
                    };
                    let of_tenant = (new.key.tenant.clone(), key.clone());
                    if let Some(id) = self.keys.get(&of_tenant) {
                        let key = JobKey {
                            tenant: new.key.tenant.clone(),
                            id: *id,
                        };
                        self.learn(&key, &mut known);
                        known.keys.insert(of_tenant, key);
                    }
                }
            }
        }
        for demand in &group.demand {
            let waiting = self.ready.get(&demand.lane).into_iter().flatten();
            let heads = waiting.take(demand.places).map(|(_, _, id)| JobKey {
                tenant: demand.lane.tenant.clone(),
                id: *id,
            });
            let rows = heads.filter_map(|key| self.jobs.get(&key));
            known.candidates.extend(rows.map(|row| Claimed {
                job: Arc::clone(&row.job),
                payloads: Payloads::clone(&row.payloads),
            }));
        }
        known
    }

    fn learn(&self, key: &JobKey, known: &mut Known) {
        let Some(row) = self.jobs.get(key) else {
            return;
        };
        known.jobs.insert(key.clone(), Arc::clone(&row.job));
        if row.payloads.bytes() <= BESIDE_BYTES_MAX {
            let payloads = Arc::clone(&row.payloads);
            known.payloads.insert(key.clone(), payloads);
        }
    }

    /// What a database holds by its unique indexes. Nobody else writes, so that rows are as they were read.
    fn check(&self, plan: &Plan) -> Result<(), StoreError> {
        let mut ids = HashSet::new();
        for job in &plan.inserts {
            if self.jobs.contains_key(&job.key) || !ids.insert(&job.key) {
                let taken = format!("there is a job {} already", job.key.id);
                return Err(StoreError::Internal(taken));
            }
        }
        Ok(())
    }

    fn write(&mut self, plan: Plan) -> Committed {
        for job in plan.inserts {
            self.insert(job);
        }
        for (job, _) in plan.updates {
            self.update(job);
        }
        for (key, role, payload) in plan.payloads {
            self.put_payload(&key, role, &payload);
        }
        for published in &plan.committed.published {
            if let Some(row) = self.jobs.get_mut(&published.job.key) {
                row.log.push(Arc::clone(&published.segment));
            }
        }
        for (lane, state, moved) in &plan.committed.depth_changes {
            self.move_depth(lane.clone(), *state, *moved);
        }
        self.next_position = plan.next_position;
        plan.committed
    }

    fn insert(&mut self, job: Arc<Job>) {
        if let Some(key) = &job.spec.idempotency_key {
            let of_tenant = (job.key.tenant.clone(), key.clone());
            self.keys.insert(of_tenant, job.key.id);
        }
        self.enter(&job);
        let row = Row {
            job: Arc::clone(&job),
            payloads: Arc::default(),
            log: Vec::new(),
        };
        self.jobs.insert(job.key.clone(), row);
    }

    fn update(&mut self, job: Arc<Job>) {
        self.enter(&job);
        if let Some(row) = self.jobs.get_mut(&job.key) {
            let before = std::mem::replace(&mut row.job, Arc::clone(&job));
            if place_of(&before) != place_of(&job) {
                self.leave(&before);
            }
        }
    }

    fn put_payload(&mut self, key: &JobKey, role: Role, payload: &Payload) {
        let Some(row) = self.jobs.get_mut(key) else {
            return;
        };
        // Detached: bytes are a part of the request that they came in, which must not be kept for them.
        let payload = Some(payload.detached());
        let payloads = Arc::make_mut(&mut row.payloads);
        match role {
            Role::Input => payloads.input = payload,
            Role::Result => payloads.result = payload,
            Role::Checkpoint => payloads.checkpoint = payload,
        }
    }

    fn move_depth(&mut self, lane: Lane, state: JobState, moved: i64) {
        let counted = (lane, state);
        let jobs = self.depths.get(&counted).copied().unwrap_or_default() + moved;
        if jobs == 0 {
            self.depths.remove(&counted);
        } else {
            self.depths.insert(counted, jobs);
        }
    }
}

/// Where a job stands in the indexes: a job that does not change it need not be moved.
#[derive(PartialEq)]
enum Place {
    Ready(Timestamp),
    Scheduled(Timestamp),
    Leased(Timestamp),
    Nowhere,
}

fn place_of(job: &Job) -> Place {
    match job.state {
        JobState::Queued => Place::Ready(job.run_at),
        JobState::Scheduled => Place::Scheduled(job.run_at),
        JobState::Running | JobState::Cancelling => match job.lease_expires_at {
            Some(end) => Place::Leased(end),
            None => Place::Nowhere,
        },
        JobState::Blocked
        | JobState::Succeeded
        | JobState::Failed
        | JobState::Cancelled
        | JobState::Expired => Place::Nowhere,
    }
}

/// The indexes over states.
impl Tables {
    fn enter(&mut self, job: &Job) {
        match place_of(job) {
            Place::Ready(run_at) => {
                let lane = self.ready.entry(job.lane()).or_default();
                lane.insert((Reverse(job.spec.priority), run_at, job.key.id));
            }
            Place::Scheduled(run_at) => {
                self.scheduled.insert((run_at, job.key.clone()));
            }
            Place::Leased(end) => {
                self.leased.insert((end, job.key.clone()));
            }
            Place::Nowhere => {}
        }
    }

    fn leave(&mut self, job: &Job) {
        match place_of(job) {
            Place::Ready(run_at) => {
                let name = job.lane();
                if let Some(lane) = self.ready.get_mut(&name) {
                    lane.remove(&(Reverse(job.spec.priority), run_at, job.key.id));
                    if lane.is_empty() {
                        self.ready.remove(&name);
                    }
                }
            }
            Place::Scheduled(run_at) => {
                self.scheduled.remove(&(run_at, job.key.clone()));
            }
            Place::Leased(end) => {
                self.leased.remove(&(end, job.key.clone()));
            }
            Place::Nowhere => {}
        }
    }
}

/// Questions.
impl Tables {
    pub(super) fn secret(&self) -> [u8; 32] {
        self.secret
    }

    pub(super) fn job(&self, key: &JobKey, view: View) -> Option<JobSnapshot> {
        let row = self.jobs.get(key)?;
        let payloads = match view {
            View::Basic => Payloads::default(),
            View::Full => Payloads::clone(&row.payloads),
        };
        Some(JobSnapshot {
            job: Arc::clone(&row.job),
            payloads,
        })
    }

    pub(super) fn list(&self, query: &ListQuery) -> Vec<Arc<Job>> {
        if let Some(key) = &query.idempotency_key {
            let id = self.keys.get(&(query.tenant.clone(), key.clone()));
            let row = id.and_then(|id| self.jobs.get(&of_tenant(query, *id)));
            let job = row.map(|row| Arc::clone(&row.job));
            return job.into_iter().filter(|job| query.admits(job)).collect();
        }
        let newest = query.before_id.unwrap_or(JobId::new(uuid::Uuid::max()));
        let oldest = of_tenant(query, JobId::new(uuid::Uuid::nil()));
        let range = self.jobs.range(oldest..=of_tenant(query, newest)).rev();
        range
            .map(|(_, row)| &row.job)
            .filter(|job| query.admits(job))
            .take(query.limit)
            .map(Arc::clone)
            .collect()
    }

    pub(super) fn log(&self, key: &JobKey, range: LogRange) -> Option<LogPart> {
        let row = self.jobs.get(key)?;
        let begin = row
            .log
            .partition_point(|s| s.last_sequence() <= range.after);
        let next = range.after.saturating_add(1).max(row.job.first_sequence);
        let events = i64::try_from(range.events.max(1)).unwrap_or(i64::MAX);
        let end = next.saturating_add(events);
        let mut bytes = 0;
        let segments = row.log[begin..].iter().take_while(|segment| {
            let fits = segment.first_sequence() < end && bytes < range.bytes.max(1);
            bytes += segment.body().len();
            fits
        });
        Some(LogPart {
            job: Arc::clone(&row.job),
            segments: segments.map(Arc::clone).collect(),
        })
    }

    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Due {
        let mut due = Due {
            keys: Vec::new(),
            next: None,
        };
        for (run_at, key) in &self.scheduled {
            if *run_at > now || due.keys.len() == limit {
                due.next = Some(*run_at);
                break;
            }
            due.keys.push(key.clone());
        }
        due
    }

    pub(super) fn leases_ended(&self, before: Timestamp, limit: usize) -> Vec<(JobKey, u32)> {
        let ended = self.leased.iter().take_while(|(end, _)| *end < before);
        ended
            .take(limit)
            .filter_map(|(_, key)| Some((key.clone(), self.jobs.get(key)?.job.attempt)))
            .collect()
    }

    pub(super) fn depths(&self) -> Vec<(Lane, JobState, i64)> {
        let depths = self.depths.iter();
        depths
            .map(|((lane, state), jobs)| (lane.clone(), *state, *jobs))
            .collect()
    }
}

fn of_tenant(query: &ListQuery, id: JobId) -> JobKey {
    JobKey {
        tenant: query.tenant.clone(),
        id,
    }
}

/// Removing what is over.
impl Tables {
    pub(super) fn purge(&mut self, purge: Vec<Purge>) -> Vec<Purged> {
        let purges = purge.into_iter();
        purges
            .map(|purge| match purge {
                Purge::Job(key) => self.purge_job(key),
                Purge::Events(key, through) => self.purge_events(key, through),
            })
            .collect()
    }

    fn purge_job(&mut self, key: JobKey) -> Purged {
        let row = self.jobs.get(&key);
        let Some(job) = row.map(|row| Arc::clone(&row.job)) else {
            return Purged::Nothing;
        };
        if !job.state.is_terminal() {
            return Purged::Nothing;
        }
        self.jobs.remove(&key);
        if let Some(text) = &job.spec.idempotency_key {
            self.keys.remove(&(key.tenant.clone(), text.clone()));
        }
        self.move_depth(job.lane(), job.state, -1);
        Purged::Job(key)
    }

    fn purge_events(&mut self, key: JobKey, through: i64) -> Purged {
        let Some(row) = self.jobs.get_mut(&key) else {
            return Purged::Nothing;
        };
        // The last segment always stays.
        let gone = row
            .log
            .partition_point(|s| s.last_sequence() <= through.min(row.job.last_sequence - 1));
        if gone == 0 || !row.job.state.is_terminal() {
            return Purged::Nothing;
        }
        row.log.drain(..gone);
        let first_sequence = row
            .log
            .first()
            .map_or(1, |segment| segment.first_sequence());
        row.job = Arc::new(Job::from_fields(JobFields {
            first_sequence,
            version: row.job.version + 1,
            ..JobFields::clone(&row.job)
        }));
        Purged::Events(key, first_sequence)
    }
}
