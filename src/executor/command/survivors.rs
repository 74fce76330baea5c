//! What a crashed server's programs left running: ended by the next start, before it claims anything,
//! so that no attempt runs beside its successor.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::executor::command::folder::{EVENTS, Folder, LEADER};
use crate::executor::command::processes::{self, Wanted};

/// How long what was killed may take to be gone. Chosen: more than a busy machine needs; only a process
/// in an uninterruptible wait takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends every process of an attempt that was not ended in an orderly way, waits until it is gone, and
/// removes what the attempt left in `attempts_dir`. Returns how many processes were ended.
///
/// Blocks for at most 5 s. To be called with the lock on the store held and before the first claim. A
/// daemon that a succeeded attempt left behind is not one of them: its attempt's folder is gone.
pub fn end_survivors(attempts_dir: &Path) -> usize {
    let folders = attempt_folders(attempts_dir);
    if folders.is_empty() {
        return 0;
    }
    let leader = |folder: &PathBuf| {
        let description = fs::read_to_string(folder.join(LEADER)).ok()?;
        processes::find_described(&description)
    };
    let wanted = Wanted {
        groups: folders.iter().filter_map(leader).collect(),
        events: folders.iter().map(|folder| folder.join(EVENTS)).collect(),
        seen: Vec::new(),
    };
    let ended = processes::end(&wanted, PATIENCE);
    if !ended.is_complete {
        tracing::error!(
            folder = %attempts_dir.display(),
            "processes of earlier attempts were killed but are not gone: they may run beside new ones"
        );
        return ended.count;
    }
    for folder in &folders {
        if let Err(error) = fs::remove_dir_all(folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove what an attempt left");
        }
    }
    ended.count
}

/// The folders that attempts left, spelled as the attempts spelled them.
fn attempt_folders(attempts_dir: &Path) -> Vec<PathBuf> {
    let Ok(attempts_dir) = attempts_dir.canonicalize() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(attempts_dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| entry.file_name().to_str().is_some_and(Folder::is_attempt))
        .map(|entry| entry.path())
        .collect()
}
