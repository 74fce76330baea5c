//! Where a watch of many jobs stands: opaque, authenticated, and good for one tenant and one filter only,
//! for as long as the store lives.

use sha2::{Digest, Sha256};

use crate::queue::seal::Seal;
use crate::store::JobFilter;

/// Stands before the numbers, and changes with what they mean.
const VERSION: u8 = 1;

/// Positions in the log of all jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Cursor {
    /// Every event up to it was given, hidden or merged.
    pub(super) events: i64,
    /// Every finished job whose last event stands up to it was given. At most `events`.
    pub(super) finished: i64,
    /// What was purged up to it was said to be missing.
    pub(super) gaps: i64,
}

/// Makes and reads the cursors of one filter.
#[derive(Clone, Debug)]
pub(super) struct CursorKey(Seal);

impl CursorKey {
    pub(super) fn new(secret: &[u8; 32], filter: &JobFilter) -> Self {
        Self(Seal::new(secret, "watch jobs", &digest(filter)))
    }

    /// The cursor as clients see it.
    pub(super) fn encode(&self, cursor: Cursor) -> String {
        let mut bytes = vec![VERSION];
        for number in [cursor.events, cursor.finished, cursor.gaps] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        self.0.seal(&bytes)
    }

    /// Reads a cursor.
    ///
    /// # Errors
    /// A sentence, where it was not made here for this tenant and filter.
    pub(super) fn decode(&self, text: &str) -> Result<Cursor, String> {
        let bytes = self.0.open(text).unwrap_or_default();
        let numbers = bytes.strip_prefix(&[VERSION]).map(<[u8]>::as_chunks::<8>);
        let Some(([events, finished, gaps], [])) = numbers else {
            return Err("was not made for this filter by this server".to_owned());
        };
        let [events, finished, gaps] = [events, finished, gaps].map(|n| i64::from_be_bytes(*n));
        Ok(Cursor {
            events,
            finished,
            gaps,
        })
    }
}

/// The filter in 32 bytes, however many ids it has. Each list goes behind its length, each text behind
/// its own, so that no two filters read alike.
fn digest(filter: &JobFilter) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    add(filter.tenant.as_str().as_bytes());
    add(&filter.labels.len().to_be_bytes());
    for (name, value) in &filter.labels {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    for names in [&filter.queues, &filter.types] {
        add(&names.len().to_be_bytes());
        for name in names {
            add(name.as_str().as_bytes());
        }
    }
    add(filter
        .batch_id
        .as_ref()
        .map_or(&[], |id| id.as_uuid().as_bytes()));
    add(&filter.ids.len().to_be_bytes());
    for id in &filter.ids {
        add(id.as_uuid().as_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::job::name::{BatchId, JobId, Name};

    const CURSOR: Cursor = Cursor {
        events: 7,
        finished: 5,
        gaps: 3,
    };

    fn key(filter: &JobFilter) -> CursorKey {
        CursorKey::new(&[7; 32], filter)
    }

    fn all(tenant: &'static str) -> JobFilter {
        JobFilter::all_of(Name::of(tenant))
    }

    /// Filters that differ in one thing each.
    fn filters() -> Vec<JobFilter> {
        let labels = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            JobFilter {
                labels: pairs.collect(),
                ..all("a")
            }
        };
        let mut queue = all("a");
        queue.queues.insert(Name::of("x"));
        let mut job_type = all("a");
        job_type.types.insert(Name::of("x"));
        let batch = JobFilter {
            batch_id: Some(BatchId::new(Uuid::from_u128(1))),
            ..all("a")
        };
        let mut id = all("a");
        id.ids.insert(JobId::new(Uuid::from_u128(1)));
        let filters = [
            all("a"),
            all("b"),
            labels(&[("a", "bc")]),
            labels(&[("ab", "c")]),
            labels(&[("a", "b"), ("c", "")]),
            queue,
            job_type,
            batch,
            id,
        ];
        filters.into()
    }

    #[test]
    fn a_cursor_is_good_for_its_own_tenant_and_filter_only() {
        let filters = filters();
        for (one, made_for) in filters.iter().enumerate() {
            let text = key(made_for).encode(CURSOR);
            for (other, filter) in filters.iter().enumerate() {
                let read = key(filter).decode(&text);
                assert_eq!(read.is_ok(), one == other, "{made_for:?} {filter:?}");
            }
            assert_eq!(key(made_for).decode(&text), Ok(CURSOR));
            assert!(CursorKey::new(&[8; 32], made_for).decode(&text).is_err());
        }
    }
}
