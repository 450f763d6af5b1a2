//! What can go wrong in the engine.

use super::TickId;
use crate::catalog::CatalogError;
use crate::connector::ConnectorError;
use crate::exec::ExecError;
use crate::planner::PlanError;
use crate::sql::SqlError;
use crate::storage::StorageError;

/// A tick's id (epoch, n) as one number that sorts as ticks follow each other: epoch * 10^12 + n.
pub fn tick_number((epoch, n): TickId) -> i128 {
    i128::from(epoch) * TICKS_PER_EPOCH + i128::from(n)
}

/// The id that a number stands for, if it is one.
pub fn tick_of_number(number: i128) -> Option<TickId> {
    Some((u64::try_from(number / TICKS_PER_EPOCH).ok()?, u64::try_from(number % TICKS_PER_EPOCH).ok()?))
}

const TICKS_PER_EPOCH: i128 = 1_000_000_000_000;

/// The variant says what the reader must do; the server assigns the SQLSTATE given at each.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// 58000 for what may pass, 22023 for options.
    #[error(transparent)]
    Connector(#[from] ConnectorError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// 55000: wait.
    #[error("{message}")]
    NotReady { message: String, hint: String },
    /// 55000: the view broke; drop it and create it again, and report the bug.
    #[error("materialized view \"{view}\" has failed: {reason}")]
    ViewFailed { view: String, reason: String },
    /// 22023, 0A000: fix the statement.
    #[error("{message}")]
    Invalid { message: String, hint: String },
    /// 0A000: it cannot be done of this; the hint says what can.
    #[error("{message}")]
    Unsupported { message: String, hint: String },
    /// 53200: work on less at once.
    #[error("{message}")]
    OutOfMemory { message: String, hint: String },
    /// 23505: a row of this key is there already.
    #[error("duplicate key value violates unique constraint \"{table}_pkey\"")]
    DuplicateKey { table: String, key: String },
    /// 23502
    #[error("null value in column \"{column}\" of relation \"{table}\" violates not-null constraint")]
    NotNull { table: String, column: String },
    /// 40001: try the transaction again.
    #[error("could not serialize access due to concurrent update")]
    Conflict { detail: String },
    /// 42P01: a subscription ends with its object.
    #[error("relation \"{name}\" has been dropped")]
    Gone { name: String },
    /// 53400: read faster, or subscribe to less.
    #[error("the subscription to \"{name}\" was too slow: more than {} MiB of changes waited for it", .most_bytes >> 20)]
    TooSlow { name: String, most_bytes: usize },
    /// 53400: keep more often, or subscribe to less.
    #[error("more than {} MiB of changes of \"{name}\" wait for a checkpoint", .most_bytes >> 20)]
    TooMuchUnkept { name: String, most_bytes: usize },
    /// 55000: subscribe to what is there now.
    #[error("tick {} is not available", tick_number(*.asked))]
    NoSuchTick { asked: TickId, newest: TickId },
    /// 57014
    #[error("canceling statement due to timeout: {waiting}")]
    Timeout { waiting: String },
    /// 57014
    #[error("canceling statement due to CANCEL JOB")]
    JobCancelled,
    /// 58030: mend the storage.
    #[error("{message}")]
    Storage { message: String },
    /// 40003: the change is there now; whether it will be after a restart is not known.
    #[error("the change is there, but not on disk: {cause}")]
    Unknown { cause: String },
    /// As [`EngineError::Storage`].
    #[error(transparent)]
    Kept(#[from] StorageError),
    /// Start with what fits, or look at the message: the data cannot be taken up.
    #[error("{message}")]
    Restore { message: String },
    /// 57P01
    #[error("the engine is stopping")]
    Stopped,
}
