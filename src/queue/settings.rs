//! What is set for queues and types while the server runs, kept in the store, and what it comes to.
//!
//! A limit that was set at run time stands above the file's, and the file's above the default; resetting
//! it brings back the file's. Pauses are set at run time alone. All of it outlives the server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::error::{Error, Violations};
use crate::job::limits::{KEY_CONCURRENCY_DEFAULT, LEASED_TYPES_MAX, SET_QUEUES_MAX};
use crate::job::name::Name;
use crate::job::queue::{Given, GivenLimits, QueueLimits, RateLimit};
use crate::job::time::Timestamp;
use crate::queue::JobQueue;
use crate::queue::submission::check_type;
use crate::queue::writer::Request;
use crate::store::{ReadError, Setting, SettingKind, StoreError};

/// What becomes of a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Edit<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// What was set at run time is forgotten.
    Reset,
    /// It is set.
    To(T),
}

/// What becomes of the limits of a queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LimitsEdit {
    /// Jobs running at once.
    pub concurrency: Edit<Given<u32>>,
    /// Starts in a time.
    pub rate: Edit<Given<RateLimit>>,
    /// Jobs with one key running at once.
    pub key_concurrency: Edit<u32>,
}

/// Something that is set at run time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SettingChange {
    PauseQueue(Name, bool),
    SetLimits(Name, LimitsEdit),
    PauseType(Name, bool),
    /// A worker of this tenant leases for the type.
    LeaseType(Name, Name),
}

/// What was set for one queue.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct QueueSetting {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused_at: Option<Timestamp>,
    pub(super) limits: GivenLimits,
}

/// What was set for one type.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TypeSetting {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused_at: Option<Timestamp>,
    /// The tenants of which a worker ever leased for it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) leased_by: BTreeSet<Name>,
}

/// Everything that was set, as stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    pub(super) queues: BTreeMap<Name, QueueSetting>,
    pub(super) types: BTreeMap<Name, TypeSetting>,
}

/// One setting as it will be.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Next {
    Queue(Name, QueueSetting),
    Type(Name, TypeSetting),
}

impl Live {
    /// What a store kept.
    pub(super) fn read(settings: Vec<Setting>) -> Result<Self, ReadError> {
        let mut live = Self::default();
        for setting in settings {
            let Setting { kind, name, value } = setting;
            let value = value.unwrap_or_default();
            let damaged = |error: serde_json::Error| {
                let what = format!("the setting of {} {name}: {error}", kind.as_str());
                ReadError::Store(StoreError::Internal(what))
            };
            match kind {
                SettingKind::Queue => {
                    let read = serde_json::from_str(&value).map_err(damaged)?;
                    live.queues.insert(name, read);
                }
                SettingKind::JobType => {
                    let read = serde_json::from_str(&value).map_err(damaged)?;
                    live.types.insert(name, read);
                }
            }
        }
        Ok(live)
    }

    /// What a change makes of a setting.
    ///
    /// # Errors
    /// Where one queue more than may has settings of its own.
    pub(super) fn after(&self, change: SettingChange, now: Timestamp) -> Result<Next, Error> {
        let since = |paused: bool, before: Option<Timestamp>| paused.then(|| before.unwrap_or(now));
        let next = match change {
            SettingChange::PauseQueue(name, paused) => {
                let mut queue = self.queue(&name);
                queue.paused_at = since(paused, queue.paused_at);
                Next::Queue(name, queue)
            }
            SettingChange::SetLimits(name, edit) => {
                let mut queue = self.queue(&name);
                let limits = &mut queue.limits;
                limits.concurrency = edit.concurrency.of(limits.concurrency);
                limits.rate = edit.rate.of(limits.rate);
                limits.key_concurrency = edit.key_concurrency.of(limits.key_concurrency);
                Next::Queue(name, queue)
            }
            SettingChange::PauseType(name, paused) => {
                let mut of_type = self.job_type(&name);
                of_type.paused_at = since(paused, of_type.paused_at);
                Next::Type(name, of_type)
            }
            SettingChange::LeaseType(name, tenant) => {
                let mut of_type = self.job_type(&name);
                of_type.leased_by.insert(tenant);
                if !self.types.contains_key(&name) && self.types.len() >= LEASED_TYPES_MAX {
                    let problem = format!(
                        "name one more than the {LEASED_TYPES_MAX} types that workers may bring; \
                         put it into the file, as [job_types.{name}]"
                    );
                    return Err(Error::invalid("types", problem));
                }
                Next::Type(name, of_type)
            }
        };
        if let Next::Queue(name, queue) = &next
            && *queue != QueueSetting::default()
            && !self.queues.contains_key(name)
            && self.queues.len() >= SET_QUEUES_MAX
        {
            let problem = format!(
                "is one more than the {SET_QUEUES_MAX} queues that may be paused or have limits set \
                 at run time; reset one of them, or put limits into the file"
            );
            return Err(Error::invalid("queue", problem));
        }
        Ok(next)
    }

    /// Learns what was stored.
    pub(super) fn put(&mut self, next: Next) {
        match next {
            Next::Queue(name, queue) if queue == QueueSetting::default() => {
                self.queues.remove(&name);
            }
            Next::Queue(name, queue) => {
                self.queues.insert(name, queue);
            }
            Next::Type(name, of_type) if of_type == TypeSetting::default() => {
                self.types.remove(&name);
            }
            Next::Type(name, of_type) => {
                self.types.insert(name, of_type);
            }
        }
    }

    /// What was set for a queue.
    pub(super) fn queue(&self, name: &Name) -> QueueSetting {
        self.queues.get(name).cloned().unwrap_or_default()
    }

    /// What was set for a type.
    pub(super) fn job_type(&self, name: &Name) -> TypeSetting {
        self.types.get(name).cloned().unwrap_or_default()
    }

    /// The types that workers of a tenant have leased for.
    pub(super) fn leased_by<'a>(&'a self, tenant: &'a Name) -> impl Iterator<Item = &'a Name> {
        let types = self.types.iter();
        let leased = types.filter(move |(_, of_type)| of_type.leased_by.contains(tenant));
        leased.map(|(name, _)| name)
    }

    /// The limits that hold for a queue.
    pub(super) fn limits(&self, name: &Name, file: &BTreeMap<Name, GivenLimits>) -> QueueLimits {
        let set = self.queues.get(name).map(|queue| &queue.limits);
        let none = GivenLimits::default();
        let file = file.get(name).unwrap_or(&none);
        set.map_or_else(|| file.clone(), |set| set.or(file))
            .limits()
    }

    /// How many jobs with one key may run at once, of each queue that does not have the default.
    pub(super) fn key_limits(
        &self,
        file: &BTreeMap<Name, GivenLimits>,
    ) -> Arc<BTreeMap<Name, usize>> {
        let names = file.keys().chain(self.queues.keys());
        let limits = names.map(|name| (name.clone(), self.limits(name, file).key_concurrency));
        Arc::new(
            limits
                .filter(|(_, most)| *most != KEY_CONCURRENCY_DEFAULT)
                .collect(),
        )
    }
}

impl Next {
    /// As the store keeps it.
    pub(super) fn setting(&self) -> Setting {
        fn value<T: Default + PartialEq + Serialize>(setting: &T) -> Option<String> {
            (*setting != T::default())
                .then(|| serde_json::to_string(setting).expect("plain values are JSON"))
        }
        match self {
            Self::Queue(name, queue) => Setting {
                kind: SettingKind::Queue,
                name: name.clone(),
                value: value(queue),
            },
            Self::Type(name, of_type) => Setting {
                kind: SettingKind::JobType,
                name: name.clone(),
                value: value(of_type),
            },
        }
    }
}

impl<T> Edit<T> {
    fn of(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Keep => before,
            Self::Reset => None,
            Self::To(value) => Some(value),
        }
    }
}

impl JobQueue {
    /// Starts nothing of a queue from here on, or starts it again. What runs goes on. Answers once it is
    /// stored. Pausing twice is no error, and keeps the first time.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn pause_queue(&self, queue: &Name, paused: bool) -> Result<(), Error> {
        self.set(SettingChange::PauseQueue(queue.clone(), paused))
            .await
    }

    /// Sets limits of a queue, over all types and tenants. Answers once they are stored and hold. What runs
    /// beyond a new limit goes on.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn set_limits(&self, queue: &Name, edit: LimitsEdit) -> Result<(), Error> {
        let before = self.limits_of(queue).key_concurrency;
        let of_keys = edit.key_concurrency != Edit::Keep;
        self.set(SettingChange::SetLimits(queue.clone(), edit))
            .await?;
        let after = self.limits_of(queue).key_concurrency;
        if of_keys && after >= before {
            // Nobody else would: what waits for others with its key goes on when one of them ends. Where it
            // was set before, too: whoever repeats a call that failed here wants no less.
            let (this, queue) = (self.clone(), queue.clone());
            // In a task of its own: it goes on where the caller does not wait for it.
            let unblocked = tokio::spawn(async move { this.unblock(&queue, after).await });
            unblocked.await.map_err(|error| Error::internal(&error))??;
        }
        Ok(())
    }

    /// Lets jobs go on that wait for others with their key where the file has been changed, since the server
    /// before this one, to let more of them run. One that still has to wait waits again.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    ///
    /// # Cancel safety
    /// Once it has begun, some of it may happen although nobody hears of it.
    pub async fn unblock_all(&self) -> Result<(), Error> {
        let limits = {
            let live = self.shared.live();
            live.key_limits(&self.shared.settings.queues)
        };
        for (queue, most) in limits.iter() {
            self.unblock(queue, *most).await?;
        }
        Ok(())
    }

    fn limits_of(&self, queue: &Name) -> QueueLimits {
        let live = self.shared.live();
        live.limits(queue, &self.shared.settings.queues)
    }

    /// Starts nothing of a type from here on, or starts it again. What runs goes on. Answers once it is
    /// stored.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn pause_type(&self, job_type: &Name, paused: bool) -> Result<(), Error> {
        self.set(SettingChange::PauseType(job_type.clone(), paused))
            .await
    }

    /// A type that is served, or what is wrong with its name.
    pub fn known_type(
        &self,
        tenant: &Name,
        job_type: &str,
        field: &str,
        violations: &mut Violations,
    ) -> Option<Name> {
        let known = check_type(tenant, job_type, field, self.known_types(), violations);
        known.map(|(name, _)| name)
    }

    pub(super) async fn set(&self, change: SettingChange) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Set { change, reply }).await?;
        answer.await.map_err(|_| Error::outcome_unknown())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn set(live: &mut Live, change: SettingChange, now: i64) -> Option<String> {
        let next = live.after(change, at(now)).expect("there is room");
        let value = next.setting().value;
        live.put(next);
        value
    }

    #[test]
    fn what_was_set_is_read_back_and_what_was_taken_back_leaves_nothing() {
        let (queue, job_type) = (Name::of("q"), Name::of("x"));
        let rate = RateLimit {
            starts: 5,
            period: std::time::Duration::from_millis(1_500),
        };
        let edit = LimitsEdit {
            concurrency: Edit::To(Given::Unlimited),
            rate: Edit::To(Given::Most(rate)),
            key_concurrency: Edit::To(4),
        };
        let mut live = Live::default();
        set(&mut live, SettingChange::PauseQueue(queue.clone(), true), 1);
        set(&mut live, SettingChange::PauseQueue(queue.clone(), true), 2);
        let of_queue = set(&mut live, SettingChange::SetLimits(queue.clone(), edit), 3);
        let of_type = set(
            &mut live,
            SettingChange::PauseType(job_type.clone(), true),
            4,
        );
        let stored = |kind, name: &Name, value| Setting {
            kind,
            name: name.clone(),
            value,
        };
        let read = Live::read(vec![
            stored(SettingKind::Queue, &queue, of_queue),
            stored(SettingKind::JobType, &job_type, of_type),
        ]);
        let read = read.expect("it is whole");
        assert_eq!((&read.queues, &read.types), (&live.queues, &live.types));
        assert_eq!(live.queue(&queue).paused_at, Some(at(1)), "the first time");

        let reset = LimitsEdit {
            concurrency: Edit::Reset,
            rate: Edit::Reset,
            key_concurrency: Edit::Reset,
        };
        set(&mut live, SettingChange::SetLimits(queue.clone(), reset), 5);
        let gone = set(&mut live, SettingChange::PauseQueue(queue, false), 6);
        assert_eq!(gone, None);
        assert_eq!(
            set(&mut live, SettingChange::PauseType(job_type, false), 7),
            None
        );
        assert!(live.queues.is_empty() && live.types.is_empty());
    }

    #[test]
    fn a_damaged_setting_is_told_with_its_name() {
        let damaged = Setting {
            kind: SettingKind::Queue,
            name: Name::of("q"),
            value: Some("{\"paused_at\": \"noon\"}".to_owned()),
        };
        let error = Live::read(vec![damaged]).expect_err("it is damaged");
        assert!(error.to_string().contains("queue q"), "{error}");
    }

    #[test]
    fn as_many_queues_as_may_have_settings_and_not_one_more() {
        let name = |number: usize| Name::new(format!("q{number}")).expect("a name");
        let mut live = Live::default();
        for number in 0..SET_QUEUES_MAX {
            set(&mut live, SettingChange::PauseQueue(name(number), true), 1);
        }
        let one_more = SettingChange::PauseQueue(name(SET_QUEUES_MAX), true);
        let error = live.after(one_more.clone(), at(1)).expect_err("no room");
        assert!(error.to_string().contains("1000 queues"), "{error}");
        // What has some may change them, and what has none may be resumed.
        set(
            &mut live,
            SettingChange::PauseQueue(name(SET_QUEUES_MAX), false),
            2,
        );
        set(&mut live, SettingChange::PauseQueue(name(0), false), 2);
        set(&mut live, one_more, 3);
    }
}
