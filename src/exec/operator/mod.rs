//! The operators that fit one short file each. Every tick an operator takes one delta per input and returns one.

mod assign_windows;
mod emit_every;
mod filter;
#[cfg(test)]
mod law;
mod project;
mod temporal_filter;
mod top_n;
mod union_all;

pub use assign_windows::AssignWindows;
pub use emit_every::EmitEvery;
pub use filter::Filter;
pub use project::Project;
pub use temporal_filter::TemporalFilter;
pub use top_n::{Ranks, TopN};
pub use union_all::UnionAll;

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};

use super::durable::Saved;
use super::{Delta, ExecError};
use crate::planner::stream_plan::{Node, Op};

/// One node of a dataflow.
pub trait Operator: Send {
    /// What one tick's change of the inputs does to the output. After an error the operator is not to be used again.
    fn step(&mut self, inputs: &[Delta]) -> Result<Delta, ExecError>;

    /// Rows of state held between ticks.
    fn rows(&self) -> usize {
        0
    }

    /// Bytes of state held between ticks.
    fn bytes(&self) -> usize {
        0
    }

    /// Values that became NULL so far because their expression failed, and what the first of them said.
    fn errors(&self) -> (u64, Option<String>) {
        (0, None)
    }

    /// Rows that no window could take so far: those without a time, or at the ends of its range.
    fn left_out(&self) -> u64 {
        0
    }

    /// State that is to outlive the process, if there is any.
    fn durable(&mut self) -> Option<&mut dyn Durable> {
        None
    }
}

/// State of an operator that is kept over a restart, as [`super::durable`] says.
pub trait Durable {
    /// From now on [`Durable::save`] gives what has changed.
    fn track_saves(&mut self);

    fn save(&mut self, whole: bool) -> Result<Saved, ExecError>;

    /// Puts what was saved into an operator that was just made, and tracks what changes from there on.
    fn load(&mut self, saves: &[Saved]) -> Result<(), ExecError>;
}

/// The operator of a node. `append_only`: no input ever takes a row back. Scans and aggregates are no operators: a flow feeds
/// the former and gives the latter a slice store.
pub fn build(node: &Node, append_only: bool) -> Result<Box<dyn Operator>, ExecError> {
    let schema = nullable(&node.schema);
    Ok(match &node.op {
        Op::Scan { .. } => return Err(ExecError::Invariant("a scan was to be built as an operator".into())),
        Op::Aggregate(_) | Op::Sessions(_) => {
            return Err(ExecError::Invariant("an aggregate was to be built as an operator".into()));
        }
        Op::TemporalFilter { .. } => {
            return Err(ExecError::Invariant(
                "a temporal filter was to be built as an operator without a clock".into(),
            ));
        }
        Op::EmitEvery { .. } => {
            return Err(ExecError::Invariant("EMIT EVERY was to be built as an operator without a clock".into()));
        }
        Op::Filter { predicate } => Box::new(Filter::new(Arc::clone(predicate))),
        Op::Project { exprs } => Box::new(Project::new(exprs, schema)),
        Op::AssignWindows { time_column, window } => Box::new(AssignWindows::new(*time_column, *window, schema)?),
        Op::UnionAll => Box::new(UnionAll::new(schema)),
        Op::TopN { partition_by, order_by, offset, limit, row_number } => {
            let ranks = Ranks { offset: *offset, limit: *limit, row_number: *row_number, append_only };
            Box::new(TopN::new(partition_by, order_by, ranks, schema)?)
        }
    })
}

/// The same columns, each of which may be NULL: whatever the planner could prove, an expression that fails yields NULL.
fn nullable(schema: &SchemaRef) -> SchemaRef {
    if schema.fields().iter().all(|field| field.is_nullable()) {
        return Arc::clone(schema);
    }
    let fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}
