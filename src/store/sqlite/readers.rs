//! The connections that read: a few, each of which ends a statement that takes too long.
//!
//! While a statement reads, the write-ahead log behind it cannot be used again, and grows. So no statement
//! outlasts its time, one that nobody waits for any more ends at once, and nobody is waited for with the log
//! in hand. Statements that may be long leave half of the connections to the others.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::job::limits::READ_WAIT_MAX;
use crate::store::sqlite::errors::read_error;
use crate::store::sqlite::{closed, locked};
use crate::store::{ReadError, StoreError};

/// Connections that read. Chosen: reads are short, and more threads than that only take turns.
const READERS: u32 = 4;
/// Most connections that work at statements that may be long.
const LONG_READS_MAX: usize = 2;
/// A statement looks at the clock after so many steps of SQLite's machine: a millisecond or less of work.
const STEPS: i32 = 10_000;
/// Rows that a statement may be ahead of who reads them: more than any page has, so that it never waits
/// for them with the log in its hands.
const ROWS_AHEAD: usize = 2048;

/// A few connections that cannot write. Not a pool of sqlx: that does not say which connection it lends, and
/// the time that a statement may take is kept with its connection.
#[derive(Debug)]
pub(super) struct Readers {
    options: SqliteConnectOptions,
    time_max: Duration,
    /// At most as many as there are places; fewer once one broke.
    idle: Mutex<Vec<Reader>>,
    /// The right to a connection.
    places: Semaphore,
    /// The right to ask for one with a statement that may be long.
    long: Semaphore,
}

#[derive(Debug)]
struct Reader {
    connection: SqliteConnection,
    limit: Arc<Limit>,
    /// Whether its thread may still be at a statement that nobody waits for.
    left_alone: bool,
}

/// Until when a connection's statement may read.
#[derive(Debug)]
struct Limit(Mutex<Instant>);

impl Limit {
    fn allows(&self, now: Instant) -> bool {
        now < *locked(&self.0)
    }

    fn set(&self, until: Instant) {
        *locked(&self.0) = until;
    }
}

impl Readers {
    /// Opens all of them, each statement of which may take up to `time_max`.
    pub(super) async fn open(
        options: SqliteConnectOptions,
        time_max: Duration,
    ) -> Result<Self, sqlx::Error> {
        let options = options
            .read_only(true)
            .pragma("query_only", "on")
            .pragma("wal_autocheckpoint", "0")
            .row_buffer_size(ROWS_AHEAD);
        let mut idle = Vec::new();
        for _ in 0..READERS {
            idle.push(Reader::connect(&options).await?);
        }
        Ok(Self {
            options,
            time_max,
            idle: Mutex::new(idle),
            places: Semaphore::new(READERS as usize),
            long: Semaphore::new(LONG_READS_MAX),
        })
    }

    /// All rows of a statement that an index bounds.
    pub(super) async fn all(
        &self,
        query: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, ReadError> {
        let _place = place(&self.places).await?;
        let mut lent = self.lend().await?;
        lent.all(query).await
    }

    /// All rows of a statement that may look at far more than it answers.
    pub(super) async fn all_of_long(
        &self,
        query: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, ReadError> {
        let _place = place(&self.long).await?;
        self.all(query).await
    }

    /// A moment without reads: waits for those at work, and holds up others for as long as it is kept.
    pub(super) async fn pause(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.places
            .acquire_many(READERS)
            .await
            .map_err(|_| closed())
    }

    /// Whether a statement that may be long would be at work at once.
    #[cfg(test)]
    pub(super) fn is_free_for_long(&self) -> bool {
        self.long.available_permits() > 0
    }

    /// Ends every connection, after what they are at. Whoever asks for one afterwards is refused.
    pub(super) async fn close(&self) {
        self.long.close();
        let pause = self.pause().await;
        let idle = std::mem::take(&mut *locked(&self.idle));
        for reader in idle {
            // They only read: there is nothing to lose.
            let _ = reader.connection.close().await;
        }
        self.places.close();
        drop(pause);
    }

    async fn lend(&self) -> Result<Lent<'_>, ReadError> {
        let idle = locked(&self.idle).pop();
        let reader = match idle {
            Some(reader) => reader,
            None => Reader::connect(&self.options).await.map_err(read_error)?,
        };
        Ok(Lent {
            readers: self,
            reader: Some(reader),
        })
    }
}

impl Reader {
    async fn connect(options: &SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = options.connect().await?;
        let limit = Arc::new(Limit(Mutex::new(Instant::now())));
        let asked = Arc::clone(&limit);
        let goes_on = move || asked.allows(Instant::now());
        let mut handle = connection.lock_handle().await?;
        handle.set_progress_handler(STEPS, goes_on);
        drop(handle);
        Ok(Self {
            connection,
            limit,
            left_alone: false,
        })
    }

    async fn all(
        &mut self,
        query: Query<'_, Sqlite, SqliteArguments>,
        time_max: Duration,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        if self.left_alone {
            // Its time is over, so this is soon. Then the next one has its time to itself.
            self.connection.ping().await?;
        }
        self.limit.set(Instant::now() + time_max);
        self.left_alone = true;
        let rows = query.fetch_all(&mut self.connection).await;
        self.left_alone = false;
        rows
    }
}

/// A connection in somebody's hands. Dropping it ends its statement.
struct Lent<'a> {
    readers: &'a Readers,
    reader: Option<Reader>,
}

impl Lent<'_> {
    async fn all(
        &mut self,
        query: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, ReadError> {
        let Some(reader) = &mut self.reader else {
            return Err(closed().into());
        };
        let rows = reader.all(query, self.readers.time_max).await;
        if let Err(sqlx::Error::WorkerCrashed) = rows {
            // The next one who has its place opens another.
            self.reader = None;
        }
        rows.map_err(read_error)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.limit.set(Instant::now());
            locked(&self.readers.idle).push(reader);
        }
    }
}

async fn place(places: &Semaphore) -> Result<SemaphorePermit<'_>, ReadError> {
    match tokio::time::timeout(READ_WAIT_MAX, places.acquire()).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) => Err(closed().into()),
        Err(_) => Err(ReadError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::job::limits::READ_TIME_MAX;
    use crate::store::sqlite::SqliteStore;

    /// Never ends by itself, and answers nothing.
    const ENDLESS: &str = "
        with recursive n(i) as (select 1 union all select i + 1 from n) select i from n where i < 0";
    /// Looks at the clock a hundred times and more.
    const LONG: &str = "
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 200000)
        select count(*) from n";
    const SHORT: &str = "select 1";
    /// Nothing here takes as long.
    const FOR_EVER: Duration = Duration::from_secs(3600);

    async fn readers(dir: &Path, time_max: Duration) -> Arc<Readers> {
        let path = dir.join("jobs.db");
        drop(SqliteStore::open(&path).await.expect("a store"));
        let options = SqliteConnectOptions::new().filename(path);
        let readers = Readers::open(options, time_max).await;
        Arc::new(readers.expect("connections"))
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        let what = tokio::time::timeout(Duration::from_secs(30), what);
        what.await.expect("long before that")
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn a_statement_may_read_up_to_its_limit_and_not_past_it() {
        let until = Instant::now() + READ_TIME_MAX;
        let limit = Limit(Mutex::new(until));
        let instant = Duration::from_nanos(1);
        assert!(limit.allows(until - instant));
        assert!(!limit.allows(until));
        assert!(!limit.allows(until + instant));
    }

    #[tokio::test]
    async fn a_read_that_would_never_end_is_ended_and_its_connection_goes_on() {
        let dir = folder();
        let readers = readers(dir.path(), READ_TIME_MAX).await;
        let endless = || readers.all(sqlx::query(ENDLESS));
        let all = async { tokio::join!(endless(), endless(), endless(), endless()) };
        let (first, second, third, fourth) = soon(all).await;
        for ended in [first, second, third, fourth] {
            assert!(matches!(ended, Err(ReadError::TooLong)), "{ended:?}");
        }
        for _ in 0..READERS * 2 {
            let rows = soon(readers.all(sqlx::query(SHORT))).await;
            assert_eq!(rows.expect("a row").len(), 1);
        }
    }

    #[tokio::test]
    async fn a_long_read_within_its_time_is_left_alone() {
        let dir = folder();
        let readers = readers(dir.path(), FOR_EVER).await;
        for _ in 0..3 {
            let rows = soon(readers.all(sqlx::query(LONG))).await;
            assert_eq!(rows.expect("a row").len(), 1);
        }
        let readers = self::readers(dir.path(), Duration::ZERO).await;
        let ended = soon(readers.all(sqlx::query(LONG))).await;
        assert!(matches!(ended, Err(ReadError::TooLong)), "{ended:?}");
    }

    /// Goal: reads that may be long leave connections to the others, and one that nobody waits for any more
    /// gives its connection back at once. Method: more endless ones than there are connections, which would
    /// all go on for an hour.
    #[tokio::test]
    async fn long_reads_leave_half_of_the_connections_to_the_others() {
        let dir = folder();
        let readers = readers(dir.path(), FOR_EVER).await;
        let long = |sql: &'static str| {
            let readers = Arc::clone(&readers);
            tokio::spawn(async move { readers.all_of_long(sqlx::query(sql)).await })
        };
        let endless: Vec<_> = (0..=READERS).map(|_| long(ENDLESS)).collect();
        while readers.is_free_for_long() {
            tokio::task::yield_now().await;
        }
        for _ in 0..READERS * 2 {
            let rows = soon(readers.all(sqlx::query(SHORT))).await;
            assert_eq!(rows.expect("a row").len(), 1);
        }
        let waiting = long(SHORT);
        for task in endless {
            task.abort();
        }
        let rows = soon(waiting).await.expect("no panic");
        assert_eq!(rows.expect("a row").len(), 1);
        for _ in 0..READERS {
            let rows = soon(readers.all(sqlx::query(LONG))).await;
            assert_eq!(rows.expect("a row").len(), 1);
        }
    }

    #[tokio::test]
    async fn closed_readers_refuse() {
        let dir = folder();
        let readers = readers(dir.path(), FOR_EVER).await;
        soon(readers.close()).await;
        for refused in [
            soon(readers.all(sqlx::query(SHORT))).await,
            soon(readers.all_of_long(sqlx::query(SHORT))).await,
        ] {
            assert!(matches!(refused, Err(ReadError::Store(_))), "{refused:?}");
        }
    }
}
