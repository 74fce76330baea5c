//! What a store cannot do, and what that means to a caller.

use crate::error::Error;

/// Why a store could not do what it was asked to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. Nothing was stored; reads go on.
    #[error("the disk is full")]
    DiskFull,
    /// Somebody else holds the store's database. Nothing was stored; try again.
    #[error("the database is in use by another program")]
    Busy,
    /// Our own mistake, or damaged data. Nothing was stored; the store goes on.
    #[error("{0}")]
    Internal(String),
    /// The store cannot be trusted any more: whether the last group was stored is not known.
    #[error("{0}")]
    Failed(String),
}

/// Why a store could not answer a question.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// It took longer than a read may, or waited too long for others. Ask for less, or try again.
    #[error("the read took too long")]
    TooLong,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a store could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The path cannot be used.
    #[error("{0}")]
    Path(String),
    /// Another server has it open.
    #[error("{path} is in use by another server{}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The store.
        path: String,
        /// The other server's process, where it said so.
        pid: Option<u32>,
    },
    /// It is damaged, of another program, or of a newer version; it was left as it is.
    #[error("{0}")]
    Unusable(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull => Self::disk_full(),
            StoreError::Busy => Self::store_busy(),
            StoreError::Internal(cause) => Self::internal(&cause),
            StoreError::Failed(cause) => {
                tracing::error!(%cause, "the store has failed");
                Self::outcome_unknown()
            }
        }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::TooLong => Self::read_too_long(),
            ReadError::Store(error) => error.into(),
        }
    }
}
