//! One of DataFusion's optimizer rules, kept from where it goes wrong.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
use datafusion::optimizer::{ApplyOrder, Optimizer, OptimizerConfig, OptimizerRule};

type Rule = Arc<dyn OptimizerRule + Send + Sync>;

/// Counts the groups of `x` for `count(DISTINCT x)`, and makes of a `sum` beside it a sum of sums. That of decimals has more digits
/// than what stands above the aggregation was planned for: there the rule is left out.
#[derive(Debug)]
struct SingleDistinct(Rule);

/// Those of every plan that we make.
pub fn optimizer_rules() -> Vec<Rule> {
    let ours = |rule: Rule| match rule.name() {
        "single_distinct_aggregation_to_group_by" => Arc::new(SingleDistinct(rule)) as Rule,
        _ => rule,
    };
    Optimizer::new().rules.into_iter().map(ours).collect()
}

impl OptimizerRule for SingleDistinct {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match sums_decimals(&plan)? {
            true => Ok(Transformed::no(plan)),
            false => self.0.rewrite(plan, config),
        }
    }
}

fn sums_decimals(plan: &LogicalPlan) -> Result<bool> {
    let LogicalPlan::Aggregate(aggregate) = plan else { return Ok(false) };
    for expr in &aggregate.aggr_expr {
        if let Expr::AggregateFunction(call) = expr
            && call.func.name() == "sum"
            && matches!(expr.get_type(aggregate.input.schema())?, DataType::Decimal128(..) | DataType::Decimal256(..))
        {
            return Ok(true);
        }
    }
    Ok(false)
}
