//! How queues and job types stand: counters of the store, what was set, and what the last minute brought.
//! Nothing is counted for a look, and a look costs no more than its page.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::error::Error;
use crate::job::limits::PAGE_SIZE_MAX;
use crate::job::name::{Lane, Name};
use crate::job::queue::{GivenLimits, QueueLimits};
use crate::job::time::Timestamp;
use crate::job::{Job, JobState};
use crate::queue::rates::Of;
use crate::queue::settings::QueueSetting;
use crate::queue::{JobQueue, LastMinute, page};
use crate::store::{ListQuery, QueueRange};

/// Lanes of one type that are asked for their oldest job. Chosen: a tenth of a second.
const LANES_ASKED_MAX: usize = 1_000;

/// Stalled jobs that are counted. Chosen: beyond it their number says nothing more.
const STALLED_MAX: usize = 10_000;

/// How many jobs of a tenant are in each state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Depths(BTreeMap<JobState, u64>);

impl Depths {
    /// How many are in a state.
    pub fn of(&self, state: JobState) -> u64 {
        self.0.get(&state).copied().unwrap_or(0)
    }

    fn add(&mut self, state: JobState, jobs: i64) {
        *self.0.entry(state).or_default() += u64::try_from(jobs).unwrap_or(0);
    }
}

/// How a queue or a type stands, as one tenant sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    /// Which one.
    pub name: Name,
    /// The tenant's jobs.
    pub depths: Depths,
    /// Those that run whose attempt is silent for longer than its job's stall time.
    pub stalled: u64,
    /// How long the QUEUED job that has been due the longest is due. `None` where none is queued, or where
    /// that would take too long to find.
    pub oldest_waiting: Option<Duration>,
    /// What the last minute brought; `None` where that was not counted.
    pub last_minute: Option<LastMinute>,
    /// Since when nothing of it is started.
    pub paused_at: Option<Timestamp>,
}

/// How a queue stands.
#[derive(Clone, PartialEq, Debug)]
pub struct QueueStatus {
    /// As one tenant sees it.
    pub status: Status,
    /// What bounds it, over all tenants.
    pub limits: QueueLimits,
    /// Who said so.
    pub sources: LimitSources,
}

/// How a job type stands.
#[derive(Clone, PartialEq, Debug)]
pub struct TypeStatus {
    /// As one tenant sees it.
    pub status: Status,
    /// Where its jobs wait unless the caller says otherwise.
    pub queue: Name,
    /// Most of its jobs running at once in this process, where it has a bound of its own.
    pub concurrency: Option<usize>,
}

/// Who said what a limit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody.
    Default,
    /// The configuration file.
    File,
    /// A caller, while the server ran.
    Runtime,
}

/// Who said what the limits of a queue are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitSources {
    /// Of jobs running at once.
    pub concurrency: Source,
    /// Of starts in a time.
    pub rate: Source,
    /// Of jobs with one key running at once.
    pub key_concurrency: Source,
}

/// A page of queues, in the order of their names.
#[derive(Clone, PartialEq, Debug)]
pub struct QueueList {
    /// The page.
    pub queues: Vec<QueueStatus>,
    /// Goes on behind it; empty at the end.
    pub next_page_token: String,
}

type Counters = Vec<(Lane, JobState, i64)>;

impl JobQueue {
    /// A page of the queues that have jobs of the tenant, limits or a type that waits in them by default,
    /// or that are paused.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the page's size or token, [`Error::Exhausted`], [`Error::Unavailable`].
    pub async fn queues(
        &self,
        tenant: &Name,
        page_size: usize,
        page_token: &str,
    ) -> Result<QueueList, Error> {
        let secret = self.shared.store.secret();
        let after = match page_token {
            "" => None,
            token => Some(
                page::parse_name(&secret, tenant, token)
                    .map_err(|problem| Error::invalid("page_token", problem))?,
            ),
        };
        let store = &self.shared.store;
        let size = page_size.clamp(1, PAGE_SIZE_MAX);
        let range = QueueRange::Behind(after.clone(), size + 1);
        let counters = store.depths_of(tenant, &range).await?;
        let mut by_queue = grouped(counters, |lane| lane.queue.clone());
        let mut names = self.named_queues(after.as_ref());
        names.extend(by_queue.keys().cloned());
        let more = names.len() > size;
        let stalled = self.stalled(tenant, |job| &job.spec.queue).await?;
        let mut queues = Vec::with_capacity(size);
        for name in names.into_iter().take(size) {
            let counters = by_queue.remove(&name).unwrap_or_default();
            let stalled = stalled.get(&name).copied().unwrap_or(0);
            queues.push(self.queue_status(tenant, name, counters, stalled).await?);
        }
        let last = queues.last().filter(|_| more);
        let token = last.map(|last| page::name_token(&secret, tenant, &last.status.name));
        Ok(QueueList {
            queues,
            next_page_token: token.unwrap_or_default(),
        })
    }

    /// One queue, whether anything is known of it or not.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    pub async fn queue(&self, tenant: &Name, name: &Name) -> Result<QueueStatus, Error> {
        let counters = self.counters_of(tenant, name).await?;
        let stalled = self.stalled(tenant, |job| &job.spec.queue).await?;
        let stalled = stalled.get(name).copied().unwrap_or(0);
        self.queue_status(tenant, name.clone(), counters, stalled)
            .await
    }

    /// The job types that are served, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    pub async fn job_types(&self, tenant: &Name) -> Result<Vec<TypeStatus>, Error> {
        let mut depths: BTreeMap<Name, Depths> = BTreeMap::new();
        let mut lanes: BTreeMap<Name, Vec<Lane>> = BTreeMap::new();
        let mut after: Option<Name> = None;
        loop {
            let range = QueueRange::Behind(after.take(), PAGE_SIZE_MAX);
            let counters = self.shared.store.depths_of(tenant, &range).await?;
            let Some((last, ..)) = counters.last() else {
                break;
            };
            after = Some(last.queue.clone());
            for (lane, state, jobs) in counters {
                let name = lane.job_type.clone();
                depths.entry(name.clone()).or_default().add(state, jobs);
                let lanes = lanes.entry(name).or_default();
                if state == JobState::Queued && lanes.len() <= LANES_ASKED_MAX {
                    lanes.push(lane);
                }
            }
        }
        let stalled = self.stalled(tenant, |job| &job.spec.job_type).await?;
        let mut types = Vec::new();
        let names: BTreeSet<Name> = {
            let live = self.shared.live();
            let configured = self.shared.settings.types.keys();
            configured.chain(live.leased_by(tenant)).cloned().collect()
        };
        for name in &names {
            let depths = depths.remove(name).unwrap_or_default();
            let lanes = lanes.remove(name).unwrap_or_default();
            let stalled = stalled.get(name).copied().unwrap_or(0);
            let status = self.type_status(tenant, name, depths, &lanes, stalled);
            types.push(status.await?);
        }
        Ok(types)
    }

    /// One job type that is served.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    pub async fn job_type(&self, tenant: &Name, name: &Name) -> Result<Option<TypeStatus>, Error> {
        let types = self.job_types(tenant).await?;
        Ok(types.into_iter().find(|one| one.status.name == *name))
    }

    /// The counters of one queue.
    pub(super) async fn counters_of(&self, tenant: &Name, name: &Name) -> Result<Counters, Error> {
        let one = QueueRange::One(name.clone());
        Ok(self.shared.store.depths_of(tenant, &one).await?)
    }

    /// The queues behind a name that are known without a job.
    fn named_queues(&self, after: Option<&Name>) -> BTreeSet<Name> {
        let settings = &self.shared.settings;
        let live = self.shared.live();
        let by_default = settings.types.values().map(|known| &known.settings.queue);
        let names = settings.queues.keys().chain(live.queues.keys());
        names
            .chain(by_default)
            .filter(|name| after.is_none_or(|after| *name > after))
            .cloned()
            .collect()
    }

    async fn queue_status(
        &self,
        tenant: &Name,
        name: Name,
        counters: Counters,
        stalled: u64,
    ) -> Result<QueueStatus, Error> {
        let mut depths = Depths::default();
        let mut lanes = Vec::new();
        for (lane, state, jobs) in counters {
            depths.add(state, jobs);
            if state == JobState::Queued {
                lanes.push(lane);
            }
        }
        let file = &self.shared.settings.queues;
        let (set, limits) = {
            let live = self.shared.live();
            (live.queue(&name), live.limits(&name, file))
        };
        let sources = sources(&set, file.get(&name));
        let of = Of::Queue(name.clone());
        let status = Status {
            depths,
            stalled,
            oldest_waiting: self.oldest_waiting(&lanes).await?,
            last_minute: self.last_minute(tenant, of),
            paused_at: set.paused_at,
            name,
        };
        Ok(QueueStatus {
            status,
            limits,
            sources,
        })
    }

    async fn type_status(
        &self,
        tenant: &Name,
        name: &Name,
        depths: Depths,
        lanes: &[Lane],
        stalled: u64,
    ) -> Result<TypeStatus, Error> {
        let configured = self.shared.settings.types.get(name);
        let known = &configured.unwrap_or(&self.shared.other_types).settings;
        let set = self.shared.live().types.get(name).cloned();
        let status = Status {
            name: name.clone(),
            depths,
            stalled,
            oldest_waiting: self.oldest_waiting(lanes).await?,
            last_minute: self.last_minute(tenant, Of::Type(name.clone())),
            paused_at: set.and_then(|set| set.paused_at),
        };
        Ok(TypeStatus {
            status,
            queue: known.queue.clone(),
            concurrency: known.concurrency,
        })
    }

    /// How many jobs of the tenant are silent for longer than their stall time, by a name of theirs.
    async fn stalled(
        &self,
        tenant: &Name,
        name: impl Fn(&Job) -> &Name,
    ) -> Result<HashMap<Name, u64>, Error> {
        let query = ListQuery {
            stalled_only: true,
            limit: STALLED_MAX,
            rows: STALLED_MAX,
            ..ListQuery::all(tenant.clone())
        };
        let mut stalled: HashMap<Name, u64> = HashMap::new();
        for job in self.shared.store.list(&query).await?.jobs {
            *stalled.entry(name(&job).clone()).or_default() += 1;
        }
        Ok(stalled)
    }

    fn last_minute(&self, tenant: &Name, of: Of) -> Option<LastMinute> {
        let now = self.shared.clock.steady();
        self.shared.rates().of(tenant, of, now)
    }

    async fn oldest_waiting(&self, lanes: &[Lane]) -> Result<Option<Duration>, Error> {
        if lanes.len() > LANES_ASKED_MAX {
            return Ok(None);
        }
        let mut oldest: Option<Timestamp> = None;
        for lane in lanes {
            let due = self.shared.store.due_longest(lane).await?;
            oldest = oldest.into_iter().chain(due).min();
        }
        let now = self.shared.clock.now();
        Ok(oldest.map(|due| now.since(due)))
    }
}

/// Counters by a name in their lanes.
fn grouped(counters: Counters, name: impl Fn(&Lane) -> Name) -> BTreeMap<Name, Counters> {
    let mut groups: BTreeMap<Name, Counters> = BTreeMap::new();
    for counter in counters {
        groups.entry(name(&counter.0)).or_default().push(counter);
    }
    groups
}

fn sources(set: &QueueSetting, file: Option<&GivenLimits>) -> LimitSources {
    let source = |at_runtime: bool, in_file: bool| match (at_runtime, in_file) {
        (true, _) => Source::Runtime,
        (false, true) => Source::File,
        (false, false) => Source::Default,
    };
    let in_file = |given: fn(&GivenLimits) -> bool| file.is_some_and(given);
    let limits = &set.limits;
    LimitSources {
        concurrency: source(
            limits.concurrency.is_some(),
            in_file(|file| file.concurrency.is_some()),
        ),
        rate: source(limits.rate.is_some(), in_file(|file| file.rate.is_some())),
        key_concurrency: source(
            limits.key_concurrency.is_some(),
            in_file(|file| file.key_concurrency.is_some()),
        ),
    }
}
