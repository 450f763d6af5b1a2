//! A view over a window view as one over what the inner view reads (SEMANTICS 3.4), so that both are read from slices and no
//! row goes from one to the other.
//!
//! [`onto_slices`] goes up a plan from its scans. Rows that come from an aggregation (of another view's plan, or of this one)
//! are held as [`Grouped`]: the aggregation, and filters and projections over it. Another filter or projection is composed
//! with those, whatever it says. An aggregation over them is merged with the one below where that is equal:
//!
//! | of the outer aggregation | must be |
//! |---|---|
//! | GROUP BY | keys of the inner one (or expressions over them), and `window_start` or `window_end` |
//! | or its own windows | TUMBLE or HOP over `window_start` (or a time that lies in the same inner window, such as `window_end - INTERVAL '1 second'`) of an inner TUMBLE whose size divides slide and size, the offsets agreeing |
//! | WHERE, FILTER | over keys of the inner one; WHERE over its window bounds too, without windows of its own |
//! | `sum` | of a `count(...)` or a `sum(...)` without DISTINCT, perhaps cast to another whole or decimal type |
//! | `min`, `max` | of the same |
//! | `bool_and`, `bool_or`, `bit_and`, `bit_or`, `bit_xor` | of the same |
//!
//! The merged aggregation counts what the inner one counts, so it is equal as long as no inner value overflows its type; sums
//! of floats are rounded once instead of once a group. What is not in the table stays over the inner view's rows: its own
//! HAVING (a filter on aggregates) below another aggregation, `avg` of an average, DISTINCT, counts of groups, Top-N.
//!
//! EMIT: an inner view EMIT ON WINDOW CLOSE shows final windows. What keeps its windows (filters, projections, coarser keys) is
//! then EMIT ON WINDOW CLOSE itself. Larger windows over it are merged only if the outer view is that too: else they would
//! show what the inner one holds back. An outer view EMIT ON WINDOW CLOSE that has no windows of its own is put onto the slices under
//! whatever it reads, or refused: rows of a view do not say when they are final.
//!
//! An inner view EMIT EVERY is taken as it is: what it shows is behind the slices. One above is put onto them below its emissions.
//!
//! Retention forgets without a word (SEMANTICS 3.5): an outer view keeps what its own retention says, and the store what the
//! longest wish says.

mod calls;
mod grouped;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use self::grouped::Grouped;
use super::error::PlanError;
use super::lower::check_closes;
use super::stream_plan::{Aggregate, Emit, Node, NodeId, Oid, Op, ScanKind, StreamPlan};

/// The plans of materialized views, as they run.
pub type Plans = HashMap<Oid, Arc<StreamPlan>>;

/// The plan, put onto the slices under the views that it reads as far as that is equal. Errors: one that is EMIT ON WINDOW CLOSE and
/// would take rows of a view that do not say when they are final.
pub fn onto_slices(plan: StreamPlan, plans: &Plans) -> Result<StreamPlan, PlanError> {
    let closing = closing(&plan);
    let mut grouped: Vec<Option<Grouped>> = Vec::with_capacity(plan.nodes.len());
    for (id, node) in plan.nodes.iter().enumerate() {
        let below = node.inputs.first().and_then(|&input| grouped[input].as_ref());
        let here = match (&node.op, below) {
            (Op::Scan { object, name, kind: ScanKind::MaterializedView, projection }, _) => {
                let of_view = plans.get(object).and_then(|inner| Grouped::of_view(*object, name, inner, projection));
                of_view.map(|view| if closing.contains(&id) { view.closing() } else { view })
            }
            (Op::Aggregate(aggregate), None) => Grouped::of_aggregate(aggregate, node, &plan),
            (Op::Aggregate(aggregate), Some(below)) => below.aggregated(aggregate, node, plan.emit),
            (Op::Filter { predicate }, Some(below)) => below.filtered(predicate),
            (Op::Project { exprs }, Some(below)) => below.projected(exprs),
            _ => None,
        };
        grouped.push(here);
    }
    let root = plan.nodes.len() - 1;
    let mut rewriting = Rewriting { plan: &plan, grouped, nodes: Vec::new(), over: Vec::new() };
    let emit = match rewriting.grouped[root].as_ref() {
        Some(all) if rewriting.is_rewritten(root, true) => all.emit,
        _ => plan.emit,
    };
    rewriting.write(root, true);
    let Rewriting { nodes, over, .. } = rewriting;
    let plan = StreamPlan { nodes, emit, over, ..plan };
    if plan.emit == Emit::OnWindowClose {
        check_closes(&plan)?;
    }
    Ok(plan)
}

/// Nodes whose rows an EMIT ON WINDOW CLOSE plan shows, without windows of its own in between.
fn closing(plan: &StreamPlan) -> HashSet<NodeId> {
    let mut closing = HashSet::new();
    let mut next = if plan.emit == Emit::OnWindowClose { vec![plan.nodes.len() - 1] } else { vec![] };
    while let Some(node) = next.pop() {
        closing.insert(node);
        match &plan.nodes[node].op {
            Op::Aggregate(Aggregate { window: Some(_), .. }) | Op::Sessions(_) => {}
            _ => next.extend(&plan.nodes[node].inputs),
        }
    }
    closing
}

struct Rewriting<'a> {
    plan: &'a StreamPlan,
    /// By node of the old plan.
    grouped: Vec<Option<Grouped>>,
    nodes: Vec<Node>,
    over: Vec<(Oid, String)>,
}

impl Rewriting<'_> {
    /// Is the node written as [`Grouped`] has it?
    fn is_rewritten(&self, node: NodeId, is_root: bool) -> bool {
        let Some(grouped) = &self.grouped[node] else { return false };
        let emits_alike = grouped.emit == self.plan.emit || (is_root && grouped.emit == Emit::OnWindowClose);
        // What only filters and projects another view can be read in place of it where that is read from a store of a source. An
        // operator that follows it takes the inner view's rows, which others may take as well; but not if it needs fewer of its
        // aggregates, some of which cost much to follow.
        // Under EMIT EVERY it follows the store by itself, as that costs once an emission and the view's rows come at every tick.
        let reads_store = grouped.is_over_view() && grouped.is_over_source();
        let is_alone = is_root || self.plan.every_us().is_some() && self.plan.output().inputs.contains(&node);
        let is_wanted = is_alone || grouped.closes || grouped.has_unused_calls();
        emits_alike && (grouped.is_merged || (reads_store && is_wanted))
    }

    /// Writes a node and what it reads.
    fn write(&mut self, id: NodeId, is_root: bool) -> NodeId {
        if self.is_rewritten(id, is_root)
            && let Some(grouped) = self.grouped[id].take()
        {
            for view in &grouped.over {
                if !self.over.contains(view) {
                    self.over.push(view.clone());
                }
            }
            return grouped.write(&self.plan.nodes[id].schema, &mut self.nodes);
        }
        let node = self.plan.nodes[id].clone();
        let inputs = node.inputs.iter().map(|&input| self.write(input, false)).collect();
        self.nodes.push(Node { inputs, ..node });
        self.nodes.len() - 1
    }
}

#[cfg(test)]
mod tests;
