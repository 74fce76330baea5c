//! Reading a pipe that may never end: other processes can hold its writing end for ever.

use std::io;

use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

/// Bytes read at once: the default capacity of a pipe, pipe(7).
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;
/// Bytes still read once nothing more is to be waited for: what the largest pipe of an unprivileged
/// user can hold (`/proc/sys/fs/pipe-max-size`). A writer that never stops cannot hold the reader.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

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

    /// The next bytes, at most `max` of them; none at the end.
    pub(super) async fn next(&mut self, max: usize) -> Option<&[u8]> {
        let room = max.min(READ_BYTES_MAX);
        let read = loop {
            // Both are cancel safe: nothing is read here.
            tokio::select! {
                biased;
                () = self.ended.cancelled() => break self.drain(room),
                ready = self.pipe.readable() => if ready.is_err() { break 0 },
            }
            match self.pipe.try_read(&mut self.buffer[..room]) {
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break 0,
            }
        };
        (read > 0).then(|| &self.buffer[..read])
    }

    /// Asks the kernel itself: the runtime may not have heard yet of what was written last.
    fn drain(&mut self, room: usize) -> usize {
        let room = room.min(self.left_after_end);
        if room == 0 {
            return 0;
        }
        let read =
            rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut self.buffer[..room]));
        let read = read.unwrap_or(0);
        self.left_after_end -= read;
        read
    }
}
