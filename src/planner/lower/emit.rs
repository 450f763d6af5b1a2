//! What EMIT ON WINDOW CLOSE asks of a plan, and what EMIT EVERY adds to it.

use super::Lowering;
use crate::planner::error::{PlanError, Refusal};
use crate::planner::stream_plan::{Aggregate, Node, NodeId, Op, ScanKind, StreamPlan};

impl Lowering {
    pub(super) fn emit_every(&mut self, input: NodeId, interval_us: i64) -> NodeId {
        let Node { schema, append_only, .. } = &self.nodes[input];
        let (schema, append_only, event_time) = (schema.clone(), *append_only, self.event_time[input].clone());
        self.add(Op::EmitEvery { interval_us }, vec![input], schema, append_only, event_time)
    }

    /// Every row of the output must belong to a window that will close. Rows of a view may: [`check_closes`] says so once it is known
    /// whether they come from its slices.
    pub(super) fn check_emit(&self, node: NodeId) -> Result<(), PlanError> {
        let inputs = &self.nodes[node].inputs;
        match &self.nodes[node].op {
            Op::Filter { .. } | Op::TemporalFilter { .. } | Op::Project { .. } | Op::UnionAll => {
                inputs.iter().try_for_each(|&i| self.check_emit(i))
            }
            Op::TopN { partition_by, .. } => {
                if !partition_by.iter().any(|column| self.event_time[node].contains(column)) {
                    return Err(refusal(
                        "EMIT ON WINDOW CLOSE needs a Top-N for each window",
                        "Write row_number() OVER (PARTITION BY window_start ORDER BY ...) <= k instead of LIMIT.",
                    ));
                }
                inputs.iter().try_for_each(|&i| self.check_emit(i))
            }
            Op::Aggregate(Aggregate { window: None, .. }) if !self.event_time[node].is_empty() => {
                inputs.iter().try_for_each(|&i| self.check_emit(i))
            }
            Op::Aggregate(_) | Op::Sessions(_) => {
                let time = match &self.nodes[node].op {
                    Op::Sessions(sessions) => sessions.time,
                    Op::Aggregate(Aggregate { window: Some((time, _)), .. }) => *time,
                    _ => return Err(no_window()),
                };
                if inputs.iter().all(|&input| self.event_time[input].contains(&time)) {
                    return Ok(());
                }
                Err(refusal(
                    "EMIT ON WINDOW CLOSE needs windows over a column with a watermark",
                    "Declare WATERMARK FOR on the source (or on the table, which must be APPEND ONLY) and use that column as \
                     the time of the windows.",
                ))
            }
            Op::Scan { kind: ScanKind::MaterializedView, .. } if !self.event_time[node].is_empty() => Ok(()),
            Op::Scan { .. } | Op::AssignWindows { .. } | Op::EmitEvery { .. } => Err(no_window()),
        }
    }
}

/// Whether the windows of an EMIT ON WINDOW CLOSE plan, which is put onto slices, close: it must group by them itself, and does not
/// where it takes the rows of another view as they come and go.
pub(in crate::planner) fn check_closes(plan: &StreamPlan) -> Result<(), PlanError> {
    fn closes(plan: &StreamPlan, node: NodeId) -> Result<(), PlanError> {
        let Node { op, inputs, .. } = &plan.nodes[node];
        match op {
            Op::Filter { .. } | Op::TemporalFilter { .. } | Op::Project { .. } | Op::UnionAll | Op::TopN { .. } => {
                inputs.iter().try_for_each(|&input| closes(plan, input))
            }
            Op::Aggregate(Aggregate { window: Some(_), .. }) | Op::Sessions(_) => Ok(()),
            Op::Scan { name, kind: ScanKind::MaterializedView, .. } => Err(over_view(name)),
            // Its groups are not the windows below, or not of the same aggregates.
            Op::Aggregate(_) => {
                inputs.iter().try_for_each(|&input| closes(plan, input))?;
                Err(plan.over.first().map_or_else(no_window, |(_, name)| over_view(name)))
            }
            Op::Scan { .. } | Op::AssignWindows { .. } | Op::EmitEvery { .. } => Err(no_window()),
        }
    }
    closes(plan, plan.nodes.len() - 1)
}

fn over_view(name: &str) -> PlanError {
    refusal(
        &format!("EMIT ON WINDOW CLOSE cannot tell when rows of \"{name}\" are final"),
        "It can over a view of HOP, TUMBLE or CUMULATE over a source: for filters, projections, Top-N by window, and GROUP BY window_end with \
         sums of its sums and counts, min of min, max of max. Else use the column as the time of windows, FROM TUMBLE(view, window_start, \
         ...); or leave EMIT ON WINDOW CLOSE out, if the view beneath has it.",
    )
}

fn no_window() -> PlanError {
    refusal(
        "EMIT ON WINDOW CLOSE needs a view that groups by windows",
        "Select FROM TUMBLE(...), HOP(...) or SESSION(...) and GROUP BY window_start or window_end, or leave EMIT ON WINDOW CLOSE out.",
    )
}

fn refusal(message: &str, hint: &str) -> PlanError {
    PlanError::Invalid(Refusal::new(message).hint(hint))
}
