//! Who is listening to which job, in memory only.
//!
//! A channel is made with a job's first listener and removed with its last. A slow listener loses what
//! it was too slow for and is told so; it never slows the others. The log stands behind it: nothing
//! here survives a restart, and nothing here is the truth. Events come through as they were stored,
//! encoded; the hub does not know what they say.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::job::Job;
use crate::job::name::{JobKey, Name};
use crate::job::segment::Segment;

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
    /// It has new events in the log.
    Stored,
    /// It was purged.
    Purged,
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
    /// Size of each news that not everyone has heard yet, the oldest first.
    unheard: VecDeque<usize>,
}

impl Channel {
    fn send(&mut self, news: News) {
        let heard = self.unheard.len().saturating_sub(self.sender.len());
        self.unheard.drain(..heard);
        let (news, bytes) = match news {
            News::Events(job, segment) => {
                let bytes = segment.body().len();
                let held: usize = self.unheard.iter().sum();
                if held + bytes > CHANNEL_BYTES && held > 0 {
                    (News::Stored, 0)
                } else {
                    (News::Events(job, segment), bytes)
                }
            }
            news @ (News::Stored | News::Purged) => (news, 0),
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
        let open = state.listeners.entry(key.tenant.clone()).or_default();
        if *open >= max {
            return Err(*open);
        }
        *open += 1;
        let channel = state.channels.entry(key.clone());
        let channel = channel.or_insert_with(|| Channel {
            sender: broadcast::channel(CHANNEL_COMMITS).0,
            unheard: VecDeque::new(),
        });
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
        // This one's receiver still counts: it is dropped after this.
        if let Some(channel) = state.channels.get(&self.key)
            && channel.sender.receiver_count() <= 1
        {
            state.channels.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::job::name::JobId;

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
}
