//! `checksum`: hashes every file under a folder, with progress in bytes and one output line a file, as
//! `sha256sum` prints it.

mod files;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::executor::builtin::checksum::files::{Hashing, Listed, refused, relative_to, walk};
use crate::executor::handler::{Context, HandlerError, HandlerExecutor};
use crate::job::event::LogLevel;
use crate::job::limits::STRING_BYTES_MAX;
use crate::job::payload::Payload;
use crate::job::progress::Progress;

/// Between two reports while small files fly by.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The job type `checksum`: `{"path": "relative/to/the/root"}`, the root itself without input. Its
/// output is one line a file, in the order of their paths, and its result
/// `{"files": …, "bytes": …, "skipped": …, "sha256": …}`, where the last is the hash of those lines.
///
/// # Errors
/// Where the root is not a folder that can be read.
pub fn checksum(root: &Path) -> io::Result<HandlerExecutor> {
    let root = root.canonicalize()?;
    fs::read_dir(&root)?;
    let root: Arc<Path> = root.into();
    let checked_root = Arc::clone(&root);
    Ok(HandlerExecutor::checked(
        move |input: &Option<Input>| {
            let relative = relative_to(&checked_root, asked(input.as_ref()));
            relative
                .map(drop)
                .map_err(|problem| vec![("input.path".to_owned(), problem)])
        },
        move |context: Context, input: Option<Input>| {
            let start =
                relative_to(&root, asked(input.as_ref())).map(|relative| root.join(relative));
            let root = Arc::clone(&root);
            async move {
                let start = start.map_err(|problem| refused(&problem))?;
                Work::list(context, root, start).await?.run().await
            }
        },
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default = "root_itself")]
    path: String,
}

fn asked(input: Option<&Input>) -> &str {
    input.map_or(".", |input| input.path.as_str())
}

fn root_itself() -> String {
    ".".to_owned()
}

#[derive(Serialize)]
struct Summary {
    files: u64,
    bytes: u64,
    skipped: u64,
    sha256: String,
}

/// One job's way through its files.
struct Work {
    context: Context,
    root: Arc<Path>,
    /// What the files' names are relative to. Below the root, or the root.
    base: PathBuf,
    files: Vec<Listed>,
    bytes_total: u64,
    bytes_done: u64,
    reported: Option<Instant>,
    skipped: u64,
}

impl Work {
    /// Finds what is to be done.
    async fn list(context: Context, root: Arc<Path>, start: PathBuf) -> Result<Self, HandlerError> {
        let (stop, top) = (context.stop_token(), Arc::clone(&root));
        let found = tokio::task::spawn_blocking(move || walk(&top, &start, &stop)).await??;
        let (files, problems) = (found.files, found.problems);
        let bytes_total = files.iter().map(|file| file.bytes).sum();
        let mut work = Self {
            context,
            root,
            base: found.base,
            files,
            bytes_total,
            bytes_done: 0,
            reported: None,
            skipped: 0,
        };
        for problem in problems {
            work.skip(&problem).await?;
        }
        Ok(work)
    }

    async fn run(mut self) -> Result<Summary, HandlerError> {
        let mut all = Sha256::new();
        let mut files = 0;
        for listed in std::mem::take(&mut self.files) {
            let before = self.bytes_done;
            match self.hash(&listed).await? {
                Ok(hash) => {
                    files += 1;
                    let line = line(&hash, &listed.name);
                    all.update(&line);
                    let line = Payload::text_or_data(line);
                    self.context.output_payload("output", line).await?;
                }
                Err(error) => {
                    self.bytes_done = before;
                    self.bytes_total = self.bytes_total.saturating_sub(listed.bytes);
                    self.skip(&format!("{}: {error}", listed.name.display()))
                        .await?;
                }
            }
        }
        self.reported = None;
        // What shrank while it was read is not missing at the end.
        self.bytes_total = self.bytes_done;
        self.report("").await?;
        Ok(Summary {
            files,
            bytes: self.bytes_done,
            skipped: self.skipped,
            sha256: hex(&all.finalize()),
        })
    }

    /// The hash of a file, or why it cannot be had.
    async fn hash(&mut self, listed: &Listed) -> Result<io::Result<String>, HandlerError> {
        let message = listed.name.to_string_lossy();
        let path = self.base.join(&listed.name);
        let root = Arc::clone(&self.root);
        let mut step: Box<dyn FnOnce() -> io::Result<Hashing> + Send> =
            Box::new(move || Hashing::open(&root, &path));
        loop {
            let stop = self.context.stop_token();
            let read = tokio::task::spawn_blocking(move || step()?.read_on(&stop)).await?;
            if self.context.is_stopping() {
                return Err(HandlerError::cancelled());
            }
            let (hashing, read, is_at_end) = match read {
                Ok(read) => read,
                Err(error) => return Ok(Err(error)),
            };
            self.bytes_done += read;
            self.bytes_total = self.bytes_total.max(self.bytes_done);
            self.report(&message).await?;
            if is_at_end {
                return Ok(Ok(hex(&hashing.hasher.finalize())));
            }
            step = Box::new(move || Ok(hashing));
        }
    }

    async fn report(&mut self, message: &str) -> Result<(), HandlerError> {
        if self
            .reported
            .is_some_and(|at| at.elapsed() < PROGRESS_INTERVAL)
        {
            return Ok(());
        }
        self.reported = Some(Instant::now());
        let message = &message[..message.floor_char_boundary(STRING_BYTES_MAX)];
        let units = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let progress = Progress::units(
            units(self.bytes_done),
            Some(units(self.bytes_total)),
            "bytes",
        );
        Ok(self
            .context
            .progress(progress.with_message(message))
            .await?)
    }

    async fn skip(&mut self, what: &str) -> Result<(), HandlerError> {
        self.skipped += 1;
        Ok(self
            .context
            .log(LogLevel::Warn, format!("skipped {what}"))
            .await?)
    }
}

/// A line as `sha256sum` prints it: a name with a line feed, carriage return or backslash has them
/// escaped, and the line says so with a backslash in front (GNU coreutils manual, md5sum).
fn line(hash: &str, name: &Path) -> Vec<u8> {
    let name: &OsStr = name.as_os_str();
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name.as_bytes() {
        match byte {
            b'\n' => escaped.extend(br"\n"),
            b'\r' => escaped.extend(br"\r"),
            b'\\' => escaped.extend(br"\\"),
            byte => escaped.push(*byte),
        }
    }
    let mark: &[u8] = if escaped.len() > name.len() {
        b"\\"
    } else {
        b""
    };
    [mark, hash.as_bytes(), b"  ", escaped.as_slice(), b"\n"].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
