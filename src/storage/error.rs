//! What can go wrong between us and where state is kept.

/// Each variant says what its reader must do: make room, give rights, wait, restore, or stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Make room, then retry.
    #[error("no space left: {doing}: {reason}")]
    Full { doing: String, reason: String },

    /// Give the process the right, then retry.
    #[error("no permission: {doing}: {reason}")]
    Denied { doing: String, reason: String },

    /// Retry. Whether the call had its effect is not known.
    #[error("{doing}: {reason}")]
    Unavailable { doing: String, reason: String },

    /// What is stored is damaged: restore it from a backup. `place` is a range of bytes, or empty.
    #[error("{file}{place} is damaged: {reason}")]
    Corrupt { file: String, place: String, reason: String },

    #[error(
        "{location} is in use by {}; stop that process, or choose another --data-dir",
        match .pid { Some(pid) => format!("the process with id {pid}"), None => "another process".to_string() }
    )]
    Locked { location: String, pid: Option<u32> },

    /// Stop: another process has taken over, for good.
    #[error("{location} has been taken over by another process ({proof}); this one can write nothing more")]
    Fenced { location: String, proof: String },

    /// Start a newer version.
    #[error(
        "{file} has format {format}, and this version of riverrun reads up to {known}; start the version that wrote it, or a newer one"
    )]
    NewerFormat { file: String, format: u32, known: u32 },

    #[error("{location} holds no data of riverrun but {found}; choose an empty or a new place")]
    NotRiverrun { location: String, found: String },

    /// The target of a copy must be empty.
    #[error("{location} is not empty: it holds {found}; choose an empty or a new place")]
    NotEmpty { location: String, found: String },

    /// Remove what a copy has left, then try again.
    #[error("{cause}; what was copied so far is left in {location}: remove it before another try")]
    Unfinished { location: String, cause: Box<StorageError> },

    #[error("{name} is not there")]
    NotFound { name: String },

    /// Correct the place given.
    #[error("{url} is no place to keep data: {reason}")]
    InvalidUrl { url: String, reason: String },

    /// Report a bug: a call that makes no sense.
    #[error("broken invariant: {0}")]
    Invariant(String),
}

impl StorageError {
    /// True if the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        use StorageError::*;
        match self {
            Full { .. } | Denied { .. } | Unavailable { .. } => true,
            Corrupt { .. }
            | Locked { .. }
            | Fenced { .. }
            | NewerFormat { .. }
            | NotRiverrun { .. }
            | NotEmpty { .. }
            | Unfinished { .. }
            | NotFound { .. }
            | InvalidUrl { .. }
            | Invariant(_) => false,
        }
    }

    /// True if what is stored is not what was: no waiting mends it.
    pub fn is_damage(&self) -> bool {
        matches!(self, StorageError::Corrupt { .. } | StorageError::NotFound { .. })
    }

    pub(super) fn corrupt(file: &str, reason: impl Into<String>) -> StorageError {
        StorageError::Corrupt { file: file.to_string(), place: String::new(), reason: reason.into() }
    }
}
