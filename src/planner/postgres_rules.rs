//! Where DataFusion's arithmetic is not Postgres': rules that run around its type coercion, for views and one-shot queries
//! alike, so that both obey one law.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::functions::math::expr_fn::round;
use datafusion::logical_expr::expr::{AggregateFunction, Cast, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, WindowFunctionDefinition, lit};
use datafusion::optimizer::AnalyzerRule;
use datafusion::optimizer::analyzer::Analyzer;
use datafusion::optimizer::analyzer::resolve_grouping_function::ResolveGroupingFunction;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercion;

use super::functions::CheckedArithmetic;

/// The analyzer of every plan that we make.
pub fn analyzer() -> Analyzer {
    Analyzer::with_rules(vec![
        Arc::new(ResolveGroupingFunction::new()),
        Arc::new(ExactAggregates),
        Arc::new(TypeCoercion::new()),
        Arc::new(ExactArithmetic),
    ])
}

/// `sum` of BIGINT is NUMERIC, and so is `avg` of any integer: their arguments become decimals. It runs before type
/// coercion, which would make a float of the argument of `avg`.
#[derive(Debug)]
struct ExactAggregates;

/// `+`, `-` and `*` of integers fail when they overflow, and a number is rounded on its way to an integer. It runs after
/// type coercion, when both sides have one type.
#[derive(Debug)]
struct ExactArithmetic;

impl AnalyzerRule for ExactAggregates {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        rewrite(plan, exact_aggregate)
    }

    fn name(&self) -> &str {
        "exact_aggregates"
    }
}

impl AnalyzerRule for ExactArithmetic {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        rewrite(plan, exact_arithmetic)
    }

    fn name(&self) -> &str {
        "exact_arithmetic"
    }
}

/// Rewrites every expression bottom up, keeping the columns' names, and gives each node its new types.
fn rewrite(plan: LogicalPlan, rule: fn(Expr, &DFSchema) -> Result<Transformed<Expr>>) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|plan| {
        // The schema of VALUES and of scans is their own.
        if plan.inputs().is_empty() && !matches!(plan, LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_)) {
            return Ok(Transformed::no(plan));
        }
        let schema = merge_schema(&plan.inputs());
        let saver = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = saver.save(&expr);
            Ok(expr.transform_up(|expr| rule(expr, &schema))?.update_data(|expr| name.restore(expr)))
        })?
        // The inputs may have new types even where no expression changed.
        .map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(rewritten.data)
}

fn exact_aggregate(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::AggregateFunction(AggregateFunction { func, mut params }) => {
            let changed = cast_argument(func.name(), &mut params.args, schema)?;
            Ok(Transformed::new_transformed(Expr::AggregateFunction(AggregateFunction { func, params }), changed))
        }
        Expr::WindowFunction(mut call) => {
            let WindowFunction { fun, params } = call.as_mut();
            let changed = match fun {
                WindowFunctionDefinition::AggregateUDF(func) => cast_argument(func.name(), &mut params.args, schema)?,
                WindowFunctionDefinition::WindowUDF(_) => false,
            };
            Ok(Transformed::new_transformed(Expr::WindowFunction(call), changed))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn cast_argument(function: &str, args: &mut [Expr], schema: &DFSchema) -> Result<bool> {
    let [argument] = args else { return Ok(false) };
    if !matches!(function, "sum" | "avg") {
        return Ok(false);
    }
    // A column of an outer query has no type here.
    let Ok(data_type) = argument.get_type(schema) else { return Ok(false) };
    let target = match (function, data_type) {
        ("sum", DataType::Int64) => DataType::Decimal128(19, 0),
        ("sum", DataType::UInt64) => DataType::Decimal128(20, 0),
        // DataFusion adds four digits behind the point to those of the argument: 16 in all, as Postgres shows.
        ("avg", integer) if integer.is_integer() => DataType::Decimal128(31, 12),
        _ => return Ok(false),
    };
    let inner = std::mem::take(argument);
    *argument = Expr::Cast(Cast::new(Box::new(inner), target));
    Ok(true)
}

fn exact_arithmetic(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply)
                && is_integer(&left, schema)
                && is_integer(&right, schema) =>
        {
            match CheckedArithmetic::call(op, (*left).clone(), (*right).clone()) {
                Some(checked) => Ok(Transformed::yes(checked)),
                None => Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
            }
        }
        Expr::Negative(inner) if is_integer(&inner, schema) => {
            let data_type = inner.get_type(schema)?;
            let zero = lit(0i64).cast_to(&data_type, schema)?;
            match CheckedArithmetic::call(Operator::Minus, zero, (*inner).clone()) {
                Some(checked) => Ok(Transformed::yes(checked)),
                None => Ok(Transformed::no(Expr::Negative(inner))),
            }
        }
        Expr::Cast(Cast { expr, field }) if field.data_type().is_integer() && rounds(&expr, schema) => {
            Ok(Transformed::yes(Expr::Cast(Cast { expr: Box::new(round(vec![*expr])), field })))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn is_integer(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema).is_ok_and(|data_type| data_type.is_integer())
}

/// True of a number with digits behind the point that has not been rounded yet.
fn rounds(expr: &Expr, schema: &DFSchema) -> bool {
    if matches!(expr, Expr::ScalarFunction(call) if call.name() == "round") {
        return false;
    }
    match expr.get_type(schema) {
        Ok(DataType::Float32 | DataType::Float64) => true,
        Ok(DataType::Decimal128(_, scale)) => scale > 0,
        _ => false,
    }
}
