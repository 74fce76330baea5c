//! Finding and reading the files below a root, and nothing else.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::executor::handler::HandlerError;

/// Bytes between two looks at whether to stop.
const READ_BYTES: usize = 256 * 1024;
/// Reads before others get their turn on the blocking threads and progress is told. Chosen: 4 MiB, about
/// ten milliseconds.
const READS_AT_ONCE: usize = 16;
/// Files of one job: their names are held in memory. Chosen: some 100 MB at worst.
const FILES_MAX: usize = 1_000_000;

/// A file to be hashed, and what its folder said of it.
pub(super) struct Listed {
    /// From the folder that was asked for.
    pub(super) name: PathBuf,
    pub(super) bytes: u64,
}

/// What a walk has found.
pub(super) struct Found {
    /// What the names are relative to.
    pub(super) base: PathBuf,
    /// In the order of their names.
    pub(super) files: Vec<Listed>,
    /// What could not be looked at.
    pub(super) problems: Vec<String>,
}

/// A file that is being read.
pub(super) struct Hashing {
    file: File,
    pub(super) hasher: Sha256,
    bytes: u64,
}

impl Hashing {
    /// Opens a regular file below the root, one folder after the other, none of them a link.
    pub(super) fn open(root: &Path, path: &Path) -> io::Result<Self> {
        let below = path.strip_prefix(root).map_err(io::Error::other)?;
        let mut parts = below.components().peekable();
        let mut folder =
            rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        while let Some(Component::Normal(part)) = parts.next() {
            let is_last = parts.peek().is_none();
            // Without blocking: a FIFO that has taken a file's place would wait for its writer.
            let kind = if is_last {
                OFlags::NONBLOCK
            } else {
                OFlags::DIRECTORY
            };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
            folder = openat(&folder, part, flags, Mode::empty())?;
        }
        let file = File::from(folder);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is not a regular file any more"));
        }
        Ok(Self {
            file,
            hasher: Sha256::new(),
            bytes: 0,
        })
    }

    /// Reads a few megabytes. Gives itself, how much it read, and whether that was the end.
    pub(super) fn read_on(mut self, stop: &CancellationToken) -> io::Result<(Self, u64, bool)> {
        let mut buffer = vec![0; READ_BYTES];
        let before = self.bytes;
        for _ in 0..READS_AT_ONCE {
            if stop.is_cancelled() {
                break;
            }
            match self.file.read(&mut buffer) {
                Ok(0) => {
                    let read = self.bytes - before;
                    return Ok((self, read, true));
                }
                Ok(read) => {
                    self.hasher.update(&buffer[..read]);
                    self.bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let read = self.bytes - before;
        Ok((self, read, false))
    }
}

/// The path below the root that is asked for.
pub(super) fn relative_to(root: &Path, asked: &str) -> Result<PathBuf, String> {
    if asked.is_empty() || asked.contains('\0') {
        return Err("is no path".to_owned());
    }
    let path = Path::new(asked);
    let path = if path.is_absolute() {
        path.strip_prefix(root)
            .map_err(|_| format!("is outside of the folder that may be read: {asked}"))?
    } else {
        path
    };
    let mut relative = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => relative.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(format!("has `..`, which is not accepted: {asked}"));
            }
        }
    }
    Ok(relative)
}

/// Every regular file from `start` on, and what could not be looked at. No link is followed, on the way
/// to `start` neither.
pub(super) fn walk(
    root: &Path,
    start: &Path,
    stop: &CancellationToken,
) -> Result<Found, HandlerError> {
    let mut on_the_way = root.to_owned();
    for part in start.strip_prefix(root).unwrap_or(start) {
        on_the_way.push(part);
        let metadata = fs::symlink_metadata(&on_the_way)
            .map_err(|error| refused(&format!("cannot be read: {error}")))?;
        if metadata.is_symlink() {
            return Err(refused(
                "leads through a symbolic link, which is not followed",
            ));
        }
    }
    let is_file = fs::symlink_metadata(start).is_ok_and(|metadata| metadata.is_file());
    let base = match start.parent() {
        Some(parent) if is_file => parent,
        _ => start,
    };
    let mut found = Found {
        base: base.to_owned(),
        files: Vec::new(),
        problems: Vec::new(),
    };
    for entry in walkdir::WalkDir::new(start)
        .follow_links(false)
        .follow_root_links(false)
    {
        if stop.is_cancelled() {
            return Err(HandlerError::cancelled());
        }
        match entry.and_then(|entry| look_at(&entry, base)) {
            Ok(listed) => found.files.extend(listed),
            Err(error) => found.problems.push(error.to_string()),
        }
        if found.files.len() + found.problems.len() > FILES_MAX {
            let message = format!("more than {FILES_MAX} files: ask for a smaller folder");
            return Err(HandlerError::permanent("TOO_MANY_FILES", message));
        }
    }
    // By the bytes of the whole path: the order of `LC_ALL=C sort`.
    let bytes = |listed: &Listed| listed.name.as_os_str().as_bytes().to_vec();
    found.files.sort_by_cached_key(bytes);
    Ok(found)
}

fn look_at(entry: &walkdir::DirEntry, base: &Path) -> walkdir::Result<Option<Listed>> {
    if !entry.file_type().is_file() {
        return Ok(None);
    }
    let name = entry.path().strip_prefix(base).unwrap_or(entry.path());
    Ok(Some(Listed {
        name: name.to_owned(),
        bytes: entry.metadata()?.len(),
    }))
}

pub(super) fn refused(problem: &str) -> HandlerError {
    HandlerError::permanent("INPUT_INVALID", format!("input.path {problem}"))
}
