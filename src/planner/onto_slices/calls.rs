//! Aggregate calls over aggregate calls.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Literal, case, cast};
use datafusion::physical_expr::utils::conjunction;

use super::grouped::{Expr, Grouped, column_named};
use crate::planner::stream_plan::{Call, Function};

/// Aggregates for which the value of a union is the same aggregate of the parts' values, among those whose states are not ours.
const MERGEABLE: [&str; 5] = ["bool_and", "bool_or", "bit_and", "bit_or", "bit_xor"];

/// The calls of a merged aggregation while they are put together.
pub(super) struct Merging<'a> {
    below: &'a Grouped,
    /// Columns before the calls.
    group: usize,
    pub calls: Vec<Call>,
}

impl<'a> Merging<'a> {
    pub fn new(below: &'a Grouped, group: usize) -> Self {
        Merging { below, group, calls: Vec::new() }
    }

    /// The value of an outer call, over the merged aggregation's columns, which get the calls that it needs.
    pub fn call(&mut self, outer: &Call) -> Option<Expr> {
        if outer.distinct {
            return None;
        }
        let [argument] = outer.args.as_slice() else { return None };
        let argument = self.below.over_groups(argument)?;
        let (argument, casts) = without_exact_casts(&argument, self.below.schema());
        let inner = self.below.call_of(&argument)?;
        if inner.distinct {
            return None;
        }
        match (&outer.function, &inner.function) {
            (Function::Sum, Function::Count | Function::Sum) => {}
            (Function::Min, Function::Min) | (Function::Max, Function::Max) => {}
            (Function::DataFusion(outer), Function::DataFusion(inner)) => {
                let name = inner.fun().name();
                if casts || outer.fun().name() != name || !MERGEABLE.contains(&name) {
                    return None;
                }
            }
            _ => return None,
        }
        let condition = match &outer.filter {
            Some(filter) => Some(self.below.over_base(&self.below.over_groups(filter)?)?),
            None => None,
        };
        let filter = match (&inner.filter, &condition) {
            (Some(inner), Some(outer)) => Some(conjunction([Arc::clone(inner), Arc::clone(outer)])),
            (inner, outer) => inner.clone().or_else(|| outer.clone()),
        };
        let is_count = matches!(inner.function, Function::Count);
        let (value, value_type) = self.add(Call { filter, ..inner.clone() });
        // Of no groups the sum of their counts is NULL, where the count of their rows is zero.
        let value = match condition {
            Some(condition) if is_count => {
                let rows = Call { args: Vec::new(), filter: Some(condition), ..inner.clone() };
                let (rows, _) = self.add(rows);
                let none: Expr = Arc::new(Literal::new(ScalarValue::Int64(Some(0))));
                let there: Expr = Arc::new(BinaryExpr::new(rows, Operator::Gt, none));
                case(None, vec![(there, value)], None).ok()?
            }
            _ => value,
        };
        let wanted = outer.output.data_type();
        if &value_type == wanted {
            return Some(value);
        }
        Some(Arc::new(CastExpr::new(value, wanted.clone(), None)))
    }

    /// The column and type of a call, which may be there already.
    fn add(&mut self, call: Call) -> (Expr, DataType) {
        let at = self.calls.iter().position(|known| is_same(known, &call)).unwrap_or_else(|| {
            self.calls.push(call);
            self.calls.len() - 1
        });
        let output = &self.calls[at].output;
        (column_named(output.name(), self.group + at), output.data_type().clone())
    }
}

fn is_same(a: &Call, b: &Call) -> bool {
    let function = match (&a.function, &b.function) {
        (Function::DataFusion(a), Function::DataFusion(b)) => a.fun() == b.fun() && a.order_bys() == b.order_bys(),
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    };
    function && a.args == b.args && a.filter == b.filter && a.distinct == b.distinct
}

/// What is cast, where the casts keep the value of a number as long as it fits; and whether there are any.
fn without_exact_casts(expr: &Expr, schema: &Schema) -> (Expr, bool) {
    let mut at = Arc::clone(expr);
    let mut any = false;
    while let Some(cast) = at.downcast_ref::<CastExpr>() {
        let Ok(from) = cast.expr().data_type(schema) else { break };
        if !keeps_value(&from, cast.cast_type()) {
            break;
        }
        any = true;
        at = Arc::clone(cast.expr());
    }
    (at, any)
}

fn keeps_value(from: &DataType, to: &DataType) -> bool {
    use DataType::{Decimal128, Float32, Float64};
    match (from, to) {
        (from, to) if from == to => true,
        (from, Decimal128(_, scale)) if from.is_integer() => *scale >= 0,
        (Decimal128(_, from), Decimal128(_, to)) => to >= from,
        (Decimal128(_, 0), to) => to.is_integer(),
        (Float32, Float64) => true,
        (from, to) => from.is_integer() && to.is_integer(),
    }
}

/// Casts of whole numbers to a decimal and back are left out.
pub(super) fn without_round_trips(expr: &Expr, schema: &Schema) -> Result<Expr> {
    let simpler = Arc::clone(expr).transform_up(|expr| {
        let Some(outer) = expr.downcast_ref::<CastExpr>() else { return Ok(Transformed::no(expr)) };
        let Some(inner) = outer.expr().downcast_ref::<CastExpr>() else { return Ok(Transformed::no(expr)) };
        let DataType::Decimal128(precision, scale @ 0..) = *inner.cast_type() else { return Ok(Transformed::no(expr)) };
        let from = inner.expr().data_type(schema)?;
        // 19 digits hold every BIGINT.
        let holds_all = from.is_signed_integer() && i32::from(precision) - i32::from(scale) >= 19;
        if holds_all && outer.cast_type().is_integer() {
            return Ok(Transformed::yes(cast(Arc::clone(inner.expr()), schema, outer.cast_type().clone())?));
        }
        Ok(Transformed::no(expr))
    })?;
    Ok(simpler.data)
}
