//! A program's stdout or stderr, delivered as it is written: what one read gives is one chunk, text
//! where it is UTF-8, bytes where it is not. Nothing waits for the end of a line for longer than nobody
//! notices.
//!
//! Memory is bounded by one read and what is kept of the end; a program that writes faster than it can
//! be stored is slowed down by its full pipe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

use crate::executor::command::percent::Percentages;
use crate::executor::command::pipe::{PipeReader, READ_BYTES_MAX};
use crate::executor::reporter::Reporter;
use crate::job::payload::Payload;

/// Reads one output stream of an attempt.
pub(super) struct Stream {
    name: &'static str,
    reporter: Reporter,
    /// Whom to tell about percentages in it, unless the program tells its progress itself.
    percentages: Option<(Percentages, Arc<AtomicBool>)>,
    /// The beginning of a character whose end was not read yet. At most 3 bytes.
    pending: Vec<u8>,
    end: Tail,
}

/// The end of what was written.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    bytes_max: usize,
    total: u64,
}

impl Stream {
    /// `has_progress` is given where percentages are to be looked for.
    pub(super) fn new(
        name: &'static str,
        reporter: Reporter,
        has_progress: Option<Arc<AtomicBool>>,
        tail_bytes_max: usize,
    ) -> Self {
        Self {
            name,
            reporter,
            percentages: has_progress.map(|flag| (Percentages::default(), flag)),
            pending: Vec::new(),
            end: Tail::new(tail_bytes_max),
        }
    }

    /// Reads to the end, or until told that no more is to be waited for; then what is there.
    pub(super) async fn read(mut self, pipe: Receiver, ended: CancellationToken) -> Tail {
        let mut pipe = PipeReader::new(pipe, ended);
        // Room for the pending beginning of a character: a chunk never exceeds one read.
        while let Some(bytes) = pipe.next(READ_BYTES_MAX - self.pending.len()).await {
            self.take(bytes).await;
        }
        if !self.pending.is_empty() {
            let rest = std::mem::take(&mut self.pending);
            self.deliver(Payload::data(rest)).await;
        }
        self.end
    }

    async fn take(&mut self, bytes: &[u8]) {
        self.end.push(bytes);
        let mut chunk = std::mem::take(&mut self.pending);
        chunk.extend_from_slice(bytes);
        self.pending = split_incomplete(&mut chunk);
        if !chunk.is_empty() {
            self.deliver(Payload::text_or_data(chunk)).await;
        }
        if let Some((percentages, has_progress)) = &mut self.percentages {
            if has_progress.load(Ordering::Relaxed) {
                self.percentages = None;
            } else if let Some(progress) = percentages.read(bytes) {
                // Nobody is listening any more: fine, the program is read on so that it can end.
                let _ = self.reporter.progress(progress).await;
            }
        }
    }

    async fn deliver(&self, chunk: Payload) {
        // Nobody is listening any more: fine, the program is read on so that it can end.
        let _ = self.reporter.output(self.name, chunk).await;
    }
}

impl Tail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            bytes_max,
            total: 0,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if self.bytes_max == 0 {
            return;
        }
        let bytes = &bytes[bytes.len().saturating_sub(self.bytes_max)..];
        self.bytes.extend_from_slice(bytes);
        // Moved only once as much again has come: every byte is moved at most once.
        if self.bytes.len() >= 2 * self.bytes_max {
            self.bytes.drain(..self.bytes.len() - self.bytes_max);
        }
    }

    /// Bytes written in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The last of it, and whether there was more.
    pub(super) fn into_bytes(mut self) -> (Vec<u8>, bool) {
        let excess = self.bytes.len().saturating_sub(self.bytes_max);
        self.bytes.drain(..excess);
        let is_cut = self.total > self.bytes.len() as u64;
        (self.bytes, is_cut)
    }

    /// The last lines as text. A line that was redrawn counts as it was last; one that is cut is marked.
    pub(super) fn into_lines(self) -> String {
        const MARK: &str = "[…] ";
        let bytes_max = self.bytes_max;
        let (bytes, is_cut) = self.into_bytes();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = String::with_capacity(text.len());
        for line in text.trim_end().split('\n') {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let line = line.rsplit_once('\r').map_or(line, |(_, last)| last);
            lines.push_str(line);
            lines.push('\n');
        }
        lines.pop();
        // What is not UTF-8 grew by being replaced: the end stands.
        let from = lines.ceil_char_boundary(lines.len().saturating_sub(bytes_max - MARK.len()));
        if !is_cut && from == 0 {
            return lines;
        }
        match lines[from..].split_once('\n') {
            Some((_, whole)) => whole.to_owned(),
            None => format!("{MARK}{}", &lines[from..]),
        }
    }
}

/// Takes the beginning of a character off the end of a chunk that is otherwise UTF-8.
fn split_incomplete(chunk: &mut Vec<u8>) -> Vec<u8> {
    match std::str::from_utf8(chunk) {
        Err(error) if error.error_len().is_none() => chunk.split_off(error.valid_up_to()),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::testing::Harness;
    use crate::job::Report;
    use crate::job::payload::Content;

    #[tokio::test]
    async fn a_character_split_between_reads_arrives_whole_and_other_bytes_arrive_as_they_are() {
        let mut harness = Harness::new(None);
        let reporter = harness.take_attempt().reporter;
        let mut stream = Stream::new("stdout", reporter, None, 8);
        let euro = "€".as_bytes();
        stream.take(b"a").await;
        stream.take(&euro[..1]).await;
        stream.take(&euro[1..2]).await;
        stream.take(&[euro[2], b'b']).await;
        stream.take(b"\xff\x00c").await;
        stream.take(&euro[..2]).await;
        stream.take(b"x").await;
        drop(stream);
        let chunks: Vec<Content> = harness
            .reports()
            .await
            .into_iter()
            .map(|report| match report {
                Report::Output { chunk, .. } => chunk.content().clone(),
                other => panic!("unexpected {other:?}"),
            })
            .collect();
        assert_eq!(
            chunks,
            [
                Content::Text("a".to_owned()),
                Content::Text("€b".to_owned()),
                Content::Data(b"\xff\x00c".as_slice().into()),
                Content::Data(b"\xe2\x82x".as_slice().into()),
            ]
        );
    }

    #[test]
    fn the_last_lines_are_whole_or_marked() {
        let lines = |text: &str, max: usize| {
            let mut tail = Tail::new(max);
            for piece in text.as_bytes().chunks(3) {
                tail.push(piece);
            }
            tail.into_lines()
        };
        assert_eq!(lines("one\ntwo\n", 64), "one\ntwo");
        assert_eq!(lines("10%\r20%\r30%\r\ndone\r\n", 64), "30%\ndone");
        assert_eq!(lines("the first line\nlast\n", 12), "last");
        assert_eq!(lines(&"x".repeat(99), 12), format!("[…] {}", "x".repeat(6)));
        assert_eq!(lines("", 12), "");
        assert!(lines(&"é".repeat(99), 13).len() <= 13);
    }
}
