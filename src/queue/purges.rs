//! What is to be removed, in line: the writer takes a little of it at a time, so that nobody's changes wait
//! for more than one short transaction.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::error::Error;
use crate::store::{Purge, Purged, StoreError};

/// Removals of one transaction. Chosen: the store ends one sooner where they are large.
pub(super) const REMOVALS_MAX: usize = 64;

pub(super) type PurgedTo = oneshot::Sender<Result<Vec<Purged>, Error>>;

/// One request, and how far it has come.
struct Waiting {
    left: VecDeque<Purge>,
    done: Vec<Purged>,
    reply: PurgedTo,
}

/// Requests in the order of arrival.
#[derive(Default)]
pub(super) struct PurgeLine(VecDeque<Waiting>);

impl PurgeLine {
    pub(super) fn push(&mut self, purge: Vec<Purge>, reply: PurgedTo) {
        if purge.is_empty() {
            // Whoever asked may be gone: fine.
            let _ = reply.send(Ok(Vec::new()));
            return;
        }
        self.0.push_back(Waiting {
            left: purge.into(),
            done: Vec::new(),
            reply,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the next transaction is asked to remove.
    pub(super) fn next(&self) -> Vec<Purge> {
        let left = self.0.iter().flat_map(|waiting| &waiting.left);
        left.take(REMOVALS_MAX).cloned().collect()
    }

    /// Takes in what became of that, in the same order, and answers whoever has all of theirs. What had no
    /// room in the transaction stands first in the next one.
    pub(super) fn done(&mut self, purged: Vec<Purged>) {
        let mut purged = purged.into_iter().take_while(|one| *one != Purged::Later);
        while let Some(first) = self.0.front_mut() {
            while !first.left.is_empty()
                && let Some(one) = purged.next()
            {
                first.left.pop_front();
                first.done.push(one);
            }
            if !first.left.is_empty() {
                return;
            }
            if let Some(Waiting { done, reply, .. }) = self.0.pop_front() {
                // Whoever asked may be gone: fine.
                let _ = reply.send(Ok(done));
            }
        }
    }

    /// Nothing of the next transaction was done: tells everyone who has a part in it.
    pub(super) fn failed(&mut self, error: &StoreError) {
        let mut asked = self.next().len();
        let error = Error::from(error.clone());
        while asked > 0
            && let Some(Waiting { left, done, reply }) = self.0.pop_front()
        {
            asked = asked.saturating_sub(left.len());
            // What was removed in transactions before this one is removed.
            let answer = if done.is_empty() {
                Err(error.clone())
            } else {
                Ok(done)
            };
            // Whoever asked may be gone: fine.
            let _ = reply.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::name::{JobId, JobKey, Name};

    fn key(number: u128) -> JobKey {
        JobKey {
            tenant: Name::of("a"),
            id: JobId::new(uuid::Uuid::from_u128(number)),
        }
    }

    fn jobs(numbers: std::ops::Range<u128>) -> Vec<Purge> {
        numbers.map(|number| Purge::Job(key(number))).collect()
    }

    fn gone(purge: &[Purge]) -> Vec<Purged> {
        let gone = |purge: &Purge| match purge {
            Purge::Job(key) => Purged::Job(key.clone()),
            Purge::Events(..) | Purge::Rest => Purged::Nothing,
        };
        purge.iter().map(gone).collect()
    }

    type Answer = oneshot::Receiver<Result<Vec<Purged>, Error>>;

    fn line(requests: &[Vec<Purge>]) -> (PurgeLine, Vec<Answer>) {
        let mut line = PurgeLine::default();
        let push = |purge: &Vec<Purge>| {
            let (reply, answer) = oneshot::channel();
            line.push(purge.clone(), reply);
            answer
        };
        let answers = requests.iter().map(push).collect();
        (line, answers)
    }

    fn answered(answer: &mut Answer) -> Vec<Purged> {
        let answer = answer.try_recv().expect("it is answered");
        answer.expect("the store works")
    }

    /// Goal: everyone gets an answer for each of their own, in order, however the transactions fall.
    #[test]
    fn requests_share_transactions_and_outlast_them() {
        let requests = [jobs(0..1), vec![], jobs(1..3), jobs(3..200)];
        for done_each in 1..=REMOVALS_MAX {
            let (mut line, mut answers) = line(&requests);
            while !line.is_empty() {
                let next = line.next();
                assert!(next.len() <= REMOVALS_MAX);
                let mut purged = gone(&next);
                for later in purged.iter_mut().skip(done_each) {
                    *later = Purged::Later;
                }
                line.done(purged);
            }
            for (request, answer) in requests.iter().zip(&mut answers) {
                assert_eq!(answered(answer), gone(request));
            }
        }
    }

    #[test]
    fn a_transaction_that_fails_is_told_to_those_in_it_and_to_nobody_else() {
        let (mut line, mut answers) = line(&[jobs(0..1), jobs(1..70), jobs(70..71)]);
        line.failed(&StoreError::DiskFull);
        for answer in &mut answers[..2] {
            let answer = answer.try_recv().expect("it is answered");
            assert!(matches!(answer, Err(Error::Exhausted { .. })), "{answer:?}");
        }
        let next = line.next();
        assert_eq!(next, jobs(70..71));
        line.done(gone(&next));
        assert_eq!(answered(&mut answers[2]), gone(&next));
        assert!(line.is_empty());
    }
}
