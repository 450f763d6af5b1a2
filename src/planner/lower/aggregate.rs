//! GROUP BY, over windows where there are any.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, NullTreatment, Sort};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, split_conjunction_owned};
use datafusion::logical_expr::{Aggregate as LogicalAggregate, Expr, Extension, LogicalPlan};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::CastExpr;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};

use super::substitute::substitute;
use super::{Lowering, columns_of, index_of};
use crate::planner::assign_windows::{AssignWindows, WINDOW_END, WINDOW_START};
use crate::planner::error::PlanError;
use crate::planner::explain::{call_text, expr_text};
use crate::planner::stream_plan::{Aggregate, Call, Emit, Function, GroupColumn, NodeId, Op};
use crate::planner::types::sql_name;

/// An aggregation over windows, its expressions in terms of the window node's input: what stood between the two has been
/// put into them.
struct Windowed<'a> {
    windows: &'a AssignWindows,
    group: Vec<Group>,
    calls: Vec<Expr>,
    /// Filters on the rows that go into windows.
    below: Vec<Expr>,
    /// Filters on window bounds and group keys, over `group` by position.
    above: Vec<Expr>,
}

#[derive(Debug, Clone, PartialEq)]
enum Group {
    Key(Expr),
    Start,
    End,
}

impl Lowering {
    pub(super) fn aggregate(&mut self, aggregate: &LogicalAggregate) -> Result<NodeId, PlanError> {
        match windowed(aggregate)? {
            Some(windowed) => self.windowed_aggregate(aggregate, windowed),
            None => {
                let input = self.lower(&aggregate.input)?;
                let schema = aggregate.input.schema();
                let group = aggregate.group_expr.iter().map(|expr| Ok(GroupColumn::Key(self.physical(expr, schema)?)));
                let group = group.collect::<Result<Vec<_>, PlanError>>()?;
                let columns = columns_of(&aggregate.schema);
                let calls = self.calls(&aggregate.aggr_expr, schema, &columns.fields()[group.len()..])?;
                let keys = columns.fields()[..group.len()].to_vec();
                let event_time = self.keys_that_carry_time(input, &group);
                let aggregate = Aggregate { group, window: None, calls };
                let output = self.named(input, keys, &aggregate);
                let aggregate = with_outputs(aggregate, &output);
                Ok(self.add(Op::Aggregate(aggregate), vec![input], output, false, event_time))
            }
        }
    }

    fn windowed_aggregate(
        &mut self,
        aggregate: &LogicalAggregate,
        windowed: Windowed<'_>,
    ) -> Result<NodeId, PlanError> {
        let Windowed { windows, group: wanted, calls, below, above } = windowed;
        self.notice_gaps(windows);
        let schema = windows.input.schema();
        let input = self.lower(&windows.input)?;
        let input = self.filter(input, below, schema)?;
        let time = index_of(schema, &windows.time)?;

        let mut group = Vec::with_capacity(wanted.len());
        for column in &wanted {
            group.push(match column {
                Group::Key(expr) => GroupColumn::Key(self.physical(expr, schema)?),
                Group::Start => GroupColumn::WindowStart,
                Group::End => GroupColumn::WindowEnd,
            });
        }
        let asked = aggregate.group_expr.len();
        let columns = columns_of(&aggregate.schema);
        let mut keys: Vec<Arc<Field>> = columns.fields()[..asked].to_vec();
        let bounds = windows.schema_of_bounds();
        for hidden in &wanted[asked..] {
            let bound = &bounds[usize::from(*hidden == Group::End)];
            keys.push(Arc::new(Field::new(bound.name(), bound.data_type().clone(), true)));
        }
        let calls = self.calls(&calls, schema, &columns.fields()[asked..])?;

        let mut event_time = self.keys_that_carry_time(input, &group);
        if self.event_time[input].contains(&time) {
            let is_bound = |i: &usize| !matches!(group[*i], GroupColumn::Key(_));
            event_time.extend((0..group.len()).filter(is_bound));
        }
        let aggregate = Aggregate { group, window: Some((time, windows.window)), calls };
        let output = self.named(input, keys, &aggregate);
        let kept: Vec<usize> = (0..asked).chain(wanted.len()..output.fields().len()).collect();
        let op = Op::Aggregate(with_outputs(aggregate, &output));
        let append_only = self.emit == Emit::OnWindowClose;
        let node = self.add(op, vec![input], Arc::clone(&output), append_only, event_time);

        let positions = positional(&output);
        let node = self.filter(node, above, &positions)?;
        Ok(if kept.len() < output.fields().len() { self.pick(node, &kept) } else { node })
    }

    /// The output of an aggregation, its columns named for people: a plain key after its column, the rest after what it
    /// computes.
    fn named(&self, input: NodeId, keys: Vec<Arc<Field>>, aggregate: &Aggregate) -> Arc<Schema> {
        let input = &self.nodes[input].schema;
        let mut fields = Vec::with_capacity(keys.len() + aggregate.calls.len());
        for (key, column) in keys.iter().zip(&aggregate.group) {
            let name = match column {
                GroupColumn::Key(expr) => expr_text(expr, input),
                GroupColumn::WindowStart | GroupColumn::WindowEnd => key.name().clone(),
            };
            fields.push(key.as_ref().clone().with_name(name));
        }
        for call in &aggregate.calls {
            fields.push(call.output.as_ref().clone().with_name(call_text(call, input)));
        }
        Arc::new(Schema::new(fields))
    }

    /// The group's columns that pass an event-time column through.
    fn keys_that_carry_time(&self, input: NodeId, group: &[GroupColumn]) -> Vec<usize> {
        let carries = |column: &GroupColumn| match column {
            GroupColumn::Key(expr) => super::column_index(expr).is_some_and(|i| self.event_time[input].contains(&i)),
            GroupColumn::WindowStart | GroupColumn::WindowEnd => false,
        };
        (0..group.len()).filter(|&i| carries(&group[i])).collect()
    }

    fn calls(&self, exprs: &[Expr], schema: &DFSchema, outputs: &[Arc<Field>]) -> Result<Vec<Call>, PlanError> {
        exprs.iter().zip(outputs).map(|(expr, output)| self.call(expr, schema, output)).collect()
    }

    fn call(&self, expr: &Expr, schema: &DFSchema, output: &Arc<Field>) -> Result<Call, PlanError> {
        let Expr::AggregateFunction(AggregateFunction { func, params }) = expr.clone().unalias() else {
            return Err(PlanError::unsupported(
                format!("the aggregate {expr} cannot be kept incrementally"),
                "Compute it in the SELECT on the view.",
            ));
        };
        let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = params;
        let name = func.name().to_string();
        refuse_order(&name, &order_by, &func)?;

        let physical = |expr: &Expr| self.physical(expr, schema);
        let filter = filter.as_deref().map(physical).transpose()?;
        let mut evaluated = args.iter().map(physical).collect::<Result<Vec<_>, _>>()?;
        let mut distinct = distinct;
        let function = match name.as_str() {
            "count" => {
                if evaluated.len() > 1 {
                    return Err(PlanError::unsupported(
                        "count of several columns is not supported",
                        "Count one column, or count(DISTINCT a || ',' || b).",
                    ));
                }
                if let [Expr::Literal(value, _)] = args.as_slice()
                    && !value.is_null()
                {
                    evaluated.clear();
                }
                distinct &= !evaluated.is_empty();
                Function::Count
            }
            "sum" => Function::Sum,
            "avg" => {
                for argument in &mut evaluated {
                    *argument = as_summed(argument, schema.as_arrow())?;
                }
                Function::Avg
            }
            "min" | "max" => {
                // The least of the distinct values is the least of all.
                distinct = false;
                if name == "min" { Function::Min } else { Function::Max }
            }
            "approx_distinct" => {
                distinct = false;
                Function::ApproxDistinct
            }
            _ => {
                let arrow = Arc::new(schema.as_arrow().clone());
                let mut order = Vec::with_capacity(order_by.len());
                for Sort { expr, asc, nulls_first } in &order_by {
                    let options = arrow::compute::SortOptions { descending: !asc, nulls_first: *nulls_first };
                    order.push(PhysicalSortExpr { expr: physical(expr)?, options });
                }
                let built = AggregateExprBuilder::new(Arc::clone(&func), evaluated.clone())
                    .schema(arrow)
                    .alias(output.name())
                    .order_by(order)
                    .with_distinct(distinct)
                    .with_ignore_nulls(null_treatment == Some(NullTreatment::IgnoreNulls))
                    .build()?;
                Function::DataFusion(Arc::new(built))
            }
        };
        let own = !matches!(function, Function::DataFusion(_));
        if own && let Some(argument) = evaluated.first() {
            let data_type = argument.data_type(schema.as_arrow())?;
            if matches!(function, Function::Sum | Function::Avg) && !is_summable(&data_type) {
                return Err(PlanError::unsupported(
                    format!("{name}({}) cannot be kept in a view yet", sql_name(&data_type)),
                    "Turn it into a number first: extract(epoch FROM ...) gives the seconds of an interval.",
                ));
            }
        }
        let output = Arc::new(output.as_ref().clone().with_nullable(true));
        Ok(Call { function, args: evaluated, filter, distinct, output })
    }
}

/// Gives each call the field that it has in the output.
fn with_outputs(mut aggregate: Aggregate, output: &Schema) -> Aggregate {
    let first = aggregate.group.len();
    for (i, call) in aggregate.calls.iter_mut().enumerate() {
        call.output = Arc::clone(&output.fields()[first + i]);
    }
    aggregate
}

/// The argument of `avg` of integers as that of their `sum`: an average of decimals is worked out from sum and count to the
/// digits of its output, so those behind the point of the argument are for DataFusion alone. So the two share their states.
fn as_summed(argument: &Arc<dyn PhysicalExpr>, input: &Schema) -> Result<Arc<dyn PhysicalExpr>, PlanError> {
    if let Some(cast) = argument.downcast_ref::<CastExpr>()
        && let DataType::Decimal128(_, 1..) = cast.cast_type()
        && cast.expr().data_type(input)?.is_signed_integer()
    {
        let digits = DataType::Decimal128(19, 0);
        return Ok(Arc::new(CastExpr::new(Arc::clone(cast.expr()), digits, None)));
    }
    Ok(Arc::clone(argument))
}

fn is_summable(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::Float64 | DataType::Decimal128(..))
}

/// Aggregates that depend on the order of rows have no value that an incremental view could agree on with a batch query.
fn refuse_order(
    name: &str,
    order_by: &[Sort],
    function: &datafusion::logical_expr::AggregateUDF,
) -> Result<(), PlanError> {
    let hint = match name {
        "array_agg" | "string_agg" => "Group by the column as well, or collect the values in the SELECT on the view.",
        "first_value" => "Use min(...), or row_number() OVER (PARTITION BY ... ORDER BY ...) = 1.",
        "last_value" => "Use max(...), or row_number() OVER (PARTITION BY ... ORDER BY ... DESC) = 1.",
        "nth_value" => "Use row_number() OVER (PARTITION BY ... ORDER BY ...) = n.",
        _ if order_by.is_empty() || function.supports_within_group_clause() => return Ok(()),
        // An order that changes nothing is no reason to refuse.
        _ if function.order_sensitivity() == AggregateOrderSensitivity::Insensitive => return Ok(()),
        _ => "Leave out the ORDER BY inside the aggregate.",
    };
    Err(PlanError::unsupported(format!("{name}() depends on the order of rows and cannot be kept in a view yet"), hint))
}

/// The aggregation as one over windows, if it is: what stands between it and the window node are projections, filters and
/// aliases, it groups by the window, and nothing but the group and filters looks at the window's bounds.
fn windowed(aggregate: &LogicalAggregate) -> Result<Option<Windowed<'_>>, PlanError> {
    let asked = aggregate.group_expr.len();
    let mut exprs: Vec<Expr> = aggregate.group_expr.iter().chain(&aggregate.aggr_expr).cloned().collect();
    let mut filters: Vec<Expr> = Vec::new();
    let mut plan = aggregate.input.as_ref();
    let windows = loop {
        match plan {
            LogicalPlan::Projection(projection) => {
                substitute(&mut exprs, &projection.schema, &projection.expr)?;
                substitute(&mut filters, &projection.schema, &projection.expr)?;
                plan = &projection.input;
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let columns: Vec<Expr> = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
                substitute(&mut exprs, &alias.schema, &columns)?;
                substitute(&mut filters, &alias.schema, &columns)?;
                plan = &alias.input;
            }
            LogicalPlan::Filter(filter) => {
                filters.extend(split_conjunction_owned(filter.predicate.clone()));
                plan = &filter.input;
            }
            LogicalPlan::Extension(Extension { node }) => match node.as_any().downcast_ref::<AssignWindows>() {
                Some(windows) => break windows,
                None => return Ok(None),
            },
            _ => return Ok(None),
        }
    };

    let schema = datafusion::logical_expr::UserDefinedLogicalNodeCore::schema(windows);
    let (start, end) = (schema.fields().len() - 2, schema.fields().len() - 1);
    let mut calls = exprs.split_off(asked);
    let mut group = Vec::with_capacity(asked);
    for expr in exprs {
        let used = columns_used(&expr, schema)?;
        let expr = expr.unalias();
        group.push(match &expr {
            Expr::Column(_) if used.contains(&start) => Group::Start,
            Expr::Column(_) if used.contains(&end) => Group::End,
            _ if used.contains(&start) || used.contains(&end) => return Ok(None),
            _ => Group::Key(expr),
        });
    }
    if !group.iter().any(|column| matches!(column, Group::Start | Group::End)) {
        return Ok(None);
    }
    for call in &calls {
        let used = columns_used(call, schema)?;
        if used.contains(&start) || used.contains(&end) {
            return Ok(None);
        }
    }
    let (mut below, mut lifted) = (Vec::new(), Vec::new());
    for filter in filters {
        let used = columns_used(&filter, schema)?;
        if !used.contains(&start) && !used.contains(&end) {
            below.push(filter);
            continue;
        }
        for i in used {
            let column = match i {
                i if i == start => Group::Start,
                i if i == end => Group::End,
                i => Group::Key(Expr::Column(Column::from(schema.qualified_field(i)))),
            };
            if group.contains(&column) {
                continue;
            }
            if matches!(column, Group::Key(_)) {
                return Ok(None);
            }
            // The other bound of the same window: grouping by it too changes nothing.
            group.push(column);
        }
        lifted.push(filter);
    }
    let above = lifted.into_iter().map(|filter| by_position(filter, &group, schema)).collect::<Result<_, _>>()?;

    // From the window node's columns to those of its input.
    let input = windows.input.schema();
    let mut passed: Vec<Expr> =
        windows.passed().into_iter().map(|i| Expr::Column(Column::from(input.qualified_field(i)))).collect();
    passed.extend([WINDOW_START, WINDOW_END].map(|name| Expr::Column(Column::new_unqualified(name))));
    substitute(&mut calls, schema, &passed)?;
    substitute(&mut below, schema, &passed)?;
    let group = group
        .into_iter()
        .map(|column| match column {
            Group::Key(expr) => {
                let mut one = vec![expr];
                substitute(&mut one, schema, &passed)?;
                Ok(Group::Key(one.remove(0)))
            }
            bound => Ok(bound),
        })
        .collect::<Result<_, PlanError>>()?;
    Ok(Some(Windowed { windows, group, calls, below, above }))
}

fn columns_used(expr: &Expr, schema: &DFSchema) -> Result<BTreeSet<usize>, PlanError> {
    expr.column_refs().into_iter().map(|column| index_of(schema, column)).collect()
}

/// An expression over window bounds and group keys as one over the group's columns by position.
fn by_position(expr: Expr, group: &[Group], schema: &DFSchema) -> Result<Expr, PlanError> {
    let bounds = schema.fields().len() - 2;
    let replaced = expr.transform_up(|expr| {
        let Expr::Column(column) = &expr else { return Ok(Transformed::no(expr)) };
        let i = schema.index_of_column(column)?;
        let wanted = match i {
            i if i == bounds => Group::Start,
            i if i == bounds + 1 => Group::End,
            i => Group::Key(Expr::Column(Column::from(schema.qualified_field(i)))),
        };
        let at = group.iter().position(|column| *column == wanted);
        let at =
            at.ok_or_else(|| PlanError::invalid(format!("the filter on {column} is not on the group's columns")))?;
        Ok(Transformed::yes(Expr::Column(position_column(at))))
    })?;
    Ok(replaced.data)
}

fn position_column(i: usize) -> Column {
    Column::new_unqualified(format!("#{i}"))
}

/// The columns of a node under names that are unique by position.
fn positional(schema: &Schema) -> DFSchema {
    let field = |(i, field): (usize, &Arc<Field>)| field.as_ref().clone().with_name(position_column(i).name);
    let fields: Vec<Field> = schema.fields().iter().enumerate().map(field).collect();
    DFSchema::try_from(Schema::new(fields)).expect("names made of positions are unique")
}
