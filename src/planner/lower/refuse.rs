//! What cannot be kept incrementally, by name, and what works instead.

use datafusion::common::JoinType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan, Volatility};

use super::ranked;
use crate::planner::error::{PlanError, Refusal};
use crate::planner::functions::constant_of_a_read;

/// Looks at every node and expression of an analyzed plan, before any rule rewrites what the user wrote.
pub(super) fn refuse(plan: &LogicalPlan) -> Result<(), PlanError> {
    plan.apply(|plan| {
        match plan {
            LogicalPlan::Join(_) | LogicalPlan::RecursiveQuery(_) | LogicalPlan::Unnest(_) | LogicalPlan::Values(_) => {
                return Err(node(plan).into());
            }
            LogicalPlan::Distinct(Distinct::On(on)) if on.sort_expr.is_none() => return Err(node(plan).into()),
            _ => {}
        }
        // A condition on a clock is looked at when it is lowered.
        let is_filter = matches!(plan, LogicalPlan::Filter(_) | LogicalPlan::TableScan(_));
        plan.apply_expressions(|expr| {
            expr.apply(|expr| match expression(expr, is_filter) {
                Some(refusal) => Err(refusal.into()),
                None => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok(())
}

/// The refusal of a node that has no counterpart in a stream plan.
pub(super) fn node(plan: &LogicalPlan) -> PlanError {
    let (what, hint) = match plan {
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::LeftAnti | JoinType::RightAnti => {
                ("EXCEPT cannot be kept in a view yet", "Use it in the SELECT on views.")
            }
            JoinType::LeftSemi | JoinType::RightSemi => {
                ("INTERSECT cannot be kept in a view yet", "Use it in the SELECT on views.")
            }
            _ => ("joins cannot be kept in a view yet", "Make a view of each side and join them in the SELECT."),
        },
        LogicalPlan::Window(window) => return ranked::unbounded(window),
        LogicalPlan::Distinct(_) => (
            "DISTINCT ON without ORDER BY cannot be kept in a view",
            "Add ORDER BY behind it, beginning with the columns of DISTINCT ON: it decides which row of each is the first.",
        ),
        LogicalPlan::RecursiveQuery(_) => ("WITH RECURSIVE cannot be kept in a view", "Use it in the SELECT on views."),
        LogicalPlan::Unnest(_) => {
            ("unnest cannot be kept in a view yet", "Unnest in the SELECT on the view, or before the data is written.")
        }
        LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => (
            "a materialized view must read a source, a table or a view in each of its parts",
            "Put constants into a table, or use CREATE VIEW.",
        ),
        LogicalPlan::Subquery(_) => ("LATERAL cannot be kept in a view yet", "Use it in the SELECT on views."),
        other => {
            let message = format!("{} cannot be kept in a view", other.display());
            return PlanError::unsupported(message, "Use it in the SELECT on views.");
        }
    };
    PlanError::unsupported(what, hint)
}

fn expression(expr: &Expr, is_filter: bool) -> Option<PlanError> {
    let (what, hint) = match expr {
        Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) => (
            "subqueries in expressions cannot be kept in a view yet".to_string(),
            "Make a view of the subquery and use both in the SELECT.",
        ),
        Expr::OuterReferenceColumn(..) => {
            ("correlated subqueries cannot be kept in a view yet".to_string(), "Use them in the SELECT on views.")
        }
        Expr::GroupingSet(_) => (
            "GROUPING SETS, ROLLUP and CUBE cannot be kept in a view yet".to_string(),
            "Make a view for each set of keys, or UNION ALL of them.",
        ),
        Expr::Unnest(_) => (
            "unnest cannot be kept in a view yet".to_string(),
            "Unnest in the SELECT on the view, or before the data is written.",
        ),
        Expr::Placeholder(Placeholder { id, .. }) => {
            return Some(PlanError::UndefinedParameter(
                Refusal::new(format!("there is no parameter {id}")).hint("A definition cannot have parameters."),
            ));
        }
        Expr::ScalarFunction(call) => match constant_of_a_read(&call.func) {
            Some(_) if is_filter => return None,
            Some(name) => (
                format!("{name}() cannot be kept in a view but in WHERE and HAVING: its value changes with every tick"),
                "Filter by it, as in WHERE ts > now() - INTERVAL '1 hour', and compute with it in the SELECT on the view.",
            ),
            None if call.func.signature().volatility == Volatility::Volatile => (
                format!("the volatile function {}() cannot be kept in a view", call.func.name()),
                "Call it in the SELECT on the view, or write its value with the data.",
            ),
            None => return None,
        },
        _ => return None,
    };
    Some(PlanError::unsupported(what, hint))
}
