//! Text → [`Statement`]. Knows no catalog.
//!
//! The way of one text, say `CREATE MATERIALIZED VIEW v AS SELECT ... FROM TABLE(HOP(TABLE t, ...)) ...; SHOW SOURCES`:
//!
//! 1. [`parse`] hands it to `tokens::split`, which tokenises it once, cuts it at the semicolons and refuses what is nested
//!    so deeply that a recursive function could exhaust the stack.
//! 2. `windows::rewrite` turns Flink's spelling of a window function into ours, on the tokens: `HOP(t, ...)`;
//!    `table_command::rewrite` makes `SELECT * FROM t` of `TABLE t`.
//! 3. A `parser::Cursor` goes over the tokens of one statement. By the first words it chooses a function: those of `ddl`
//!    for CREATE and DROP, those of `commands` for SHOW, SET, BEGIN and their kin. What none of them knows, `refusals`
//!    refuses by name.
//! 4. Types, expressions, queries and DML are sqlparser's work, in the dialect of `dialect`, from the same tokens. `queries`
//!    then refuses what sqlparser read and no planner would look at.
//! 5. Out come [`Parsed`] statements, with their own text and number of parameters, or one [`SqlError`] with its position.
//!
//! Names are folded as Postgres folds them ([`fold`]); nothing here asks whether they exist.

mod ast;
mod commands;
mod ddl;
mod dialect;
mod emit;
mod error;
mod interval;
mod name;
mod parser;
mod queries;
mod reconcile;
mod refusals;
mod subscribe;
mod table_command;
mod tokens;
mod windows;

pub use ast::*;
pub use error::SqlError;
pub use interval::{Interval, IntervalFault, interval, interval_us};
pub use name::{fold, quote};
pub use parser::parse;
pub use windows::PARTITION_BY;

/// How often a tick of the engine ends when nobody asks for one, in microseconds.
pub const TICK_US: i64 = 100_000;

#[cfg(test)]
mod tests;
