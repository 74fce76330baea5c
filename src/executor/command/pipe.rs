//! Reading a pipe that may never end: other processes can hold its writing end for ever.

use std::io;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Bytes read at once: the default capacity of a pipe, pipe(7).
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;
/// Bytes still read once nothing more is to be waited for: what the largest pipe of an unprivileged
/// user can hold (`/proc/sys/fs/pipe-max-size`). A writer that never stops cannot hold the reader.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// How long the rest of a line is waited for. Chosen: a program that writes a line in pieces, as Python
/// does without a buffer, takes far less, and nobody sees it.
const LINE_PATIENCE: Duration = Duration::from_millis(5);

/// Gives what is written to a pipe until its end, or until told that no more is to be waited for; then
/// what is in it.
pub(super) struct PipeReader {
    pipe: Receiver,
    ended: CancellationToken,
    left_after_end: usize,
    buffer: Vec<u8>,
}

impl PipeReader {
    pub(super) fn new(pipe: Receiver, ended: CancellationToken) -> Self {
        Self {
            pipe,
            ended,
            left_after_end: DRAIN_BYTES_MAX,
            buffer: vec![0; READ_BYTES_MAX],
        }
    }

    /// The next bytes, at most `max` of them; none at the end. Waits a moment for the rest of a line
    /// that was begun.
    pub(super) async fn next(&mut self, max: usize) -> Option<&[u8]> {
        let room = max.min(READ_BYTES_MAX);
        let mut filled = self.read(0, room).await;
        let patience = Instant::now() + LINE_PATIENCE;
        while filled > 0 && filled < room && !matches!(self.buffer[filled - 1], b'\n' | b'\r') {
            // Out of time, or at the end: what is there goes. Nothing is read by a read that is dropped.
            match timeout_at(patience, self.read(filled, room)).await {
                Ok(more @ 1..) => filled += more,
                Ok(0) | Err(_) => break,
            }
        }
        (filled > 0).then(|| &self.buffer[..filled])
    }

    /// Reads into the buffer between two places. How much; 0 at the end.
    async fn read(&mut self, from: usize, to: usize) -> usize {
        loop {
            // Both are cancel safe: nothing is read here.
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return self.drain(from, to),
                ready = self.pipe.readable() => if ready.is_err() { return 0 },
            }
            match self.pipe.try_read(&mut self.buffer[from..to]) {
                Ok(read) => return read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return 0,
            }
        }
    }

    /// Asks the kernel itself: the runtime may not have heard yet of what was written last.
    fn drain(&mut self, from: usize, to: usize) -> usize {
        let room = (to - from).min(self.left_after_end);
        if room == 0 {
            return 0;
        }
        let buffer = &mut self.buffer[from..from + room];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut *buffer));
        let read = read.unwrap_or(0);
        self.left_after_end -= read;
        read
    }
}
