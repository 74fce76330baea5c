//! What SQLite's errors mean to us.

use crate::store::{ReadError, StoreError};

/// SQLITE_FULL: no room for the page. Source: sqlite.org/rescode.html.
const FULL: i32 = 13;
/// SQLITE_IOERR_SHMSIZE: no room for the shared index of the write-ahead log, which is only a cache.
const SHMSIZE: i32 = 10 | (19 << 8);
/// SQLITE_INTERRUPT: a reader's statement came to the end of its time.
const INTERRUPT: i32 = 9;
/// BUSY and LOCKED: another program has the database open and writes, or holds it.
const BUSY: [i32; 2] = [5, 6];
/// After one of these nothing in memory can be trusted: PERM, READONLY, IOERR, CORRUPT, CANTOPEN,
/// NOTADB.
const FATAL: [i32; 6] = [3, 8, 10, 11, 14, 26];

/// What an error of a reader means to a caller of the store.
pub(super) fn read_error(error: sqlx::Error) -> ReadError {
    let code = match &error {
        sqlx::Error::Database(error) => error.code().and_then(|code| code.parse::<i32>().ok()),
        // The connection's thread is gone, or the connection cannot be had.
        sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => {
            return StoreError::Failed(error.to_string()).into();
        }
        _ => None,
    };
    match code {
        Some(INTERRUPT) => ReadError::TooLong,
        code => meaning(code, &error).into(),
    }
}

/// What an error of the writer means to a caller of the store.
pub(super) fn write_error(error: rusqlite::Error) -> StoreError {
    let code = error.sqlite_error().map(|error| error.extended_code);
    meaning(code, &error)
}

fn meaning(code: Option<i32>, error: &dyn std::fmt::Display) -> StoreError {
    match code {
        Some(FULL | SHMSIZE) => StoreError::DiskFull,
        Some(code) if BUSY.contains(&(code & 0xff)) => StoreError::Busy,
        Some(code) if FATAL.contains(&(code & 0xff)) => StoreError::Failed(error.to_string()),
        _ => StoreError::Internal(error.to_string()),
    }
}
