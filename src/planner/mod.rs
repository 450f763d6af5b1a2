//! Statement + catalog → DataFusion's logical plan → [`stream_plan::StreamPlan`].
mod assign_windows;
mod define;
mod dml;
mod error;
mod event_time;
mod explain;
mod functions;
mod lower;
mod names;
mod postgres_rules;
mod query;
mod relations;
mod scope;
mod session;
mod show_create;
pub mod stream_plan;
mod types;
mod window_relation;

pub use define::{Definition, define};
pub use dml::{DmlKind, DmlPlan, plan_dml};
pub use error::{At, PlanError, Refusal};
pub use event_time::{event_time_column, event_time_type};
pub use explain::explain;
pub use names::{result_name, result_names};
pub use query::{EventTimes, Reads, bind, parameter_types, plan_query};
pub use relations::{definition_names, objects_in};
pub use session::{Runtime, session};
pub use types::{arrow_type, sql_name, timestamp, timestamptz};

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod queries_tests;
#[cfg(test)]
mod query_tests;
