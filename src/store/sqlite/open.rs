//! Opening a store: looks before it touches, locks, creates with nobody else's eyes on it, migrates.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::OpenFlags;
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};
use uuid::Uuid;

use crate::job::limits::READ_TIME_MAX;
use crate::store::OpenError;
use crate::store::sqlite::readers::Readers;

/// "PACE": says in the file's header whose it is. Source: sqlite.org/fileformat.html, offset 68.
const APPLICATION_ID: u32 = 0x5041_4345;
/// Older ones can corrupt a write-ahead log. Source: sqlite.org/wal.html, the WAL-reset bug.
const SQLITE_VERSION_MIN: (u32, u32, u32) = (3, 51, 3);
/// Pages of the log before the writer moves them into the database: 16 MiB, so that a busy server
/// syncs the database file seldom.
const CHECKPOINT_PAGES: u32 = 4096;
/// How long another program may hold the database before a change is refused.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Prepared statements of the writer: more than it has, so that each is prepared once.
const STATEMENTS_KEPT: usize = 64;

/// `APPLICATION_ID` in decimal, as the pragma wants it.
const SIGN: &str = "pragma application_id = 1346454341";

const POSITION_AFTER_THE_LOG: &str = "
select first_position + last_sequence - first_sequence + 1 from segments
order by first_position desc limit 1";

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// What an open store consists of.
pub(super) struct Opened {
    /// Where it is, links followed.
    pub(super) path: PathBuf,
    pub(super) writer: rusqlite::Connection,
    pub(super) readers: Readers,
    pub(super) next_position: i64,
    pub(super) secret: [u8; 32],
    pub(super) store_id: Uuid,
    pub(super) lock: File,
}

pub(super) async fn open(path: &Path) -> Result<Opened, OpenError> {
    let path = &follow(path)?;
    let lock = lock(path)?;
    let is_new = look_at_header(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging();
    let unusable = |error: sqlx::Error| unusable(path, &error);
    if is_new {
        sign(&options).await.map_err(unusable)?;
    }
    let mut migrator = options
        .clone()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .connect()
        .await
        .map_err(unusable)?;
    check_version(&mut migrator).await.map_err(unusable)??;
    migrate(path, &mut migrator).await?;
    let meta = read_meta(&mut migrator).await.map_err(unusable)?;
    let (store_id, secret, next_position) =
        meta.ok_or_else(|| unusable(sqlx::Error::Protocol("its meta table is damaged".into())))?;
    let writer = connect_writer(path).map_err(|error| self::unusable(path, &error))?;
    // Only now: the last connection that closes moves a whole write-ahead log.
    migrator.close().await.map_err(unusable)?;
    let readers = Readers::open(options, READ_TIME_MAX)
        .await
        .map_err(unusable)?;
    Ok(Opened {
        path: path.clone(),
        writer,
        readers,
        next_position,
        secret,
        store_id,
        lock,
    })
}

/// The connection that writes. What it answers is on disk: `synchronous=FULL`.
fn connect_writer(path: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let writer = rusqlite::Connection::open_with_flags(path, flags)?;
    writer.busy_timeout(BUSY_TIMEOUT)?;
    writer.pragma_update(None, "synchronous", "full")?;
    writer.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    writer.pragma_update(None, "temp_store", "memory")?;
    writer.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(writer)
}

/// The file behind a path: one store has one lock, by whatever way it is reached.
fn follow(path: &Path) -> Result<PathBuf, OpenError> {
    let cannot = |error: std::io::Error| cannot_use(path, &error);
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(cannot(ErrorKind::IsADirectory.into())),
        Ok(_) => path.canonicalize().map_err(cannot),
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            let name = path.file_name().ok_or_else(|| cannot(error))?;
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            Ok(folder.canonicalize().map_err(cannot)?.join(name))
        }
        Err(error) => Err(cannot(error)),
    }
}

fn cannot_use(path: &Path, error: &std::io::Error) -> OpenError {
    OpenError::Path(format!(
        "the store {} cannot be used: {error}",
        path.display()
    ))
}

/// Takes the lock file, and says in it who holds it. A file of its own: locks on the database itself
/// are dropped when any descriptor of it is closed.
fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = PathBuf::from(format!("{}.lock", path.display()));
    let cannot = |error: std::io::Error| cannot_use(path, &error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The pid is a courtesy: without it the refusal still stands.
            let _ = file.read_to_string(&mut pid);
            return Err(OpenError::Locked {
                path: path.display().to_string(),
                pid: pid.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(cannot(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(cannot)?;
    // Made here, before SQLite would: for the owner alone, and its companions take after it.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(cannot)?;
    Ok(file)
}

/// Refuses what is not ours before SQLite is let near it, so that it stays as it is. Answers whether
/// there is nothing yet.
fn look_at_header(path: &Path) -> Result<bool, OpenError> {
    let mut header = Vec::new();
    File::open(path)
        .and_then(|file| file.take(100).read_to_end(&mut header))
        .map_err(|error| OpenError::Path(format!("{} cannot be read: {error}", path.display())))?;
    if header.is_empty() {
        return Ok(true);
    }
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        let what = format!(
            "{} is not an SQLite database; it was left as it is",
            path.display()
        );
        return Err(OpenError::Unusable(what));
    }
    let application = u32::from_be_bytes([header[68], header[69], header[70], header[71]]);
    if application != APPLICATION_ID {
        let what = format!(
            "{} is a database of another program; it was left as it is",
            path.display()
        );
        return Err(OpenError::Unusable(what));
    }
    Ok(false)
}

/// Signs a new database before it gets a write-ahead log: from then on the header on disk is only as
/// new as the last checkpoint, and a server killed before the first one would not know its own store.
async fn sign(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = options.clone().connect().await?;
    sqlx::query(SIGN).execute(&mut connection).await?;
    connection.close().await
}

async fn check_version(
    writer: &mut SqliteConnection,
) -> Result<Result<(), OpenError>, sqlx::Error> {
    let version: String = sqlx::query("select sqlite_version()")
        .fetch_one(writer)
        .await?
        .try_get(0)?;
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if (next(), next(), next()) < SQLITE_VERSION_MIN {
        return Ok(Err(OpenError::Unusable(format!(
            "this build has SQLite {version}; at least 3.51.3 is needed, because older ones can corrupt a write-ahead log"
        ))));
    }
    Ok(Ok(()))
}

async fn migrate(path: &Path, writer: &mut SqliteConnection) -> Result<(), OpenError> {
    let migrated = MIGRATIONS.run_direct(None, writer, false).await;
    migrated.map_err(|error| match error {
        MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _) => {
            OpenError::Unusable(format!(
                "{} was written by a newer version of pacenote (schema {version}); it was left as it is",
                path.display()
            ))
        }
        error => unusable(path, &error),
    })
}

/// The store's id, secret and next position; `None` where one is missing.
async fn read_meta(
    connection: &mut SqliteConnection,
) -> Result<Option<(Uuid, [u8; 32], i64)>, sqlx::Error> {
    let rows = sqlx::query("select name, value from meta")
        .fetch_all(&mut *connection)
        .await?;
    let newest = sqlx::query(POSITION_AFTER_THE_LOG)
        .fetch_optional(connection)
        .await?;
    let newest: Option<i64> = newest.map(|row| row.try_get(0)).transpose()?;
    let (mut store_id, mut secret, mut next_position) = (None, None, None);
    for row in &rows {
        match row.try_get::<&str, _>(0)? {
            "store_id" => store_id = Uuid::from_slice(row.try_get(1)?).ok(),
            "secret" => secret = row.try_get::<&[u8], _>(1)?.try_into().ok(),
            // As of the last purge; what is still in the log is counted there.
            "next_position" => next_position = Some(row.try_get::<i64, _>(1)?).max(newest),
            _ => {}
        }
    }
    Ok(store_id
        .zip(secret)
        .zip(next_position)
        .map(|((id, secret), position)| (id, secret, position)))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> OpenError {
    OpenError::Unusable(format!("{} cannot be opened: {error}", path.display()))
}
