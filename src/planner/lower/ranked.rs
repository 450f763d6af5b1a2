//! Top-N: `ORDER BY ... LIMIT`, and `row_number() OVER (...)` with a bound on it.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::expr::{Sort, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{
    Between, BinaryExpr, Cast, Expr, FetchType, Filter, Limit, LogicalPlan, Operator, SkipType, TryCast, Window,
};

use super::substitute::substitute;
use super::{Lowering, column_index, physical_column};
use crate::planner::error::PlanError;
use crate::planner::stream_plan::{Emit, NodeId, Op, OrderBy};

const ROW_NUMBER_HINT: &str = "Bound it outside: SELECT ... FROM (SELECT *, row_number() OVER (PARTITION BY ... ORDER BY ...) AS rank FROM ...) WHERE \
     rank <= 10.";

/// (offset, limit) of a LIMIT.
pub(super) fn bounds_of(limit: &Limit) -> Result<(u64, u64), PlanError> {
    match (limit.get_skip_type()?, limit.get_fetch_type()?) {
        (SkipType::Literal(skip), FetchType::Literal(Some(fetch))) => Ok((skip as u64, fetch as u64)),
        (SkipType::Literal(_), FetchType::Literal(None)) => Err(PlanError::unsupported(
            "OFFSET without LIMIT cannot be kept in a view",
            "Add LIMIT, or put OFFSET into the SELECT on the view.",
        )),
        _ => Err(PlanError::unsupported(
            "LIMIT and OFFSET of a view must be constants",
            "Write numbers, or put LIMIT into the SELECT on the view.",
        )),
    }
}

/// A filter over a window function, with what stands between the two.
pub(super) struct Ranked<'a> {
    window: &'a Window,
    /// Over the window node's output.
    conjuncts: Vec<Expr>,
    /// Projections and aliases from the top down: the columns they put out, as expressions over what is below.
    between: Vec<(&'a DFSchema, Vec<Expr>)>,
}

/// The filter as one over a window function, if it is.
pub(super) fn over_window(filter: &Filter) -> Result<Option<Ranked<'_>>, PlanError> {
    let mut conjuncts = split_conjunction_owned(filter.predicate.clone());
    let mut between = Vec::new();
    let mut plan = filter.input.as_ref();
    loop {
        match plan {
            LogicalPlan::Window(window) => return Ok(Some(Ranked { window, conjuncts, between })),
            LogicalPlan::Projection(projection) => {
                substitute(&mut conjuncts, &projection.schema, &projection.expr)?;
                between.push((&projection.schema, projection.expr.clone()));
                plan = &projection.input;
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let columns: Vec<Expr> = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
                substitute(&mut conjuncts, &alias.schema, &columns)?;
                between.push((&alias.schema, columns));
                plan = &alias.input;
            }
            _ => return Ok(None),
        }
    }
}

/// Whether any of these expressions over a window node's output looks at what the window function computed.
fn uses_rank(window: &Window, exprs: &[Expr]) -> bool {
    let rank = window.schema.fields().len() - 1;
    let is_rank = |column: &&Column| window.schema.index_of_column(column).is_ok_and(|i| i == rank);
    exprs.iter().any(|expr| expr.column_refs().iter().any(is_rank))
}

impl Lowering {
    /// A filter over a window function: `row_number() OVER (...)` with a bound on it is a Top-N. `above` are expressions over
    /// the filter's output, those of a projection right above it or its columns, and the schema that they make: where
    /// neither they nor a filter look at the row number, it is not kept, and a change of rank is no change of a row.
    pub(super) fn ranked(
        &mut self,
        ranked: Ranked<'_>,
        mut above: Vec<Expr>,
        output: &DFSchema,
    ) -> Result<NodeId, PlanError> {
        let Ranked { window, conjuncts, between } = ranked;
        for (schema, exprs) in &between {
            substitute(&mut above, schema, exprs)?;
        }
        let params = row_number(window)?;
        if params.order_by.is_empty() {
            return Err(PlanError::unsupported(
                "row_number() without ORDER BY cannot be kept in a view",
                "Add ORDER BY inside OVER (...), so that it is decided which rows the view holds.",
            ));
        }
        let rank = window.schema.fields().len() - 1;
        let is_rank = |expr: &Expr| match unwrap_cast(expr) {
            Expr::Column(column) => window.schema.index_of_column(column).is_ok_and(|i| i == rank),
            _ => false,
        };
        let (mut least, mut most) = (1, u64::MAX);
        let mut rest = Vec::new();
        for conjunct in conjuncts {
            match bound(&conjunct, &is_rank) {
                Some((low, high)) => (least, most) = (least.max(low), most.min(high)),
                None => rest.push(conjunct),
            }
        }
        if most == u64::MAX {
            return Err(PlanError::unsupported(
                "row_number() without a constant upper bound cannot be kept in a view",
                ROW_NUMBER_HINT,
            ));
        }
        let (offset, limit) = (least - 1, most.saturating_sub(least - 1));
        let numbered = uses_rank(window, &above) || uses_rank(window, &rest);
        let input = self.lower(&window.input)?;
        let schema = window.input.schema();
        let node = self.top_n(input, &params.partition_by, &params.order_by, schema, offset, limit, numbered)?;
        let node = self.filter(node, rest, &window.schema)?;
        self.project(node, &above, &window.schema, output)
    }

    /// Rows `offset + 1 ..= offset + limit` of each partition; with `numbered` their numbers are a last column. The
    /// expressions are over `schema`, that of the input.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn top_n(
        &mut self,
        input: NodeId,
        partition_by: &[Expr],
        order_by: &[Sort],
        schema: &DFSchema,
        offset: u64,
        limit: u64,
        numbered: bool,
    ) -> Result<NodeId, PlanError> {
        let columns = Arc::clone(&self.nodes[input].schema);
        let width = columns.fields().len();
        let mut exprs: Vec<_> = (0..width).map(|i| physical_column(&columns, i)).collect();
        let mut fields: Vec<Field> = columns.fields().iter().map(|field| field.as_ref().clone()).collect();
        // What is no column yet becomes one for the while.
        let mut column = |expr: &Expr, this: &Self| -> Result<usize, PlanError> {
            let physical = this.physical(expr, schema)?;
            if let Some(i) = column_index(&physical) {
                return Ok(i);
            }
            fields.push(Field::new(format!("order {}", fields.len()), physical.data_type(schema.as_arrow())?, true));
            exprs.push(physical);
            Ok(fields.len() - 1)
        };
        let partition_by = partition_by.iter().map(|e| column(e, self)).collect::<Result<Vec<_>, _>>()?;
        let mut order = Vec::with_capacity(order_by.len());
        for Sort { expr, asc, nulls_first } in order_by {
            // A constant orders nothing.
            if !matches!(expr, Expr::Literal(..)) {
                order.push(OrderBy { column: column(expr, self)?, descending: !asc, nulls_first: *nulls_first });
            }
        }

        let helped = fields.len() > width;
        let input = self.project_physical(input, exprs, Arc::new(Schema::new(fields.clone())));
        if numbered {
            fields.push(Field::new("row_number", arrow::datatypes::DataType::UInt64, true));
        }
        // It must be known that a row is not displaced any more: by its window, or because time comes first in the order.
        let by_time = order.first().filter(|order| !order.descending).map(|order| order.column);
        let mut event_time = self.event_time[input].clone();
        if !partition_by.iter().any(|i| event_time.contains(i)) {
            event_time.retain(|i| by_time == Some(*i));
        }
        // Rows of a closed window come all at once, so nothing that was shown is ever displaced.
        let closed = self.emit == Emit::OnWindowClose && partition_by.iter().any(|i| event_time.contains(i));
        let numbers = fields.len();
        let op = Op::TopN { partition_by, order_by: order, offset, limit, row_number: numbered };
        let node = self.add(op, vec![input], Arc::new(Schema::new(fields)), closed, event_time);
        if !helped {
            return Ok(node);
        }
        let kept: Vec<usize> = (0..width).chain(numbered.then_some(numbers - 1)).collect();
        Ok(self.pick(node, &kept))
    }
}

/// The call of a window node that is nothing but one `row_number()`.
pub(super) fn row_number(window: &Window) -> Result<WindowFunctionParams, PlanError> {
    for expr in &window.window_expr {
        let Expr::WindowFunction(call) = expr.clone().unalias() else { continue };
        let WindowFunction { fun, params } = *call;
        if fun.name() != "row_number" {
            return Err(PlanError::unsupported(
                format!("the window function {}() OVER (...) cannot be kept in a view yet", fun.name()),
                "Of window functions row_number() with a bound on it can be kept; for sums and counts GROUP BY a window, and \
                 the rest belongs into the SELECT on the view.",
            ));
        }
        if let [_] = window.window_expr.as_slice() {
            return Ok(params);
        }
    }
    Err(PlanError::unsupported(
        "several row_number() in one SELECT cannot be kept in a view",
        "Make a view for each of them.",
    ))
}

/// What a node over a window function that nothing bounds is refused with.
pub(super) fn unbounded(window: &Window) -> PlanError {
    match row_number(window) {
        Err(refusal) => refusal,
        Ok(_) => PlanError::unsupported(
            "row_number() without a constant upper bound cannot be kept in a view",
            ROW_NUMBER_HINT,
        ),
    }
}

/// The row numbers that a comparison lets through: (least, most).
fn bound(expr: &Expr, is_rank: &dyn Fn(&Expr) -> bool) -> Option<(u64, u64)> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (op, number) = if is_rank(left) {
                (*op, number(right)?)
            } else if is_rank(right) {
                (op.swap()?, number(left)?)
            } else {
                return None;
            };
            let at_least_one = |n: i128| u64::try_from(n.max(1)).unwrap_or(u64::MAX);
            let most = |n: i128| u64::try_from(n.max(0)).unwrap_or(u64::MAX - 1).min(u64::MAX - 1);
            Some(match op {
                Operator::LtEq => (1, most(number)),
                Operator::Lt => (1, most(number - 1)),
                Operator::GtEq => (at_least_one(number), u64::MAX),
                Operator::Gt => (at_least_one(number + 1), u64::MAX),
                Operator::Eq if number < 1 => (1, 0),
                Operator::Eq => (at_least_one(number), most(number)),
                _ => return None,
            })
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_rank(expr) => {
            let (low, high) = (number(low)?, number(high)?);
            Some((u64::try_from(low.max(1)).ok()?, u64::try_from(high.max(0)).ok()?))
        }
        _ => None,
    }
}

fn number(expr: &Expr) -> Option<i128> {
    match unwrap_cast(expr) {
        Expr::Literal(value, _) => match value {
            ScalarValue::Int8(n) => n.map(i128::from),
            ScalarValue::Int16(n) => n.map(i128::from),
            ScalarValue::Int32(n) => n.map(i128::from),
            ScalarValue::Int64(n) => n.map(i128::from),
            ScalarValue::UInt8(n) => n.map(i128::from),
            ScalarValue::UInt16(n) => n.map(i128::from),
            ScalarValue::UInt32(n) => n.map(i128::from),
            ScalarValue::UInt64(n) => n.map(i128::from),
            ScalarValue::Decimal128(n, _, 0) => *n,
            _ => None,
        },
        _ => None,
    }
}

fn unwrap_cast(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if field.data_type().is_integer() || field.data_type().is_decimal() =>
        {
            unwrap_cast(expr)
        }
        other => other,
    }
}
