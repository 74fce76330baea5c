//! The other ceiling: what the disk needs to keep 4 KiB, written in place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::bench::load::{Sample, micros};

const PAGE: usize = 4096;
/// Pages that are written in turn, as a write-ahead log that is used again is.
const PAGES: u64 = 256;

/// Syncs for a while, one at a time. The file is made first and then only written in place.
pub(super) fn sync(folder: &Path, how_long: Duration) -> std::io::Result<Sample> {
    let file = File::create(folder.join("sync"))?;
    file.write_all_at(&vec![1; PAGE * PAGES as usize], 0)?;
    file.sync_all()?;
    let mut sample = Sample::default();
    let start = Instant::now();
    for page in (0..PAGES).cycle() {
        let began = Instant::now();
        if began - start >= how_long {
            break;
        }
        file.write_all_at(&[page as u8; PAGE], page * PAGE as u64)?;
        file.sync_data()?;
        sample.latencies.push(micros(began.elapsed()));
    }
    sample.seconds = start.elapsed().as_secs_f64();
    sample.latencies.sort_unstable();
    Ok(sample)
}
