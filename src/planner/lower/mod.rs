//! LogicalPlan → [`StreamPlan`]: the one `match` on DataFusion's plan in the whole code.
//!
//! 1. [`refuse`] walks the analyzed plan's expressions and names what cannot be kept incrementally.
//! 2. A short list of optimiser rules simplifies, pushes filters down and projections into the scans. None of them makes a
//!    join or a repartition.
//! 3. [`Lowering::lower`] turns each node into nodes of the stream plan, bottom up. The columns of a stream node are those of
//!    the logical node, by position; so an expression is made physical by the logical node's schema.
//! 4. A last projection gives the columns their names and types.

mod aggregate;
mod distinct_on;
mod emit;
mod ranked;
mod refuse;
mod substitute;
mod temporal;

pub(super) use emit::check_closes;

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result as DataFusionResult};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Extension, Limit, LogicalPlan, TableScan};
use datafusion::optimizer::eliminate_group_by_constant::EliminateGroupByConstant;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::optimize_unions::OptimizeUnions;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerContext};
use datafusion::physical_expr::expressions::{BinaryExpr, Column as PhysicalColumn, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr, create_physical_expr};

use super::arithmetic::CheckedArithmetic;
use super::assign_sessions::sessions;
use super::assign_windows::AssignWindows;
use super::error::{PlanError, duplicate_column};
use super::event_time::event_time_columns;
use super::names::result_name;
use super::scope::{ObjectSource, Scope};
use super::stream_plan::{Clock, Comparison, Emit, Node, NodeId, Op, ScanKind, StoreChoice, StreamPlan, TimeBound};
use super::types::{output_type, sql_name};
use crate::catalog::ObjectKind;
use crate::sql::EmitClause;

/// Rows are copied into the windows that cover them only up to this many each.
const MOST_COPIES_PER_ROW: i64 = 1000;

/// A view's dataflow, and what else is to be known of it.
#[derive(Debug)]
pub(super) struct Lowered {
    pub plan: StreamPlan,
    /// Columns of the output that carry event time.
    pub event_time: Vec<usize>,
    pub notices: Vec<String>,
}

/// Lowers the analyzed plan of a view's query. `names` are those of the output columns.
pub(super) fn lower(
    analyzed: LogicalPlan,
    names: &[String],
    clause: &EmitClause,
    retention_us: Option<i64>,
    store: StoreChoice,
    scope: &Scope,
) -> Result<Lowered, PlanError> {
    refuse::refuse(&analyzed)?;
    let emit = if *clause == EmitClause::OnWindowClose { Emit::OnWindowClose } else { Emit::OnUpdate };
    let plan = optimize(distinct_on::rewrite(analyzed)?, scope)?;
    let mut lowering =
        Lowering { nodes: Vec::new(), event_time: Vec::new(), notices: Vec::new(), emit, props: ExecutionProps::new() };
    let root = lowering.lower(&plan)?;
    let mut root = lowering.output(root, &plan, names)?;
    if emit == Emit::OnWindowClose {
        lowering.check_emit(root)?;
    }
    if let EmitClause::Every { interval_us, .. } = *clause {
        root = lowering.emit_every(root, interval_us);
    }
    debug_assert_eq!(root + 1, lowering.nodes.len(), "the output is the last node");
    let event_time = lowering.event_time[root].clone();
    let plan = StreamPlan { nodes: lowering.nodes, retention_us, emit, store, over: Vec::new() };
    Ok(Lowered { plan, event_time, notices: lowering.notices })
}

fn optimize(plan: LogicalPlan, scope: &Scope) -> Result<LogicalPlan, PlanError> {
    let rules = Optimizer::with_rules(vec![
        Arc::new(OptimizeUnions::new()),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(EliminateGroupByConstant::new()),
        Arc::new(OptimizeProjections::new()),
    ]);
    let context = OptimizerContext::new_with_config_options(Arc::clone(scope.state.config_options()))
        .without_query_execution_start_time();
    Ok(rules.optimize(plan, &context, |_, _| {})?)
}

struct Lowering {
    nodes: Vec<Node>,
    /// By node: the output columns that carry event time, those by which windows can close.
    event_time: Vec<Vec<usize>>,
    notices: Vec<String>,
    emit: Emit,
    props: ExecutionProps,
}

impl Lowering {
    fn lower(&mut self, plan: &LogicalPlan) -> Result<NodeId, PlanError> {
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::Filter(filter) => match ranked::over_window(filter)? {
                Some(ranked) => {
                    let columns = filter.input.schema().columns().into_iter().map(Expr::Column).collect();
                    self.ranked(ranked, columns, filter.input.schema())
                }
                None => {
                    let node = self.lower(&filter.input)?;
                    self.filter(node, split_conjunction_owned(filter.predicate.clone()), filter.input.schema())
                }
            },
            LogicalPlan::Projection(projection) => {
                let ranked = match projection.input.as_ref() {
                    LogicalPlan::Filter(filter) => ranked::over_window(filter)?,
                    _ => None,
                };
                if let Some(ranked) = ranked {
                    return self.ranked(ranked, projection.expr.clone(), &projection.schema);
                }
                let input = self.lower(&projection.input)?;
                self.project(input, &projection.expr, projection.input.schema(), &projection.schema)
            }
            LogicalPlan::SubqueryAlias(alias) => self.lower(&alias.input),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Union(union) => {
                let inputs = union.inputs.iter().map(|input| self.lower(input)).collect::<Result<Vec<_>, _>>()?;
                let schema = columns_of(&union.schema);
                let append_only = inputs.iter().all(|&input| self.nodes[input].append_only);
                let event_time = (0..schema.fields().len())
                    .filter(|i| inputs.iter().all(|&input| self.event_time[input].contains(i)))
                    .collect();
                Ok(self.add(Op::UnionAll, inputs, schema, append_only, event_time))
            }
            LogicalPlan::Limit(limit) => self.limit(limit),
            LogicalPlan::Sort(sort) => {
                self.notices.push(
                    "the ORDER BY of the view is ignored: rows of a view have no order; put it into the SELECT on the view"
                        .into(),
                );
                self.lower(&sort.input)
            }
            LogicalPlan::Extension(Extension { node }) => match node.as_any().downcast_ref::<AssignWindows>() {
                Some(windows) => self.assign_windows(windows),
                None if sessions(plan).is_some() => Err(PlanError::unsupported(
                    "rows with the bounds of their sessions cannot be kept in a view",
                    "GROUP BY the keys, window_start and window_end, and let no aggregate look at the bounds; they can stand \
                     in the SELECT list and in HAVING.",
                )),
                None => Err(refuse::node(plan)),
            },
            other => Err(refuse::node(other)),
        }
    }

    fn scan(&mut self, scan: &TableScan) -> Result<NodeId, PlanError> {
        let Some(source) = scan.source.downcast_ref::<ObjectSource>() else {
            return Err(PlanError::unsupported(
                format!("the table function {} cannot be read by a materialized view", scan.table_name),
                "A view reads sources, tables and materialized views; put the rows into a table.",
            ));
        };
        let object = &source.object;
        let (kind, append_only) = match &object.kind {
            ObjectKind::Source(source) => (ScanKind::Source, source.append_only()),
            ObjectKind::Table(table) => (ScanKind::Table, table.append_only),
            ObjectKind::MaterializedView(view) => (ScanKind::MaterializedView, view.append_only),
            ObjectKind::View { .. } => {
                return Err(PlanError::invalid(format!("the view \"{}\" was to be planned anew", object.name)));
            }
        };
        let mut projection = scan.projection.clone().unwrap_or_else(|| (0..object.columns.fields().len()).collect());
        if projection.is_empty() {
            // Nobody looks at the columns, only at the rows; and rows without columns are a trap for whoever counts them.
            projection.push(cheapest_column(&object.columns));
        }
        let column = |i: &usize| {
            let field = object.columns.field(*i);
            Field::new(field.name(), field.data_type().clone(), true)
        };
        let fields: Vec<Field> = projection.iter().map(column).collect();
        let carries = event_time_columns(object);
        let event_time = (0..projection.len()).filter(|&i| carries.contains(&projection[i])).collect();
        let op = Op::Scan { object: object.oid, name: object.name.clone(), kind, projection };
        let node = self.add(op, vec![], Arc::new(Schema::new(fields)), append_only, event_time);
        self.filter(node, scan.filters.clone(), &scan.projected_schema)
    }

    /// Keeps the rows for which every conjunct is true.
    fn filter(&mut self, input: NodeId, conjuncts: Vec<Expr>, schema: &DFSchema) -> Result<NodeId, PlanError> {
        let is_true =
            |expr: &Expr| matches!(expr, Expr::Literal(datafusion::common::ScalarValue::Boolean(Some(true)), _));
        let (temporal, plain): (Vec<Expr>, Vec<Expr>) = conjuncts.into_iter().partition(temporal::reads_clock);
        let mut node = input;
        if let Some(predicate) = conjunction(plain.into_iter().filter(|expr| !is_true(expr))) {
            let predicate = self.physical(&predicate, schema)?;
            let Node { schema, append_only, .. } = &self.nodes[input];
            let (schema, append_only, event_time) = (Arc::clone(schema), *append_only, self.event_time[input].clone());
            node = self.add(Op::Filter { predicate }, vec![input], schema, append_only, event_time);
        }
        let mut by_clock: Vec<(Clock, Vec<TimeBound>)> = Vec::new();
        for conjunct in &temporal {
            for bound in temporal::bounds_of(conjunct)? {
                let physical = self.time_bound(&bound, schema)?;
                match by_clock.iter_mut().find(|(clock, _)| *clock == bound.clock) {
                    Some((_, bounds)) => bounds.push(physical),
                    None => by_clock.push((bound.clock, vec![physical])),
                }
            }
        }
        for (clock, bounds) in by_clock {
            let Node { schema, append_only, .. } = &self.nodes[node];
            // A row that only comes is never taken back.
            let stays = |bound: &TimeBound| matches!(bound.comparison, Comparison::Less | Comparison::LessOrEqual);
            let (schema, append_only) = (Arc::clone(schema), *append_only && bounds.iter().all(stays));
            // What the clock brings or takes does not heed any watermark.
            node = self.add(Op::TemporalFilter { clock, bounds }, vec![node], schema, append_only, Vec::new());
        }
        Ok(node)
    }

    fn project(
        &mut self,
        input: NodeId,
        exprs: &[Expr],
        schema: &DFSchema,
        output: &DFSchema,
    ) -> Result<NodeId, PlanError> {
        let exprs = exprs.iter().map(|expr| self.physical(expr, schema)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.project_physical(input, exprs, columns_of(output)))
    }

    fn project_physical(&mut self, input: NodeId, exprs: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef) -> NodeId {
        let (input, exprs) = self.through_projection(input, exprs);
        let taken: Vec<Option<usize>> = exprs.iter().map(column_index).collect();
        let node = &self.nodes[input];
        let identity = schema == node.schema && taken.iter().copied().eq((0..taken.len()).map(Some));
        if identity {
            return input;
        }
        let append_only = node.append_only;
        let carries = &self.event_time[input];
        let event_time = (0..taken.len()).filter(|&i| taken[i].is_some_and(|from| carries.contains(&from))).collect();
        self.add(Op::Project { exprs }, vec![input], schema, append_only, event_time)
    }

    /// A projection over a projection is one, unless that would compute something twice: the lower one is taken away and
    /// its expressions put into the upper one's.
    fn through_projection(
        &mut self,
        input: NodeId,
        exprs: Vec<Arc<dyn PhysicalExpr>>,
    ) -> (NodeId, Vec<Arc<dyn PhysicalExpr>>) {
        let Op::Project { exprs: inner } = &self.nodes[input].op else { return (input, exprs) };
        if input + 1 != self.nodes.len() {
            return (input, exprs);
        }
        let mut uses = vec![0usize; inner.len()];
        for expr in &exprs {
            for_each_column(expr, &mut |i| uses[i] += 1);
        }
        let is_plain = |i: usize| column_index(&inner[i]).is_some() || inner[i].is::<Literal>();
        if (0..inner.len()).any(|i| uses[i] > 1 && !is_plain(i)) {
            return (input, exprs);
        }
        let merged: DataFusionResult<Vec<_>> = exprs
            .iter()
            .map(|expr| {
                let replaced = Arc::clone(expr).transform_up(|expr| {
                    Ok(match column_index(&expr) {
                        Some(i) => Transformed::yes(Arc::clone(&inner[i])),
                        None => Transformed::no(expr),
                    })
                });
                Ok(replaced?.data)
            })
            .collect();
        let Ok(merged) = merged else { return (input, exprs) };
        let below = self.nodes[input].inputs[0];
        self.nodes.pop();
        self.event_time.pop();
        (below, merged)
    }

    /// `ORDER BY ... LIMIT`, perhaps with projections between the two.
    fn limit(&mut self, limit: &Limit) -> Result<NodeId, PlanError> {
        let (offset, fetch) = ranked::bounds_of(limit)?;
        let mut above = Vec::new();
        let mut below = limit.input.as_ref();
        let sort = loop {
            match below {
                LogicalPlan::Sort(sort) => break sort,
                LogicalPlan::Projection(projection) => {
                    above.push(projection);
                    below = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) => below = &alias.input,
                _ => {
                    return Err(PlanError::unsupported(
                        "LIMIT without ORDER BY cannot be kept in a view",
                        "Add ORDER BY, so that it is decided which rows the view holds, or put LIMIT into the SELECT on it.",
                    ));
                }
            }
        };
        let input = self.lower(&sort.input)?;
        let mut node = self.top_n(input, &[], &sort.expr, sort.input.schema(), offset, fetch, false)?;
        for projection in above.into_iter().rev() {
            node = self.project(node, &projection.expr, projection.input.schema(), &projection.schema)?;
        }
        Ok(node)
    }

    /// Copies rows into windows: where the aggregation above, if there is one, cannot be kept as slices.
    fn assign_windows(&mut self, windows: &AssignWindows) -> Result<NodeId, PlanError> {
        let copies = windows.window.windows_per_row();
        if copies > MOST_COPIES_PER_ROW {
            return Err(PlanError::unsupported(
                format!("the view would hold each row {copies} times, once for every window that covers it"),
                format!(
                    "Group by window_start or window_end and by columns that do not depend on them, or choose a longer \
                     slide: at most {MOST_COPIES_PER_ROW} times is possible."
                ),
            ));
        }
        if copies > 1 {
            self.notices.push(format!(
                "each row is held {copies} times, once for every window that covers it: the view does not group by window \
                 and columns alone"
            ));
        }
        self.notice_gaps(windows);
        let input = self.lower(&windows.input)?;
        let time_column = index_of(windows.input.schema(), &windows.time)?;
        let mut event_time = self.event_time[input].clone();
        let width = self.nodes[input].schema.fields().len();
        if event_time.contains(&time_column) {
            event_time.extend([width, width + 1]);
        }
        let mut fields: Vec<Field> = self.nodes[input].schema.fields().iter().map(|f| f.as_ref().clone()).collect();
        let bounds = windows.schema_of_bounds();
        fields.extend(bounds.into_iter().map(|field| field.as_ref().clone().with_nullable(true)));
        let append_only = self.nodes[input].append_only;
        let op = Op::AssignWindows { time_column, window: windows.window };
        let node = self.add(op, vec![input], Arc::new(Schema::new(fields)), append_only, event_time);
        // The input's own columns of these names are hidden by the window's.
        let kept: Vec<usize> = windows.passed().into_iter().chain([width, width + 1]).collect();
        Ok(self.pick(node, &kept))
    }

    fn notice_gaps(&mut self, windows: &AssignWindows) {
        if windows.window.slide_us > windows.window.size_us {
            self.notices.push("the slide is longer than the size: rows between two windows are in none of them".into());
        }
    }

    /// These columns of a node, in this order.
    fn pick(&mut self, input: NodeId, columns: &[usize]) -> NodeId {
        let schema = Arc::clone(&self.nodes[input].schema);
        let exprs = columns.iter().map(|&i| physical_column(&schema, i)).collect();
        let fields: Vec<Field> = columns.iter().map(|&i| schema.field(i).clone()).collect();
        self.project_physical(input, exprs, Arc::new(Schema::new(fields)))
    }

    /// The last projection: names, and types that SQL can name.
    fn output(&mut self, root: NodeId, plan: &LogicalPlan, names: &[String]) -> Result<NodeId, PlanError> {
        let schema = plan.schema();
        let mut fields = Vec::with_capacity(names.len());
        let mut exprs = Vec::with_capacity(names.len());
        for (i, (relation, field)) in schema.iter().enumerate() {
            let name = names.get(i).map_or_else(|| result_name(field.name()), String::as_str);
            if fields.iter().any(|earlier: &Field| earlier.name() == name) {
                return Err(duplicate_column(name));
            }
            let Some(target) = output_type(field.data_type()) else {
                return Err(PlanError::unsupported(
                    format!(
                        "column \"{name}\" is of type {}, which a view cannot hold yet",
                        sql_name(field.data_type())
                    ),
                    "Cast it to a scalar type, or take it apart into columns.",
                ));
            };
            fields.push(Field::new(name, target.clone(), true));
            let column = Expr::from((relation, field));
            let cast = datafusion::logical_expr::ExprSchemable::cast_to(column, &target, schema)?;
            exprs.push(self.physical(&cast, schema)?);
        }
        Ok(self.project_physical(root, exprs, Arc::new(Schema::new(fields))))
    }

    fn physical(&self, expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>, PlanError> {
        let expr = create_physical_expr(expr, schema, &self.props, &PhysicalPlanningContext::default())?;
        Ok(expr.transform_up(plain_arithmetic)?.data)
    }

    fn add(
        &mut self,
        op: Op,
        inputs: Vec<NodeId>,
        schema: SchemaRef,
        append_only: bool,
        event_time: Vec<usize>,
    ) -> NodeId {
        self.nodes.push(Node { op, inputs, schema, append_only });
        self.event_time.push(event_time);
        self.nodes.len() - 1
    }
}

/// Our checked functions are DataFusion's operators that fail on overflow.
fn plain_arithmetic(expr: Arc<dyn PhysicalExpr>) -> DataFusionResult<Transformed<Arc<dyn PhysicalExpr>>> {
    let Some(call) = expr.downcast_ref::<ScalarFunctionExpr>() else { return Ok(Transformed::no(expr)) };
    let (Some(checked), [left, right]) = (call.fun().inner().downcast_ref::<CheckedArithmetic>(), call.args()) else {
        return Ok(Transformed::no(expr));
    };
    let binary = BinaryExpr::new(Arc::clone(left), checked.op, Arc::clone(right)).with_fail_on_overflow(true);
    Ok(Transformed::yes(Arc::new(binary)))
}

/// The columns of a logical node as those of a stream node: each may be NULL.
fn columns_of(schema: &DFSchema) -> SchemaRef {
    let field = |field: &Arc<Field>| Field::new(field.name(), field.data_type().clone(), true);
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn index_of(schema: &DFSchema, column: &Column) -> Result<usize, PlanError> {
    Ok(schema.index_of_column(column)?)
}

fn for_each_column(expr: &Arc<dyn PhysicalExpr>, found: &mut dyn FnMut(usize)) {
    if let Some(i) = column_index(expr) {
        found(i);
    }
    expr.children().into_iter().for_each(|child| for_each_column(child, found));
}

fn column_index(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    expr.downcast_ref::<PhysicalColumn>().map(PhysicalColumn::index)
}

fn physical_column(schema: &Schema, i: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(PhysicalColumn::new(schema.field(i).name(), i))
}

/// The column whose values take the least room.
fn cheapest_column(schema: &Schema) -> usize {
    let width = |i: &usize| schema.field(*i).data_type().primitive_width().unwrap_or(usize::MAX);
    (0..schema.fields().len()).min_by_key(width).unwrap_or(0)
}
