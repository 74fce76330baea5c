//! What a memory store holds: the rows of the SQLite store as ordered maps, each index with the same order.
//!
//! A group is planned, checked, and only then written, so that nothing of a group that fails is ever seen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::job::name::{ConcurrencyKey, JobId, JobKey, Lane, Name};
use crate::job::payload::Payload;
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Job, JobFields, JobSpec, JobState, Payloads};
use crate::store::plan::{KeysRunning, Plan, Role, UniquePlace, plan};
use crate::store::{Committed, Group, Purge, Purged, StoreError, Timer};

/// All that is stored.
pub(super) struct Tables {
    /// In the order of a tenant's lists, backwards.
    pub(super) jobs: BTreeMap<JobKey, Row>,
    /// Idempotency keys: one job a key.
    pub(super) keys: HashMap<(Name, String), JobId>,
    /// The jobs of each unique place, the newest last.
    pub(super) uniques: HashMap<UniquePlace, BTreeSet<JobId>>,
    /// What waits in each lane. No lane is empty.
    pub(super) ready: BTreeMap<Lane, BTreeSet<Turn>>,
    /// What waits for others with a concurrency key. No key is empty.
    pub(super) blocked: HashMap<ConcurrencyKey, BTreeSet<Turn>>,
    /// What waits for its time.
    pub(super) scheduled: BTreeSet<(Timestamp, JobKey)>,
    /// What expires unless it begins or ends.
    pub(super) deadlines: BTreeSet<(Timestamp, JobKey)>,
    /// What is over, by the end of its retention.
    pub(super) purges: BTreeSet<(Timestamp, JobKey)>,
    /// What runs, by the end of its lease.
    pub(super) leased: BTreeSet<(Timestamp, JobKey)>,
    pub(super) keys_running: KeysRunning,
    /// How many jobs there are. No counter is zero.
    pub(super) depths: BTreeMap<(Lane, JobState), i64>,
    next_position: i64,
    pub(super) secret: [u8; 32],
}

/// A job's turn to be claimed: by priority, then by when it was due, then by its id.
pub(super) type Turn = (Reverse<i32>, Timestamp, JobId);

pub(super) fn turn(job: &Job) -> Turn {
    (Reverse(job.spec.priority), job.run_at, job.key.id)
}

/// A job, what stands beside it, and its log.
pub(super) struct Row {
    pub(super) job: Arc<Job>,
    pub(super) payloads: Arc<Payloads>,
    /// Ascending, without holes.
    pub(super) log: Vec<Arc<Segment>>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            jobs: BTreeMap::new(),
            keys: HashMap::new(),
            uniques: HashMap::new(),
            ready: BTreeMap::new(),
            blocked: HashMap::new(),
            scheduled: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            purges: BTreeSet::new(),
            leased: BTreeSet::new(),
            keys_running: KeysRunning::default(),
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
        let plan = plan(group, known, self.next_position, &self.keys_running);
        self.check(&plan)?;
        Ok(self.write(plan))
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
        self.keys_running.moved(plan.key_moves);
        plan.committed
    }

    fn insert(&mut self, job: Arc<Job>) {
        if let Some(key) = &job.spec.idempotency_key {
            let of_tenant = (job.key.tenant.clone(), key.clone());
            self.keys.insert(of_tenant, job.key.id);
        }
        if let Some(place) = unique_place(&job.key, &job.spec) {
            self.uniques.entry(place).or_default().insert(job.key.id);
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
        if let Some(row) = self.jobs.get_mut(&job.key) {
            let before = std::mem::replace(&mut row.job, Arc::clone(&job));
            self.leave(&before);
            self.enter(&job);
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

/// The indexes over what changes. Who enters one leaves it as the same job, so that nothing is left behind.
impl Tables {
    fn enter(&mut self, job: &Job) {
        if job.state == JobState::Queued {
            self.ready.entry(job.lane()).or_default().insert(turn(job));
        }
        if let Some(key) = blocked_by(job) {
            self.blocked.entry(key).or_default().insert(turn(job));
        }
        for (timer, at) in times_of(job) {
            self.timer(timer).insert((at, job.key.clone()));
        }
        if let Some(end) = lease_end(job) {
            self.leased.insert((end, job.key.clone()));
        }
    }

    fn leave(&mut self, job: &Job) {
        if job.state == JobState::Queued {
            let lane = job.lane();
            if let Some(turns) = self.ready.get_mut(&lane) {
                turns.remove(&turn(job));
                if turns.is_empty() {
                    self.ready.remove(&lane);
                }
            }
        }
        if let Some(key) = blocked_by(job)
            && let Some(turns) = self.blocked.get_mut(&key)
        {
            turns.remove(&turn(job));
            if turns.is_empty() {
                self.blocked.remove(&key);
            }
        }
        for (timer, at) in times_of(job) {
            self.timer(timer).remove(&(at, job.key.clone()));
        }
        if let Some(end) = lease_end(job) {
            self.leased.remove(&(end, job.key.clone()));
        }
    }

    fn timer(&mut self, timer: Timer) -> &mut BTreeSet<(Timestamp, JobKey)> {
        match timer {
            Timer::Start => &mut self.scheduled,
            Timer::Deadline => &mut self.deadlines,
            Timer::Purge => &mut self.purges,
        }
    }
}

fn blocked_by(job: &Job) -> Option<ConcurrencyKey> {
    let blocked = job.state == JobState::Blocked;
    blocked.then(|| job.concurrency_key()).flatten()
}

/// The times that a job waits for.
fn times_of(job: &Job) -> impl Iterator<Item = (Timer, Timestamp)> {
    let start = (job.state == JobState::Scheduled).then_some(job.run_at);
    let times = [
        (Timer::Start, start),
        (Timer::Deadline, job.deadline_at),
        (Timer::Purge, job.purge_at),
    ];
    let times = times.into_iter();
    times.filter_map(|(timer, at)| at.map(|at| (timer, at)))
}

pub(super) fn lease_end(job: &Job) -> Option<Timestamp> {
    let leased = job.state.is_leased();
    leased.then_some(job.lease_expires_at).flatten()
}

pub(super) fn unique_place(key: &JobKey, spec: &JobSpec) -> Option<UniquePlace> {
    let unique = spec.unique.as_ref()?;
    let (tenant, job_type) = (key.tenant.clone(), spec.job_type.clone());
    Some((tenant, job_type, unique.key.clone()))
}

pub(super) fn with_id(tenant: &Name, id: JobId) -> JobKey {
    JobKey {
        tenant: tenant.clone(),
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
        self.leave(&job);
        if let Some(place) = unique_place(&key, &job.spec)
            && let Some(ids) = self.uniques.get_mut(&place)
        {
            ids.remove(&key.id);
            if ids.is_empty() {
                self.uniques.remove(&place);
            }
        }
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
