//! What the conditions of a query say of the windows and keys that it needs. What is pushed down narrows what is read; the query
//! still applies it, so nothing depends on it being complete.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;

use super::read::{batch_of, external};
use crate::exec::ExecError;
use crate::exec::expr::Evaluator;
use crate::exec::flow::substitute;
use crate::exec::id_set::IdSet;
use crate::exec::keys::{CHUNK, KeySnapshot};
use crate::exec::slice_store::StoreLayout;
use crate::exec::window_view::{Group, WindowView, Within};

pub(super) type Physical = Arc<dyn PhysicalExpr>;

/// Leaves of `within` what a filter can be true for; false if it does not speak of a window's start or end.
pub(super) fn narrow(
    within: &mut Within,
    filter: &Expr,
    schema: &SchemaRef,
    group_of: &dyn Fn(usize) -> Option<Group>,
) -> bool {
    if let Expr::Between(between) = filter
        && !between.negated
    {
        let side =
            |op, bound: &Expr| Expr::BinaryExpr(BinaryExpr::new(between.expr.clone(), op, Box::new(bound.clone())));
        let (low, high) = (side(Operator::GtEq, &between.low), side(Operator::LtEq, &between.high));
        return narrow(within, &low, schema, group_of) & narrow(within, &high, schema, group_of);
    }
    let Some((column, range)) = moments_where(filter) else { return false };
    let bounds = match schema.index_of(&column).ok().and_then(group_of) {
        Some(Group::WindowStart) => &mut within.starts,
        Some(Group::WindowEnd) => &mut within.ends,
        _ => return false,
    };
    *bounds = bounds.start.max(range.start)..bounds.end.min(range.end);
    true
}

/// The column that an expression is, if it is one as it stands.
pub(super) fn plain_column(expr: &Physical) -> Option<usize> {
    (expr.as_ref() as &dyn Any).downcast_ref::<Column>().map(Column::index)
}

/// The column that a filter compares with a moment, and the moments in microseconds for which it is true.
pub(super) fn moments_where(filter: &Expr) -> Option<(String, Range<i64>)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let (column, op, literal) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
        (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
        _ => return None,
    };
    let us = micros_of(literal)?;
    let range = match op {
        Operator::Eq => us..us.saturating_add(1),
        Operator::Lt => i64::MIN..us,
        Operator::LtEq => i64::MIN..us.saturating_add(1),
        Operator::Gt => us.saturating_add(1)..i64::MAX,
        Operator::GtEq => us..i64::MAX,
        _ => return None,
    };
    Some((column.name.clone(), range))
}

/// The filter over key columns alone, as one over the store's keys, if it is one.
pub(super) fn key_filter(
    state: &dyn Session,
    filter: &Expr,
    schema: &SchemaRef,
    group_of: &dyn Fn(usize) -> Option<Group>,
) -> Result<Option<Physical>> {
    let mut over_keys = true;
    filter.apply(|e| {
        match e {
            Expr::Column(column) => {
                let group = schema.index_of(&column.name).ok().and_then(group_of);
                over_keys &= matches!(group, Some(Group::Key(_)));
            }
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                over_keys = false;
            }
            Expr::OuterReferenceColumn(..) | Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                over_keys = false;
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if !over_keys || filter.column_refs().is_empty() {
        return Ok(None);
    }
    let bare = unqualified(filter.clone())?;
    let named = DFSchema::try_from(schema.as_ref().clone())?;
    let physical = state.create_physical_expr(bare, &named)?;
    let keys: Vec<Physical> = (0..schema.fields().len())
        .map(|i| {
            let key = match group_of(i) {
                Some(Group::Key(key)) => key,
                _ => usize::MAX,
            };
            Arc::new(Column::new(schema.field(i).name(), key)) as Physical
        })
        .collect();
    Ok(Some(substitute(&physical, &keys).map_err(external)?))
}

/// Columns by their bare names.
fn unqualified(expr: Expr) -> Result<Expr> {
    let stripped = expr.transform(|e| {
        Ok(match e {
            Expr::Column(column) => {
                Transformed::yes(Expr::Column(datafusion::common::Column::new_unqualified(column.name)))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(stripped.data)
}

/// A condition on an aggregation's columns as one on the store's keys, if it looks at nothing else.
pub(super) fn over_keys(filter: &Physical, view: &WindowView) -> Option<Physical> {
    let columns = collect_columns(filter);
    let key_of = |i: usize| match view.group.get(i) {
        Some(Group::Key(key)) => Some(*key),
        _ => None,
    };
    if columns.is_empty() || columns.iter().any(|column| key_of(column.index()).is_none()) {
        return None;
    }
    let keys: Vec<Physical> = (0..view.schema.fields().len())
        .map(|i| Arc::new(Column::new(view.schema.field(i).name(), key_of(i).unwrap_or(usize::MAX))) as Physical)
        .collect();
    substitute(filter, &keys).ok()
}

fn micros_of(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampMicrosecond(us, _) => *us,
        // Finer than a microsecond: only where nothing is cut off.
        ScalarValue::TimestampNanosecond(Some(ns), _) if ns % 1000 == 0 => Some(ns / 1000),
        ScalarValue::TimestampMillisecond(Some(ms), _) => ms.checked_mul(1_000),
        ScalarValue::TimestampSecond(Some(s), _) => s.checked_mul(1_000_000),
        _ => None,
    }
}

/// Ids of the keys for which every filter is true; `None` without filters.
pub(super) fn keys_where(
    layout: &StoreLayout,
    keys: &KeySnapshot,
    filters: &[Physical],
) -> Result<Option<Arc<IdSet>>, ExecError> {
    if filters.is_empty() {
        return Ok(None);
    }
    let mut evaluators: Vec<Evaluator> = filters.iter().map(|f| Evaluator::new(f.clone())).collect();
    let schema = Arc::new(Schema::new(layout.keys.to_vec()));
    let mut ids = IdSet::new(keys.len);
    for (i, chunk) in keys.chunks.iter().enumerate() {
        let rows = (keys.len - i * CHUNK).min(CHUNK);
        let batch = batch_of(&schema, chunk.to_vec(), rows)?;
        let mut mask = vec![true; rows];
        for evaluator in &mut evaluators {
            let passed = evaluator.evaluate_predicate(&batch)?;
            mask.iter_mut().enumerate().for_each(|(row, keep)| *keep &= is_true(&passed, row));
        }
        mask.iter().enumerate().filter(|(_, keep)| **keep).for_each(|(row, _)| ids.insert((i * CHUNK + row) as u32));
    }
    ids.seal();
    Ok(Some(Arc::new(ids)))
}

fn is_true(mask: &BooleanArray, row: usize) -> bool {
    mask.is_valid(row) && mask.value(row)
}
