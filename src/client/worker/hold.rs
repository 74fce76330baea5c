//! The leases that a worker holds: how long they surely last, and who keeps them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::error::ClientError;
use crate::client::worker::link::Link;
use crate::executor::{DRAIN_GRACE, Grace};
use crate::job::limits::LEASED_MAX;
use crate::pb;

/// How long before the end of its term a lease counts as lost, where nobody answers: the work has to be over
/// before another worker may get the job. Chosen; less for short terms.
const MARGIN: Duration = Duration::from_secs(2);
/// How long a handler has to stop whose job has gone already.
const LOST_GRACE: Duration = Duration::from_millis(500);
/// The share of its term after which a lease is renewed, so that a renewal may fail twice.
const RENEWALS_A_TERM: u32 = 3;

/// Why an attempt was told to stop; what comes later here outweighs what comes before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Cause {
    /// The worker drains.
    Drain,
    /// Somebody asked the job to stop.
    Cancel,
    /// Nobody answered for so long that the lease may be over. What came of the attempt may still be told: the
    /// server decides.
    OutOfTouch,
    /// The lease is lost: nothing is told any more.
    Lost,
}

/// A lease, from the claim until its end was told.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) token: String,
    state: Mutex<State>,
    /// How long before the end of its term it counts as lost.
    margin: Duration,
    /// How long the attempt may take to stop; less once the job may be somebody else's.
    pub(super) grace: Grace,
    /// Tripped once the attempt has to stop.
    pub(super) stop: CancellationToken,
    /// Tripped once nothing may be told any more.
    pub(super) lost: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// Until when the lease surely holds, less the margin.
    good_until: Instant,
    cause: Option<Cause>,
}

impl Hold {
    /// Why the attempt was told to stop, if it was.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.state().cause
    }

    pub(super) fn stop(&self, cause: Cause) {
        let mut state = self.state();
        state.cause = state.cause.max(Some(cause));
        drop(state);
        // First: whoever hears the token asks how long there is.
        match cause {
            Cause::Cancel => {}
            Cause::Drain => self.grace.shorten(DRAIN_GRACE),
            Cause::OutOfTouch => self.grace.shorten(self.margin),
            Cause::Lost => self.grace.shorten(LOST_GRACE.min(self.margin)),
        }
        if cause == Cause::Lost {
            self.lost.cancel();
        }
        self.stop.cancel();
    }

    /// Whether nobody answered for so long that the lease may be over.
    fn is_out_of_touch(&self) -> bool {
        self.lasts().is_zero()
    }

    /// How long the lease surely holds, less the margin.
    fn lasts(&self) -> Duration {
        self.state()
            .good_until
            .saturating_duration_since(Instant::now())
    }

    /// Comes when it is so.
    ///
    /// # Cancel safety
    /// Safe: it holds nothing.
    pub(super) async fn out_of_touch(&self) {
        while !self.is_out_of_touch() {
            let good_until = self.state().good_until;
            tokio::time::sleep_until(good_until).await;
        }
    }

    /// The server answered that the lease holds, to a call that was sent then.
    fn renewed(&self, sent: Instant, term: Duration, is_cancelled: bool) {
        let mut state = self.state();
        state.good_until = state.good_until.max(sent + term - self.margin);
        drop(state);
        if is_cancelled {
            self.stop(Cause::Cancel);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All leases of a worker.
#[derive(Debug)]
pub(super) struct Holds {
    /// How long a lease lasts without a word.
    term: Duration,
    by_token: Mutex<HashMap<String, Arc<Hold>>>,
}

impl Holds {
    pub(super) fn new(term: Duration) -> Self {
        Self {
            term,
            by_token: Mutex::default(),
        }
    }

    /// Takes up a lease that began then, or later.
    pub(super) fn take(&self, token: String, since: Instant) -> Arc<Hold> {
        let margin = MARGIN.min(self.term / 5);
        let hold = Arc::new(Hold {
            token: token.clone(),
            state: Mutex::new(State {
                good_until: since + self.term - margin,
                cause: None,
            }),
            margin,
            grace: Grace::new(Duration::MAX),
            stop: CancellationToken::new(),
            lost: CancellationToken::new(),
        });
        self.by_token().insert(token, Arc::clone(&hold));
        hold
    }

    /// Whether it lasts until it is renewed for the first time.
    pub(super) fn is_good(&self, hold: &Hold) -> bool {
        hold.lasts() > self.beat()
    }

    /// How long after one renewal the next one is due.
    fn beat(&self) -> Duration {
        self.term / RENEWALS_A_TERM
    }

    /// Renews it no more.
    pub(super) fn let_go(&self, hold: &Hold) {
        self.by_token().remove(&hold.token);
    }

    /// The server answered so to a call that renews, sent then.
    pub(super) fn renewed(&self, hold: &Hold, sent: Instant, is_cancelled: bool) {
        hold.renewed(sent, self.term, is_cancelled);
    }

    /// Renews all leases, and hears which are lost and which jobs are to stop. Never ends.
    pub(super) async fn keep(&self, link: &Link) {
        let beat = self.beat();
        let mut failures = 0;
        let mut pause = beat;
        loop {
            tokio::time::sleep(pause).await;
            let tokens: Vec<String> = self.by_token().keys().cloned().collect();
            pause = beat;
            for tokens in tokens.chunks(LEASED_MAX) {
                match self.renew(link, tokens, beat).await {
                    Ok(()) => failures = 0,
                    Err(error) => {
                        tracing::warn!(%error, leases = tokens.len(), "leases could not be renewed");
                        pause = link.pause(failures, &error).min(beat);
                        failures += 1;
                    }
                }
            }
        }
    }

    async fn renew(
        &self,
        link: &Link,
        tokens: &[String],
        beat: Duration,
    ) -> Result<(), ClientError> {
        let request = pb::ExtendLeasesRequest {
            lease_tokens: tokens.to_vec(),
        };
        let deadline = link.settings.call_deadline.min(beat);
        let sent = Instant::now();
        let answer = link.send(request, deadline, |mut service, request| async move {
            service.extend_leases(request).await
        });
        match answer.await {
            Ok(answer) => {
                for (token, lease) in tokens.iter().zip(answer.leases) {
                    self.hear(token, sent, &lease);
                }
                Ok(())
            }
            Err(failure) if failure.resume => Err(failure.error),
            // One token that the server does not know, as after its store was replaced, must not take the others
            // along.
            Err(failure) => match tokens {
                [token] => {
                    tracing::warn!(error = %failure.error, "a lease cannot be renewed");
                    self.lose(token);
                    Ok(())
                }
                tokens => {
                    let (some, others) = tokens.split_at(tokens.len() / 2);
                    Box::pin(self.renew(link, some, beat)).await?;
                    Box::pin(self.renew(link, others, beat)).await
                }
            },
        }
    }

    fn hear(&self, token: &str, sent: Instant, lease: &pb::LeaseStatus) {
        if lease.lost {
            self.lose(token);
        } else if lease.lease_expire_time.is_none() {
            tracing::warn!("the server cannot say how a lease stands");
        } else if let Some(hold) = self.by_token().get(token) {
            hold.renewed(sent, self.term, lease.cancel_requested);
        }
    }

    fn lose(&self, token: &str) {
        if let Some(hold) = self.by_token().remove(token) {
            hold.stop(Cause::Lost);
        }
    }

    fn by_token(&self) -> MutexGuard<'_, HashMap<String, Arc<Hold>>> {
        // Nothing that holds it can panic half-way.
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::limits::{LEASE, LEASE_TERMS};

    #[test]
    fn a_lease_is_good_from_when_its_renewal_was_sent() {
        let holds = Holds::new(LEASE);
        let begun = Instant::now();
        let hold = holds.take("a".to_owned(), begun);
        assert_eq!(hold.state().good_until, begun + Duration::from_secs(13));
        let later = begun + Duration::from_secs(5);
        holds.renewed(&hold, later, false);
        assert_eq!(hold.state().good_until, later + Duration::from_secs(13));
        // An answer that comes late, and to an older call, takes nothing away.
        holds.renewed(&hold, begun, false);
        assert_eq!(hold.state().good_until, later + Duration::from_secs(13));
        let short = Holds::new(*LEASE_TERMS.start()).take("b".to_owned(), begun);
        assert_eq!(short.state().good_until, begun + Duration::from_secs(4));
    }

    #[test]
    fn a_lease_of_which_the_server_can_say_nothing_is_neither_renewed_nor_lost() {
        let holds = Holds::new(LEASE);
        let begun = Instant::now();
        let hold = holds.take("a".to_owned(), begun);
        let later = begun + Duration::from_secs(5);
        holds.hear("a", later, &pb::LeaseStatus::default());
        assert_eq!(hold.state().good_until, begun + Duration::from_secs(13));
        assert_eq!(hold.cause(), None);
        let renewed = pb::LeaseStatus {
            lease_expire_time: Some(prost_types::Timestamp::default()),
            ..pb::LeaseStatus::default()
        };
        holds.hear("a", later, &renewed);
        assert_eq!(hold.state().good_until, later + Duration::from_secs(13));
    }

    #[test]
    fn what_outweighs_is_not_taken_back() {
        let holds = Holds::new(Duration::from_secs(5));
        let hold = holds.take("a".to_owned(), Instant::now());
        for (cause, stands) in [
            (Cause::Drain, Cause::Drain),
            (Cause::Cancel, Cause::Cancel),
            (Cause::Drain, Cause::Cancel),
            (Cause::Lost, Cause::Lost),
            (Cause::OutOfTouch, Cause::Lost),
        ] {
            hold.stop(cause);
            assert_eq!(hold.cause(), Some(stands));
            assert_eq!(hold.lost.is_cancelled(), stands == Cause::Lost);
        }
    }
}
