//! Who is listening to which job, in memory only.
//!
//! A channel is made with a job's first listener and removed with its last. A slow listener loses what
//! it was too slow for and is told so; it never slows the others. The log stands behind it: nothing
//! here survives a restart, and nothing here is the truth. Events come through as they were stored,
//! encoded; the hub does not know what they say.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::job::name::{JobKey, Name};
use crate::job::segment::Segment;
use crate::job::{Job, Payloads};

/// Commits that a listener may fall behind before it has to read the log. Chosen small: the log is
/// cheap to read, and a channel of 1,024 would cost 30 KiB a watched job.
const CHANNEL_COMMITS: usize = 64;

/// Bytes of events that a channel may hold for those who are behind. Past it the news is only that
/// there are new events, and everyone reads them from the log. Chosen: two of the largest segments.
const CHANNEL_BYTES: usize = 512 * 1024;

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

/// One channel for every job that somebody listens to. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    channels: HashMap<JobKey, Channel>,
    listeners: HashMap<Name, usize>,
}

#[derive(Debug)]
struct Channel {
    sender: broadcast::Sender<News>,
    /// Counted here and not by the sender: a listener's receiver goes after its `drop`, so that two
    /// that go together would each see the other's.
    listeners: usize,
    /// Size of each news that not everyone has heard yet, the oldest first.
    unheard: VecDeque<usize>,
}

impl Channel {
    fn send(&mut self, news: News) {
        let heard = self.unheard.len().saturating_sub(self.sender.len());
        self.unheard.drain(..heard);
        let bytes = news.bytes();
        let held: usize = self.unheard.iter().sum();
        let (news, bytes) = if held + bytes > CHANNEL_BYTES && held > 0 && bytes > 0 {
            (News::Stored, 0)
        } else {
            (news, bytes)
        };
        self.unheard.push_back(bytes);
        // Nobody is listening any more: fine.
        let _ = self.sender.send(news);
    }
}

/// One listener of one job. Dropping it ends the listening.
#[derive(Debug)]
pub struct Listener {
    hub: Hub,
    key: JobKey,
    receiver: broadcast::Receiver<News>,
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Heard {
    /// What happened.
    News(News),
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
        let open = state.listeners.get(&key.tenant).copied().unwrap_or(0);
        if open >= max {
            return Err(open);
        }
        state.listeners.insert(key.tenant.clone(), open + 1);
        let channel = state.channels.entry(key.clone());
        let channel = channel.or_insert_with(|| Channel {
            sender: broadcast::channel(CHANNEL_COMMITS).0,
            listeners: 0,
            unheard: VecDeque::new(),
        });
        channel.listeners += 1;
        let receiver = channel.sender.subscribe();
        Ok(Listener {
            hub: self.clone(),
            key: key.clone(),
            receiver,
        })
    }

    /// Tells everyone who listens to the job, if anyone does.
    pub fn publish(&self, key: &JobKey, news: impl FnOnce() -> News) {
        if let Some(channel) = self.lock().channels.get_mut(key) {
            channel.send(news());
        }
    }

    /// Jobs that somebody listens to.
    pub fn channels(&self) -> usize {
        self.lock().channels.len()
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

impl Listener {
    /// Waits for the next news.
    ///
    /// # Cancel safety
    /// Safe: what was not returned is still there.
    pub async fn next(&mut self) -> Heard {
        match self.receiver.recv().await {
            Ok(news) => Heard::News(news),
            // The sender lives in the hub for as long as this listener does.
            Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {
                Heard::Lagged
            }
        }
    }

    /// What is there already, without waiting.
    pub fn try_next(&mut self) -> Option<Heard> {
        match self.receiver.try_recv() {
            Ok(news) => Some(Heard::News(news)),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Heard::Lagged),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                None
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        if let Some(open) = state.listeners.get_mut(&self.key.tenant) {
            *open -= 1;
            if *open == 0 {
                state.listeners.remove(&self.key.tenant);
            }
        }
        if let Some(channel) = state.channels.get_mut(&self.key) {
            channel.listeners -= 1;
            if channel.listeners == 0 {
                state.channels.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::job::event::EventTag;
    use crate::job::name::JobId;
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
    fn a_listener_that_is_refused_leaves_nothing_behind() {
        let hub = Hub::new();
        assert_eq!(hub.listen(&key("a"), 0).err(), Some(0));
        assert_eq!(hub.channels(), 0);
        assert!(hub.lock().listeners.is_empty());
    }

    fn publish(hub: &Hub, sequence: i64, bytes: usize) {
        hub.publish(&key("a"), || events(sequence, bytes));
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
