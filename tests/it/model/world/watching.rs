//! Watches that are left open, cut and gone on with.

use pacenote::error::Error;
use pacenote::job::JobState;
use pacenote::job::name::JobKey;
use pacenote::queue::{Watch, WatchContent, WatchOptions};

use super::World;
use crate::harness::soon;
use crate::invariants::history::{Entry, Observation};

impl World {
    /// Goes on with the watch of a job, or from where the last one was cut, and reads what there is.
    pub(super) async fn watch(&mut self, key: &JobKey) {
        let after = self.cursors.get(key).copied().unwrap_or_default();
        let open = self.process().watches.remove(key);
        let opened = match open {
            Some(watch) => Ok(watch),
            None => {
                let options = WatchOptions {
                    after_sequence: Some(after),
                    ..WatchOptions::default()
                };
                soon(self.queue().watch(key, options)).await
            }
        };
        let read = match opened {
            Ok(watch) => self.read_watch(key, watch, after).await,
            Err(error) => Err(error),
        };
        let is_there = self.reference.jobs.contains_key(key);
        match read {
            Ok(()) => {}
            Err(Error::NotFound { .. } | Error::Purged { .. }) if !is_there => {}
            Err(error) => self.mismatches.push(format!("a watch: {error:?}")),
        }
    }

    async fn read_watch(
        &mut self,
        key: &JobKey,
        mut watch: Watch,
        after: i64,
    ) -> Result<(), Error> {
        let last = self.checker.last_sequence(key);
        let over = self.reference.is_over(key);
        let (mut begin, mut through) = (after, after);
        let (mut events, mut end) = (Vec::new(), None);
        while over || through < last {
            let Some(message) = soon(watch.next()).await? else {
                self.watched(key, begin, events, end);
                self.cursors.insert(key.clone(), through);
                return Ok(());
            };
            match message.content {
                WatchContent::Events(told) => events.extend(told.iter().map(Entry::decoded)),
                WatchContent::Gap(first, last) => {
                    self.expect("a gap begins", &(through + 1), &first);
                    let told = std::mem::take(&mut events);
                    self.watched(key, begin, told, None);
                    begin = last;
                }
                WatchContent::Snapshot(snapshot) => end = Some(snapshot.job.state),
                WatchContent::Heartbeat(_) => {}
            }
            through = message.through_sequence;
        }
        self.watched(key, begin, events, None);
        self.cursors.insert(key.clone(), through);
        self.process().watches.insert(key.clone(), watch);
        Ok(())
    }

    fn watched(&mut self, key: &JobKey, after: i64, events: Vec<Entry>, ended: Option<JobState>) {
        self.see(Observation::Watched {
            key: key.clone(),
            after,
            events,
            ended,
        });
    }
}
