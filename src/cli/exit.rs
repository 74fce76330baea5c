//! Exit codes: what scripts and supervisors may rely on.

/// Why a command ended as it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It ran and the answer is no: not serving, a failed job.
    Failed,
    /// Wrong usage, as clap reports it.
    Usage,
    /// The server could not be reached.
    NotConnected,
    /// Storage at run time, or a corrupt, foreign or newer database. `EX_IOERR` of sysexits(3).
    Storage,
    /// Another server holds the store. `EX_TEMPFAIL` of sysexits(3).
    Locked,
    /// The configuration, a store path that cannot be written and an address that cannot be bound
    /// among it. `EX_CONFIG` of sysexits(3).
    Config,
}

impl Exit {
    /// The code itself.
    pub const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotConnected => 4,
            Self::Storage => 74,
            Self::Locked => 75,
            Self::Config => 78,
        }
    }
}

/// A command that failed: what to say on stderr, and the code to end with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For scripts.
    pub exit: Exit,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A failure with its code and its words.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

impl From<crate::config::problem::ConfigError> for Failure {
    fn from(error: crate::config::problem::ConfigError) -> Self {
        Self::new(Exit::Config, error.to_string())
    }
}
