//! The private folder of one attempt: the FIFO it tells its events through, its checkpoint, and which
//! process runs it. Its being there is the sign that the attempt was not ended in an orderly way.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use tokio::net::unix::pipe;

use crate::job::name::JobId;
use crate::job::payload::Payload;

/// The name of the FIFO within the folder.
pub(super) const EVENTS: &str = "events";
/// The name of the file that says which process leads the attempt.
pub(super) const LEADER: &str = "leader";

/// The folder, removed when dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    is_kept: bool,
}

impl Folder {
    /// Makes the folder, readable by nobody else, and the FIFO in it. What an earlier try left is removed.
    pub(super) fn create(attempts_dir: &Path, job: JobId, attempt: u32) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(attempts_dir)?;
        // As the kernel spells it, so that the next start finds the same text in `environ`.
        let path = attempts_dir
            .canonicalize()?
            .join(format!("{job}-{attempt}"));
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        let folder = Self {
            path,
            is_kept: false,
        };
        nix::unistd::mkfifo(&folder.events(), Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(folder)
    }

    /// Whether a folder's name is that of an attempt.
    pub(super) fn is_attempt(name: &str) -> bool {
        name.rsplit_once('-').is_some_and(|(job, attempt)| {
            JobId::parse(job).is_ok() && attempt.parse::<u32>().is_ok()
        })
    }

    /// The path of the FIFO.
    pub(super) fn events(&self) -> PathBuf {
        self.path.join(EVENTS)
    }

    /// Both ends of the FIFO. Ours of the writing end keeps it from ever ending while programs come
    /// and go.
    pub(super) fn open_events(&self) -> io::Result<(pipe::Receiver, pipe::Sender)> {
        let receiver = pipe::OpenOptions::new().open_receiver(self.events())?;
        let sender = pipe::OpenOptions::new().open_sender(self.events())?;
        Ok((receiver, sender))
    }

    /// Puts the checkpoint where the program can read it.
    pub(super) fn write_checkpoint(&self, checkpoint: &Payload) -> io::Result<PathBuf> {
        let path = self.path.join("checkpoint");
        fs::write(&path, checkpoint.as_bytes())?;
        Ok(path)
    }

    /// Notes which process leads the attempt, for whoever starts after a crash.
    pub(super) fn write_leader(&self, leader: &str) -> io::Result<()> {
        fs::write(self.path.join(LEADER), leader)
    }

    /// Leaves it for the next start: something of the attempt may still run.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed now is removed by the next start.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
