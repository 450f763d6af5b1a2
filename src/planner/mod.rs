//! Statement + catalog → DataFusion's logical plan → [`stream_plan::StreamPlan`].
//!
//! The way of a definition, `CREATE MATERIALIZED VIEW v AS SELECT ... FROM HOP(...) GROUP BY ...`:
//!
//! 1. [`define`] names the query's columns as Postgres would (`names`) and hands it to a `scope::Scope`: DataFusion's SQL
//!    planner, to which our catalog says what names mean and `types` which Arrow type a SQL type is. `window_relation` turns
//!    HOP and TUMBLE into an `assign_windows::AssignWindows` node, SESSION into an `assign_sessions::AssignSessions`; plain views
//!    are planned in place.
//! 2. The scope analyzes the plan: every type is settled, `postgres_rules` make arithmetic and aggregates exact, and sessions
//!    learn from GROUP BY whose they are.
//! 3. `lower` refuses by name what cannot be kept, simplifies, and lowers the rest to a [`stream_plan::StreamPlan`], which
//!    [`explain()`] prints.
//!    [`onto_slices()`] puts it onto the slices under the views that it reads, as far as that is equal.
//! 4. Out comes a [`Definition`]: the object for the catalog, with the SQL that makes it again (`show_create`), and the plan.
//!
//! The way of a SELECT: [`objects_in`] says what it reads; the engine gives the rows of these as of one tick; with them in
//! [`Reads`], [`plan_query`] goes the same way up to step 2, folds `watermark('v')` and `now()` to literals (`functions`) and puts
//! the rows in the place of the objects ([`bind`]); [`session`] executes the plan. INSERT, UPDATE and DELETE are queries too:
//! [`plan_dml`].

mod alter;
mod arithmetic;
mod assign_sessions;
mod assign_windows;
mod bounded;
mod define;
mod dml;
mod error;
mod event_time;
mod explain;
mod functions;
mod interval_arithmetic;
mod lower;
pub mod moment;
mod names;
mod onto_slices;
mod postgres_functions;
mod postgres_rules;
mod query;
mod recompute;
mod relations;
mod scope;
mod select;
mod session;
mod show_create;
mod single_distinct;
pub mod stream_plan;
mod text_input;
mod types;
mod window_relation;

pub use alter::{altered_source, timestamp_text, timestamp_us};
pub use define::{Definition, define};
pub use dml::{DmlKind, DmlPlan, plan_dml};
pub use error::{At, PlanError, Refusal};
pub use event_time::{event_time_column, event_time_type};
pub use explain::{call_text, explain, expr_text};
pub use names::{result_name, result_names};
pub use onto_slices::{Plans, onto_slices};
pub use query::{EventTimes, Reads, bind, parameter_types, plan_query};
pub use recompute::{Recomputed, Within, recompute};
pub use relations::{definition_names, objects_in};
pub use session::{Runtime, session};
pub use text_input::{bytea, interval_value};
pub use types::{arrow_type, sql_name, timestamp, timestamptz};

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod queries_tests;
#[cfg(test)]
mod query_tests;
