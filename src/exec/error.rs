//! What can go wrong in the executor.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Fix the SQL: this cannot be kept up to date. `hint` says what works instead.
    #[error("{what} cannot be kept up to date")]
    Unsupported { what: String, hint: String },
    /// A stored or received state is not in the form this version reads: rebuild it from the log.
    #[error("a stored state of {function} cannot be read: {reason}")]
    State { function: String, reason: String },
    /// What was saved cannot be taken in again: it is of another version, or wrong.
    #[error("a saved state cannot be read: {what}")]
    Saved { what: String },
    /// A slice that is in a file cannot be read now: mend the storage and try again.
    #[error("{what}")]
    Storage { what: String },
    /// Fix the data: a row of this key is there already, or comes twice. The key as Postgres shows it, `(a, b)=(1, x)`.
    #[error("key {key} already exists")]
    DuplicateKey { key: String },
    /// Try again: a row to be taken away is not there (any more).
    #[error("row {row} is not there")]
    RowMissing { row: String },
    /// Report a bug: a stream took back a row more often than it had added it.
    #[error("row {row} was taken back more often than it was added (weight {weight})")]
    NegativeWeight { row: String, weight: i64 },
    /// Report a bug.
    #[error("broken invariant: {0}")]
    Invariant(String),
    /// An expression or function failed where no single row can be blamed.
    #[error(transparent)]
    DataFusion(Box<DataFusionError>),
    #[error(transparent)]
    Arrow(Box<ArrowError>),
}

impl From<DataFusionError> for ExecError {
    fn from(e: DataFusionError) -> Self {
        ExecError::DataFusion(Box::new(e))
    }
}

impl From<ArrowError> for ExecError {
    fn from(e: ArrowError) -> Self {
        ExecError::Arrow(Box::new(e))
    }
}
