//! What can go wrong in the engine.

use crate::catalog::CatalogError;
use crate::connector::ConnectorError;
use crate::exec::ExecError;
use crate::planner::PlanError;
use crate::sql::SqlError;

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
    /// 23505: a row of this key is there already.
    #[error("duplicate key value violates unique constraint \"{table}_pkey\"")]
    DuplicateKey { table: String, key: String },
    /// 23502
    #[error("null value in column \"{column}\" of relation \"{table}\" violates not-null constraint")]
    NotNull { table: String, column: String },
    /// 40001: try the transaction again.
    #[error("could not serialize access due to concurrent update")]
    Conflict { detail: String },
    /// 57014
    #[error("canceling statement due to timeout: {waiting}")]
    Timeout { waiting: String },
    /// 57P01
    #[error("the engine is stopping")]
    Stopped,
}
