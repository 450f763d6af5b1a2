//! What a materialized view's rows should be: its SQL over the rows of sources and tables, through all views beneath it, and how
//! that is compared with the rows that the engine keeps.
//!
//! [`recompute`] puts the queries of views in the place of their rows. [`Recomputed::comparison`] makes one plan of both sides:
//! each row with the side that it is of, grouped by the view's key. Nothing here looks at a stream plan or a store.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, ExprSchema, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::functions_aggregate::expr_fn::{count, first_value};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprFunctionExt, ExprSchemable, Extension, LogicalPlan, LogicalPlanBuilder, Operator, col, lit,
};

use super::assign_sessions::AssignSessions;
use super::assign_windows::AssignWindows;
use super::error::{PlanError, Refusal};
use super::names::name_columns;
use super::query::{Reads, prepare, with_output_types};
use super::relations::parse_query;
use super::scope::{ObjectSource, Scope};
use super::session::session_state;
use super::stream_plan::{Session, Window};
use crate::catalog::{MaterializedView, Object, ObjectKind, Oid};

/// Views upon views upon views: more would exhaust the stack.
const MOST_NESTED_VIEWS: usize = 32;

/// A bound of a window, as a column of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bound {
    is_start: bool,
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Of {
    Window(Window),
    Session(Session),
}

/// The windows that are compared, in microseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Within {
    /// They begin at or after this.
    pub from_us: Option<i64>,
    /// They end at or before this.
    pub to_us: Option<i64>,
    /// They end after this.
    pub after_us: Option<i64>,
}

/// The plan that gives what a view should hold.
#[derive(Debug)]
pub struct Recomputed {
    name: String,
    /// The view's columns, by their names and types.
    plan: LogicalPlan,
    bounds: Vec<Option<Bound>>,
    /// Columns that name a row, ascending; `None`: rows have no key, and equal ones are counted.
    pub keys: Option<Vec<usize>>,
    /// Columns that are not compared: estimates, which another estimator need not share.
    pub left_out: Vec<usize>,
    /// Columns that an aggregate over floats has rounded.
    rounded: Vec<bool>,
}

/// The plan of a materialized view's query, down to the rows of sources and tables that `reads` has. `finals_us`: of EMIT ON WINDOW
/// CLOSE views, up to where their windows are shown.
pub fn recompute(
    view: &Object,
    reads: &Reads,
    finals_us: Option<&HashMap<Oid, Option<i64>>>,
) -> Result<Recomputed, PlanError> {
    let scope = reads.scope()?;
    let plan = expanded(view, &scope, reads, finals_us, 0)?;
    let bounds = bounds(&plan);
    let keys = keys(&plan).map(|mut keys| {
        keys.sort_unstable();
        keys
    });
    let (estimates, rounded) = inexact(&plan);
    let left_out: Vec<usize> = (0..estimates.len()).filter(|&i| estimates[i]).collect();
    if keys.iter().flatten().any(|key| left_out.contains(key)) {
        let message = format!("RECONCILE of \"{}\" is not supported: it groups by an estimate", view.name);
        return Err(PlanError::Unsupported(Refusal::new(message).hint("Reconcile the view beneath it.")));
    }
    Ok(Recomputed { name: view.name.clone(), plan, bounds, keys, left_out, rounded })
}

fn definition(view: &Object) -> Option<&MaterializedView> {
    match &view.kind {
        ObjectKind::MaterializedView(definition) => Some(definition),
        _ => None,
    }
}

/// The view's query with the queries of views beneath in it, its columns named and typed as the view's.
fn expanded(
    view: &Object,
    scope: &Scope,
    reads: &Reads,
    finals_us: Option<&HashMap<Oid, Option<i64>>>,
    depth: usize,
) -> Result<LogicalPlan, PlanError> {
    if depth == MOST_NESTED_VIEWS {
        let message = format!("RECONCILE: more than {MOST_NESTED_VIEWS} materialized views stand upon each other");
        return Err(PlanError::unsupported(message, "Reconcile one beneath it."));
    }
    let Some(definition) = definition(view) else {
        return Err(PlanError::invalid(format!("\"{}\" is not a materialized view", view.name)));
    };
    let mut query = parse_query(&definition.query)?;
    name_columns(&mut query);
    let plan = with_output_types(prepare(scope.plan(query, &[])?, scope)?)?;
    let closes = finals_us.filter(|_| definition.emit_on_window_close);
    let final_us = closes.map(|finals_us| {
        finals_us.get(&view.oid).copied().ok_or_else(|| {
            let message = format!("RECONCILE: \"{}\" shows neither window_start nor window_end", view.name);
            PlanError::unsupported(
                message,
                "Nothing tells which windows an EMIT ON WINDOW CLOSE view has shown: select one of them in it.",
            )
        })
    });
    let final_us = final_us.transpose()?;
    let plan = plan.transform_up_with_subqueries(|plan| {
        let LogicalPlan::TableScan(scan) = &plan else { return Ok(Transformed::no(plan)) };
        let Some(source) = scan.source.downcast_ref::<ObjectSource>() else { return Ok(Transformed::no(plan)) };
        if definition_of(&source.object) {
            let inner = expanded(&source.object, scope, reads, finals_us, depth + 1)?;
            let inner = LogicalPlanBuilder::from(inner).alias(scan.table_name.clone())?.build()?;
            return Ok(Transformed::yes(inner));
        }
        let Some(rows) = reads.tables.get(&source.object.oid) else { return Ok(Transformed::no(plan)) };
        let mut scan = scan.clone();
        scan.source = provider_as_source(Arc::clone(rows));
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    })?;
    let mut plan = plan.data.recompute_schema()?;
    if let Some(final_us) = final_us {
        // Its own windows, or those of the view that it shows what is final of.
        plan = final_windows(plan, final_us)?;
    }
    let schema = Arc::clone(plan.schema());
    let columns = schema.columns().into_iter().zip(view.columns.fields());
    let named = columns.map(|(column, field)| {
        let is = schema.field_from_column(&column)?.data_type().clone();
        let column = Expr::Column(column);
        let typed = if is == *field.data_type() { column } else { column.cast_to(field.data_type(), &schema)? };
        Ok::<_, DataFusionError>(typed.alias(field.name()))
    });
    let named = named.collect::<Result<Vec<_>, _>>()?;
    Ok(LogicalPlanBuilder::from(plan).project(named)?.build()?)
}

fn definition_of(object: &Object) -> bool {
    definition(object).is_some()
}

/// Leaves of the outermost windows of a plan those that end at or before this.
fn final_windows(plan: LogicalPlan, final_us: Option<i64>) -> Result<LogicalPlan, PlanError> {
    let kept = plan.transform_down(|plan| {
        let LogicalPlan::Extension(node) = &plan else { return Ok(Transformed::no(plan)) };
        if !(node.node.as_any().is::<AssignWindows>() || node.node.as_any().is::<AssignSessions>()) {
            return Ok(Transformed::no(plan));
        }
        let schema = Arc::clone(plan.schema());
        let end = schema.columns().pop().expect("it has bounds of windows");
        let until = moment(final_us, schema.field_from_column(&end)?.data_type());
        let is_final = Expr::Column(end).lt_eq(Expr::Literal(until, None));
        let plan = LogicalPlanBuilder::from(plan).filter(is_final)?.build()?;
        Ok(Transformed::new(plan, true, TreeNodeRecursion::Jump))
    })?;
    Ok(kept.data)
}

/// A time of a column's type; NULL if there is none.
fn moment(us: Option<i64>, data_type: &DataType) -> ScalarValue {
    match data_type {
        DataType::Timestamp(_, zone) => ScalarValue::TimestampMicrosecond(us, zone.clone()),
        _ => ScalarValue::TimestampMicrosecond(us, None),
    }
}

/// The output column that each of a projection's expressions is, if it is one as it stands.
fn plain(expr: &Expr, input: &DFSchema) -> Option<usize> {
    match expr {
        Expr::Column(column) => input.maybe_index_of_column(column),
        Expr::Alias(alias) => plain(&alias.expr, input),
        _ => None,
    }
}

/// Which columns of a plan are bounds of windows.
fn bounds(plan: &LogicalPlan) -> Vec<Option<Bound>> {
    let of_exprs = |exprs: &[Expr], input: &LogicalPlan| {
        let inner = bounds(input);
        exprs.iter().map(|e| plain(e, input.schema()).and_then(|i| inner[i])).collect::<Vec<_>>()
    };
    match plan {
        LogicalPlan::Projection(projection) => of_exprs(&projection.expr, &projection.input),
        LogicalPlan::Aggregate(aggregate) => {
            let mut bounds = of_exprs(&aggregate.group_expr, &aggregate.input);
            bounds.resize(plan.schema().fields().len(), None);
            bounds
        }
        LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::Window(_) => {
            let mut bounds = plan.inputs().first().map(|input| self::bounds(input)).unwrap_or_default();
            bounds.resize(plan.schema().fields().len(), None);
            bounds
        }
        LogicalPlan::Union(union) => {
            let mut all = union.inputs.iter().map(|input| bounds(input));
            let first = all.next().unwrap_or_default();
            all.fold(first, |known, next| known.iter().zip(&next).map(|(a, b)| a.filter(|_| a == b)).collect())
        }
        LogicalPlan::Extension(Extension { node }) => {
            let (input, passed, of) = if let Some(node) = node.as_any().downcast_ref::<AssignWindows>() {
                (&node.input, node.passed(), Of::Window(node.window))
            } else if let Some(node) = node.as_any().downcast_ref::<AssignSessions>() {
                (&node.input, node.passed(), Of::Session(node.session))
            } else {
                return vec![None; plan.schema().fields().len()];
            };
            let inner = bounds(input);
            let own = [true, false].map(|is_start| Some(Bound { is_start, of }));
            passed.into_iter().map(|i| inner[i]).chain(own).collect()
        }
        _ => vec![None; plan.schema().fields().len()],
    }
}

/// Columns that no two rows of a plan have in common, if an aggregation makes them so.
fn keys(plan: &LogicalPlan) -> Option<Vec<usize>> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => {
            let grouping_sets = aggregate.group_expr.iter().any(|e| matches!(e, Expr::GroupingSet(_)));
            (!grouping_sets).then(|| (0..aggregate.group_expr.len()).collect())
        }
        LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
            keys(plan.inputs().first()?)
        }
        LogicalPlan::Projection(projection) => {
            let inner = keys(&projection.input)?;
            let inner_bounds = bounds(&projection.input);
            let place =
                |key: usize| projection.expr.iter().position(|e| plain(e, projection.input.schema()) == Some(key));
            let mut outer = Vec::new();
            for &key in &inner {
                match place(key) {
                    Some(at) => outer.push(at),
                    // The other bound names the window as well.
                    None => {
                        let bound = inner_bounds[key]?;
                        let named = inner.iter().any(|&other| {
                            let names = bound.is_start || !matches!(bound.of, Of::Window(window) if window.cumulates);
                            let partner = Bound { is_start: !bound.is_start, ..bound };
                            names && inner_bounds[other] == Some(partner) && place(other).is_some()
                        });
                        named.then_some(())?;
                    }
                }
            }
            Some(outer)
        }
        _ => None,
    }
}

/// Does each row come of rows of its own windows alone?
fn is_local(plan: &LogicalPlan) -> bool {
    let own = match plan {
        LogicalPlan::Aggregate(aggregate) => {
            let inner = bounds(&aggregate.input);
            let mut places = aggregate.group_expr.iter().filter_map(|e| plain(e, aggregate.input.schema()));
            places.any(|i| inner[i].is_some())
        }
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::Extension(_)
        | LogicalPlan::TableScan(_) => true,
        _ => false,
    };
    own && plan.inputs().into_iter().all(is_local)
}

/// Which columns are estimates, and which come of floats that were added up.
fn inexact(plan: &LogicalPlan) -> (Vec<bool>, Vec<bool>) {
    let inputs: Vec<(Vec<bool>, Vec<bool>)> = plan.inputs().into_iter().map(inexact).collect();
    let schema = plan.schema();
    let uses = |expr: &Expr, flags: &dyn Fn(usize) -> bool, input: &DFSchema| {
        expr.column_refs().into_iter().any(|c| input.maybe_index_of_column(c).is_some_and(flags))
    };
    match plan {
        LogicalPlan::Projection(projection) => {
            let (estimates, rounded) = &inputs[0];
            let input = projection.input.schema();
            (
                projection.expr.iter().map(|e| uses(e, &|i| estimates[i], input)).collect(),
                projection.expr.iter().map(|e| uses(e, &|i| rounded[i], input)).collect(),
            )
        }
        LogicalPlan::Aggregate(aggregate) => {
            let (estimates, rounded) = &inputs[0];
            let input = aggregate.input.schema();
            let all =
                || aggregate.group_expr.iter().map(|e| (e, false)).chain(aggregate.aggr_expr.iter().map(|e| (e, true)));
            let estimate = |e: &Expr| {
                let own = e.exists(|e| {
                    Ok(matches!(e, Expr::AggregateFunction(call) if call.func.name().starts_with("approx_")))
                });
                own.unwrap_or(false) || uses(e, &|i| estimates[i], input)
            };
            let fields = schema.fields();
            let is_float = |i: usize| fields.get(i).is_some_and(|field| field.data_type().is_floating());
            (
                all().map(|(e, _)| estimate(e)).collect(),
                all()
                    .enumerate()
                    .map(|(i, (e, call))| (call && is_float(i)) || uses(e, &|i| rounded[i], input))
                    .collect(),
            )
        }
        _ => {
            let mut flags = (vec![false; schema.fields().len()], vec![false; schema.fields().len()]);
            let passed: Vec<usize> = match plan {
                LogicalPlan::Extension(Extension { node }) => {
                    match (node.as_any().downcast_ref(), node.as_any().downcast_ref()) {
                        (Some::<&AssignWindows>(node), _) => node.passed(),
                        (_, Some::<&AssignSessions>(node)) => node.passed(),
                        _ => Vec::new(),
                    }
                }
                _ => (0..inputs.first().map_or(0, |input| input.0.len())).collect(),
            };
            for (estimates, rounded) in inputs {
                for (at, &from) in passed.iter().enumerate().take(schema.fields().len()) {
                    flags.0[at] |= estimates.get(from).is_some_and(|flag| *flag);
                    flags.1[at] |= rounded.get(from).is_some_and(|flag| *flag);
                }
            }
            flags
        }
    }
}

const LIVE: &str = "rows_live";
const RECOMPUTED: &str = "rows_recomputed";
const SIDE: &str = "side";

impl Recomputed {
    /// Columns that are compared and do not name a row.
    pub fn values(&self) -> Vec<usize> {
        let keys = self.grouped();
        (0..self.plan.schema().fields().len()).filter(|i| !keys.contains(i) && !self.left_out.contains(i)).collect()
    }

    /// The columns by which rows of both sides are put together.
    pub fn grouped(&self) -> Vec<usize> {
        match &self.keys {
            Some(keys) => keys.clone(),
            None => (0..self.plan.schema().fields().len()).filter(|i| !self.left_out.contains(i)).collect(),
        }
    }

    /// From where on windows are whole of which rows before a moment are lost; `None` if all may miss something.
    pub fn whole_from_us(&self, complete_from_us: i64) -> Option<i64> {
        let first = self.bounds.iter().flatten().next().filter(|_| self.keys.is_some() && is_local(&self.plan))?;
        match first.of {
            Of::Window(_) => Some(complete_from_us),
            // A row before it may have begun the session.
            Of::Session(Session { gap_us, max_us: None }) => Some(complete_from_us.saturating_add(gap_us)),
            Of::Session(_) => None,
        }
    }

    /// The columns of the bounds of its windows: start, end.
    pub fn window_columns(&self) -> (Option<usize>, Option<usize>) {
        let Some(one) = self.bounds.iter().flatten().next() else { return (None, None) };
        let of = |is_start| self.bounds.iter().position(|bound| *bound == Some(Bound { is_start, of: one.of }));
        (of(true), of(false))
    }

    /// Is a row of the windows within? Over columns `c0, c1, ...`.
    fn is_within(&self, within: &Within) -> Result<Option<Expr>, PlanError> {
        if *within == Within::default() {
            return Ok(None);
        }
        let (start, end) = self.window_columns();
        let one = self.bounds.iter().flatten().next().copied();
        // Where one bound is not shown, the other tells if all windows are of one size.
        let size_us = match one.map(|bound| bound.of) {
            Some(Of::Window(window)) if !window.cumulates => Some(window.size_us),
            _ => None,
        };
        let compare = |column: usize, shift_us: i64, operator: Operator, us: i64| {
            let us = Some(us.saturating_add(shift_us));
            let bound = Expr::Literal(moment(us, self.plan.schema().field(column).data_type()), None);
            Expr::BinaryExpr(BinaryExpr::new(Box::new(col(name(column))), operator, Box::new(bound)))
        };
        let by_start = |operator, us: i64| match (start, end, size_us) {
            (Some(column), ..) => Ok(compare(column, 0, operator, us)),
            (None, Some(column), Some(size_us)) => Ok(compare(column, size_us, operator, us)),
            _ => Err(self.no_bound("window_start")),
        };
        let by_end = |operator, us: i64| match (start, end, size_us) {
            (_, Some(column), _) => Ok(compare(column, 0, operator, us)),
            (Some(column), None, Some(size_us)) => Ok(compare(column, size_us.saturating_neg(), operator, us)),
            _ => Err(self.no_bound("window_end")),
        };
        let mut all = Vec::new();
        all.extend(within.from_us.map(|us| by_start(Operator::GtEq, us)).transpose()?);
        all.extend(within.to_us.map(|us| by_end(Operator::LtEq, us)).transpose()?);
        all.extend(within.after_us.map(|us| by_end(Operator::Gt, us)).transpose()?);
        Ok(all.into_iter().reduce(Expr::and))
    }

    fn no_bound(&self, bound: &str) -> PlanError {
        let name = &self.name;
        if self.bounds.iter().all(Option::is_none) {
            let message = format!("RECONCILE ... FROM ... TO: the rows of \"{name}\" belong to no windows");
            return PlanError::unsupported(message, "Leave FROM and TO out: then the whole view is compared.");
        }
        PlanError::Unsupported(
            Refusal::new(format!("RECONCILE: \"{name}\" does not show {bound}, by which its windows would be chosen"))
                .hint(
                    "Leave FROM and TO out; a view that selects window_start and window_end can be compared in part.",
                ),
        )
    }

    /// One row for each key (or distinct row): the columns of [`Recomputed::grouped`], `rows_live` and `rows_recomputed` (Int64), and for
    /// each of [`Recomputed::values`] what is live and what was recomputed.
    pub fn comparison(
        &self,
        live: Arc<dyn TableProvider>,
        within: &Within,
        reads: &Reads,
    ) -> Result<LogicalPlan, PlanError> {
        let live = LogicalPlanBuilder::scan("live", provider_as_source(live), None)?.build()?;
        let is_within = self.is_within(within)?;
        let live = self.side(live, is_within.clone(), true)?;
        let recomputed = self.side(self.plan.clone(), is_within, false)?;
        let recomputed = narrow(recomputed, reads)?;
        let both = LogicalPlanBuilder::from(live).union(recomputed)?;
        let of = |is_live: bool| if is_live { col(SIDE) } else { !col(SIDE) };
        let grouped: Vec<Expr> = self.grouped().into_iter().map(|i| col(name(i))).collect();
        let mut calls = Vec::new();
        for (is_live, called) in [(true, LIVE), (false, RECOMPUTED)] {
            calls.push(count(lit(1i64)).filter(of(is_live)).build()?.alias(called));
        }
        for value in self.values() {
            for (is_live, side) in [(true, "live"), (false, "recomputed")] {
                let of_side = first_value(col(name(value)), vec![]).filter(of(is_live)).build()?;
                calls.push(of_side.alias(format!("{}_{side}", name(value))));
            }
        }
        Ok(both.aggregate(grouped, calls)?.build()?)
    }

    /// The compared columns as `c0, c1, ...` by their places, and the side.
    fn side(&self, plan: LogicalPlan, is_within: Option<Expr>, is_live: bool) -> Result<LogicalPlan, PlanError> {
        let columns = plan.schema().columns();
        let numbered: Vec<Expr> =
            columns.into_iter().enumerate().map(|(i, c)| Expr::Column(c).alias(name(i))).collect();
        let mut plan = LogicalPlanBuilder::from(plan).project(numbered)?;
        if let Some(is_within) = is_within {
            plan = plan.filter(is_within)?;
        }
        let mut compared: Vec<Expr> = Vec::new();
        for i in 0..self.plan.schema().fields().len() {
            if self.left_out.contains(&i) {
                continue;
            }
            // Where rows have no key, sums of floats are compared to the seven digits of a REAL.
            let by_value = self.keys.is_none() && self.rounded[i];
            compared.push(match self.plan.schema().field(i).data_type() {
                DataType::Float64 if by_value => {
                    datafusion::logical_expr::cast(col(name(i)), DataType::Float32).alias(name(i))
                }
                _ => col(name(i)),
            });
        }
        compared.push(lit(is_live).alias(SIDE));
        Ok(plan.project(compared)?.build()?)
    }
}

fn name(column: usize) -> String {
    format!("c{column}")
}

/// Brings conditions on bounds of windows down to the times of the rows, so that no more of the logs is read than matters.
fn narrow(plan: LogicalPlan, reads: &Reads) -> Result<LogicalPlan, PlanError> {
    let state = session_state(reads)?;
    let mut plan = plan;
    for _ in 0..windows_deep(&plan) {
        // What is above windows stands right above them by this.
        plan = state.optimize(&plan)?;
        let narrowed = plan.transform_up_with_subqueries(|plan| {
            let LogicalPlan::Filter(filter) = &plan else { return Ok(Transformed::no(plan)) };
            let Some(input) = with_times(&filter.input, &filter.predicate)? else { return Ok(Transformed::no(plan)) };
            let plan = LogicalPlanBuilder::from(input).filter(filter.predicate.clone())?.build()?;
            Ok(Transformed::yes(plan))
        })?;
        plan = narrowed.data;
    }
    Ok(plan)
}

/// The windows under a condition with what it says of the times of their rows; `None` if there are none or it says nothing.
fn with_times(plan: &LogicalPlan, predicate: &Expr) -> Result<Option<LogicalPlan>, DataFusionError> {
    let input = match plan {
        // Columns are left out, and none gets another name.
        LogicalPlan::Projection(projection) if projection.expr.iter().all(|e| matches!(e, Expr::Column(_))) => {
            with_times(&projection.input, predicate)?
        }
        LogicalPlan::Extension(Extension { node }) => match times_of_rows(node.as_ref(), predicate) {
            Some((input, times)) => Some(LogicalPlanBuilder::from(input).filter(times)?.build()?),
            None => None,
        },
        _ => None,
    };
    input.map(|input| plan.with_new_exprs(plan.expressions(), vec![input])).transpose()
}

/// The most window functions upon each other.
fn windows_deep(plan: &LogicalPlan) -> usize {
    let own = matches!(plan, LogicalPlan::Extension(e) if e.node.as_any().is::<AssignWindows>() || e.node.as_any().is::<AssignSessions>());
    usize::from(own) + plan.inputs().into_iter().map(windows_deep).max().unwrap_or(0)
}

/// The input of a window function, and the condition on its times that a condition on the windows implies.
fn times_of_rows(
    node: &dyn datafusion::logical_expr::UserDefinedLogicalNode,
    predicate: &Expr,
) -> Option<(LogicalPlan, Expr)> {
    let of = |schema: &DFSchema, back: usize| schema.columns().into_iter().rev().nth(back);
    let (start, end) = (of(node.schema(), 1)?, of(node.schema(), 0)?);
    let (start_from, start_to) = range_of(&start, predicate);
    let (end_from, end_to) = range_of(&end, predicate);
    let (input, time, from, to) = if let Some(node) = node.as_any().downcast_ref::<AssignWindows>() {
        let size_us = node.window.size_us;
        let from = start_from.max(end_from.map(|us| us.saturating_sub(size_us)));
        let to = least(end_to, start_to.map(|us| us.saturating_add(size_us)));
        (&node.input, &node.time, from, to)
    } else {
        let node = node.as_any().downcast_ref::<AssignSessions>()?;
        // A longest session is cut from its first row on, however long ago that was.
        if node.session.max_us.is_some() {
            return None;
        }
        (&node.input, &node.time, start_from.map(|us| us.saturating_sub(node.session.gap_us)), end_to)
    };
    let data_type = input.schema().field_from_column(time).ok()?.data_type().clone();
    if !matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, _)) {
        return None;
    }
    let at = |us| Expr::Literal(moment(Some(us), &data_type), None);
    let from = from.map(|us| Expr::Column(time.clone()).gt_eq(at(us)));
    let to = to.map(|us| Expr::Column(time.clone()).lt(at(us)));
    Some((input.as_ref().clone(), from.into_iter().chain(to).reduce(Expr::and)?))
}

fn least(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    a.into_iter().chain(b).min()
}

/// The least value of a column for which a condition may be true, and the value that all are below or at.
fn range_of(column: &Column, predicate: &Expr) -> (Option<i64>, Option<i64>) {
    let (mut from, mut to) = (None, None);
    for condition in split_conjunction(predicate) {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { continue };
        let (op, literal) = match (left.as_ref(), right.as_ref()) {
            (Expr::Column(c), Expr::Literal(value, _)) if c == column => (*op, value),
            (Expr::Literal(value, _), Expr::Column(c)) if c == column => match op.swap() {
                Some(op) => (op, value),
                None => continue,
            },
            _ => continue,
        };
        let ScalarValue::TimestampMicrosecond(Some(us), _) = literal else { continue };
        match op {
            Operator::Gt | Operator::GtEq => from = from.max(Some(*us)),
            Operator::Lt | Operator::LtEq => to = least(to, Some(*us)),
            Operator::Eq => (from, to) = (from.max(Some(*us)), least(to, Some(*us))),
            _ => {}
        }
    }
    (from, to)
}
