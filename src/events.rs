//! Who is listening to which job, or to all jobs of a tenant, in memory only.
//!
//! A channel is made with the first listener of a job or tenant and removed with its last. A slow listener
//! loses what it was too slow for and is told so; it never slows the others. The log stands behind it:
//! nothing here survives a restart, and nothing here is the truth. Events come through as they were
//! stored, encoded; the hub does not know what they say.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::job::name::{JobId, JobKey, Name};
use crate::job::segment::Segment;
use crate::job::{Job, Payloads};

/// Commits that a listener may fall behind before it has to read the log. Chosen small: the log is
/// cheap to read, and a channel of 1,024 would cost 30 KiB a watched job.
const CHANNEL_COMMITS: usize = 64;

/// Bytes of events that a channel may hold for those who are behind. Past it the news is only that
/// there are new events, and everyone reads them from the log. Chosen: two of the largest segments.
const CHANNEL_BYTES: usize = 512 * 1024;

/// Segments that a listener to all jobs of a tenant may fall behind. Chosen: two of the largest groups that
/// are committed together; there is one such channel a tenant, so it may be larger than a job's.
const TENANT_CHANNEL_SEGMENTS: usize = 1024;

/// As [`CHANNEL_BYTES`], of a channel over all jobs of a tenant. Chosen: half of what a group may hold.
const TENANT_CHANNEL_BYTES: usize = 4 * 1024 * 1024;

/// What happened to a job.
#[derive(Clone, Debug)]
pub enum News {
    /// It has new events, and this is the job after them.
    Events(Arc<Job>, Arc<Segment>),
    /// It is over: the job as it is for ever, its payloads, and its last events.
    Over(Arc<Job>, Arc<Payloads>, Arc<Segment>),
    /// It has new events in the log.
    Stored,
    /// It was purged.
    Purged,
}

impl News {
    /// What it keeps in memory until everyone has heard it.
    fn bytes(&self) -> usize {
        match self {
            Self::Events(_, segment) => segment.body().len(),
            Self::Over(_, payloads, segment) => segment.body().len() + payloads.bytes(),
            Self::Stored | Self::Purged => 0,
        }
    }
}

/// What happened to one of a tenant's jobs.
#[derive(Clone, Debug)]
pub struct JobNews {
    /// Which job.
    pub id: JobId,
    /// Where the first of its new events stands among the events of all jobs; 0 where it has none.
    pub position: i64,
    /// What happened.
    pub news: News,
}

/// Takes its place in a channel, whole or as no more than the word that there is something.
trait Message: Clone {
    fn bytes(&self) -> usize;

    fn without_body(self) -> Self;
}

impl Message for News {
    fn bytes(&self) -> usize {
        Self::bytes(self)
    }

    fn without_body(self) -> Self {
        Self::Stored
    }
}

impl Message for JobNews {
    fn bytes(&self) -> usize {
        self.news.bytes()
    }

    fn without_body(self) -> Self {
        Self {
            news: News::Stored,
            ..self
        }
    }
}

/// One channel for every job, and for every tenant, that somebody listens to. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    channels: HashMap<JobKey, Channel<News>>,
    tenants: HashMap<Name, Channel<JobNews>>,
    listeners: HashMap<Name, usize>,
    /// Everything up to this position was published.
    through: i64,
}

#[derive(Debug)]
struct Channel<T> {
    sender: broadcast::Sender<T>,
    /// Counted here and not by the sender: a listener's receiver goes after its `drop`, so that two
    /// that go together would each see the other's.
    listeners: usize,
    /// Size of each news that not everyone has heard yet, the oldest first.
    unheard: VecDeque<usize>,
    /// Their sum.
    held: usize,
    bytes_max: usize,
}

impl<T: Message> Channel<T> {
    fn new(messages: usize, bytes_max: usize) -> Self {
        Self {
            sender: broadcast::channel(messages).0,
            listeners: 0,
            unheard: VecDeque::new(),
            held: 0,
            bytes_max,
        }
    }

    fn listen(&mut self) -> broadcast::Receiver<T> {
        self.listeners += 1;
        self.sender.subscribe()
    }

    fn send(&mut self, news: T) {
        let heard = self.unheard.len().saturating_sub(self.sender.len());
        self.held -= self.unheard.drain(..heard).sum::<usize>();
        let bytes = news.bytes();
        let (news, bytes) = if self.held + bytes > self.bytes_max && self.held > 0 && bytes > 0 {
            (news.without_body(), 0)
        } else {
            (news, bytes)
        };
        self.unheard.push_back(bytes);
        self.held += bytes;
        // Nobody is listening any more: fine.
        let _ = self.sender.send(news);
    }
}

/// One listener of one job, or of all jobs of a tenant. Dropping it ends the listening.
#[derive(Debug)]
pub struct Listener<T = News> {
    hub: Hub,
    place: Place,
    receiver: broadcast::Receiver<T>,
}

/// What is listened to.
#[derive(Clone, Debug)]
enum Place {
    Job(JobKey),
    Tenant(Name),
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Heard<T = News> {
    /// What happened.
    News(T),
    /// It was too slow, and some were lost: read the log.
    Lagged,
}

impl Hub {
    /// A hub that nobody listens to yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens to a job from here on.
    ///
    /// # Errors
    /// How many listeners the tenant has, where that is `max` already.
    pub fn listen(&self, key: &JobKey, max: usize) -> Result<Listener, usize> {
        let mut state = self.lock();
        state.admit(&key.tenant, max)?;
        let channel = state.channels.entry(key.clone());
        let channel = channel.or_insert_with(|| Channel::new(CHANNEL_COMMITS, CHANNEL_BYTES));
        let receiver = channel.listen();
        Ok(Listener {
            hub: self.clone(),
            place: Place::Job(key.clone()),
            receiver,
        })
    }

    /// Listens to all jobs of a tenant from here on, in the order of their commits.
    ///
    /// # Errors
    /// As [`Hub::listen`], with which it shares its bound.
    pub fn listen_to_all(&self, tenant: &Name, max: usize) -> Result<Listener<JobNews>, usize> {
        let mut state = self.lock();
        state.admit(tenant, max)?;
        let channel = state.tenants.entry(tenant.clone());
        let channel =
            channel.or_insert_with(|| Channel::new(TENANT_CHANNEL_SEGMENTS, TENANT_CHANNEL_BYTES));
        let receiver = channel.listen();
        Ok(Listener {
            hub: self.clone(),
            place: Place::Tenant(tenant.clone()),
            receiver,
        })
    }

    /// Tells everyone who listens to the job or to its tenant, if anyone does, that it has `events` new
    /// events, the first of them at `position`.
    pub fn publish(&self, key: &JobKey, position: i64, events: usize, news: impl FnOnce() -> News) {
        let mut state = self.lock();
        state.through = state.through.max(position + events as i64 - 1);
        state.send(key, position, news);
    }

    /// The same of what has no events.
    pub fn publish_purge(&self, key: &JobKey) {
        self.lock().send(key, 0, || News::Purged);
    }

    /// Everything up to this position was published, to whoever listened then; 0 before the first.
    pub fn through(&self) -> i64 {
        self.lock().through
    }

    /// Jobs and tenants that somebody listens to.
    pub fn channels(&self) -> usize {
        let state = self.lock();
        state.channels.len() + state.tenants.len()
    }

    /// Listeners of all tenants.
    pub fn listeners(&self) -> usize {
        self.lock().listeners.values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts one more listener of a tenant.
    fn admit(&mut self, tenant: &Name, max: usize) -> Result<(), usize> {
        let open = self.listeners.get(tenant).copied().unwrap_or(0);
        if open >= max {
            return Err(open);
        }
        self.listeners.insert(tenant.clone(), open + 1);
        Ok(())
    }

    fn send(&mut self, key: &JobKey, position: i64, news: impl FnOnce() -> News) {
        let job = self.channels.get_mut(key);
        let tenant = self.tenants.get_mut(&key.tenant);
        if job.is_none() && tenant.is_none() {
            return;
        }
        let news = news();
        if let Some(tenant) = tenant {
            tenant.send(JobNews {
                id: key.id,
                position,
                news: news.clone(),
            });
        }
        if let Some(job) = job {
            job.send(news);
        }
    }

    /// Counts one listener less.
    fn leave(&mut self, place: &Place) {
        let tenant = match place {
            Place::Job(key) => {
                leave(&mut self.channels, key);
                &key.tenant
            }
            Place::Tenant(tenant) => {
                leave(&mut self.tenants, tenant);
                tenant
            }
        };
        if let Some(open) = self.listeners.get_mut(tenant) {
            *open -= 1;
            if *open == 0 {
                self.listeners.remove(tenant);
            }
        }
    }
}

/// Takes a listener from a channel, and the channel with its last one.
fn leave<K: Eq + Hash, T>(channels: &mut HashMap<K, Channel<T>>, place: &K) {
    if let Some(channel) = channels.get_mut(place) {
        channel.listeners -= 1;
        if channel.listeners == 0 {
            channels.remove(place);
        }
    }
}

impl<T: Clone> Listener<T> {
    /// Waits for the next news.
    ///
    /// # Cancel safety
    /// Safe: what was not returned is still there.
    pub async fn next(&mut self) -> Heard<T> {
        match self.receiver.recv().await {
            Ok(news) => Heard::News(news),
            // The sender lives in the hub for as long as this listener does.
            Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {
                Heard::Lagged
            }
        }
    }

    /// Whether nothing is there that could be had without waiting.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// What is there already, without waiting.
    pub fn try_next(&mut self) -> Option<Heard<T>> {
        match self.receiver.try_recv() {
            Ok(news) => Some(Heard::News(news)),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Heard::Lagged),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                None
            }
        }
    }
}

impl<T> Drop for Listener<T> {
    fn drop(&mut self) {
        self.hub.lock().leave(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::job::event::EventTag;
    use crate::job::segment::SegmentBuilder;
    use crate::job::time::Timestamp;
    use crate::job::{JobSpec, NewJob};

    fn key(tenant: &'static str) -> JobKey {
        JobKey {
            tenant: Name::of(tenant),
            id: JobId::new(Uuid::from_u128(7)),
        }
    }

    #[test]
    fn a_channel_goes_with_its_last_listener() {
        let hub = Hub::new();
        let first = hub.listen(&key("a"), 9).expect("room");
        let second = hub.listen(&key("a"), 9).expect("room");
        let other_tenant = hub.listen(&key("b"), 9).expect("room");
        assert_eq!((hub.channels(), hub.listeners()), (2, 3));
        drop(first);
        assert_eq!((hub.channels(), hub.listeners()), (2, 2));
        drop(second);
        assert_eq!((hub.channels(), hub.listeners()), (1, 1));
        drop(other_tenant);
        assert_eq!((hub.channels(), hub.listeners()), (0, 0));
    }

    #[test]
    fn listeners_are_bounded_by_tenant() {
        let hub = Hub::new();
        let _one = hub.listen(&key("a"), 1).expect("room");
        assert_eq!(hub.listen(&key("a"), 1).err(), Some(1));
        assert!(hub.listen(&key("b"), 1).is_ok());
    }

    /// Goal: nothing stays when the last listeners of a job go at the same moment. Method: two threads
    /// drop theirs together, many times.
    #[test]
    fn a_channel_goes_although_its_last_listeners_go_together() {
        let hub = Hub::new();
        for round in 0..10_000 {
            let pair = [(); 2].map(|()| hub.listen(&key("a"), 9).expect("room"));
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for listener in pair {
                    scope.spawn(|| {
                        start.wait();
                        drop(listener);
                    });
                }
            });
            assert_eq!((hub.channels(), hub.listeners()), (0, 0), "round {round}");
        }
    }

    #[test]
    fn a_listener_to_a_tenant_counts_among_those_of_its_jobs() {
        let hub = Hub::new();
        let all = hub.listen_to_all(&Name::of("a"), 2).expect("room");
        let one = hub.listen(&key("a"), 2).expect("room");
        assert_eq!(hub.listen_to_all(&Name::of("a"), 2).err(), Some(2));
        assert_eq!(hub.listen(&key("a"), 2).err(), Some(2));
        assert!(hub.listen_to_all(&Name::of("b"), 2).is_ok());
        assert_eq!((hub.channels(), hub.listeners()), (2, 2));
        drop(all);
        assert_eq!((hub.channels(), hub.listeners()), (1, 1));
        drop(one);
        assert_eq!((hub.channels(), hub.listeners()), (0, 0));
    }

    #[test]
    fn a_listener_to_a_tenant_hears_of_its_jobs_and_of_no_other() {
        let hub = Hub::new();
        let mut all = hub.listen_to_all(&Name::of("a"), 9).expect("room");
        publish(&hub, 1, 10);
        hub.publish(&key("b"), 2, 1, || panic!("nobody listens to b"));
        hub.publish_purge(&key("a"));
        assert_eq!(hub.through(), 2);
        let heard: Vec<_> = std::iter::from_fn(|| all.try_next()).collect();
        let [Heard::News(first), Heard::News(second)] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!((first.position, second.position), (1, 0));
        assert!(matches!(first.news, News::Events(..)));
        assert!(matches!(second.news, News::Purged));
    }

    #[test]
    fn a_slow_listener_to_a_tenant_costs_a_bounded_amount() {
        let hub = Hub::new();
        let mut slow = hub.listen_to_all(&Name::of("a"), 9).expect("room");
        let half = TENANT_CHANNEL_BYTES / 2;
        publish(&hub, 1, half);
        publish(&hub, 2, half);
        publish(&hub, 3, 1);
        let heard: Vec<_> = std::iter::from_fn(|| slow.try_next()).collect();
        let bodies = heard.iter().map(|heard| match heard {
            Heard::News(news) => (news.position, matches!(news.news, News::Events(..))),
            Heard::Lagged => (-1, false),
        });
        let bodies: Vec<_> = bodies.collect();
        assert_eq!(bodies, [(1, true), (2, false), (3, true)]);
        for position in 0..=TENANT_CHANNEL_SEGMENTS as i64 {
            publish(&hub, position, 1);
        }
        assert!(matches!(slow.try_next(), Some(Heard::Lagged)));
    }

    #[test]
    fn a_listener_that_is_refused_leaves_nothing_behind() {
        let hub = Hub::new();
        assert_eq!(hub.listen(&key("a"), 0).err(), Some(0));
        assert_eq!(hub.channels(), 0);
        assert!(hub.lock().listeners.is_empty());
    }

    fn publish(hub: &Hub, sequence: i64, bytes: usize) {
        hub.publish(&key("a"), sequence, 1, || events(sequence, bytes));
    }

    fn events(sequence: i64, bytes: usize) -> News {
        let new = NewJob::new(key("a"), JobSpec::of(Name::of("work")), None);
        let (job, _) = Job::submit(&new, Timestamp::default());
        let mut builder = SegmentBuilder::default();
        builder.push(sequence, EventTag::Output, &vec![0; bytes]);
        News::Events(Arc::new(job), Arc::new(builder.finish().remove(0)))
    }

    /// What a listener hears without waiting: the sequence, 0 for "read the log", -1 for a lag.
    fn heard(listener: &mut Listener) -> Vec<i64> {
        let all = std::iter::from_fn(|| listener.try_next());
        all.map(|heard| match heard {
            Heard::News(News::Events(_, segment) | News::Over(_, _, segment)) => {
                segment.first_sequence()
            }
            Heard::News(News::Stored | News::Purged) => 0,
            Heard::Lagged => -1,
        })
        .collect()
    }

    #[test]
    fn who_is_too_slow_hears_of_it_once_and_then_what_is_still_there() {
        let hub = Hub::new();
        let mut slow = hub.listen(&key("a"), 9).expect("room");
        let mut quick = hub.listen(&key("a"), 9).expect("room");
        let last = CHANNEL_COMMITS as i64 + 1;
        for sequence in 1..=last {
            publish(&hub, sequence, 10);
            assert_eq!(heard(&mut quick), [sequence]);
        }
        let expected: Vec<i64> = std::iter::once(-1).chain(2..=last).collect();
        assert_eq!(heard(&mut slow), expected);
        publish(&hub, last + 1, 10);
        assert_eq!(heard(&mut slow), [last + 1]);
    }

    /// Goal: what is kept for the slow has a bound in bytes, and the quick are not held to it.
    /// Method: one reads all, one nothing; then the slow one reads too, and there is room again.
    #[test]
    fn what_is_kept_for_the_slow_is_bounded_in_bytes() {
        let hub = Hub::new();
        let mut slow = hub.listen(&key("a"), 9).expect("room");
        let body = |bytes| events(1, bytes).bytes();
        // Two fill the channel to the byte; the third is one too many.
        let overhead = body(CHANNEL_BYTES / 2) - CHANNEL_BYTES / 2;
        let half = CHANNEL_BYTES / 2 - overhead;
        assert_eq!(body(half), CHANNEL_BYTES / 2);
        publish(&hub, 1, half);
        publish(&hub, 2, half);
        publish(&hub, 3, 1);
        publish(&hub, 4, half);
        assert_eq!(heard(&mut slow), [1, 2, 0, 0]);
        publish(&hub, 5, half);
        publish(&hub, 6, half + 1);
        assert_eq!(heard(&mut slow), [5, 0]);
    }

    #[test]
    fn one_larger_event_comes_through_where_nothing_else_is_kept() {
        let hub = Hub::new();
        let mut listener = hub.listen(&key("a"), 9).expect("room");
        publish(&hub, 1, CHANNEL_BYTES * 2);
        publish(&hub, 2, 1);
        assert_eq!(heard(&mut listener), [1, 0]);
        publish(&hub, 3, CHANNEL_BYTES * 2);
        assert_eq!(heard(&mut listener), [3]);
    }

    #[test]
    fn a_quick_listener_is_not_sent_to_the_log() {
        let hub = Hub::new();
        let mut listener = hub.listen(&key("a"), 9).expect("room");
        for sequence in 1..=200 {
            publish(&hub, sequence, CHANNEL_BYTES / 2 + 1);
            assert_eq!(heard(&mut listener), [sequence]);
        }
    }
}
