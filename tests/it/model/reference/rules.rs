//! What is set for queues and types while the server runs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Expected, Reference};
use crate::model::steps::{Queue, Rule, Type};

/// What holds of queues and types, over restarts.
#[derive(Clone, PartialEq, Default, Debug)]
pub(super) struct Rules {
    paused_queues: BTreeSet<Queue>,
    paused_types: BTreeSet<Type>,
    /// Jobs that run at once.
    most: BTreeMap<Queue, usize>,
    /// Jobs with one key that run at once.
    most_of_key: BTreeMap<Queue, usize>,
}

impl Rules {
    pub(super) fn most_of_key(&self, queue: Queue) -> usize {
        self.most_of_key.get(&queue).copied().unwrap_or(1)
    }
}

impl Reference {
    pub(in crate::model) fn set(&mut self, rule: Rule) {
        let rules = &mut self.rules;
        match rule {
            Rule::PauseQueue(queue, true) => drop(rules.paused_queues.insert(queue)),
            Rule::PauseQueue(queue, false) => drop(rules.paused_queues.remove(&queue)),
            Rule::PauseType(job_type, true) => drop(rules.paused_types.insert(job_type)),
            Rule::PauseType(job_type, false) => drop(rules.paused_types.remove(&job_type)),
            Rule::Limit(queue, most, most_of_key) => {
                put(&mut rules.most, queue, most);
                put(&mut rules.most_of_key, queue, most_of_key);
            }
        }
    }

    /// Whether its queue or its type starts nothing now.
    pub(super) fn is_stopped(&self, job: &Expected) -> bool {
        let (queue, rules) = (job.request.queue, &self.rules);
        let is_full = rules.most.get(&queue).is_some_and(|most| {
            let run = self.jobs.values().filter(|other| {
                let run = other.state.is_leased();
                run && other.request.queue == queue
            });
            run.count() >= *most
        });
        is_full
            || rules.paused_queues.contains(&queue)
            || rules.paused_types.contains(&job.request.job_type)
    }
}

fn put(limits: &mut BTreeMap<Queue, usize>, queue: Queue, limit: Option<u8>) {
    match limit {
        Some(limit) => limits.insert(queue, usize::from(limit)),
        None => limits.remove(&queue),
    };
}
