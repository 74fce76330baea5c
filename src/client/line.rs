//! One stream after another, as if it were one: opens it, reads it, notices that it is dead, and rests
//! before it opens the next. It does not know what the messages say.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::time::Instant;
use tonic::Status;

use crate::client::Client;
use crate::client::error::{ClientError, Failure};

/// A stream that says nothing for this many heartbeats is dead: one may be late, two may be lost.
const SILENT_HEARTBEATS: u32 = 3;

/// Longest wait for which a watch takes a server's word. Chosen: longer than any drain or limit of ours.
const ASKED_MAX: Duration = Duration::from_secs(300);

/// The messages of one stream.
pub(super) type Messages<M> = BoxStream<'static, Result<M, Status>>;

/// What a stream is opened with.
pub(super) type Opening<M> = BoxFuture<'static, Result<Messages<M>, Status>>;

/// The streams of one watch.
#[derive(Debug)]
pub(super) struct Line<M> {
    client: Client,
    heartbeat_interval: Duration,
    phase: Phase<M>,
    /// Failed tries since the watch last got further.
    failures: u32,
    /// When the first of them failed.
    failing_since: Option<Instant>,
}

enum Phase<M> {
    /// Waits before the next try, if only until now.
    Resting(Instant),
    /// Waits for the stream, at most until then. Kept here, so that dropping `next()` loses nothing.
    Opening(Opening<M>, Instant),
    /// Reads, and was last heard from then.
    Reading(Messages<M>, Instant),
    Over,
}

impl<M> std::fmt::Debug for Phase<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resting(_) => "Resting",
            Self::Opening(..) => "Opening",
            Self::Reading(..) => "Reading",
            Self::Over => "Over",
        })
    }
}

/// A cut that is not the end.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) error: ClientError,
    /// Failed tries in a row, this one included.
    pub(super) attempt: u32,
    /// The wait before the next one.
    pub(super) delay: Duration,
}

impl<M> Line<M> {
    pub(super) fn new(client: Client, heartbeat_interval: Duration) -> Self {
        Self {
            client,
            heartbeat_interval,
            phase: Phase::Resting(Instant::now()),
            failures: 0,
            failing_since: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Nothing is opened or read any more.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Over;
    }

    /// The stream has said something that counts as a sign of life, and maybe something new.
    pub(super) fn heard(&mut self, further: bool) {
        if further {
            self.failures = 0;
            self.failing_since = None;
        }
        if let Phase::Reading(_, heard) = &mut self.phase {
            *heard = Instant::now();
        }
    }

    /// Rests, opens a stream and reads from it, whatever is due. `None` where the server ended it with OK.
    ///
    /// # Cancel safety
    /// Safe: what it waits for stays in the phase.
    pub(super) async fn next(
        &mut self,
        open: impl Fn(&Client) -> Opening<M>,
    ) -> Result<Option<M>, Failure> {
        loop {
            match &mut self.phase {
                Phase::Over => return Ok(None),
                Phase::Resting(until) => {
                    tokio::time::sleep_until(*until).await;
                    let patience = self.client.settings().call_deadline;
                    self.phase = Phase::Opening(open(&self.client), Instant::now() + patience);
                }
                Phase::Opening(opening, until) => {
                    match tokio::time::timeout_at(*until, opening).await {
                        Ok(Ok(messages)) => self.phase = Phase::Reading(messages, Instant::now()),
                        Ok(Err(status)) => return Err(Failure::from(status)),
                        Err(_) => return Err(self.leave_connection("the server did not answer")),
                    }
                }
                Phase::Reading(messages, heard) => {
                    let silence = self.heartbeat_interval * SILENT_HEARTBEATS;
                    return match tokio::time::timeout_at(*heard + silence, messages.next()).await {
                        Ok(heard) => heard.transpose().map_err(Failure::from),
                        Err(_) => Err(self.leave_connection("the server fell silent")),
                    };
                }
            }
        }
    }

    /// Notes a cut and rests before the next try.
    ///
    /// # Errors
    /// What ends the watch.
    pub(super) fn cut(&mut self, failure: Failure) -> Result<Cut, ClientError> {
        let now = Instant::now();
        let since = *self.failing_since.get_or_insert(now);
        if !failure.resume || now.duration_since(since) > self.client.settings().give_up_after {
            return Err(failure.error);
        }
        let asked = failure.error.retry_after();
        let asked = asked.map(|asked| asked.min(ASKED_MAX));
        let delay = self.client.settings().backoff.delay(self.failures, asked);
        self.failures += 1;
        self.phase = Phase::Resting(now + delay);
        Ok(Cut {
            error: failure.error,
            attempt: self.failures,
            delay,
        })
    }

    /// A half-open connection stays silent for every stream opened on it: take another.
    fn leave_connection(&mut self, message: &str) -> Failure {
        self.client = self.client.reconnected();
        Failure::cut(message)
    }
}
