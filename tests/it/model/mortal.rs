//! A store whose process can die in the middle of a commit, which tells when it is gone, and which can be
//! made to lie.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use pacenote::job::name::{JobKey, Lane};
use pacenote::job::time::Timestamp;
use pacenote::job::{Job, JobSnapshot, JobState};
use pacenote::store::{
    Committed, Due, Group, JobStore, ListQuery, Listed, LogPart, LogRange, Purge, Purged,
    ReadError, Setting, StoreError, Timer, View,
};
use tokio::sync::oneshot;

use super::steps::Dies;
use crate::fronted::Front;

/// What a store says in place of what is so: by default, what is so.
pub(super) trait Lie: Send + Sync {
    /// In place of a group.
    fn group(&self, _: &mut Group) {}

    /// In place of what a group did. `asked` is what was asked for.
    fn committed(&self, _asked: &Group, _: &mut Committed) {}

    /// In place of a job that is looked at alone.
    fn job(&self, _: &mut Option<JobSnapshot>) {}

    /// In place of a question for a list.
    fn query(&self, _: &mut ListQuery) {}

    /// In place of a list.
    fn list(&self, _: &mut Vec<Arc<Job>>) {}

    /// In place of part of a log.
    fn log(&self, _: &mut Option<LogPart>) {}

    /// In place of the time of a question for what is due.
    fn due_by(&self, _: Timer, _: &mut Timestamp) {}

    /// In place of what is due.
    fn due(&self, _: &mut Due) {}

    /// In place of a setting that is stored; `None` for none.
    fn setting(&self, _: &mut Option<Setting>) {}

    /// In place of the counters.
    fn depths(&self, _: &mut Vec<(Lane, JobState, i64)>) {}
}

/// A store that says what is so.
pub(super) struct Honest;

impl Lie for Honest {}

/// A store that dies when it is told to.
pub(super) struct Mortal {
    store: Arc<dyn JobStore>,
    lie: Arc<dyn Lie>,
    dies: Mutex<Option<Dies>>,
    /// Dropped last, when the store is: then the next one may be opened.
    _gone: oneshot::Sender<()>,
}

impl Mortal {
    /// With what waits until the store is gone.
    pub(super) fn new(
        store: Arc<dyn JobStore>,
        lie: Arc<dyn Lie>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (gone, is_gone) = oneshot::channel();
        let mortal = Self {
            store,
            lie,
            dies: Mutex::default(),
            _gone: gone,
        };
        (mortal, is_gone)
    }

    /// Lets the process die in the next commit, purge or setting.
    pub(super) fn die_in_next(&self, dies: Dies) {
        *self.dies.lock().expect("no panic") = Some(dies);
    }

    async fn survive<T>(
        &self,
        what: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let dies = *self.dies.lock().expect("no panic");
        let died = || StoreError::Failed("the process has died".to_owned());
        match dies {
            None => what.await,
            Some(Dies::BeforeTheCommit) => Err(died()),
            Some(Dies::AfterTheCommit) => {
                what.await?;
                Err(died())
            }
        }
    }
}

#[async_trait]
impl Front for Mortal {
    fn store(&self) -> &dyn JobStore {
        &*self.store
    }

    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        let asked = group.clone();
        let mut group = group;
        self.lie.group(&mut group);
        let mut committed = self.survive(self.store.commit(group)).await?;
        self.lie.committed(&asked, &mut committed);
        Ok(committed)
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        let mut found = self.store.job(key, view).await?;
        self.lie.job(&mut found);
        Ok(found)
    }

    async fn list(&self, query: &ListQuery) -> Result<Listed, ReadError> {
        let mut query = query.clone();
        self.lie.query(&mut query);
        let mut found = self.store.list(&query).await?;
        self.lie.list(&mut found.jobs);
        Ok(found)
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        let mut part = self.store.log(key, range).await?;
        self.lie.log(&mut part);
        Ok(part)
    }

    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError> {
        let mut now = now;
        self.lie.due_by(timer, &mut now);
        let mut due = self.store.due(timer, now, limit).await?;
        self.lie.due(&mut due);
        Ok(due)
    }

    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        let mut depths = self.store.depths().await?;
        self.lie.depths(&mut depths);
        Ok(depths)
    }

    async fn put_setting(&self, setting: Setting) -> Result<(), StoreError> {
        let mut setting = Some(setting);
        self.lie.setting(&mut setting);
        match setting {
            Some(setting) => self.survive(self.store.put_setting(setting)).await,
            None => Ok(()),
        }
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        self.survive(self.store.purge(purge)).await
    }
}
