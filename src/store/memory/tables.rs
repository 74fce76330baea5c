//! What a memory store holds: the rows of the SQLite store as ordered maps, each index with the same order.
//!
//! A group is planned, checked, and only then written, so that nothing of a group that fails is ever seen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use crate::job::name::{BatchId, JobId, JobKey, Lane, Name};
use crate::job::payload::Payload;
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Job, JobFields, JobSpec, JobState, Payloads};
use crate::store::plan::{KeysRunning, Plan, Role, UniquePlace, plan};
use crate::store::{BlockedLine, Committed, Group, Purge, Purged, SettingKind, StoreError, Timer};

/// All that is stored.
pub(super) struct Tables {
    /// In the order of a tenant's lists, backwards.
    pub(super) jobs: BTreeMap<JobKey, Row>,
    /// Idempotency keys: one job a key.
    pub(super) keys: HashMap<(Name, String), JobId>,
    /// The jobs of each unique place, the newest last.
    pub(super) uniques: HashMap<UniquePlace, BTreeSet<JobId>>,
    /// The jobs of each batch. No batch is empty.
    pub(super) batches: HashMap<(Name, BatchId), BTreeSet<JobId>>,
    /// What waits in each lane. No lane is empty.
    pub(super) ready: HashMap<Lane, BTreeSet<Turn>>,
    /// What waits for others with a concurrency key, by queue. No line is empty.
    pub(super) blocked: HashMap<Name, BTreeMap<BlockedLine, BTreeSet<Turn>>>,
    /// What waits for its time.
    pub(super) scheduled: BTreeSet<(Timestamp, JobKey)>,
    /// What expires unless it begins or ends.
    pub(super) deadlines: BTreeSet<(Timestamp, JobKey)>,
    /// What is over, by the end of its retention.
    pub(super) purges: BTreeSet<(Timestamp, JobKey)>,
    /// What is over and has not lost the front of its log, by when it may.
    pub(super) event_purges: BTreeSet<(Timestamp, JobKey)>,
    /// What runs, by the end of its lease.
    pub(super) leased: BTreeSet<(Timestamp, JobKey)>,
    pub(super) keys_running: KeysRunning,
    /// How many jobs there are. No counter is zero.
    pub(super) depths: BTreeMap<(Lane, JobState), i64>,
    /// What was set while a server ran.
    pub(super) settings: BTreeMap<(SettingKind, Name), String>,
    /// The segments of all jobs, by the position of their first events.
    pub(super) segments: BTreeMap<i64, (JobKey, Arc<Segment>)>,
    /// The highest position at which an event of each tenant was purged, and how often any was.
    pub(super) purged: HashMap<Name, (i64, i64)>,
    pub(super) next_position: i64,
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
    /// Ascending, without holes, each with its position.
    pub(super) log: Vec<(i64, Arc<Segment>)>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            jobs: BTreeMap::new(),
            keys: HashMap::new(),
            uniques: HashMap::new(),
            batches: HashMap::new(),
            ready: HashMap::new(),
            blocked: HashMap::new(),
            settings: BTreeMap::new(),
            scheduled: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            purges: BTreeSet::new(),
            event_purges: BTreeSet::new(),
            leased: BTreeSet::new(),
            keys_running: KeysRunning::default(),
            depths: BTreeMap::new(),
            segments: BTreeMap::new(),
            purged: HashMap::new(),
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
            let (position, key) = (published.position, &published.job.key);
            if let Some(row) = self.jobs.get_mut(key) {
                row.log.push((position, Arc::clone(&published.segment)));
                let placed = (key.clone(), Arc::clone(&published.segment));
                self.segments.insert(position, placed);
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
        if let Some(batch) = job.spec.batch_id {
            let batch = (job.key.tenant.clone(), batch);
            self.batches.entry(batch).or_default().insert(job.key.id);
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
        if let Some(line) = blocked_in(job) {
            let lines = self.blocked.entry(job.spec.queue.clone()).or_default();
            lines.entry(line).or_default().insert(turn(job));
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
            remove_from(&mut self.ready, &lane, &turn(job));
        }
        if let Some(line) = blocked_in(job)
            && let Some(lines) = self.blocked.get_mut(&job.spec.queue)
            && let Some(turns) = lines.get_mut(&line)
        {
            turns.remove(&turn(job));
            if turns.is_empty() {
                lines.remove(&line);
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
            Timer::PurgeEvents => &mut self.event_purges,
        }
    }
}

fn blocked_in(job: &Job) -> Option<BlockedLine> {
    if job.state != JobState::Blocked {
        return None;
    }
    Some(BlockedLine {
        tenant: job.key.tenant.clone(),
        key: job.spec.concurrency_key.clone()?,
        job_type: job.spec.job_type.clone(),
    })
}

/// The times that a job waits for.
fn times_of(job: &Job) -> impl Iterator<Item = (Timer, Timestamp)> {
    let start = (job.state == JobState::Scheduled).then_some(job.run_at);
    let times = [
        (Timer::Start, start),
        (Timer::Deadline, job.deadline_at),
        (Timer::Purge, job.purge_at),
        (Timer::PurgeEvents, job.events_purge_at),
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
                // A job goes with all of its log.
                Purge::Rest => Purged::Nothing,
            })
            .collect()
    }

    fn purge_job(&mut self, key: JobKey) -> Purged {
        let is_over = |row: &mut Row| row.job.state.is_terminal();
        let Some(row) = self
            .jobs
            .get_mut(&key)
            .and_then(|row| is_over(row).then_some(row))
        else {
            return Purged::Nothing;
        };
        let (job, log) = (Arc::clone(&row.job), std::mem::take(&mut row.log));
        self.jobs.remove(&key);
        self.leave(&job);
        self.forget_names(&job);
        self.drop_segments(&key.tenant, log);
        self.move_depth(job.lane(), job.state, -1);
        Purged::Job(key)
    }

    /// What a job was found by that never changed.
    fn forget_names(&mut self, job: &Job) {
        let (tenant, id) = (&job.key.tenant, &job.key.id);
        if let Some(text) = &job.spec.idempotency_key {
            self.keys.remove(&(tenant.clone(), text.clone()));
        }
        if let Some(place) = unique_place(&job.key, &job.spec) {
            remove_from(&mut self.uniques, &place, id);
        }
        if let Some(batch) = job.spec.batch_id {
            remove_from(&mut self.batches, &(tenant.clone(), batch), id);
        }
    }

    fn purge_events(&mut self, key: JobKey, through: i64) -> Purged {
        let Some(row) = self.jobs.get_mut(&key) else {
            return Purged::Nothing;
        };
        if !row.job.state.is_terminal() {
            return Purged::Nothing;
        }
        // The last segment always stays.
        let last = row.job.last_sequence - 1;
        let (through, done) = (through.min(last), through >= last);
        let gone = row
            .log
            .partition_point(|(_, s)| s.last_sequence() <= through);
        if gone == 0 && (!done || row.job.events_purge_at.is_none()) {
            return Purged::Nothing;
        }
        let gone: Vec<_> = row.log.drain(..gone).collect();
        let first = row.log.first();
        let first_sequence = first.map_or(1, |(_, segment)| segment.first_sequence());
        let job = Job::from_fields(JobFields {
            first_sequence,
            events_purge_at: row.job.events_purge_at.filter(|_| !done),
            version: row.job.version + 1,
            ..JobFields::clone(&row.job)
        });
        self.update(Arc::new(job));
        if gone.is_empty() {
            return Purged::Nothing;
        }
        self.drop_segments(&key.tenant, gone);
        Purged::Events(key, first_sequence)
    }

    fn drop_segments(&mut self, tenant: &Name, segments: Vec<(i64, Arc<Segment>)>) {
        let (mut through, purges) = self.purged.get(tenant).copied().unwrap_or_default();
        for (position, segment) in segments {
            self.segments.remove(&position);
            through = through.max(position + segment.len() as i64 - 1);
        }
        self.purged.insert(tenant.clone(), (through, purges + 1));
    }
}

fn remove_from<K: Eq + Hash, T: Ord>(index: &mut HashMap<K, BTreeSet<T>>, key: &K, value: &T) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}
