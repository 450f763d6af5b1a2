//! Expressions over a node's output as expressions over its input.

use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::Expr;

use crate::planner::error::PlanError;

/// Puts an expression in the place of each column: `with` has one for each column of `schema`.
pub(super) fn substitute(exprs: &mut [Expr], schema: &DFSchema, with: &[Expr]) -> Result<(), PlanError> {
    for expr in exprs {
        let taken = std::mem::take(expr);
        let replaced = taken.transform_up(|expr| match &expr {
            Expr::Column(column) => {
                let i = schema.index_of_column(column)?;
                Ok(Transformed::yes(with[i].clone().unalias_nested().data))
            }
            _ => Ok(Transformed::no(expr)),
        })?;
        *expr = replaced.data;
    }
    Ok(())
}
