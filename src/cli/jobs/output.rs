//! Where the commands write: data to stdout, a line at a time, everything else to stderr.

use std::io::{self, IsTerminal, Write};

use prost_reflect::ReflectMessage;

use crate::cli::jobs::args::Common;
use crate::cli::jobs::{escape, json};
use crate::pb;
use crate::pb::payload::Content;

/// How a command speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Data as canonical proto JSON.
    pub(crate) json: bool,
    /// Nothing but data.
    pub(crate) quiet: bool,
    /// A person is looking at stdout.
    pub(crate) is_terminal: bool,
}

impl Output {
    pub(crate) fn new(common: &Common) -> Self {
        Self {
            json: common.json,
            quiet: common.quiet,
            is_terminal: io::stdout().is_terminal(),
        }
    }

    /// Text that is escaped already, as a line of stdout.
    pub(crate) fn line(self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    }

    /// A message as a line of JSON.
    pub(crate) fn message(self, message: &impl ReflectMessage) -> io::Result<()> {
        self.line(&json::line(message)?)
    }

    /// The answer to a submit as a line of JSON.
    pub(crate) fn submitted(self, job: &pb::Job, deduplicated: bool) -> io::Result<()> {
        self.line(&json::submitted(job, deduplicated)?)
    }

    /// A note for people on stderr; `--quiet` keeps it back.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// A job's own output, on stderr for its stream of that name, as it is; a terminal sees it escaped.
    pub(crate) fn chunk(self, chunk: &pb::OutputChunk) -> io::Result<()> {
        let Some(payload) = &chunk.chunk else {
            return Ok(());
        };
        if chunk.stream == "stderr" {
            let bytes = raw(payload, io::stderr().is_terminal())?;
            // Nobody is listening: fine.
            let _ = io::stderr().lock().write_all(&bytes);
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&raw(payload, self.is_terminal)?)?;
        stdout.flush()
    }
}

/// A line on stderr. Where that is gone, nobody is listening: fine.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A payload's bytes; JSON as a line of its own.
fn raw(payload: &pb::Payload, for_terminal: bool) -> io::Result<Vec<u8>> {
    let bytes = match &payload.content {
        None => Vec::new(),
        Some(Content::Json(value)) => format!("{}\n", json::line(value)?).into_bytes(),
        Some(Content::Text(text)) => text.clone().into_bytes(),
        Some(Content::Data(bytes)) => bytes.to_vec(),
    };
    if !for_terminal {
        return Ok(bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(escape::escape_output(&text).into_owned().into_bytes())
}
