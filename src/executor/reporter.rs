//! The way from running work to the job's log: bounded, so that work that talks faster than it can be
//! stored is slowed down and memory is not filled.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::job::Report;
use crate::job::event::{LogLevel, LogLine, truncate};
use crate::job::limits::{DETAIL_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::job::name::Name;
use crate::job::payload::Payload;
use crate::job::progress::Progress;

/// Reports waiting to be stored, per attempt. Chosen: two stored groups.
const WAITING_REPORTS_MAX: usize = 1024;
/// Bytes of reports waiting to be stored, per attempt. Chosen: four of the largest payloads.
const WAITING_BYTES_MAX: usize = 4 * PAYLOAD_BYTES_MAX;

/// What running work tells its job's log. Cheap to clone; every method waits while too much is unsaid.
#[derive(Clone, Debug)]
pub struct Reporter {
    sender: mpsc::Sender<Weighed>,
    budget: Arc<Semaphore>,
}

/// The other end of a [`Reporter`].
#[derive(Debug)]
pub struct Reports {
    receiver: mpsc::Receiver<Weighed>,
}

/// A report with its share of the bytes that may wait.
#[derive(Debug)]
struct Weighed {
    report: Report,
    _share: Option<OwnedSemaphorePermit>,
}

/// Why a report was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReportError {
    /// The report breaks a bound; the sentence names it.
    #[error("{field} {problem}")]
    Invalid {
        /// Which part of the report.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody is listening any more: the attempt is over.
    #[error("the attempt is over")]
    AttemptOver,
}

/// A reporter and the place where its reports arrive.
pub fn channel() -> (Reporter, Reports) {
    let (sender, receiver) = mpsc::channel(WAITING_REPORTS_MAX);
    let budget = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
    (Reporter { sender, budget }, Reports { receiver })
}

impl Reporter {
    /// Tells how far the attempt has come. Merged to at most one stored every 50 ms by default.
    ///
    /// # Errors
    /// Where a field is out of its range, or the attempt is over.
    pub async fn progress(&self, progress: Progress) -> Result<(), ReportError> {
        progress
            .check()
            .map_err(|(field, problem)| ReportError::Invalid { field, problem })?;
        self.send(Report::Progress(progress), 0).await
    }

    /// Adds a chunk to an output stream.
    ///
    /// # Errors
    /// Where the stream is no valid name, the chunk is larger than 1 MiB, or the attempt is over.
    pub async fn output(&self, stream: &str, chunk: Payload) -> Result<(), ReportError> {
        Name::new(stream).map_err(|problem| invalid("stream", problem))?;
        chunk
            .check_size()
            .map_err(|problem| invalid("chunk", problem))?;
        let bytes = chunk.as_bytes().len();
        let stream = stream.to_owned();
        self.send(Report::Output { stream, chunk }, bytes).await
    }

    /// Adds a line for people. Messages beyond 16 KiB are cut.
    ///
    /// # Errors
    /// Where the attempt is over.
    pub async fn log(
        &self,
        level: LogLevel,
        message: impl Into<String>,
    ) -> Result<(), ReportError> {
        self.log_line(LogLine::new(level, message)).await
    }

    /// Adds a line for people, with fields. Messages beyond 16 KiB are cut.
    ///
    /// # Errors
    /// Where the fields are larger than 16 KiB as JSON or nest deeper than 30, or the attempt is over.
    pub async fn log_line(&self, mut line: LogLine) -> Result<(), ReportError> {
        truncate(&mut line.message, DETAIL_BYTES_MAX);
        let fields = line
            .check_fields()
            .map_err(|problem| invalid("fields", problem))?;
        let bytes = line.message.len() + fields;
        self.send(Report::Log(line), bytes).await
    }

    /// Saves where the next attempt could go on. The newest one stands.
    ///
    /// # Errors
    /// Where it is larger than 1 MiB, or the attempt is over.
    pub async fn checkpoint(&self, checkpoint: Payload) -> Result<(), ReportError> {
        checkpoint
            .check_size()
            .map_err(|problem| invalid("checkpoint", problem))?;
        let bytes = checkpoint.as_bytes().len();
        self.send(Report::Checkpoint(checkpoint), bytes).await
    }

    async fn send(&self, report: Report, bytes: usize) -> Result<(), ReportError> {
        let share = if bytes == 0 {
            None
        } else {
            let bytes = u32::try_from(bytes.min(WAITING_BYTES_MAX)).unwrap_or(u32::MAX);
            let share = Arc::clone(&self.budget).acquire_many_owned(bytes).await;
            Some(share.map_err(|_| ReportError::AttemptOver)?)
        };
        let weighed = Weighed {
            report,
            _share: share,
        };
        self.sender
            .send(weighed)
            .await
            .map_err(|_| ReportError::AttemptOver)
    }
}

impl Reports {
    /// Waits for reports and takes up to `max` of those that are there; none when every [`Reporter`]
    /// is gone.
    ///
    /// # Cancel safety
    /// Safe: a report is taken or still waits.
    pub async fn take(&mut self, max: usize) -> Vec<Report> {
        let mut weighed = Vec::new();
        self.receiver.recv_many(&mut weighed, max).await;
        weighed.into_iter().map(|weighed| weighed.report).collect()
    }

    /// Whether any is there.
    pub fn any(&self) -> bool {
        !self.receiver.is_empty()
    }

    /// Takes what is there and will take no more: who still reports is told that the attempt is over.
    pub fn close(&mut self) -> Vec<Report> {
        self.receiver.close();
        let mut rest = Vec::new();
        while let Ok(weighed) = self.receiver.try_recv() {
            rest.push(weighed.report);
        }
        rest
    }
}

fn invalid(field: &'static str, problem: String) -> ReportError {
    ReportError::Invalid { field, problem }
}
