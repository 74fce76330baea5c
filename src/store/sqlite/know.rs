//! What a group of changes needs to know, read by the write connection: nobody else writes, so it holds
//! until the group is written.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use rusqlite::{OptionalExtension, Params, Row, params};

use crate::job::name::{ConcurrencyKey, JobKey, Lane, Name};
use crate::job::{Change, Job, JobSnapshot, NewJob};
use crate::store::plan::{BlockedHeads, Candidate, KeyRoom, Known, SET_ASIDE_MAX, UniquePlace};
use crate::store::sqlite::errors::write_error;
use crate::store::sqlite::read;
use crate::store::sqlite::rows::{self, Columns};
use crate::store::sqlite::write::{Remembered, Writer, id};
use crate::store::{Entry, Group, StoreError};

/// The jobs of a lane in the order of its claims: whoever steps through it stops when there are enough.
///
/// One writer, so no skip-locked; a PostgreSQL twin takes row locks.
pub(super) const LANE_HEADS: &str = "
select id, concurrency_key from jobs
where queue = ?1 and job_type = ?2 and tenant = ?3 and state = 'queued'
order by priority desc, run_at_us, id";

impl Writer {
    /// Counts what runs with concurrency keys: once, as the store is opened.
    pub(super) fn count_keys(&mut self) -> Result<(), StoreError> {
        let mut counts = Vec::new();
        {
            let mut select = self.prepare(read::KEYS_RUNNING)?;
            let mut rows = select.query([]).map_err(write_error)?;
            while let Some(row) = rows.next().map_err(write_error)? {
                match concurrency_key(row) {
                    Ok(key) => counts.push((key, rows::number(row, 3)?)),
                    // Nobody else can have it: it must not keep the store from being opened.
                    Err(error) => {
                        tracing::error!(%error, "the key of a running job cannot be read");
                    }
                }
            }
        }
        self.keys_running.moved(counts);
        Ok(())
    }

    /// Reads what the entries of a group name, and the heads of the lanes that it may claim from.
    pub(super) fn read(&mut self, group: &Group) -> Result<Known, StoreError> {
        let mut known = Known::default();
        let mut wanted = Wanted::default();
        for entry in &group.entries {
            wanted.add(entry);
        }
        let mut damaged = Wanted::default();
        for key in wanted.jobs {
            if !is_read(self.know(key, &mut known))? {
                damaged.jobs.insert(key);
            }
        }
        for key in wanted.retries {
            if !is_read(self.know_retry(key, &mut known))? {
                damaged.retries.insert(key);
            }
        }
        for key in wanted.keys {
            if !is_read(self.know_key(key, &mut known))? {
                damaged.keys.insert(key);
            }
        }
        for place in wanted.places {
            if !is_read(self.know_place(&place, &mut known))? {
                damaged.places.insert(place);
            }
        }
        if damaged != Wanted::default() {
            known.unreadable = group
                .entries
                .iter()
                .map(|entry| damaged.meets(entry))
                .collect();
        }
        self.know_blocked(&wanted.may_end, &mut known)?;
        let mut set_aside = 0;
        for (lane, places) in group.places() {
            self.lane_heads(
                lane,
                places,
                &group.key_limits,
                &mut set_aside,
                &mut known.candidates,
            )?;
        }
        Ok(known)
    }

    /// A job that an entry names, if there is one.
    fn know(&self, key: &JobKey, known: &mut Known) -> Result<(), StoreError> {
        if let Some(Remembered { job, beside }) = self.remembered.get(key) {
            known.jobs.insert(key.clone(), Arc::clone(job));
            if let Some(beside) = beside {
                known.payloads.insert(key.clone(), Arc::clone(beside));
            }
        } else if let Some(job) = self.job(read::JOB, (key.tenant.as_str(), id(key)))? {
            known.jobs.insert(key.clone(), Arc::new(job));
        }
        Ok(())
    }

    /// The job of an idempotency key, if there is one.
    fn know_key(&self, (tenant, text): (&Name, &str), known: &mut Known) -> Result<(), StoreError> {
        if let Some(job) = self.job(read::JOB_OF_KEY, (tenant.as_str(), text.as_bytes()))? {
            let by_key = (tenant.clone(), text.to_owned());
            known.keys.insert(by_key, job.key.clone());
            self.know_job(job, known);
        }
        Ok(())
    }

    /// The jobs of a unique place that are not over, or the last one that was there.
    fn know_place(&self, place: &UniquePlace, known: &mut Known) -> Result<(), StoreError> {
        let (tenant, job_type, key) = place;
        let which = (tenant.as_str(), job_type.as_str(), key.as_bytes());
        let mut jobs = self.jobs(read::JOBS_IN_PLACE, which)?;
        if jobs.is_empty() {
            jobs.extend(self.job(read::JOB_OF_PLACE, which)?);
        }
        let keys = jobs.iter().map(|job| job.key.clone()).collect();
        known.uniques.insert(place.clone(), keys);
        for job in jobs {
            self.know_job(job, known);
        }
        Ok(())
    }

    /// A job that was found in another way than by its id.
    fn know_job(&self, job: Job, known: &mut Known) {
        if let Some(Remembered {
            beside: Some(beside),
            ..
        }) = self.remembered.get(&job.key)
        {
            known.payloads.insert(job.key.clone(), Arc::clone(beside));
        }
        known.jobs.insert(job.key.clone(), Arc::new(job));
    }

    /// A job that is retried: with its input, and beside the job that it was retried by before.
    fn know_retry(&self, key: &JobKey, known: &mut Known) -> Result<(), StoreError> {
        let Some(JobSnapshot { job, payloads }) = self.snapshot(key)? else {
            return Ok(());
        };
        if let Some(by) = job.detail.retried_by {
            let by = JobKey {
                tenant: key.tenant.clone(),
                id: by,
            };
            self.know(&by, known)?;
        }
        known.jobs.insert(key.clone(), job);
        if let Some(input) = payloads.input {
            known.inputs.insert(key.clone(), input);
        }
        Ok(())
    }

    /// For each job with a concurrency key that may make room, one of each type that waits for it.
    fn know_blocked(
        &self,
        may_end: &HashSet<&JobKey>,
        known: &mut Known,
    ) -> Result<(), StoreError> {
        let mut wanted: HashMap<ConcurrencyKey, usize> = HashMap::new();
        let in_place: HashSet<&JobKey> = known.uniques.values().flatten().collect();
        for job in known.jobs.values() {
            if (in_place.contains(&job.key) || may_end.contains(&job.key))
                && !job.state.is_terminal()
                && let Some(key) = job.concurrency_key()
            {
                // One that waits itself makes no room, but may be ended: then the one behind it is wanted.
                *wanted.entry(key).or_default() += 1;
            }
        }
        for (key, jobs) in wanted {
            let heads = self.blocked_heads(&key, jobs)?;
            if !heads.is_empty() {
                known.blocked.insert(key, heads);
            }
        }
        Ok(())
    }

    /// The first jobs of each type that wait for others with a key.
    fn blocked_heads(&self, key: &ConcurrencyKey, most: usize) -> Result<BlockedHeads, StoreError> {
        let (queue, tenant) = (key.queue.as_str(), key.tenant.as_str());
        let mut heads = BlockedHeads::new();
        let mut last = String::new();
        while let Some(job_type) = {
            let which = params![queue, tenant, key.key.as_str(), last];
            let mut select = self.prepare(read::NEXT_BLOCKED_TYPE)?;
            let next = select.query_row(which, |row| row.get::<_, String>(0));
            next.optional().map_err(write_error)?
        } {
            let which = params![queue, tenant, key.key.as_str(), job_type];
            let mut select = self.prepare(read::BLOCKED_HEADS)?;
            let mut rows = select.query(which).map_err(write_error)?;
            let mut line = VecDeque::new();
            while line.len() < most
                && let Some(row) = rows.next().map_err(write_error)?
            {
                match rows::job(row) {
                    Ok(job) => line.push_back(Arc::new(job)),
                    // It stays where it is: it must not hold up those behind it.
                    Err(error) => {
                        tracing::error!(%error, "a job that waits for others cannot be read");
                    }
                }
            }
            match rows::name(&job_type) {
                Ok(job_type) => drop(heads.insert(job_type, line)),
                Err(error) => {
                    tracing::error!(%error, "the type of jobs that wait for others cannot be read");
                }
            }
            last = job_type;
        }
        Ok(heads)
    }

    fn job(&self, sql: &'static str, which: impl Params) -> Result<Option<Job>, StoreError> {
        self.one(sql, which, |row| rows::job(row))
    }

    /// A job with its payloads.
    fn snapshot(&self, key: &JobKey) -> Result<Option<JobSnapshot>, StoreError> {
        let which = (key.tenant.as_str(), id(key));
        self.one(read::JOB_WITH_PAYLOADS, which, |row| rows::snapshot(row))
    }

    fn one<T>(
        &self,
        sql: &'static str,
        which: impl Params,
        decode: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut select = self.prepare(sql)?;
        let found = select.query_row(which, |row| Ok(decode(row))).optional();
        found.map_err(write_error)?.transpose()
    }

    fn jobs(&self, sql: &'static str, which: impl Params) -> Result<Vec<Job>, StoreError> {
        let mut select = self.prepare(sql)?;
        let mut rows = select.query(which).map_err(write_error)?;
        let mut jobs = Vec::new();
        while let Some(row) = rows.next().map_err(write_error)? {
            jobs.push(rows::job(row)?);
        }
        Ok(jobs)
    }

    fn lane_heads(
        &mut self,
        lane: &Lane,
        places: usize,
        key_limits: &BTreeMap<Name, usize>,
        set_aside: &mut usize,
        heads: &mut Vec<Candidate>,
    ) -> Result<(), StoreError> {
        for head in self.first_heads(lane, places, key_limits, set_aside)? {
            match head {
                Head::Read(head) => heads.push(head),
                Head::Remembered(key) => {
                    if let Some(Remembered {
                        job,
                        beside: Some(payloads),
                    }) = self.remembered.remove(&key)
                    {
                        heads.push(Candidate {
                            job,
                            payloads: Some(Arc::unwrap_or_clone(payloads)),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// The jobs at the head of a lane: as many as can be claimed, beside those in between that have to
    /// wait for others with their concurrency key. `set_aside` counts the latter over all lanes, and what
    /// cannot be read: it stays where it is, and takes no place from those behind it.
    fn first_heads(
        &self,
        lane: &Lane,
        places: usize,
        key_limits: &BTreeMap<Name, usize>,
        set_aside: &mut usize,
    ) -> Result<Vec<Head>, StoreError> {
        let mut room = KeyRoom::new(&self.keys_running, lane, key_limits);
        let which = params![
            lane.queue.as_str(),
            lane.job_type.as_str(),
            lane.tenant.as_str(),
        ];
        let mut select = self.prepare(LANE_HEADS)?;
        let mut rows = select.query(which).map_err(write_error)?;
        let mut heads = Vec::with_capacity(places);
        let mut claimable = 0;
        while claimable < places
            && *set_aside < SET_ASIDE_MAX
            && let Some(row) = rows.next().map_err(write_error)?
        {
            let (key, concurrency_key) = match lane_head(row, &lane.tenant) {
                Ok(head) => head,
                Err(error) => {
                    tracing::error!(%error, "a waiting job cannot be claimed");
                    *set_aside += 1;
                    continue;
                }
            };
            let id = key.id;
            let is_claimable = room.take(concurrency_key.clone());
            let head = if self.remembers_waiting(&key) {
                Ok(Some(Head::Remembered(key)))
            } else {
                let head = self.candidate(&key, is_claimable);
                head.map(|head| head.map(Head::Read))
            };
            match head {
                Ok(head) => heads.extend(head),
                Err(error @ StoreError::Internal(_)) => {
                    tracing::error!(job = %id, %error, "a waiting job cannot be claimed");
                    if is_claimable {
                        room.give_back(concurrency_key.as_ref());
                    }
                    *set_aside += 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            claimable += usize::from(is_claimable);
            *set_aside += usize::from(!is_claimable);
        }
        Ok(heads)
    }

    /// Whether all that an attempt needs of a job that waits is remembered.
    fn remembers_waiting(&self, key: &JobKey) -> bool {
        let found = self.remembered.get(key);
        found.is_some_and(|found| found.beside.is_some())
    }

    /// A waiting job: with what an attempt needs, unless it is only to be set aside.
    fn candidate(&self, key: &JobKey, is_claimable: bool) -> Result<Option<Candidate>, StoreError> {
        if !is_claimable {
            let found = self.job(read::JOB, (key.tenant.as_str(), id(key)))?;
            return Ok(found.map(|job| Candidate {
                job: Arc::new(job),
                payloads: None,
            }));
        }
        let found = self.snapshot(key)?;
        Ok(found.map(|JobSnapshot { job, payloads }| Candidate {
            job,
            payloads: Some(payloads),
        }))
    }
}

/// A key that jobs share, from the first columns of a row.
fn concurrency_key(row: &Row<'_>) -> Result<ConcurrencyKey, StoreError> {
    Ok(ConcurrencyKey {
        tenant: rows::name(rows::text(row, 0)?)?,
        queue: rows::name(rows::text(row, 1)?)?,
        key: rows::name(rows::text(row, 2)?)?,
    })
}

/// A job that waits, with its concurrency key, from a row of [`LANE_HEADS`].
fn lane_head(row: &Row<'_>, tenant: &Name) -> Result<(JobKey, Option<Name>), StoreError> {
    let key = JobKey {
        tenant: tenant.clone(),
        id: rows::job_id(rows::blob(row, 0)?)?,
    };
    Ok((key, Columns::text(row, 1)?.map(rows::name).transpose()?))
}

/// A job at the head of a lane.
enum Head {
    Remembered(JobKey),
    Read(Candidate),
}

/// Whether a row could be read. One that is damaged fails those who ask for it, and nobody else.
fn is_read(read: Result<(), StoreError>) -> Result<bool, StoreError> {
    match read {
        Ok(()) => Ok(true),
        Err(error @ StoreError::Internal(_)) => {
            tracing::error!(%error, "what a change is about cannot be read");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// What the entries of a group want to know.
#[derive(Default, PartialEq)]
struct Wanted<'a> {
    jobs: HashSet<&'a JobKey>,
    /// Those among them that may not run, or not be about to, any more.
    may_end: HashSet<&'a JobKey>,
    retries: HashSet<&'a JobKey>,
    keys: HashSet<(&'a Name, &'a str)>,
    places: HashSet<UniquePlace>,
}

impl<'a> Wanted<'a> {
    fn add(&mut self, entry: &'a Entry) {
        match entry {
            Entry::Change { key, change } => {
                self.jobs.insert(key);
                if may_end(change) {
                    self.may_end.insert(key);
                }
            }
            Entry::Retry { key, .. } => {
                self.retries.insert(key);
            }
            Entry::Submit { new, .. } | Entry::Check(new) => self.add_new(new),
            Entry::Batch(jobs) => jobs.iter().for_each(|new| self.add_new(new)),
        }
    }

    /// Whether an entry wants any of this.
    fn meets(&self, entry: &Entry) -> bool {
        let mut of_entry = Wanted::default();
        of_entry.add(entry);
        !(self.jobs.is_disjoint(&of_entry.jobs)
            && self.retries.is_disjoint(&of_entry.retries)
            && self.keys.is_disjoint(&of_entry.keys)
            && self.places.is_disjoint(&of_entry.places))
    }

    fn add_new(&mut self, new: &'a NewJob) {
        let (tenant, spec) = (&new.key.tenant, &new.spec);
        if let Some(key) = &spec.idempotency_key {
            self.keys.insert((tenant, key));
        }
        if let Some(unique) = &spec.unique {
            let place = (tenant.clone(), spec.job_type.clone(), unique.key.clone());
            self.places.insert(place);
        }
    }
}

/// Whether a change may take a job out of those that run or could run next.
fn may_end(change: &Change) -> bool {
    match change {
        Change::Finish { .. }
        | Change::Undelivered { .. }
        | Change::Lose { .. }
        | Change::Cancel { .. }
        | Change::Expire => true,
        Change::Claim { .. }
        | Change::Report { .. }
        | Change::Stall { .. }
        | Change::BecomeDue
        | Change::Hold
        | Change::Unblock
        | Change::Retried { .. } => false,
    }
}
