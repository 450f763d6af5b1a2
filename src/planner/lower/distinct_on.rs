//! `SELECT DISTINCT ON (a) ... ORDER BY a, b`: the first row of each `a`, which is a row number bounded by one.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Distinct, DistinctOn, Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, lit};

/// DataFusion would make an aggregation of it whose value depends on the order of arrival where the order leaves ties.
pub(super) fn rewrite(plan: LogicalPlan) -> Result<LogicalPlan> {
    Ok(plan
        .transform_up(|plan| match plan {
            LogicalPlan::Distinct(Distinct::On(on)) => Ok(Transformed::yes(first_of_each(on)?)),
            other => Ok(Transformed::no(other)),
        })?
        .data)
}

fn first_of_each(on: DistinctOn) -> Result<LogicalPlan> {
    let DistinctOn { on_expr, select_expr, sort_expr, input, schema } = on;
    let order = sort_expr.unwrap_or_default();
    let rank = row_number().partition_by(on_expr).order_by(order).build()?;
    let numbered = LogicalPlanBuilder::from(Arc::unwrap_or_clone(input)).window([rank])?.build()?;
    let rank = Column::from(numbered.schema().qualified_field(numbered.schema().fields().len() - 1));
    let columns: Vec<Expr> = select_expr
        .into_iter()
        .zip(schema.iter())
        .map(|(expr, (relation, field))| expr.alias_qualified(relation.cloned(), field.name()))
        .collect();
    LogicalPlanBuilder::from(numbered).filter(Expr::Column(rank).lt_eq(lit(1u64)))?.project(columns)?.build()
}
